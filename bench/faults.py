"""What a deployment stands on breaks, at random moments and under steady use: is anything lost, left or wrong?

    python -m bench.faults --minutes 10 --seed 7

A server, a worker, PostgreSQL and Redis run jobs, programs, sandboxes and boxes for clients that know what they were
promised. One fault after the other is done to them and withdrawn; then everything must work again without anybody's
doing, within a minute. In the end all that was acknowledged must be there, once, and nothing else may be left.
"""

import argparse
import asyncio
import contextlib
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from bench.faults_checks import at_rest, check_promises, crashes, nothing_left
from bench.faults_kinds import KINDS, Kind
from bench.faults_ledger import Ledger
from bench.faults_play import RECOVERY_S, Company
from bench.faults_stage import staged
from bench.measure import BenchError, Figure
from bench.table import Results, Sheet

__all__ = ["Rehearsal", "rehearse", "report", "short"]

QUIET_S = 0.6
MOST_LEAD_S = 0.5
TWO_AT_ONCE = 0.3
"""How often a second fault is done during the first, once each has been tried alone."""


@dataclass(kw_only=True)
class Rehearsal:
    """What came of it."""

    seed: int
    ledger: Ledger
    seconds: float = 0.0
    crashes: Counter[str] = field(default_factory=Counter)
    """Errors of ours that nobody foresaw, see `crashes`."""
    skipped: list[str] = field(default_factory=list)
    """Names of kinds that cannot be tried without a C compiler."""


def short(seed: int) -> list[Kind]:
    """One kind of each group, in an order that the seed decides."""
    chance = random.Random(seed)
    groups: dict[str, list[Kind]] = {}
    for kind in KINDS:
        groups.setdefault(kind.group, []).append(kind)
    chosen = [chance.choice(kinds) for kinds in groups.values()]
    chance.shuffle(chosen)
    return chosen


