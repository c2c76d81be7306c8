"""Between the boxlite wire and the engine: pure functions, tested as tables without a server."""

import ipaddress
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stockade.dialects.boxlite.settings import BoxliteSettings
from stockade.dialects.boxlite.wire import BadBody, CreateBody, NetworkBody, OutboundBody
from stockade.engine import LimitPolicy
from stockade.errors import Unsupported
from stockade.model import (
    Actor,
    Box,
    BoxRequest,
    BoxState,
    LimitOverrides,
    Limits,
    Mount,
    Network,
    NetworkMode,
    SecretRule,
    Snapshot,
    Volume,
)

__all__ = [
    "GIB",
    "NAME",
    "Measures",
    "box_object",
    "checked_name",
    "checked_volume",
    "inbound",
    "outbound",
    "snapshot_object",
    "states_of",
    "timestamp",
    "to_network",
    "to_request",
    "volume_object",
    "with_inbound",
    "with_outbound",
]

NAME = "boxlite"
MIB = 1024 * 1024
GIB = 1024 * MIB
RESERVED = frozenset({"import"})
"""No names of boxes: they stand in that place of a path with another meaning."""
CAPABILITIES = frozenset({"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"})
"""What root of a box has over what is the box's own; docs/isolation.md says why no more."""
DELETED_WITH_STOP = 1
"""`auto_delete` of a box that is removed when it stops; 0 means never."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,127}")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}")
_NUMERIC = re.compile(r"[0-9.]+(/[0-9]+)?")
_ENV_NAME = re.compile(r"[^=\x00]+")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What a box is measured by: settings, the server's limits for boxes, what the key allows."""

    settings: BoxliteSettings
    limits: LimitPolicy
    actor: Actor

    @property
    def most_memory_bytes(self) -> int:
        own = self.actor.max_memory_bytes or self.limits.maximum.memory_bytes
        return min(self.settings.max_memory_mib * MIB, self.limits.maximum.memory_bytes, own)

    @property
    def most_wall_s(self) -> float:
        most = self.limits.maximum.wall_s
        return min(most, self.actor.max_duration_s or most)


def to_request(body: CreateBody, measures: Measures) -> BoxRequest:
    """The box that *body* asks for.

    Raises:
        Invalid: a member has a value that it cannot have; the text names it.
    """
    settings = measures.settings
    if body.rootfs_path is not None:
        raise BadBody("rootfs_path: boxes are made of images here; `stockade image import` brings an OCI layout in")
    auto_stop_s, auto_delete_s = _ends(body, settings)
    return BoxRequest(
        name=None if body.name is None else checked_name(body.name),
        image=body.image or settings.default_image,
        entrypoint=None if body.entrypoint is None else tuple(body.entrypoint),
        command=None if body.cmd is None else tuple(body.cmd),
        env=_env(body.env or {}),
        cwd=_absolute("working_dir", body.working_dir),
        user=body.user,
        terminal=bool(body.tty),
        limits=_limits(body, measures),
        network=to_network(body.network or NetworkBody()),
        mounts=_mounts(body),
        secrets=_secrets(body),
        drop_capabilities=_dropped(body),
        labels=dict(body.labels or {}),
        auto_stop_s=auto_stop_s,
        auto_delete_s=auto_delete_s,
        auto_resume=body.auto_resume is not False,
        dialect=NAME,
    )


