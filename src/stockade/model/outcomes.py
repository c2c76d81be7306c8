"""How a process ended, and what it used."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Outcome", "Usage"]


class Outcome(StrEnum):
    """Why a process ended. Decided once, by the engine; running out of a limit is a result, not an error."""

    EXITED = "exited"
    """It called exit; `exit_code` says with what."""
    SIGNALED = "signaled"
    """A signal that no limit of ours sent killed it; `signal` says which."""
    WALL_TIME = "wall_time"
    CPU_TIME = "cpu_time"
    MEMORY = "memory"
    OUTPUT = "output"
    PROCESSES = "processes"
    """It failed after the process limit had refused it a process or thread."""
    DISK = "disk"
    """It failed while its file system was full."""
    CANCELLED = "cancelled"
    """The caller went away or asked for it."""
    LOST = "lost"
    """The host or the warden died."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process (with all that it started) used, from the kernel's own counters."""

    wall_s: float
    cpu_user_s: float
    cpu_system_s: float
    memory_peak_bytes: int
    """Peak of the sandbox's memory, files in its memory-backed disk included."""
    bytes_in: int = 0
    """Bytes that came from outside over connections that the sandbox made."""
    bytes_out: int = 0

    @property
    def cpu_s(self) -> float:
        return self.cpu_user_s + self.cpu_system_s
