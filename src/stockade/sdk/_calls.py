"""Every request of the protocol, as a value: what is sent, and how the answer is read.

Nothing here touches a network, so that one description serves every way of sending it.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from stockade.sdk import records
from stockade.sdk.errors import ProtocolError
from stockade.sdk.records import (
    ApiKey,
    FileEntry,
    NewApiKey,
    Port,
    PortAddress,
    Sandbox,
    SandboxFile,
    Upload,
    Usage,
)

__all__ = [
    "Call",
    "api_keys",
    "attach",
    "create",
    "create_api_key",
    "delete_api_key",
    "delete_file",
    "download",
    "entries",
    "exec_",
    "extend",
    "get",
    "kill",
    "list_",
    "logs",
    "make_directory",
    "port_url",
    "rotate_api_key",
    "stats",
    "stop",
    "upload",
    "usage",
]

CREATE_S = 660.0
"""A build may take ten minutes."""
STOP_S = 60.0

T = TypeVar("T")
Query = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request."""

    method: str
    path: str
    """With its query."""
    read: Callable[[bytes], T]
    """Makes the result of the body of a successful answer."""
    body: Mapping[str, Any] | None = None
    timeout_s: float | None = None
    """For the answer to begin; `None` for the client's own."""
    headers: Mapping[str, str] = field(default_factory=dict)


def create(
    *,
    image: str,
    command: Sequence[str] | None,
    env: Mapping[str, str] | None,
    workdir: str | None,
    cpu_millis: int | None,
    memory_mb: int | None,
    timeout_s: float | None,
    network: str | None,
    ports: Iterable[Port],
    setup: Iterable[str],
    files: Iterable[SandboxFile],
    allow_cidrs: Iterable[str] | None,
    allow_domains: Iterable[str] | None,
    executor: bool | str,
) -> Call[Sandbox]:
    resources = {
        "cpuMillis": cpu_millis,
        "memoryMB": memory_mb,
        "timeoutMs": None if timeout_s is None else round(timeout_s * 1000),
    }
    optional: dict[str, Any] = {
        "command": None if command is None else list(command),
        "env": dict(env or {}),
        "workDir": workdir,
        "resources": {name: value for name, value in resources.items() if value is not None},
        "network": network,
        "ports": [{"container": one.container, "protocol": one.protocol} for one in ports],
        "allowCidrs": None if allow_cidrs is None else list(allow_cidrs),
        "allowDomains": None if allow_domains is None else list(allow_domains),
        "setup": list(setup),
        "files": [
            {
                "path": one.path,
                "content": base64.b64encode(one.content).decode("ascii"),
                "encoding": "base64",
                "mode": one.mode,
            }
            for one in files
        ],
        "executor": {"secret": executor} if isinstance(executor, str) else executor,
    }
    # Empty is not the same as none for these; for the others it is what the server assumes.
    told = {"command", "allowCidrs", "allowDomains"}
    kept = {name: value for name, value in optional.items() if value or (name in told and value is not None)}
    return Call(
        method="POST",
        path="/v1/sessions",
        body={"image": image, **kept},
        read=_document(records.sandbox),
        timeout_s=CREATE_S,
    )


def get(sandbox_id: str) -> Call[Sandbox]:
    return Call(method="GET", path=_session(sandbox_id), read=_document(records.sandbox))


def list_(status: str | None) -> Call[list[Sandbox]]:
    query = [] if status is None else [("status", status)]
    return Call(method="GET", path="/v1/sessions" + _query(query), read=_document(records.sandboxes))


def stop(sandbox_id: str) -> Call[None]:
    return Call(method="POST", path=_session(sandbox_id, "/stop"), read=_nothing, timeout_s=STOP_S)


def kill(sandbox_id: str) -> Call[None]:
    return Call(method="DELETE", path=_session(sandbox_id), read=_nothing, timeout_s=STOP_S)


def extend(sandbox_id: str, lifetime_s: float) -> Call[Sandbox]:
    return Call(
        method="POST",
        path=_session(sandbox_id, "/extend"),
        body={"timeoutMs": round(lifetime_s * 1000)},
        read=_document(records.sandbox),
    )


def port_url(sandbox_id: str, port: int) -> Call[PortAddress]:
    return Call(
        method="GET",
        path=_session(sandbox_id, "/url", [("port", str(port))]),
        read=_document(records.port_address),
    )


def entries(sandbox_id: str, path: str) -> Call[list[FileEntry]]:
    return Call(
        method="GET",
        path=_session(sandbox_id, "/files", [("path", path), ("list", "true")]),
        read=_document(records.entries),
    )


def upload(sandbox_id: str, path: str, *, archive: bool, mode: int | None) -> Call[Upload | None]:
    """Of the request its body is missing: it is streamed."""
    query = [("path", path)]
    if archive:
        query.append(("archive", "tar"))
    elif mode is not None:
        query.append(("mode", str(mode)))
    return Call(
        method="POST",
        path=_session(sandbox_id, "/files", query),
        read=_nothing if archive else _document(records.upload),
        headers={"content-type": "application/x-tar" if archive else "application/octet-stream"},
    )


