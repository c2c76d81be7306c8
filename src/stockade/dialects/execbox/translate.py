"""Between the execbox wire and the engine: pure functions, tested as tables without a server."""

import base64
import binascii
import ipaddress
import posixpath
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stockade.dialects.execbox.settings import ExecboxSettings
from stockade.dialects.execbox.wire import BadBody, CreateBody, FileBody, ResourcesBody
from stockade.engine import LimitPolicy
from stockade.errors import Conflict, Invalid, NotFound
from stockade.model import (
    Actor,
    BuildFile,
    BuildSpec,
    EndedBy,
    FileInfo,
    FileKind,
    LimitOverrides,
    Limits,
    Network,
    NetworkMode,
    Port,
    Protocol,
    Sandbox,
    SandboxRequest,
    SandboxState,
    Usage,
)
from stockade.settings import parse_duration

__all__ = [
    "NAME",
    "STATUSES",
    "Measures",
    "created",
    "entry",
    "exposed",
    "is_session",
    "new_id",
    "session",
    "states_of",
    "stats",
    "status_of",
    "timestamp",
    "to_request",
    "url_of",
]

NAME = "execbox"
MIB = 1024 * 1024
KILLED = 137
"""128 + SIGKILL: what a process shows that was ended from outside."""

_ID = re.compile(r"sess_[0-9a-f]{12}")
_ENV_NAME = re.compile(r"[^=\x00]+")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}")
_FROM = re.compile(r"\s*from(\s|$)", re.IGNORECASE)

STATUSES: Mapping[str, frozenset[SandboxState]] = {
    "pending": frozenset({SandboxState.CREATING}),
    "building": frozenset(),
    "running": frozenset({SandboxState.RUNNING}),
    "stopping": frozenset({SandboxState.STOPPING}),
    "stopped": frozenset({SandboxState.ENDED}),
    "failed": frozenset({SandboxState.ENDED}),
    "killed": frozenset({SandboxState.ENDED}),
}
"""Every status of the protocol, and the states of a sandbox that can look like it."""


def new_id() -> str:
    """An id that nobody can guess."""
    return f"sess_{secrets.token_hex(6)}"


def is_session(text: str) -> bool:
    """Whether *text* can be a session's id at all: sandboxes of other dialects have others."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What a session is measured by: settings, the server's limits, what the key allows."""

    settings: ExecboxSettings
    limits: LimitPolicy
    actor: Actor
    cwd: str
    """The image's own working directory."""


def to_request(body: CreateBody, measures: Measures, *, id: str) -> SandboxRequest:
    """The sandbox that *body* asks for.

    Raises:
        Invalid: a member has a value that it cannot have; the text names it.
    """
    work_dir = _work_dir(body.work_dir)
    return SandboxRequest(
        id=id,
        image=body.image,
        # Clients that know no "not set" send null; an empty list asks for no main process at all.
        command=None if body.command is None else tuple(body.command),
        env=_env(body.env or {}),
        cwd=work_dir,
        limits=_limits(body.resources or ResourcesBody(), measures),
        network=_network(body),
        build=_build(body, measures.settings, work_dir or measures.cwd),
        dialect=NAME,
        backend=body.backend or "",
    )


def _work_dir(path: str | None) -> str | None:
    if path is not None and not path.startswith("/"):
        raise BadBody("workDir: must be an absolute path")
    return path


def _env(env: Mapping[str, str]) -> dict[str, str]:
    for name in env:
        if not _ENV_NAME.fullmatch(name):
            raise BadBody(f"env: {name[:100]!r} is no name of a variable")
    return dict(env)


def _limits(resources: ResourcesBody, measures: Measures) -> Limits:
    settings, actor, maximum = measures.settings, measures.actor, measures.limits.maximum
    most_memory = min(
        settings.max_memory_mb * MIB, maximum.memory_bytes, actor.max_memory_bytes or maximum.memory_bytes
    )
    most_wall = min(settings.max_timeout_s, maximum.wall_s, actor.max_duration_s or maximum.wall_s)
    most_cpus = min(settings.max_cpu_millis / 1000, maximum.cpus)
    cpus = _resource("cpuMillis", resources.cpu_millis, 1 / 1000, settings.default_cpu_millis, most_cpus)
    memory = _resource("memoryMB", resources.memory_mb, MIB, settings.default_memory_mb, most_memory)
    wall = _resource("timeoutMs", _timeout_ms(resources), 1 / 1000, settings.default_timeout_s * 1000, most_wall)
    disk = min((resources.storage_mb or 0) * MIB or settings.default_disk_bytes, maximum.disk_bytes)
    overrides = LimitOverrides(
        wall_s=wall,
        # A session is bounded by its life and its rate; a sum of CPU time beside them would only surprise.
        cpu_s=wall * cpus,
        cpus=cpus,
        memory_bytes=int(memory),
        disk_bytes=disk,
        disk_inodes=maximum.disk_inodes,
        processes=min(settings.processes, maximum.processes),
        open_files=min(settings.open_files, maximum.open_files),
    )
    return measures.limits.resolve(LimitOverrides(), overrides, cap=True)


