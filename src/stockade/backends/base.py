"""What a backend must do.

A backend makes sandboxes and runs processes in them. It keeps no durable state and knows nothing
of languages, accounts or HTTP. Concrete backends are found by name (`stockade.registry`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stockade.model import Limits, ProcessResult, ProcessSpec

__all__ = ["Backend", "BackendOptions", "BackendPlugin", "Feature", "Glimpse", "Report", "SandboxSpec", "Warm"]


@dataclass(frozen=True, kw_only=True)
class SandboxSpec:
    """An empty sandbox."""

    image: str
    limits: Limits
    network: str = "none"
    """`none`: a loopback interface of its own and nothing else."""
    backend: str = ""
    """Name of the backend that is to make it, where there are several (`backends.choice`); empty for the usual one."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One thing that the host enforces, or not."""

    name: str
    """Stable name, as `sandbox.allow_unenforced` takes it: `memory`, `processes`, `cpu_rate`, …"""
    enforced: bool
    mechanism: str
    """What enforces it here, or why nothing can."""
    remedy: str = ""
    """What the operator can do about it; empty when it is enforced."""
    required: bool = True
    """Whether to refuse without it. Not so where it is a further wall behind others."""


@dataclass(frozen=True, kw_only=True)
class Warm:
    """What a backend keeps ready for runs of one kind."""

    command: tuple[str, ...]
    kind: str
    """A `TemplateKind`."""
    preload: tuple[str, ...]
    ready: int
    """Processes that wait for their program."""
    under_way: int
    """Processes that are being made."""
    forks: int
    """Processes that the present template has made."""
    complaint: str
    """Why the last one could not be made; empty when it could."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a backend can do on this host."""

    backend: str
    features: tuple[Feature, ...]
    details: Mapping[str, str]
    """Facts for a human: kernel, cgroup layout, privileges, …"""
    warm: tuple[Warm, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """What must be enforced and is not."""
        return tuple(f.name for f in self.features if f.required and not f.enforced)


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What a backend is told when it is made."""

    data_dir: Path
    host_paths: tuple[str, ...] = ()
    """Further host directories that the `host` image shows, read-only."""
    allow_unenforced: tuple[str, ...] = ()
    """Names of features that the operator agrees to go without."""
    warden_socket: Path | None = None
    """Where a warden listens that somebody else started; without one, ours is started and ends with this process."""
    embedded: bool = False
    """Start a warden for this process alone in any case."""
    instance: str = ""
    """Whose sandboxes they are that live: several servers may use one warden."""
    disks: str = "auto"
    """Which disks there are to be (`config_boxes.DisksConfig.kind`); they lie in *data_dir*."""
    disks_bytes: int | None = None
    """Most that all of them may take; `None` for half of what is free."""
    permit_private: tuple[str, ...] = ()
    """Networks, in CIDR form, that sandboxes may connect to although they are not public."""
    refuse: tuple[str, ...] = ()
    """Networks that they may not connect to in any case."""
    docker_socket: Path = Path("/var/run/docker.sock")
    """Where the Docker engine listens."""
    docker_gate: Path | None = None
    """Where a gate to it listens that somebody else started; without one, ours is started, and ends with us."""
    docker_image: str = ""
    """The engine's image that stands for `host`; empty for one made of the host's own `/usr`."""
    docker_runtime: str = ""
    """`runc`, `runsc`, `kata`, … as the engine knows them; empty for its own choice."""
    docker_spares: int = 4
    """Containers that wait for a program, at most; each takes some 10 MB."""


class Glimpse(Protocol):
    """A look at what a program has printed so far."""

    def read(self, *, is_stderr: bool, offset: int, most: int) -> bytes:
        """Up to *most* bytes of a stream from *offset* on; nothing where there is none yet, and after the run's end."""
        ...


class Backend(Protocol):
    """Makes sandboxes and runs processes in them."""

    async def start(self) -> None:
        """Connect to the warden, starting it where none runs, and free what an earlier one left behind.

        Raises:
            CannotEnforce: the host lacks a protection that the operator has not agreed to go without.
            Unavailable: the warden could not be started.
        """
        ...

    async def run(
        self, sandbox: SandboxSpec, process: ProcessSpec, *, watched: Callable[[Glimpse], None] | None = None
    ) -> ProcessResult:
        """Run *process* in a fresh sandbox, then destroy the sandbox with everything in it.

        It returns once nothing of the tenant's is alive; the kernel may still be taking the empty sandbox apart. When
        the call is cancelled, the sandbox is killed before the cancellation goes on.

        Args:
            watched: called before the process starts, with what shows its output as it comes.

        Raises:
            Invalid: the sandbox or the process cannot be described to the kernel (unknown image, a NUL in an
                argument, …).
            Unsupported: this backend has no such network.
            Unavailable: the host has no room for another sandbox now, or the backend is closed.
            BackendLost: the warden died; safe to retry.
            Fault: the sandbox could not be built.
        """
        ...

    async def warm(self, sandbox: SandboxSpec, process: ProcessSpec) -> None:
        """Be ready for runs like this, which name a template: from now on, and again whenever what was ready is lost.

        It returns at once; a run that comes before all is ready, or for which there is no template after all, starts
        from nothing. A backend that has no templates does nothing.

        Raises:
            Invalid: as `run`.
        """
        ...

    async def report(self) -> Report:
        """Say what this host enforces. Works without `start` having succeeded."""
        ...

    async def close(self) -> None:
        """Kill what this process has running and disconnect. Idempotent."""
        ...


@dataclass(frozen=True, kw_only=True)
class BackendPlugin:
    """The record by which a backend is found: `backend` in `stockade.backends.<name>`."""

    name: str
    make: Callable[[BackendOptions], Backend]
    has_warden: bool = False
    """It connects to a warden, which the server is to keep."""
