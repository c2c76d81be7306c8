"""Others who run programs of strangers, each as a way in (`stockade.attacks.Way`) for the same corpus.

All of them get the same: a shell that takes the program from the beginning of its standard input, writes it to a file
and becomes it, with the input behind it, and a caller who reads no more output than the corpus's limit and ends what
takes too long: what a program like ours would do at the least. The rest is theirs, by the flags that `Peer.flags`
tells.
"""

import abc
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from stockade.attacks import LIMITS, Attack, Ending, Way
from stockade.model import Outcome

__all__ = [
    "HONEST",
    "PATH",
    "Attempts",
    "Launched",
    "Making",
    "Peer",
    "PeerWay",
    "command_of",
    "deadline_of",
    "ending_of",
    "output_limit",
]

PATH: Final = "/usr/bin:/bin"
PATIENCE_S: Final = 60.0
"""For what is not about time: others start more slowly, and that is not what is looked for."""
TIME_S: Final = 2.5
"""For what nothing but its time ends."""
TIME: Final = frozenset({Outcome.WALL_TIME, Outcome.CPU_TIME})
_TAKE: Final[Mapping[str, str]] = {
    "python": "head -c {size} > main.py && exec python3 main.py",
    "bash": "head -c {size} > main.sh && exec bash main.sh",
    "c": "head -c {size} > main.c && gcc main.c -o main && exec ./main",
}
_SIGNALED: Final = 128
_CPU_SIGNAL: Final = 24

HONEST: Final[Mapping[str, tuple[str, bytes]]] = {
    "python": ("print(sum(range(10)))", b"45\n"),
    "bash": ("echo $((6 * 7))", b"42\n"),
    "c": ('#include <stdio.h>\nint main(void) { printf("%d\\n", 6 * 7); return 0; }', b"42\n"),
}
"""A program and what it prints: whoever does not run it contains nothing, however little gets out."""


class PeerWay(Way, Protocol):
    """A way in of others."""

    def found(self) -> tuple[str, ...]:
        """What was seen from outside of the last attempt that is an escape, whatever the program said."""
        ...


class Attempts(abc.ABC):
    """What the ways in of all of them share: one attempt at a time, step by step."""

    gives: frozenset[str] = frozenset()

    def __init__(self, name: str) -> None:
        self.name = name
        self._found: list[str] = []

    def refuses(self, attack: Attack) -> str:
        """See `Way.refuses`: nothing."""
        return ""

    def found(self) -> tuple[str, ...]:
        """See `PeerWay.found`."""
        return tuple(self._found)

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        """See `Way.attempt`."""
        self._found = []
        for step in attack.steps:
            ending = await self._step(attack, step, stdin)
        return ending

    @abc.abstractmethod
    async def _step(self, attack: Attack, step: str, stdin: bytes) -> Ending:
        """Run one program in a sandbox of its own; what is seen from outside goes to `_found`."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One of those who are compared, ready to be tried."""

    way: PeerWay
    version: str
    flags: str
    """What it is asked for, word by word."""


Making = Callable[[Path], contextlib.AbstractAsyncContextManager[Peer]]
"""Sets one up with its data in that directory; raises BenchError where it cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Launched:
    """How a program of the host's ended that ran one of the tenant's."""

    code: int | None
    """`None`: the caller ended it."""
    stdout: bytes
    stderr: bytes
    late: bool = False
    flooded: bool = False


def command_of(language: str, code: str) -> tuple[str, ...]:
    """What to start inside, in a directory that can be written; on its standard input the code comes first.

    Never as an argument: attacks read the arguments of process 1, which is one that the peer starts this with.
    """
    return ("/bin/sh", "-c", _TAKE[language].format(size=len(code.encode())))


def deadline_of(attack: Attack) -> float:
    """Seconds until the caller ends it."""
    return TIME_S if attack.accept & TIME else PATIENCE_S


def ending_of(attack: Attack, launched: Launched, *, limit: Outcome | None = None) -> Ending:
    """What the caller can say of it.

    A signal is no status that the program ended with where the signal is what contains it.

    Args:
        limit: what the one who ran it says that it ended the program for.
    """
    outcome, code = Outcome.EXITED, launched.code
    if launched.flooded:
        outcome = Outcome.OUTPUT
    elif launched.late:
        outcome = Outcome.WALL_TIME
    elif limit is not None:
        outcome = limit
    elif code is not None and code - _SIGNALED == _CPU_SIGNAL:
        outcome = Outcome.CPU_TIME
    elif code is not None and (code > _SIGNALED or code < 0):
        outcome = Outcome.SIGNALED
    if outcome is Outcome.SIGNALED and outcome in attack.accept:
        code = None
    return Ending(outcome=outcome, exit_code=code, stdout=launched.stdout, stderr=launched.stderr)


def output_limit() -> int:
    """Bytes of either stream that the caller takes."""
    limit = LIMITS.output_bytes
    assert limit is not None
    return limit
