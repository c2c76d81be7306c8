"""What the server tells, as frozen records. Members that it adds later are ignored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from stockade.sdk.errors import ProtocolError

__all__ = [
    "ApiKey",
    "Executor",
    "FileEntry",
    "Finished",
    "Network",
    "NewApiKey",
    "Port",
    "PortAddress",
    "Sandbox",
    "SandboxFile",
    "Upload",
    "Usage",
]


@dataclass(frozen=True, kw_only=True)
class Port:
    """A port that a sandbox shall expose."""

    container: int
    """Port inside, 1 to 65535."""
    protocol: str = "tcp"
    """`tcp` or `udp`."""


@dataclass(frozen=True, kw_only=True)
class SandboxFile:
    """A file that is put into the image before the sandbox starts."""

    path: str
    content: bytes
    mode: int = 0o644
    """Permission bits."""


@dataclass(frozen=True, kw_only=True)
class PortAddress:
    """Where a port of a sandbox is reached."""

    container: int
    host: int
    """Port of the server's host."""
    url: str
    protocol: str = "tcp"


@dataclass(frozen=True, kw_only=True)
class Network:
    """The exposed ports of a sandbox."""

    mode: str
    host: str = ""
    ports: Mapping[int, PortAddress] = field(default_factory=dict)
    """By the port inside."""


@dataclass(frozen=True, kw_only=True)
class Executor:
    """How the executor API reaches a sandbox."""

    url: str
    """Base URL, for the API's own clients."""
    secret: str | None = field(default=None, repr=False)
    """What opens the sandbox there; only the answer to its creation tells."""
    proxy_port: int | None = None
    """Port of the server's host that leads to whichever port is bound; `None` where the network is not `exposed`."""


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What is known of a sandbox (the wire calls it a session)."""

    id: str
    status: str
    """`pending`, `building`, `running`, `stopping`, `stopped`, `failed` or `killed`."""
    created_at: datetime
    image: str | None = None
    """`None` where the answer does not tell: that to a creation."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    """When it is killed, while it runs."""
    exit_code: int | None = None
    """Once it is known: 0 to 255, and 128 + n after signal n."""
    network: Network | None = None
    """`None` where no port is exposed."""
    executor: Executor | None = None
    """`None` where it was not asked for."""
    message: str | None = None
    """Why it failed."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The answer as it came, for what this record has no field for."""

    @property
    def has_ended(self) -> bool:
        return self.status in ("stopped", "failed", "killed")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A direct child of a directory."""

    name: str
    size: int
    """Bytes; 0 for a directory."""
    is_directory: bool
    mode: int
    """Permission bits."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that was written."""

    path: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that has ended, with all it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    notices: tuple[str, ...] = ()
    """What the server itself had to say: output that was dropped, a program that could not be started."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What was used today, and what may be."""

    tier: str
    sandboxes_today: int
    active_sandboxes: int
    daily_limit: int
    """-1 for none, as every limit here."""
    concurrent_limit: int
    remaining_today: int
    max_duration_s: int
    max_memory_mb: int


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key of the account, without its secret."""

    id: str
    preview: str
    is_active: bool
    created_at: datetime
    name: str | None = None
    description: str | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    daily_limit: int | None = None
    concurrent_limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class NewApiKey:
    """A key that was just made or rotated."""

    record: ApiKey
    secret: str = field(repr=False)
    """Shown this one time."""


def sandbox(document: Mapping[str, Any]) -> Sandbox:
    """A session object, of any answer."""
    with _Shape("session", document):
        return Sandbox(
            id=str(document["id"]),
            status=str(document["status"]),
            created_at=_time(document["createdAt"]),
            image=document.get("image"),
            started_at=_optional_time(document.get("startedAt")),
            ended_at=_optional_time(document.get("endedAt")),
            expires_at=_optional_time(document.get("expiresAt")),
            exit_code=document.get("exitCode"),
            network=_network(document["network"]) if document.get("network") else None,
            executor=_executor(document["executor"]) if document.get("executor") else None,
            message=document.get("message"),
            raw=document,
        )


def sandboxes(document: Mapping[str, Any]) -> list[Sandbox]:
    """The answer to a listing."""
    with _Shape("list of sessions", document):
        return [sandbox(one) for one in document["sessions"] or ()]


def _network(document: Mapping[str, Any]) -> Network:
    ports = {
        int(inside): PortAddress(
            container=int(inside),
            host=int(one.get("hostPort", 0)),
            url=str(one.get("url", "")),
            protocol="udp" if str(one.get("url", "")).startswith("udp:") else "tcp",
        )
        for inside, one in (document.get("ports") or {}).items()
    }
    return Network(mode=str(document["mode"]), host=str(document.get("host", "")), ports=ports)


def _executor(document: Mapping[str, Any]) -> Executor:
    port = document.get("proxyPort")
    return Executor(
        url=str(document["url"]), secret=document.get("secret"), proxy_port=None if port is None else int(port)
    )


def port_address(document: Mapping[str, Any]) -> PortAddress:
    """The answer to `url`."""
    with _Shape("port", document):
        return PortAddress(
            container=int(document["containerPort"]),
            host=int(document["hostPort"]),
            url=str(document["url"]),
            protocol=str(document.get("protocol", "tcp")),
        )


def upload(document: Mapping[str, Any]) -> Upload:
    with _Shape("upload", document):
        return Upload(path=str(document["path"]), size=int(document["size"]))


def entries(document: Mapping[str, Any]) -> list[FileEntry]:
    """A directory's listing."""
    with _Shape("listing", document):
        return [
            FileEntry(
                name=str(one["name"]), size=int(one["size"]), is_directory=bool(one["isDir"]), mode=int(one["mode"])
            )
            for one in document["entries"] or ()
        ]


