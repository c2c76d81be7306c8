"""Boxes: sandboxes that can be stopped and started again, with the disks, images and volumes they stand on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from stockade.model.limits import Limits
from stockade.model.sandboxes import Network

__all__ = ["Box", "BoxRequest", "BoxState", "Mount", "SecretRule", "Snapshot", "Volume"]


class BoxState(StrEnum):
    """Where a box is in its life. It has a disk in each of these."""

    CONFIGURED = "configured"
    """It has never been started."""
    RUNNING = "running"
    """A sandbox runs on its disk."""
    PAUSED = "paused"
    """As `running`, and no process of it gets any processor time."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """It could not be started; `message` says why. It may be started again."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A volume that a box sees at a path."""

    volume: str
    """Its id; in a request, its id or name."""
    path: str
    """Absolute; made when it is missing."""
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class SecretRule:
    """A secret that a box may use and never sees."""

    name: str
    value: str = field(repr=False)
    """What is sent in place of `placeholder`."""
    placeholder: str
    """What the box sees, in its environment under `name`."""
    hosts: tuple[str, ...] = ()
    """Names for which it is meant (`*.example.org` for all below); empty for every host."""


@dataclass(frozen=True, kw_only=True)
class BoxRequest:
    """A box that shall be."""

    name: str | None = None
    """`[A-Za-z0-9][A-Za-z0-9._-]*`, at most 128 characters, and of no other box of the account."""
    image: str
    """A reference, or `host`."""
    entrypoint: tuple[str, ...] | None = None
    """`None` for the image's own."""
    command: tuple[str, ...] | None = None
    """What follows the entrypoint; `None` for the image's own, where the entrypoint is the image's own, too."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Laid over the image's."""
    cwd: str | None = None
    user: str | None = None
    """`root`, `user`, a name of the image's `/etc/passwd`, or `UID[:GID]`; `None` for the image's own."""
    terminal: bool = False
    """Whether the main process has one."""
    limits: Limits
    """`wall_s` is the longest time between a start and the stop that follows by itself."""
    network: Network = field(default_factory=Network)
    mounts: tuple[Mount, ...] = ()
    secrets: tuple[SecretRule, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    """Names (`CHOWN`, `NET_BIND_SERVICE`, …, without `CAP_`) of what root inside shall not have; `ALL` for all."""
    labels: Mapping[str, str] = field(default_factory=dict)
    auto_stop_s: float | None = None
    """Stopped after so long without any use; `None` for never."""
    auto_delete_s: float | None = None
    """Removed so long after a stop (0: with it); `None` for never."""
    auto_resume: bool = True
    """Started, or resumed, by whoever uses it."""
    dialect: str = ""


@dataclass(frozen=True, kw_only=True)
class Box:
    """What is known of a box: one row of the store."""

    id: str
    """A ULID: 26 characters, upper case."""
    name: str | None
    account_id: str
    key_id: str
    dialect: str
    state: BoxState
    image: str
    """As it was asked for."""
    image_digest: str
    """What that was when the box was made; it keeps to this one."""
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    env: Mapping[str, str]
    """The request's own."""
    cwd: str
    user: str
    terminal: bool
    limits: Limits
    network: Network
    mounts: tuple[Mount, ...]
    secrets: tuple[SecretRule, ...]
    drop_capabilities: tuple[str, ...]
    labels: Mapping[str, str]
    auto_stop_s: float | None
    auto_delete_s: float | None
    auto_resume: bool
    disk: str
    """Name of its disk, as the backend knows it."""
    created_at: datetime
    updated_at: datetime
    """When its state last changed."""
    last_used_at: datetime
    started_at: datetime | None = None
    """Of the last start."""
    stopped_at: datetime | None = None
    sandbox_id: str | None = None
    """The sandbox of the last start, which has ended where the box does not run."""
    starts: int = 0
    exit_code: int | None = None
    """Of the main process of the last start, once it has ended."""
    message: str = ""
    parent_snapshot_id: str | None = None
    """The snapshot that its disk began as, or was last restored to."""

    MAIN: ClassVar[str] = "proc-main"
    """The main process's name among those of its sandbox. Its end is not the sandbox's."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The disk of a box as it was at one moment."""

    id: str
    """A ULID."""
    box_id: str
    account_id: str
    name: str
    """Of no other snapshot of the box."""
    disk: str
    size_bytes: int
    """What the disk held."""
    created_at: datetime
    parent_id: str | None = None
    """The snapshot that the box's disk came from then."""
    was_running: bool = False
    """Taken while processes of the box were alive: it shows what a machine's disk shows after its power failed, at
    one moment."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A disk that belongs to no box."""

    id: str
    """`vol_` and a ULID."""
    account_id: str
    name: str | None
    """Of no other volume of the account."""
    disk: str
    size_bytes: int
    """The most that it may hold."""
    created_at: datetime
    updated_at: datetime
