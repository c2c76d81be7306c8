"""A process to run in a sandbox, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from stockade.model.outcomes import Outcome, Usage

__all__ = ["Bundle", "OnOutputLimit", "ProcessResult", "ProcessSpec"]


class OnOutputLimit(StrEnum):
    """What happens when a stream has produced `output_bytes`."""

    KILL = "kill"
    """The process is killed; its outcome is `output`."""
    DROP = "drop"
    """The rest is read and thrown away; the process goes on, and the result says `truncated`."""


class Bundle(Protocol):
    """A set of files outside any sandbox: what a compile step left in its working directory.

    Opaque: only the backend that made it can unpack it, and does so inside a sandbox.
    """

    @property
    def size(self) -> int:
        """Bytes it occupies."""
        ...

    def close(self) -> None:
        """Free it. Idempotent."""
        ...


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One program, with all that it sees."""

    argv: tuple[str, ...]
    cwd: str
    """Working directory inside the sandbox; made when it is missing."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The whole environment: nothing else is passed on."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files by path relative to `cwd`, written before the program starts."""
    bundle: Bundle | None = None
    """Unpacked into `cwd` before `files` are written."""
    stdin: bytes = b""
    collect: bool = False
    """Pack `cwd` when the program exits with status 0; `ProcessResult.bundle` has it."""
    on_output_limit: OnOutputLimit = OnOutputLimit.KILL


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """How a process ended, what it printed and what it used."""

    outcome: Outcome
    exit_code: int | None
    """Exit status when it exited by itself, else `None`."""
    signal: int | None
    """Number of the signal that ended it, else `None`."""
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool
    usage: Usage
    bundle: Bundle | None = None

    @property
    def succeeded(self) -> bool:
        return self.outcome is Outcome.EXITED and self.exit_code == 0