def usage(document: Mapping[str, Any]) -> Usage:
    with _Shape("usage", document):
        return Usage(
            tier=str(document["tier"]),
            sandboxes_today=int(document["sessions_today"]),
            active_sandboxes=int(document["active_sessions"]),
            daily_limit=int(document["daily_limit"]),
            concurrent_limit=int(document["concurrent_limit"]),
            remaining_today=int(document["quota_remaining"]),
            max_duration_s=int(document["max_duration_seconds"]),
            max_memory_mb=int(document["max_memory_mb"]),
        )


def api_key(document: Mapping[str, Any]) -> ApiKey:
    with _Shape("key", document):
        return ApiKey(
            id=str(document["id"]),
            preview=str(document["key_preview"]),
            is_active=bool(document["is_active"]),
            created_at=_time(document["created_at"]),
            name=document.get("name"),
            description=document.get("description"),
            expires_at=_optional_time(document.get("expires_at")),
            last_used_at=_optional_time(document.get("last_used_at")),
            daily_limit=document.get("custom_daily_limit"),
            concurrent_limit=document.get("custom_concurrent_limit"),
        )


def new_api_key(document: Mapping[str, Any]) -> NewApiKey:
    with _Shape("key", document):
        return NewApiKey(record=api_key(document), secret=str(document["key"]))


def api_keys(document: Mapping[str, Any]) -> list[ApiKey]:
    with _Shape("list of keys", document):
        return [api_key(one) for one in document["keys"] or ()]


class _Shape:
    """Turns what goes wrong in reading an answer into a ProtocolError that names the thing."""

    def __init__(self, what: str, document: object) -> None:
        self.what = what
        self.document = document

    def __enter__(self) -> None:
        if not isinstance(self.document, Mapping):
            raise ProtocolError(f"the server's {self.what} is not a JSON object: no execbox server answers there")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError):
            raise ProtocolError(f"the server's {self.what} has no member {error}") from None
        if isinstance(error, (TypeError, ValueError, AttributeError)):
            raise ProtocolError(f"the server's {self.what} cannot be read: {error}") from None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