def checked_name(name: str) -> str:
    """*name*, if a box can have it: clients put it into paths as it is.

    Raises:
        BadBody: it cannot.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise BadBody(
            f"name: {name[:200]!r} cannot be one: 1 to 128 letters, digits, `.`, `_` and `-`, of which a letter or "
            "digit comes first, and not `import`"
        )
    return name


def checked_volume(name: str) -> str:
    """*name*, if a volume can have it. Raises BadBody."""
    if not _VOLUME.fullmatch(name):
        raise BadBody(f"name: {name[:200]!r} cannot be one: 2 to 128 letters, digits, `.`, `_` and `-`")
    return name


def _ends(body: CreateBody, settings: BoxliteSettings) -> tuple[float | None, float | None]:
    """When it is stopped, and removed, by itself."""
    if body.auto_delete is not None:
        removed: float | None = {0: None, DELETED_WITH_STOP: 0.0}.get(body.auto_delete, float(body.auto_delete))
    else:
        removed = 0.0 if body.auto_remove else None
    if body.auto_stop is not None:
        return float(body.auto_stop) or None, removed
    return (settings.abandoned_s if removed == 0 else settings.auto_stop_s) or None, removed


def _env(env: Mapping[str, str]) -> dict[str, str]:
    for name in env:
        if not _ENV_NAME.fullmatch(name):
            raise BadBody(f"env: {name[:100]!r} is no name of a variable")
    return dict(env)


def _absolute(member: str, path: str | None) -> str | None:
    if path is not None and not path.startswith("/"):
        raise BadBody(f"{member}: must be an absolute path")
    return path


def _limits(body: CreateBody, measures: Measures) -> Limits:
    settings, maximum = measures.settings, measures.limits.maximum
    if (body.cpus or 0) > settings.max_cpus:
        raise BadBody(f"cpus: must be at most {settings.max_cpus} (got {body.cpus})")
    cpus = min(float(body.cpus or settings.default_cpus), maximum.cpus)
    most_memory, most_disk = measures.most_memory_bytes, maximum.disk_bytes
    memory = min(settings.default_memory_mib * MIB, most_memory)
    if body.memory_mib is not None:
        memory = body.memory_mib * MIB
    if memory > most_memory:
        raise BadBody(f"memory_mib: must be at most {most_memory // MIB} (got {body.memory_mib})")
    disk = measures.limits.defaults.disk_bytes if body.disk_size_gb is None else body.disk_size_gb * GIB
    if disk > most_disk:
        raise BadBody(f"disk_size_gb: must be at most {most_disk // GIB} (got {body.disk_size_gb})")
    wall_s = measures.most_wall_s
    overrides = LimitOverrides(
        wall_s=wall_s,
        # A box is bounded by its life and its rate; a sum of CPU time beside them would only surprise.
        cpu_s=wall_s * max(1.0, maximum.cpus),
        cpus=cpus,
        memory_bytes=memory,
        processes=min(settings.processes, maximum.processes),
        disk_bytes=disk,
        disk_inodes=maximum.disk_inodes,
        open_files=min(settings.open_files, maximum.open_files),
    )
    return measures.limits.resolve(LimitOverrides(), overrides, cap=True)


def to_network(body: NetworkBody) -> Network:
    """What of the network a box has.

    Raises:
        BadBody: the members contradict each other, or an entry of the list is neither a name nor a network.
    """
    if body.outbound is None and body.inbound is None:
        if body.mode == "disabled":
            if body.allow_net:
                raise BadBody("network.allow_net: means nothing where the network is disabled")
            return Network(mode=NetworkMode.NONE)
        # Nothing is said of the other direction: its owner may open tunnels.
        return _outgoing(OutboundBody(allow_net=body.allow_net), NetworkMode.EXPOSED)
    is_reachable = body.inbound is not None and body.inbound.mode == "enabled"
    network = with_outbound(Network(mode=NetworkMode.OUTGOING), body.outbound or OutboundBody())
    return with_inbound(network, is_enabled=is_reachable)


def with_outbound(network: Network, body: OutboundBody) -> Network:
    """*network* with another rule for where it may connect. Raises as `to_network`."""
    is_reachable = network.mode is NetworkMode.EXPOSED
    if body.mode == "enabled":
        return _outgoing(body, NetworkMode.EXPOSED if is_reachable else NetworkMode.OUTGOING)
    if body.allow_net:
        raise BadBody("allow_net: means nothing where the network is disabled")
    return _reachable_only() if is_reachable else Network(mode=NetworkMode.NONE)


def with_inbound(network: Network, *, is_enabled: bool) -> Network:
    """*network*, reachable from outside or not."""
    may_connect = _may_connect(network)
    if not is_enabled:
        if not may_connect:
            return Network(mode=NetworkMode.NONE)
        mode = NetworkMode.OUTGOING
    elif not may_connect:
        return _reachable_only()
    else:
        mode = NetworkMode.EXPOSED
    return Network(mode=mode, allow_cidrs=network.allow_cidrs, allow_domains=network.allow_domains)


def _reachable_only() -> Network:
    """It can be reached, and reaches nothing: there are lists, and nothing is on them."""
    return Network(mode=NetworkMode.EXPOSED, allow_cidrs=(), allow_domains=())


def _may_connect(network: Network) -> bool:
    if network.mode is NetworkMode.NONE:
        return False
    return bool(network.allow_cidrs or network.allow_domains) or (
        network.allow_cidrs is None and network.allow_domains is None
    )


def _outgoing(body: OutboundBody, mode: NetworkMode) -> Network:
    networks, names = _lists(body.allow_net or ())
    if not networks and not names:
        return Network(mode=mode)
    return Network(mode=mode, allow_cidrs=networks, allow_domains=names)


def _lists(entries: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Networks and names."""
    networks: list[str] = []
    names: list[str] = []
    for entry in entries:
        if _NUMERIC.fullmatch(entry):
            try:
                networks.append(str(ipaddress.IPv4Network(entry, strict=False)))
            except ValueError as error:
                raise BadBody(f"network.allow_net: {error}") from None
        elif ":" in entry:
            raise BadBody(f"network.allow_net: {entry[:100]!r}: a box speaks IPv4; no ports are named here")
        elif not _HOST.fullmatch(entry) or len(entry) > 253:
            raise BadBody(f"network.allow_net: {entry[:100]!r} is no name, address or network")
        else:
            names.append(entry.lower())
    return tuple(dict.fromkeys(networks)), tuple(dict.fromkeys(names))


