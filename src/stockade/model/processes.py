"""A process to run in a sandbox, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from stockade.model.outcomes import Outcome, Usage

__all__ = ["Bundle", "OnOutputLimit", "ProcessResult", "ProcessSpec", "Template", "TemplateKind"]


class OnOutputLimit(StrEnum):
    """What happens when a stream has produced `output_bytes`."""

    KILL = "kill"
    """The process is killed; its outcome is `output`."""
    DROP = "drop"
    """The rest is read and thrown away; the process goes on, and the result says `truncated`."""


class TemplateKind(StrEnum):
    """How a process can be had that has been started before it is asked for."""

    FORK = "fork"
    """As a fork of an interpreter that waits where it would open its program."""
    POOL = "pool"
    """Started ahead in a sandbox of its own, up to that point; used once."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """What a process may be begun from instead of a start from nothing. It behaves alike either way."""

    kind: TemplateKind
    preload: tuple[str, ...] = ()
    """Modules that a fork finds imported already."""
    boot: tuple[str, ...] = ()
    """Pool: the command that starts it ahead. It waits on descriptor 3 for what the command line would have told."""
    files: tuple[tuple[str, str], ...] = ()
    """Pool: texts by absolute path that this command needs; it removes them itself."""


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
    args: tuple[str, ...] = ()
    """Follow `argv`; apart from it, because a template is begun without them."""
    template: Template | None = None
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