def download(sandbox_id: str, path: str, *, archive: bool, offset: int, length: int | None) -> Call[bytes]:
    """The answer's body is to be streamed."""
    query = [("path", path)]
    headers: dict[str, str] = {}
    if archive:
        query.append(("archive", "tar"))
    elif offset or length is not None:
        last = "" if length is None else str(offset + length - 1)
        headers["range"] = f"bytes={offset}-{last}"
    return Call(method="GET", path=_session(sandbox_id, "/files", query), read=bytes, headers=headers)


def make_directory(sandbox_id: str, path: str, *, mode: int | None) -> Call[None]:
    query = [("path", path), ("directory", "true")]
    if mode is not None:
        query.append(("mode", str(mode)))
    return Call(method="POST", path=_session(sandbox_id, "/files", query), read=_nothing)


def delete_file(sandbox_id: str, path: str, *, recursive: bool) -> Call[None]:
    query = [("path", path)] + ([("recursive", "true")] if recursive else [])
    return Call(method="DELETE", path=_session(sandbox_id, "/files", query), read=_nothing)


def logs(sandbox_id: str, *, stream: str, tail: int | None) -> Call[bytes]:
    """The answer's body is to be streamed."""
    query = [("stream", stream)] + ([] if tail is None else [("tail", str(tail))])
    return Call(method="GET", path=_session(sandbox_id, "/logs", query), read=bytes)


def stats(sandbox_id: str) -> Call[Mapping[str, Any]]:
    return Call(method="GET", path=_session(sandbox_id, "/stats"), read=_document(_same))


def usage() -> Call[Usage]:
    return Call(method="GET", path="/v1/account/usage", read=_document(records.usage))


def api_keys() -> Call[list[ApiKey]]:
    return Call(method="GET", path="/v1/account/keys", read=_document(records.api_keys))


def create_api_key(
    *,
    name: str,
    description: str | None,
    expires_at: datetime | None,
    daily_limit: int | None,
    concurrent_limit: int | None,
) -> Call[NewApiKey]:
    optional = {
        "description": description,
        "expires_at": None if expires_at is None else expires_at.isoformat(),
        "custom_daily_limit": daily_limit,
        "custom_concurrent_limit": concurrent_limit,
    }
    return Call(
        method="POST",
        path="/v1/account/keys",
        body={"name": name} | {member: value for member, value in optional.items() if value is not None},
        read=_document(records.new_api_key),
    )


def delete_api_key(key_id: str) -> Call[None]:
    return Call(method="DELETE", path=f"/v1/account/keys/{_segment(key_id)}", read=_nothing)


def rotate_api_key(key_id: str) -> Call[NewApiKey]:
    return Call(method="POST", path=f"/v1/account/keys/{_segment(key_id)}/rotate", read=_document(records.new_api_key))


def attach(sandbox_id: str, *, stdout_offset: int, stderr_offset: int) -> str:
    """The path of an attachment, that of a WebSocket."""
    query = [("protocol", "binary")]
    if stdout_offset or stderr_offset:
        query += [("stdoutOffset", str(stdout_offset)), ("stderrOffset", str(stderr_offset))]
    return _session(sandbox_id, "/attach", query)


def exec_(
    sandbox_id: str,
    command: str | Sequence[str],
    *,
    env: Mapping[str, str],
    workdir: str | None,
    user: str | None,
    terminal: tuple[int, int] | None,
) -> str:
    """The path of an execution, that of a WebSocket.

    Args:
        command: argv; a text is for `/bin/sh -c`.
        terminal: its rows and columns.
    """
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
    if len(argv) == 1 and any(one.isspace() for one in argv[0]):
        # The protocol takes a lone value with white space in it for a shell's command; this is a program's name.
        argv = ["/bin/sh", "-c", 'exec "$0"', argv[0]]
    query = [("cmd", one) for one in argv]
    if workdir is not None:
        query.append(("workdir", workdir))
    query += [("env", f"{name}={value}") for name, value in env.items()]
    if user is not None:
        query.append(("user", user))
    if terminal is not None:
        query += [("tty", "true"), ("rows", str(terminal[0])), ("cols", str(terminal[1]))]
    query.append(("protocol", "binary"))
    return _session(sandbox_id, "/exec", query)


def _session(sandbox_id: str, rest: str = "", query: Query | None = None) -> str:
    return f"/v1/sessions/{_segment(sandbox_id)}{rest}{_query(query or [])}"


def _segment(text: str) -> str:
    """*text* as one segment of a path: an id with a slash in it cannot become another request."""
    if text in (".", ".."):
        # Clients and proxies resolve these before the server sees them.
        return text.replace(".", "%2E")
    return quote(text, safe="")


def _query(pairs: Query) -> str:
    return f"?{urlencode(pairs)}" if pairs else ""


def _document(make: Callable[[Mapping[str, Any]], T]) -> Callable[[bytes], T]:
    def read(body: bytes) -> T:
        try:
            document = json.loads(body)
        except ValueError:
            raise ProtocolError("the server's answer is not JSON: no execbox server answers there") from None
        return make(document)

    return read


def _nothing(body: bytes) -> None:
    return None


def _same(document: Mapping[str, Any]) -> Mapping[str, Any]:
    return document
