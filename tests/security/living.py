"""Runs the corpus's programs in sandboxes that live, and says what they may reach there and not in a run."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable

import anyio

from stockade.attacks import LIMITS, Attack, Bait, Ending, Judgement, Verdict, judge
from stockade.attacks.given import GIVEN, is_given
from stockade.backends.sandboxing import MAIN, LiveExec, LiveSpec, OutputSlice, Sandboxing
from stockade.model import Network, NetworkMode, Outcome, TerminalSize
from tests.backends.living import ENV
from tests.backends.sandboxes import limits

__all__ = ["escapes", "judged"]

TIME = {Outcome.WALL_TIME, Outcome.CPU_TIME}
WITHIN_S = 40.0
_MOST_KEPT = 1 << 20
_AT_ONCE = 4
_names = itertools.count(1)

Ways = frozenset[str]
"""How a program is started: `root`, `terminal`, `outgoing`, or none of them; `ordinary`: whose warden it is."""


async def escapes(
    sandboxing: Sandboxing, attacks: Iterable[Attack], bait: Bait, ways: Ways = frozenset(), *, lifetime_s: float = 4.0
) -> list[str]:
    """Those that were not contained, some tried at the same time; a line for each."""
    room = anyio.Semaphore(_AT_ONCE)

    async def one(attack: Attack) -> Judgement:
        async with room:
            return await judged(sandboxing, attack, bait, ways, lifetime_s)

    judgements = await asyncio.gather(*(one(attack) for attack in attacks))
    return [
        f"{one.attack.group}:{one.attack.name}: {one.verdict}: {one.evidence}"
        for one in judgements
        if one.verdict is not Verdict.CONTAINED and not is_given(one, ways | {"live"})
    ]


async def judged(sandboxing: Sandboxing, attack: Attack, bait: Bait, ways: Ways, lifetime_s: float) -> Judgement:
    """Its steps one after the other, each the main process of a sandbox of its own.

    *lifetime_s* is for those that end by it; others have as long as they need, however busy the host is.
    """
    if not attack.accept & TIME and "wall_time" not in GIVEN["live"].get(attack.name, ""):
        lifetime_s = max(lifetime_s, WITHIN_S)
    for step in attack.steps:
        ending = await _run(sandboxing, step.encode(), b"x" * attack.stdin_bytes or bait.stdin, ways, lifetime_s)
    return judge(attack, ending)


async def _run(sandboxing: Sandboxing, code: bytes, stdin: bytes, ways: Ways, lifetime_s: float) -> Ending:
    async def content() -> AsyncIterator[bytes]:
        yield code

    name, user = f"attack-{next(_names)}", "root" if "root" in ways else "user"
    network = Network(mode=NetworkMode.OUTGOING if "outgoing" in ways else NetworkMode.NONE)
    spec = LiveSpec(image="host", limits=limits(**LIMITS.given()), cwd="/code", lifetime_s=lifetime_s, network=network)
    await sandboxing.create(name, spec)
    try:
        files = await sandboxing.files(name, user=user)
        await files.write("/code/main.py", content())
        files.close()
        terminal = TerminalSize() if "terminal" in ways else None
        program = LiveExec(argv=("python3", "main.py"), env=ENV, cwd="/code", user=user, terminal=terminal)
        streams = await sandboxing.exec(name, MAIN, program)
        with anyio.move_on_after(0.5):  # some do not read it
            await streams.write(stdin + b"\n" if terminal is not None else stdin)
        await streams.close_stdin()
        stdout, stderr, at = bytearray(), bytearray(), [0, 0]
        while True:
            output = await asyncio.wait_for(streams.read(at[0], at[1]), lifetime_s + 10)
            at = [_keep(stdout, output.stdout), _keep(stderr, output.stderr)]
            if output.end is not None:
                break
        streams.close()
        end, text = output.end, bytes(stdout).replace(b"\r\n", b"\n")
        return Ending(outcome=Outcome(end.outcome), exit_code=end.exit_code, stdout=text, stderr=bytes(stderr))
    finally:
        await sandboxing.remove(name)


def _keep(kept: bytearray, piece: OutputSlice) -> int:
    kept += piece.data[: max(0, _MOST_KEPT - len(kept))]
    return piece.end
