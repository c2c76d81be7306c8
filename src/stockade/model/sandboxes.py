"""Sandboxes that live: what they are made from, the states they pass through, what is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from stockade.model.limits import Limits
from stockade.model.outcomes import Outcome, Usage

__all__ = [
    "LEGAL_MOVES",
    "BuildFile",
    "BuildSpec",
    "DiskMount",
    "Diversion",
    "EndedBy",
    "ExecSpec",
    "FileInfo",
    "FileKind",
    "Network",
    "NetworkMode",
    "Port",
    "Protocol",
    "Sandbox",
    "SandboxRequest",
    "SandboxState",
    "TerminalSize",
]


class SandboxState(StrEnum):
    """Where a sandbox is in its life."""

    CREATING = "creating"
    """Its record is committed; it is being made. One that is found so at a start never came to be."""
    RUNNING = "running"
    STOPPING = "stopping"
    """Its main process was asked to end (SIGTERM); it is killed when the grace is over."""
    ENDED = "ended"


LEGAL_MOVES: Mapping[SandboxState, frozenset[SandboxState]] = {
    SandboxState.CREATING: frozenset({SandboxState.RUNNING, SandboxState.ENDED}),
    SandboxState.RUNNING: frozenset({SandboxState.STOPPING, SandboxState.ENDED}),
    SandboxState.STOPPING: frozenset({SandboxState.ENDED}),
    SandboxState.ENDED: frozenset(),
}


class EndedBy(StrEnum):
    """What ended a sandbox."""

    ITSELF = "itself"
    """Its main process ended."""
    STOP = "stop"
    """A stop request, whatever the process made of it."""
    KILL = "kill"
    DEADLINE = "deadline"
    LIMIT = "limit"
    """A limit that ends the whole sandbox: memory, CPU time; `outcome` says which."""
    FAILURE = "failure"
    """It could not be made or started."""
    LOST = "lost"
    """The warden or the host died."""


class NetworkMode(StrEnum):
    """What of the network a sandbox has."""

    NONE = "none"
    """A loopback interface of its own and nothing else."""
    OUTGOING = "outgoing"
    """It may connect to the public internet (TCP, and DNS)."""
    EXPOSED = "exposed"
    """As `outgoing`, and its ports can be reached from outside."""


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, kw_only=True)
class Port:
    """A port of a sandbox that can be reached from outside."""

    container: int
    """Port inside, 1 to 65535; or `BOUND`: whichever is bound when a connection comes (`Sandbox.bound_port`)."""
    protocol: Protocol = Protocol.TCP
    host: int = 0
    """Port of this host that leads there; 0 until it has been assigned."""

    BOUND: ClassVar[int] = 0


@dataclass(frozen=True, kw_only=True)
class Network:
    """What of the network a sandbox has, and where it may connect."""

    mode: NetworkMode = NetworkMode.NONE
    ports: tuple[Port, ...] = ()
    allow_cidrs: tuple[str, ...] | None = None
    """Only these networks may be connected to; `None` for all that are public."""
    allow_domains: tuple[str, ...] | None = None
    """Only these names are resolved and may be connected to (`*.example.org` for all below); `None` for all."""


@dataclass(frozen=True, kw_only=True)
class BuildFile:
    """A file that a build puts into the image."""

    path: str
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, kw_only=True)
class BuildSpec:
    """What is made of a base image: files first, then commands (`/bin/sh -c`), in order."""

    setup: tuple[str, ...] = ()
    files: tuple[BuildFile, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.setup and not self.files


@dataclass(frozen=True, kw_only=True)
class DiskMount:
    """A disk (see `backends.disks`) that a sandbox sees at a path."""

    disk: str
    path: str
    """Absolute, and of nothing that the sandbox needs for itself (`/`, `/proc`, `/dev`, `/sys`); made when missing."""
    read_only: bool = False
    is_whole: bool = False
    """Shown with the `upper` and `work` directories in which an overlay file system keeps it, and not what is in the
    former: for code of ours alone."""

    WORKSHOP: ClassVar[str] = "/mnt/disk"
    """Where a disk is shown, as a whole, to code of ours that fills or reads it inside a sandbox made for that."""


@dataclass(frozen=True, kw_only=True)
class Diversion:
    """Connections of a sandbox that go to a listener of ours, which sees to them; the rest is as its network says.

    They are made only to where the sandbox may connect at all. The listener is first sent one line of JSON:
    `{"token": …, "address": …, "port": …, "names": […]}`, the names being those that lately led to the address.
    """

    port: int
    """Of the listener, on 127.0.0.1."""
    token: str = field(repr=False)
    """Known to nobody else: by it the listener knows whose connection it is, and that it comes from the warden."""
    hosts: tuple[str, ...] = ()
    """Names whose connections are diverted (`*.example.org` for all below); empty for all."""
    ports: tuple[int, ...] = (80, 443)


@dataclass(frozen=True, kw_only=True)
class TerminalSize:
    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, kw_only=True)
class ExecSpec:
    """A process to start in a sandbox that lives."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Laid over the sandbox's own environment."""
    cwd: str | None = None
    """`None` for the sandbox's own. It must exist."""
    user: str = "user"
    """`user`; `root`: root of the sandbox's user namespace, without capabilities outside; or `UID:GID`."""
    terminal: TerminalSize | None = None
    """With a terminal, standard output and standard error are one stream (stdout)."""
    stdin: bool = True
    """Whether it can be written to; else its standard input is `/dev/null`."""


