"""What a sandbox may use."""

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["LimitOverrides", "Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every limit of one sandbox. All of them are enforced for the whole sandbox unless it says otherwise."""

    wall_s: float
    """Wall-clock seconds from the program's start."""
    cpu_s: float
    """CPU seconds, user and system, of all processes together."""
    cpus: float
    """CPU rate: how many processors' worth of time may be used at once."""
    memory_bytes: int
    """Memory of all processes, page cache and files of the sandbox together; swap is closed."""
    processes: int
    """Processes and threads alive at once."""
    disk_bytes: int
    """Bytes that may be written to the sandbox's file system (and the largest single file)."""
    disk_inodes: int
    """Files and directories that may be made."""
    open_files: int
    """Open descriptors of one process."""
    stack_bytes: int
    """Stack of one process's main thread."""
    output_bytes: int
    """Bytes kept of each output stream."""


@dataclass(frozen=True, kw_only=True)
class LimitOverrides:
    """The limits that a request, or a language, sets itself; `None` leaves the layer below in force."""

    wall_s: float | None = None
    cpu_s: float | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None
    disk_inodes: int | None = None
    open_files: int | None = None
    stack_bytes: int | None = None
    output_bytes: int | None = None

    def given(self) -> dict[str, Any]:
        """The members that are set, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
