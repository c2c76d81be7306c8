"""What a client may ask for about sandboxes that live, checked member by member. The server is not trusted."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .disks import disk_name, name_for
from .egress_policy import Policy
from .fields import Refused, command, directory, number, texts, variables, whole
from .image import UID
from .init import CAPABILITIES
from .logs import PATIENCE_S
from .protocol import MOST_DESCRIPTORS

__all__ = [
    "LEAST_RING",
    "DiskMount",
    "SpawnRequest",
    "StayRequest",
    "ids_of",
    "instance_of",
    "name_of",
    "patience_of",
    "port_of",
    "signal_of",
    "terminal_of",
]

LEAST_RING = 64 << 10
"""Bytes of a stream that are kept in any case."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LONGEST_S = 366 * 86400.0
_MOST_RULES = 256
_IDS = re.compile(r"([0-9]{1,5}):([0-9]{1,5})")
_HIGHEST_ID = 65534
_MOST_LAYERS = 127  # their names have to fit the options of one mount
_MOST_MOUNTS = MOST_DESCRIPTORS - 3  # beside a build's layer, the layers, and the disk
_OURS = ("", "proc", "dev", "sys")
_DIVERT = ("port", "token", "hosts", "ports")


@dataclass(frozen=True, kw_only=True)
class DiskMount:
    """A disk that a sandbox sees at a path."""

    disk: str
    path: str
    read_only: bool
    whole: bool
    """With the directories in which an overlay file system keeps it."""