def _resource(name: str, asked: int | None, unit: float, default: float, most: float) -> float:
    """*asked* (of *unit*) where it is within bounds; the default, cut to *most*, where nothing is asked."""
    if asked is None:
        return min(default * unit, most)
    if asked * unit > most * (1 + 1e-9):  # 1/1000 is no binary fraction
        raise BadBody(f"resources.{name}: must be at most {int(most / unit + 1e-6)} (got {asked})")
    return asked * unit


def _timeout_ms(resources: ResourcesBody) -> int | None:
    if resources.timeout_ms is not None or not resources.timeout:
        return resources.timeout_ms
    try:
        milliseconds = round(parse_duration(resources.timeout) * 1000)
    except ValueError as error:
        raise BadBody(f"resources.timeout: {error}") from None
    if milliseconds < 1000:
        raise BadBody("resources.timeout: must be at least 1s")
    return milliseconds


def _network(body: CreateBody) -> Network:
    mode = NetworkMode(body.network or "outgoing")
    ports: Iterable[Port] = ()
    if mode is NetworkMode.EXPOSED:  # with another mode they are accepted and not published
        ports = (Port(container=one.container, protocol=Protocol(one.protocol or "tcp")) for one in body.ports or ())
    for index, cidr in enumerate(body.allow_cidrs or ()):
        try:
            ipaddress.IPv4Network(cidr)
        except ValueError as error:
            raise BadBody(f"allowCidrs[{index}]: {error}") from None
    for index, name in enumerate(body.allow_domains or ()):
        if not _DOMAIN.fullmatch(name):
            raise BadBody(f"allowDomains[{index}]: {name!r} is no domain name")
    return Network(
        mode=mode,
        ports=tuple(dict.fromkeys(ports)),
        allow_cidrs=None if body.allow_cidrs is None else tuple(body.allow_cidrs),
        allow_domains=None if body.allow_domains is None else tuple(body.allow_domains),
    )


def _build(body: CreateBody, settings: ExecboxSettings, base: str) -> BuildSpec:
    setup, files = body.setup or [], body.files or []
    for name, entries in (("setup", setup), ("files", files)):
        if len(entries) > settings.max_setup:
            raise BadBody(f"{name}: must have at most {settings.max_setup} entries")
    for index, command in enumerate(setup):
        if _FROM.match(command):
            raise BadBody(f"setup[{index}]: a command cannot begin with FROM; `image` names the base")
        if "\n" in command or "\r" in command:
            raise BadBody(f"setup[{index}]: a command is one line; put a script into `files`")
    return BuildSpec(setup=tuple(setup), files=tuple(_file(one, index, base) for index, one in enumerate(files)))


def _file(file: FileBody, index: int, base: str) -> BuildFile:
    content = file.content.encode()
    if file.encoding == "base64":
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise BadBody(f"files[{index}].content: is not base64: {error}") from None
    path = posixpath.normpath(posixpath.join(base, file.path))
    if path in ("/", ".") or file.path.endswith("/"):
        raise BadBody(f"files[{index}].path: names a directory")
    return BuildFile(path=path, content=content, mode=0o644 if file.mode is None else file.mode)


def status_of(sandbox: Sandbox) -> str:
    """The state that clients see."""
    match sandbox.state:
        case SandboxState.CREATING:
            return "pending"
        case SandboxState.RUNNING:
            return "running"
        case SandboxState.STOPPING:
            return "stopping"
    if sandbox.is_deleted:
        return "killed"
    match sandbox.ended_by:
        case EndedBy.ITSELF:
            return "stopped" if sandbox.exit_code == 0 else "failed"
        case EndedBy.STOP:
            return "stopped"
        case EndedBy.KILL | EndedBy.DEADLINE | EndedBy.LIMIT:
            return "killed"
    return "failed"