def _mounts(body: CreateBody) -> tuple[Mount, ...]:
    return tuple(
        Mount(
            volume=one.managed_volume,
            path=_absolute(f"volumes[{index}].guest_path", one.guest_path) or "",
            read_only=bool(one.read_only),
        )
        for index, one in enumerate(body.volumes or ())
    )


def _secrets(body: CreateBody) -> tuple[SecretRule, ...]:
    return tuple(
        SecretRule(
            name=one.name,
            value=one.value,
            placeholder=one.placeholder or f"<BOXLITE_SECRET:{one.name}>",
            hosts=tuple(one.hosts or ()),
        )
        for one in body.secrets or ()
    )


def _dropped(body: CreateBody) -> tuple[str, ...]:
    """Capabilities that root inside shall not have."""
    asked = body.advanced.capabilities if body.advanced is not None else None
    if asked is None:
        return ()
    missing = sorted({_capability(one) for one in asked.add or ()} - CAPABILITIES)
    if missing:
        raise Unsupported(
            f"advanced.capabilities.add: {', '.join(missing)[:200]}: boxes share the host's kernel, and root of a box "
            f"has no more than {', '.join(sorted(CAPABILITIES))}"
        )
    return tuple(dict.fromkeys(_capability(one) for one in asked.drop or ()))


def _capability(name: str) -> str:
    return name.upper().removeprefix("CAP_")


def states_of(status: str | None) -> frozenset[BoxState] | None:
    """The states that `?status=` asks for; `None` for all.

    Raises:
        BadBody: there is no such status.
    """
    if not status:
        return None
    try:
        return frozenset(BoxState(one.strip()) for one in status.split(","))
    except ValueError:
        raise BadBody(f"status: must be of {', '.join(BoxState)} (got {status[:100]!r})") from None


def timestamp(moment: datetime) -> str:
    """RFC 3339, in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def box_object(found: Box) -> dict[str, Any]:
    """The box object. Values of secrets are not in it."""
    answer: dict[str, Any] = {
        "box_id": found.id,
        "name": found.name,
        "status": found.state.value,
        "created_at": timestamp(found.created_at),
        "updated_at": timestamp(found.updated_at),
        # A process of this host is nobody's business outside; inside, the main process has a number of its own.
        "pid": None,
        "image": found.image,
        "cpus": min(255, max(1, math.ceil(found.limits.cpus))),
        "memory_mib": max(1, found.limits.memory_bytes // MIB),
        "labels": dict(found.labels),
        "auto_stop": 0 if found.auto_stop_s is None else max(1, round(found.auto_stop_s)),
        "auto_delete": 0 if found.auto_delete_s is None else max(DELETED_WITH_STOP, round(found.auto_delete_s)),
        "auto_resume": found.auto_resume,
        "last_activity_at": timestamp(found.last_used_at),
        "network": {"outbound": outbound(found.network), "inbound": inbound(found.network), "published_ports": []},
    }
    if found.exit_code is not None:  # clients tell "not yet" by its absence
        answer["exit_code"] = found.exit_code
    if found.message:
        answer["message"] = found.message
    return answer


def outbound(network: Network) -> dict[str, Any]:
    """Where a box may connect."""
    allowed = [*(network.allow_cidrs or ()), *(network.allow_domains or ())]
    return {"mode": "enabled" if _may_connect(network) else "disabled", "allow_net": allowed}


def inbound(network: Network) -> dict[str, str]:
    """Whether it can be reached."""
    return {"mode": "enabled" if network.mode is NetworkMode.EXPOSED else "disabled"}


def snapshot_object(found: Snapshot) -> dict[str, Any]:
    """The snapshot object: its time, unlike a box's, is a number."""
    return {
        "id": found.id,
        "box_id": found.box_id,
        "name": found.name,
        "created_at": int(found.created_at.timestamp()),
        "guest_disk_bytes": 0,
        "container_disk_bytes": found.size_bytes,
        "size_bytes": found.size_bytes,
        "parent_id": found.parent_id,
    }


def volume_object(found: Volume) -> dict[str, Any]:
    """The volume object."""
    return {
        "id": found.id,
        "name": found.name,
        "state": "ready",
        "created_at": timestamp(found.created_at),
        "updated_at": timestamp(found.updated_at),
        "size_bytes": found.size_bytes,
    }