@dataclass(frozen=True, kw_only=True)
class StayRequest:
    """A sandbox that lives, without a process."""

    name: str
    instance: str
    """Of the server that asks, in its own words: several may use one warden."""
    image: str
    cwd: str
    cpus: float
    memory_bytes: int
    processes: int
    disk_bytes: int
    disk_inodes: int
    open_files: int
    stack_bytes: int
    lifetime_s: float | None
    log_bytes: int
    kept_bytes: int
    keep_s: float
    layer: bool
    layers: tuple[str, ...]
    """Of the image, the uppermost first; empty for the host's."""
    disk: str | None
    """`None` for memory."""
    mounts: tuple[DiskMount, ...]
    drop_capabilities: tuple[int, ...]
    outgoing: bool
    policy: Mapping[str, Any]
    """Where it may connect, in the words of `egress`."""

    @classmethod
    def parse(cls, message: Mapping[str, Any], descriptors: int) -> "StayRequest":
        """Raises Refused (`invalid`) naming the member that is wrong."""
        limits = message.get("limits")
        if not isinstance(limits, dict):
            raise Refused("invalid", "limits: must be an object")
        network = message.get("network", "none")
        if network not in ("none", "outgoing"):
            raise Refused("unsupported", f"network {network!r} is not available; known: none, outgoing")
        if message.get("wall"):
            raise Refused("unsupported", "wall: a sandbox that lives cannot be behind a further one; runs can")
        layer = message.get("layer") is True
        if descriptors != layer:
            raise Refused("invalid", "a layer has one descriptor")
        disk, mounts = None if message.get("disk") is None else disk_name(message), _mounts(message.get("mounts", []))
        if disk in {one.disk for one in mounts}:
            raise Refused("invalid", "mounts: a sandbox's own disk cannot be a volume of it")
        lifetime = None if message.get("lifetime_s") is None else number(message, "lifetime_s", _LONGEST_S)
        return cls(
            name=name_of(message, "sandbox"),
            instance=instance_of(message),
            image=str(message.get("image")),
            cwd=directory(message, "cwd"),
            cpus=number(limits, "cpus", 65536.0),
            memory_bytes=whole(limits, "memory_bytes", 1 << 50),
            processes=whole(limits, "processes", 1 << 22),
            disk_bytes=whole(limits, "disk_bytes", 1 << 50),
            disk_inodes=whole(limits, "disk_inodes", 1 << 31),
            open_files=whole(limits, "open_files", 1 << 20),
            stack_bytes=whole(limits, "stack_bytes", 1 << 40),
            lifetime_s=lifetime,
            log_bytes=whole(message, "log_bytes", 1 << 30, least=4096),
            kept_bytes=whole(message, "kept_bytes", 1 << 40),
            keep_s=number(message, "keep_s", _LONGEST_S),
            layer=layer,
            layers=_layers(message),
            disk=disk,
            mounts=mounts,
            drop_capabilities=_capabilities(message),
            outgoing=network == "outgoing",
            policy=_policy(message.get("policy") or {}),
        )

    def of_user(self, uid: int) -> "StayRequest":
        """The same, with its disks by the names by which those of that user are kept. Raises Refused."""
        if not (uid and self.has_ground):
            return self
        return replace(
            self,
            layers=tuple(name_for(uid, one) for one in self.layers),
            disk=None if self.disk is None else name_for(uid, self.disk),
            mounts=tuple(replace(one, disk=name_for(uid, one.disk)) for one in self.mounts),
        )

    @property
    def has_ground(self) -> bool:
        """Whether it stands on more than the host image and memory."""
        return bool(self.layers or self.disk or self.mounts)

    @property
    def disks(self) -> dict[str, bool]:
        """The disks that it uses, and whether it only reads them."""
        found = {one.disk: one.read_only for one in self.mounts} | dict.fromkeys(self.layers, True)
        return found if self.disk is None else found | {self.disk: False}

    def stay(self) -> dict[str, Any]:
        """What its PID 1 is told: the members of `steward.Stay` that are not descriptors."""
        return {
            "cwd": self.cwd,
            "disk_bytes": self.disk_bytes,
            "disk_inodes": self.disk_inodes,
            "processes": self.processes,
            "open_files": self.open_files,
            "stack_bytes": self.stack_bytes,
            "layer": self.layer,
            "ground": {
                "layers": self.layers,
                "disk": self.disk is not None,
                "mounts": [(one.path, not (self.layers or one.whole or one.read_only)) for one in self.mounts],
            }
            if self.has_ground
            else None,
            # With a disk, memory holds nothing but what programs share by it.
            "memory_disk_bytes": self.disk_bytes if self.disk is None else min(self.disk_bytes, self.memory_bytes // 2),
            "drop_capabilities": self.drop_capabilities,
            # Without what is diverted: the token is for the egress process, and for nobody inside.
            "outgoing": {**self.policy, "divert": None} if self.outgoing else None,
        }


@dataclass(frozen=True, kw_only=True)
class SpawnRequest:
    """A process in a sandbox that lives."""

    process: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    ids: tuple[int, int]
    """User and group, as the sandbox sees them."""
    terminal: tuple[int, int] | None
    stdin: bool
    """Whether somebody may write to its standard input; else that is /dev/null."""
    keep: bool
    """Whether it is remembered after its end."""
    log_bytes: int | None
    """Bytes of each of its streams that are kept; `None` for the sandbox's own number."""

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> "SpawnRequest":
        """Raises Refused (`invalid`) naming the member that is wrong."""
        return cls(
            process=name_of(message, "process"),
            argv=command(message, "argv"),
            env=variables(message, "env"),
            cwd=directory(message, "cwd"),
            ids=ids_of(message),
            terminal=terminal_of(message) if message.get("terminal") is not None else None,
            stdin=message.get("stdin", True) is True,
            keep=message.get("keep") is True,
            log_bytes=None
            if message.get("log_bytes") is None
            else whole(message, "log_bytes", 1 << 30, least=LEAST_RING),
        )


def name_of(message: Mapping[str, Any], member: str) -> str:
    value = message.get(member)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise Refused("invalid", f"{member}: must be 1 to 64 letters, digits, '_', '.' or '-'")
    return value


def ids_of(message: Mapping[str, Any]) -> tuple[int, int]:
    """User and group of its member `user`: `user`, `root`, or `UID:GID`."""
    user = message.get("user", "user")
    if user == "user":
        return UID, UID
    if user == "root":
        return 0, 0
    numbers = _IDS.fullmatch(user) if isinstance(user, str) else None
    if numbers is None or max(ids := (int(numbers[1]), int(numbers[2]))) > _HIGHEST_ID:
        raise Refused("invalid", f"user: must be 'user', 'root' or 'UID:GID' up to {_HIGHEST_ID}, not {user!r}")
    return ids


def instance_of(message: Mapping[str, Any]) -> str:
    value = message.get("instance", "")
    if not isinstance(value, str) or len(value) > 64:
        raise Refused("invalid", "instance: must be a string of at most 64 characters")
    return value


def port_of(message: Mapping[str, Any]) -> int:
    return whole(message, "port", 65535)


def patience_of(message: Mapping[str, Any]) -> float:
    """Seconds for which a process waits for its reader."""
    value = message.get("patience_s", PATIENCE_S)
    if value is None:
        return math.inf
    return 0.0 if value == 0 else number({"patience_s": value}, "patience_s", _LONGEST_S)


def signal_of(message: Mapping[str, Any]) -> int:
    return whole(message, "signal", 64)


def terminal_of(message: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns."""
    value = message.get("terminal")
    if not isinstance(value, dict):
        raise Refused("invalid", "terminal: must be an object")
    return whole(value, "rows", 65535), whole(value, "columns", 65535)


def _layers(message: Mapping[str, Any]) -> tuple[str, ...]:
    names = texts(message, "layers", most=_MOST_LAYERS) if "layers" in message else ()
    return tuple(disk_name({"layers": name}, "layers") for name in names)


def _mounts(value: object) -> tuple[DiskMount, ...]:
    if not isinstance(value, list) or len(value) > _MOST_MOUNTS or not all(isinstance(one, dict) for one in value):
        raise Refused("invalid", f"mounts: must be a list of at most {_MOST_MOUNTS} objects")
    found = []
    for one in value:
        path = directory(one, "path")
        if next((part for part in path.split("/") if part not in ("", ".")), "") in _OURS:
            raise Refused("invalid", f"mounts: {path} is the sandbox's own; choose another path")
        flags = {name: one.get(name) is True for name in ("read_only", "whole")}
        found.append(DiskMount(disk=disk_name(one), path=path, **flags))
    if len({one.disk for one in found}) != len(found):
        raise Refused("invalid", "mounts: a disk is named twice")
    return tuple(found)


def _capabilities(message: Mapping[str, Any]) -> tuple[int, ...]:
    names = texts(message, "drop_capabilities", most=64) if "drop_capabilities" in message else ()
    if "ALL" in names:
        return tuple(CAPABILITIES.values())
    # What root inside does not have anyway is dropped already.
    return tuple(CAPABILITIES[name] for name in names if name in CAPABILITIES)


def _policy(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Refused("invalid", "policy: must be an object")
    policy: dict[str, Any] = {}
    for member in ("allow_cidrs", "allow_domains", "permit_private", "refuse"):
        given = value.get(member)
        policy[member] = None if given is None else list(texts({member: given}, member, most=_MOST_RULES))
    divert = value.get("divert")
    try:
        Policy.parse({**policy, "divert": divert})  # before a sandbox is spent on it
    except ValueError as error:
        raise Refused("invalid", f"network: {error}") from error
    # Its known members alone: what else there is may be anything, and has to be sent on.
    policy["divert"] = None if divert is None else {name: divert[name] for name in _DIVERT if name in divert}
    return policy