def states_of(status: str | None) -> frozenset[SandboxState] | None:
    """The states of a sandbox that can look like *status*; `None` for all.

    Raises:
        Invalid: the protocol has no such status.
    """
    if status is None:
        return None
    if status not in STATUSES:
        raise Invalid(f"status: must be one of {', '.join(STATUSES)}")
    return STATUSES[status]


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def created(sandbox: Sandbox, host: str) -> dict[str, Any]:
    """The answer to a create request: it has been started, whatever has become of it since."""
    answer: dict[str, Any] = {"id": sandbox.id, "status": "running", "createdAt": timestamp(sandbox.created_at)}
    return answer | _published(sandbox, host)


def session(sandbox: Sandbox, host: str) -> dict[str, Any]:
    """The session object. A member that has no value is left out."""
    ended = sandbox.state is SandboxState.ENDED
    exit_code = sandbox.exit_code
    if exit_code is None and sandbox.ended_by in (EndedBy.KILL, EndedBy.DEADLINE, EndedBy.LIMIT):
        exit_code = KILLED
    members: dict[str, Any] = {
        "id": sandbox.id,
        "status": status_of(sandbox),
        "image": sandbox.image,
        "createdAt": timestamp(sandbox.created_at),
        "startedAt": sandbox.started_at and timestamp(sandbox.started_at),
        "endedAt": sandbox.ended_at and timestamp(sandbox.ended_at),
        "expiresAt": None if ended else sandbox.deadline_at and timestamp(sandbox.deadline_at),
        "exitCode": exit_code if ended else None,
        "endedBy": sandbox.ended_by and sandbox.ended_by.value,
        "outcome": sandbox.outcome and sandbox.outcome.value,
        "message": sandbox.message or None,
    }
    return {name: value for name, value in members.items() if value is not None} | _published(sandbox, host)


def _published(sandbox: Sandbox, host: str) -> dict[str, Any]:
    network, shown = sandbox.network, _shown(sandbox)
    if not shown:
        return {}
    taken = {port.container for port in shown if port.protocol is Protocol.TCP}
    ports = {
        # The protocol has room for one of TCP and UDP on a port; who asks for both gets the other under a longer name.
        f"{port.container}/udp" if port.protocol is Protocol.UDP and port.container in taken else str(port.container): {
            "hostPort": port.host,
            "url": url_of(port, host),
        }
        for port in shown
    }
    return {"network": {"mode": network.mode.value, "host": host, "ports": ports}}


def _shown(sandbox: Sandbox) -> list[Port]:
    """Ports that stand in the session object: that of whichever port is bound is the executor's, and has no number."""
    if sandbox.network.mode is not NetworkMode.EXPOSED:
        return []
    return [port for port in sandbox.network.ports if port.container != Port.BOUND]


def url_of(port: Port, host: str) -> str:
    """Where clients reach *port*."""
    scheme = "http" if port.protocol is Protocol.TCP else "udp"
    return f"{scheme}://[{host}]:{port.host}" if ":" in host else f"{scheme}://{host}:{port.host}"


def exposed(sandbox: Sandbox, container: int, host: str) -> dict[str, Any]:
    """The answer about one exposed port.

    Raises:
        Conflict: the session has ended.
        NotFound: the port is not exposed.
    """
    if sandbox.state is SandboxState.ENDED:
        raise Conflict(f"session {sandbox.id} has ended")
    found = [port for port in _shown(sandbox) if port.container == container]
    if not found:
        raise NotFound(f"port {container} of session {sandbox.id} is not exposed")
    port = min(found, key=lambda one: one.protocol is Protocol.UDP)
    return {
        "containerPort": port.container,
        "hostPort": port.host,
        "url": url_of(port, host),
        "protocol": port.protocol.value,
    }


def stats(usage: Usage, memory_bytes: int | None) -> dict[str, Any]:
    """What a session has used."""
    answer: dict[str, Any] = {
        "wallSeconds": round(usage.wall_s, 3),
        "cpuSeconds": round(usage.cpu_s, 6),
        "memoryPeakBytes": usage.memory_peak_bytes,
    }
    return answer if memory_bytes is None else answer | {"memoryBytes": memory_bytes}


def entry(info: FileInfo) -> dict[str, Any]:
    """One entry of a directory. A link is described by what it leads to; one that dangles, as an empty file."""
    kind, size, mode = info.kind, info.size, info.mode
    if kind is FileKind.LINK:
        kind = info.target_kind or FileKind.FILE
        size, mode = (info.target_size, info.target_mode) if info.target_kind else (0, info.mode)
    is_directory = kind is FileKind.DIRECTORY
    return {
        "name": info.name,
        "size": size if kind is FileKind.FILE else 0,
        "isDir": is_directory,
        "mode": mode & 0o7777,
    }