async def rehearse(
    *,
    seed: int,
    kinds: Sequence[Kind],
    seconds: float = 0.0,
    recovery_s: float = RECOVERY_S,
    has_services: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> Rehearsal:
    """Try each of *kinds*, and go on in random order until *seconds* are over.

    Args:
        recovery_s: all must work again within.
        has_services: whether the deployment has PostgreSQL and Redis; otherwise SQLite, and kinds that are theirs are
            left out.
        tell: hears of each fault before it begins.

    Raises:
        BenchError: the deployment cannot be had here, or did not come up.
    """
    chance = random.Random(seed)
    found = Rehearsal(seed=seed, ledger=Ledger())
    began = time.monotonic()
    async with staged(has_services=has_services) as stage:
        if stage.shim.problem:
            found.skipped = [kind.name for kind in kinds if kind.needs_shim]
        possible = [
            kind
            for kind in kinds
            if not (kind.needs_shim and stage.shim.problem) and (has_services or not kind.needs_services)
        ]
        company = await Company.gathered(stage, found.ledger)
        before = await at_rest(stage)
        async with company.at_work():
            waiting = [[kind] for kind in possible]
            while waiting or time.monotonic() - began < seconds:
                several = 2 if chance.random() < TWO_AT_ONCE else 1
                now = waiting.pop(0) if waiting else chance.sample(possible, min(several, len(possible)))
                tell(f"{time.monotonic() - began:5.0f} s  {_named(now)}")
                await asyncio.sleep(chance.uniform(0, MOST_LEAD_S))
                await _try(company, now, chance, recovery_s)
        found.ledger.now = "the end"
        await check_promises(company, stage)
        await company.leave()
        await at_rest(stage, before, found.ledger)
        await stage.end_all()
        await nothing_left(stage, found.ledger)
        found.crashes = crashes(stage)
    found.seconds = time.monotonic() - began
    return found


def _named(kinds: Sequence[Kind]) -> str:
    return ", with ".join(kind.name for kind in kinds)


async def _try(company: Company, kinds: Sequence[Kind], chance: random.Random, recovery_s: float) -> None:
    """Do faults, the next while the one before lasts; withdraw them, and wait until all works again."""
    ledger = company.ledger
    ledger.begin(*(kind.name for kind in kinds))
    async with contextlib.AsyncExitStack() as stack:
        for kind in kinds:
            await stack.enter_async_context(kind.inject(company.stage, chance))
    began = time.monotonic()
    try:
        async with asyncio.timeout(recovery_s):
            if any(kind.loses_disks for kind in kinds):
                await company.make_room()
            await company.all_works()
    except TimeoutError:
        ledger.violated(f"not everything works {recovery_s:g} s later: {company.trouble}")
        return
    finally:
        company.open_doors()
    for kind in kinds:
        ledger.recoveries.setdefault(kind.name, []).append(time.monotonic() - began)
    ledger.calm()
    await asyncio.sleep(QUIET_S)


def report(found: Rehearsal) -> Results:
    """Tables of what was done, what broke, and what was not kept."""
    ledger = found.ledger
    rows = tuple(
        (name, str(times), *_seconds(ledger.recoveries.get(name, [])))
        for name, times in sorted(ledger.injected.items())
    )
    done = tuple((name, str(times)) for name, times in sorted(ledger.did.items()))
    failed = sum(ledger.refused.values())
    results = Results(took_s=found.seconds, skipped=[f"{name}: no C compiler" for name in found.skipped])
    results.sheets = [
        Sheet(
            title=f"Faults, seed {found.seed}",
            columns=("", "Times", "Works again after, median s", "at most, s"),
            rows=rows,
        ),
        Sheet(
            title="Answered well",
            columns=("", "Times"),
            rows=done,
            notes=(f"{failed:,} requests were refused or broken off, and said so",),
        ),
    ]
    results.figures = [
        Figure(name="faults injected", value=sum(ledger.injected.values())),
        Figure(name="violations", value=len(ledger.violations), most=0),
    ]
    return results


def _seconds(taken: list[float]) -> tuple[str, str]:
    ordered = sorted(taken)
    return (f"{ordered[len(ordered) // 2]:.1f}", f"{ordered[-1]:.1f}") if ordered else ("never", "never")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 when a promise was broken, or nothing could be tried."""
    parser = argparse.ArgumentParser(prog="bench.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for so long (default: each fault once)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of the order and of all chance")
    parser.add_argument("--only", action="append", default=[], help="faults whose name holds this text (repeatable)")
    parser.add_argument("--short", action="store_true", help="one fault of each group")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/guarantees.md")
    parser.add_argument("--sqlite", action="store_true", help="keep everything in SQLite, not in PostgreSQL and Redis")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    kinds = short(options.seed) if options.short else list(KINDS)
    if options.only:
        kinds = [kind for kind in KINDS if any(text in kind.name for text in options.only)]
    if not kinds:
        parser.error(f"no fault has such a name: {', '.join(kind.name for kind in KINDS)}")
    if not options.short:
        random.Random(options.seed).shuffle(kinds)
    console.print(f"seed {options.seed}", highlight=False)

    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    try:
        found = asyncio.run(
            rehearse(
                seed=options.seed,
                kinds=kinds,
                seconds=options.minutes * 60,
                has_services=not options.sqlite,
                tell=tell,
            )
        )
    except BenchError as error:
        console.print(f"faults: {error}", style="red", markup=False, highlight=False)
        return 1
    results = report(found)
    if options.markdown:
        print(results.to_markdown(), end="")
    else:
        results.show(Console(width=max(120, console.width)))
    for count, (what, times) in enumerate(found.ledger.refused.most_common()):
        if count < 40:
            console.print(f"  {times:5d}  {what}", style="dim", markup=False, highlight=False)
    for crash, times in found.crashes.most_common():
        console.print(f"  {times:5d}  {crash}", style="yellow", markup=False, highlight=False)
    for violation in found.ledger.violations:
        console.print(violation, style="red", markup=False, highlight=False)
    return 1 if found.ledger.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
