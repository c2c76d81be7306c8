"""Tries attacks by a way, some at a time, and says of each what came of it."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from stockade.attacks.corpus import Attack
from stockade.attacks.given import is_given
from stockade.attacks.verdicts import Ending, Judgement, Verdict, judge
from stockade.attacks.ways import Way
from stockade.errors import LimitExceeded, StockadeError, Unavailable, Unsupported
from stockade.model import Outcome

__all__ = ["HONEST", "Finding", "Trial", "is_honest", "try_honest", "try_one", "try_out"]

DEADLINE_S: Final = 180.0
"""Time that one attempt may take, whatever the way: every step has shorter limits of its own."""
_TIMES: Final = 3
_PAUSE_S: Final = 0.5

_HONEST_CODE: Final = """\
import hashlib, os, subprocess, sys, tempfile, threading
given = sys.stdin.buffer.read()
with tempfile.NamedTemporaryFile() as file:
    file.write(given.strip() * 100)
    file.flush()
    kept = open(file.name, 'rb').read()
reading, writing = os.pipe()
threading.Thread(target=os.write, args=(writing, b'thread')).start()
said = os.read(reading, 6) + subprocess.run(['sh', '-c', 'printf child'], capture_output=True).stdout
print(6 * 7, said.decode(), hashlib.sha256(kept).hexdigest())
print('to the other stream', file=sys.stderr)
raise SystemExit(3)
"""
HONEST: Final = Attack(
    name="honest",
    group="honest",
    threat="a sandbox that refuses everything would contain everything",
    language="python",
    steps=(_HONEST_CODE,),
    accept=frozenset(),
    exit_code=3,
    stdin_bytes=0,
    control=False,
)
"""What every program may count on: input, files, threads, children, both streams, its own status."""
HONEST_INPUT: Final = b'{"honest": true}'
_HONEST_OUTPUT: Final = b"42 threadchild 423b68ab"


class Finding(StrEnum):
    """What a trial found."""

    CONTAINED = "contained"
    ESCAPED = "escaped"
    UNCLEAR = "unclear"
    """It proves nothing: neither contained nor escaped. To be looked at, never to be counted as contained."""
    NOT_TRIED = "not tried"
    """This way cannot try it, and says why."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One attack by one way."""

    way: str
    attack: Attack
    finding: Finding
    evidence: str
    """What the attack saw, what this way is meant to give, or why it was not tried."""

    @property
    def failed(self) -> bool:
        """Whether somebody has to look at it."""
        return self.finding in (Finding.ESCAPED, Finding.UNCLEAR)


async def try_out(
    way: Way,
    attacks: Iterable[Attack],
    stdin: bytes,
    *,
    at_once: int = 4,
    done: Callable[[Trial], object] = lambda _: None,
) -> list[Trial]:
    """Try all *attacks* by *way*, *at_once* at a time. Returns what was found, in their order.

    Args:
        stdin: the facts about the bait.
        done: is told of each as it ends.
    """
    room = asyncio.Semaphore(at_once)

    async def one(attack: Attack) -> Trial:
        async with room:
            trial = await try_one(way, attack, stdin)
        done(trial)
        return trial

    async with asyncio.TaskGroup() as tasks:
        under_way = [tasks.create_task(one(attack)) for attack in attacks]
    return [task.result() for task in under_way]


async def try_one(way: Way, attack: Attack, stdin: bytes) -> Trial:
    """Try *attack*, again where the way had no room for it; never raises for what the way refuses or fails at."""
    if why := way.refuses(attack):
        return _trial(way, attack, Finding.NOT_TRIED, why)
    for number in range(1, _TIMES + 1):
        try:
            async with asyncio.timeout(DEADLINE_S):
                ending = await way.attempt(attack, b"x" * attack.stdin_bytes or stdin)
        except Unsupported as error:
            return _trial(way, attack, Finding.NOT_TRIED, str(error))
        except TimeoutError:
            return _trial(way, attack, Finding.UNCLEAR, f"no end within {DEADLINE_S:g} s")
        except (Unavailable, LimitExceeded) as error:
            if number == _TIMES:
                return _trial(way, attack, Finding.UNCLEAR, f"it could not be tried: {error}")
            await asyncio.sleep(_PAUSE_S * number)
        except (StockadeError, OSError) as error:
            return _trial(way, attack, Finding.UNCLEAR, f"it could not be tried: {error}")
        else:
            break
    return _weighed(way, judge(attack, ending))


def _weighed(way: Way, judgement: Judgement) -> Trial:
    if judgement.verdict is Verdict.CONTAINED:
        return _trial(way, judgement.attack, Finding.CONTAINED, judgement.evidence)
    if is_given(judgement, way.gives):
        return _trial(way, judgement.attack, Finding.CONTAINED, f"as this way is meant to give: {judgement.evidence}")
    finding = Finding.ESCAPED if judgement.verdict is Verdict.ESCAPED else Finding.UNCLEAR
    return _trial(way, judgement.attack, finding, judgement.evidence)


def _trial(way: Way, attack: Attack, finding: Finding, evidence: str) -> Trial:
    return Trial(way=way.name, attack=attack, finding=finding, evidence=evidence)


async def try_honest(way: Way) -> Trial:
    """Whether `HONEST` does by *way* what it does everywhere. Found `UNCLEAR`: it does not."""
    for number in range(1, _TIMES + 1):
        try:
            async with asyncio.timeout(DEADLINE_S):
                ending = await way.attempt(HONEST, HONEST_INPUT)
        except Unsupported as error:
            return _trial(way, HONEST, Finding.NOT_TRIED, str(error))
        except (StockadeError, OSError, TimeoutError) as error:
            if number == _TIMES:
                return _trial(way, HONEST, Finding.UNCLEAR, f"an honest program could not be run: {error}")
            await asyncio.sleep(_PAUSE_S * number)
        else:
            break
    if is_honest(ending):
        return _trial(way, HONEST, Finding.CONTAINED, "an honest program runs as it should")
    return _trial(way, HONEST, Finding.UNCLEAR, f"an honest program does not run as it should: {ending}"[:600])


def is_honest(ending: Ending) -> bool:
    """Whether *ending* is that of `HONEST` where nothing hinders it."""
    said = ending.stdout.replace(b"\r\n", b"\n")
    return (
        ending.outcome is Outcome.EXITED
        and ending.exit_code == HONEST.exit_code
        and _HONEST_OUTPUT in said
        and b"to the other stream" in ending.stderr + said  # a terminal has one stream
    )