@dataclass(frozen=True, kw_only=True)
class SandboxRequest:
    """A sandbox that shall be."""

    id: str
    """Chosen by the dialect: `[a-z0-9_-]`, at most 64 characters, never used before."""
    image: str
    command: tuple[str, ...] | None = None
    """The main process; `None` for the image's own; empty for none: the sandbox then lives until it is ended."""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    """Working directory; made when it is missing. `None` for the image's own."""
    user: str | None = None
    """As `ExecSpec.user`; `None` for the image's own."""
    terminal: TerminalSize | None = None
    limits: Limits
    """`wall_s` is the sandbox's whole life."""
    network: Network = field(default_factory=Network)
    build: BuildSpec = field(default_factory=BuildSpec)
    labels: Mapping[str, str] = field(default_factory=dict)
    dialect: str = ""
    is_quota_free: bool = False
    """Not counted against the daily and concurrent quota of the key: builds."""
    secret_digest: str | None = None
    """SHA-256, in hexadecimal, of the secret that opens this sandbox alone (`engine.secrets.digest`)."""
    disk: str | None = None
    """Where what is changed of the image is kept beyond its end; `None` for memory, which goes with the sandbox."""
    mounts: tuple[DiskMount, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    """Names (without `CAP_`) of what root inside shall not have; `ALL` for all."""
    diversion: Diversion | None = None
    backend: str = ""
    """Name of the backend that it shall come from; empty for the usual one."""


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What is known of a sandbox: one row of the store."""

    id: str
    account_id: str
    key_id: str
    dialect: str
    state: SandboxState
    image: str
    """As it was asked for."""
    command: tuple[str, ...]
    """Empty where there is no main process."""
    env: Mapping[str, str]
    cwd: str
    user: str
    limits: Limits
    network: Network
    """With the host's ports."""
    labels: Mapping[str, str]
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    deadline_at: datetime | None = None
    """When it is ended; `None` for never."""
    ended_by: EndedBy | None = None
    outcome: Outcome | None = None
    exit_code: int | None = None
    """0 to 255; of a process that a signal ended, 128 and its number."""
    message: str = ""
    """Why it failed, for a human."""
    is_deleted: bool = False
    """Killed, or deleted after its end: what it left is gone."""
    usage: Usage | None = None
    """Once it has ended."""
    secret_digest: str | None = None
    """Of the secret that opens this sandbox alone; of sandboxes that have not ended no two have the same."""
    bound_port: int | None = None
    """Port inside to which connections to `Port.BOUND` lead."""
    backend: str = ""
    """Name of the backend that it comes from; empty for what was the usual one."""


class FileKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One entry of a sandbox's file system."""

    name: str
    path: str
    kind: FileKind
    size: int
    """Bytes; 0 for what is no regular file."""
    mode: int
    """Permission bits."""
    modified_at: float
    """Seconds since the epoch."""
    uid: int
    gid: int
    target: str | None = None
    """What a link holds."""
    target_kind: FileKind | None = None
    """What a link leads to, inside; `None` where it dangles."""
    target_size: int = 0
    target_mode: int = 0
