"""What is said to, and told by, the place in which sandboxes are: this process's own engine, or a server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from stockade.model import BoxState, Outcome, TerminalSize

__all__ = ["BoxInfo", "BoxSpec", "Chunk", "Command", "End", "ProgramFailed", "Result", "SnapshotInfo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Some output of a process, as it came."""

    stream: Literal["stdout", "stderr"]
    data: bytes

    @property
    def text(self) -> str:
        """The data as text; what is not UTF-8 is replaced."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class End:
    """How a process ended."""

    exit_code: int
    """128 and the signal's number where one ended it."""
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a program.

    >>> from stockade import Sandbox
    >>> with Sandbox() as box:
    ...     result = box.run("import sys; print('out'); sys.exit('wrong')")
    >>> result.stdout, result.stderr, result.exit_code, result.ok
    ('out\\n', 'wrong\\n', 1, False)
    """

    exit_code: int
    """128 and the signal's number where one ended it."""
    outcome: Outcome
    """Whether it exited, or which limit ended it: `wall_time`, `memory`, …"""
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    wall_s: float
    """Seconds from its start to its end, as seen from here."""
    step: Literal["compile", "run"] = "run"
    """`compile`: it never ran, and this is what the compiler said."""
    is_truncated: bool = False
    """It printed more than was to be kept, and was killed for that."""

    @property
    def stdout(self) -> str:
        """As text; what is not UTF-8 is replaced."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """As text; what is not UTF-8 is replaced."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Whether it ran, ended by itself, and with 0."""
        is_whole = self.step == "run" and not self.is_truncated
        return is_whole and self.exit_code == 0 and self.outcome is Outcome.EXITED

    def check(self) -> "Result":
        """The result itself, if all is `ok`.

        Raises:
            ProgramFailed: it is not.
        """
        if not self.ok:
            raise ProgramFailed(self)
        return self


class ProgramFailed(Exception):
    """A program did not do what it should; raised only where that was asked for (`check`)."""

    def __init__(self, result: Result) -> None:
        self.result = result
        what = "the compiler" if result.step == "compile" else "the program"
        how = f"exited with {result.exit_code}"
        if result.outcome is not Outcome.EXITED:
            how = f"was ended: {result.outcome.value.replace('_', ' ')}"
        if result.is_truncated:
            how = "printed more than is kept"
        last = (result.stderr or result.stdout).rstrip()[-500:]
        super().__init__(f"{what} {how}{f': {last}' if last else ''}")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A process to be started."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Laid over the sandbox's own."""
    cwd: str | None = None
    """`None` for the sandbox's own."""
    user: str | None = None
    """`root`, `user` or `UID:GID`; `None` for the sandbox's own."""
    terminal: TerminalSize | None = None
    has_input: bool = True
    """Whether it can be written to."""
    timeout_s: float | None = None
    """After which it is killed, with all that it started."""


@dataclass(frozen=True, kw_only=True)
class BoxSpec:
    """A sandbox that shall be."""

    image: str
    name: str | None = None
    memory_bytes: int
    cpus: float
    disk_bytes: int | None = None
    """`None` for what the place gives."""
    network: bool | tuple[str, ...] = False
    """Where it may connect: everywhere, nowhere, or only to these names (`*.example.org`), addresses and networks."""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    auto_stop_s: float | None = None
    auto_delete_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class BoxInfo:
    """What is known of a sandbox."""

    id: str
    name: str | None
    state: BoxState
    image: str
    memory_bytes: int
    cpus: float
    labels: Mapping[str, str]
    created_at: datetime
    message: str = ""
    """Why it failed or stopped, where that is known."""


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """What is known of a snapshot."""

    name: str
    size_bytes: int
    """What the disk held."""
    created_at: datetime
