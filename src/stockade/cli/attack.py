"""`stockade doctor --attack`: the corpus of hostile programs, through every way in."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from stockade.attacks import Attack, Bait, Way, attacks
from stockade.attacks.trials import Finding, Trial, try_honest, try_out
from stockade.cli.attack_options import Asked
from stockade.errors import Invalid

if TYPE_CHECKING:
    from stockade.config import Config

__all__ = ["Outcomes", "attack", "chosen_attacks", "tried", "verdict_of"]

AT_ONCE: Final = 4
"""Attacks of one way that are tried at a time: more would only wait for each other's processor time."""


@dataclass(kw_only=True)
class Outcomes:
    """What was found."""

    target: str
    """What was attacked, for people."""
    trials: list[Trial] = field(default_factory=list)
    honest: list[Trial] = field(default_factory=list)
    """What became of an honest program, by every way, after all that."""
    visitors: tuple[str, ...] = ()
    """Bait of this host that somebody came to."""
    left: list[str] = field(default_factory=list)
    """What is on the host that was not there before."""
    seconds: float = 0.0

    @property
    def failed(self) -> list[Trial]:
        """Trials that somebody has to look at."""
        return [one for one in (*self.trials, *self.honest) if one.failed]

    @property
    def ok(self) -> bool:
        """Whether all was contained, something was tried, and nothing is left."""
        tried_any = any(one.finding is Finding.CONTAINED for one in self.trials)
        return tried_any and not (self.failed or self.visitors or self.left)


def attack(config: "Config", asked: Asked) -> int:
    """Attack, and print what came of it. Returns the exit status: 1 unless all was contained.

    Raises:
        Invalid: it names ways, groups or attacks that there are none of.
        Unavailable: no server of our own can be started.
    """
    chosen = chosen_attacks(asked)
    from stockade.attacks.wire_ways import NAMES

    _known("--way", asked.ways, NAMES)
    outcomes = asyncio.run(_attacked(config, asked, chosen))
    from stockade.cli.attack_table import print_json, print_outcomes

    if asked.as_json:
        print_json(outcomes)
    else:
        print_outcomes(outcomes, each=bool(asked.groups or asked.only))
    return 0 if outcomes.ok else 1


def chosen_attacks(asked: Asked) -> tuple[Attack, ...]:
    """Those that are asked for; all of them where nothing is.

    Raises:
        Invalid: there is no such group, or attack.
    """
    corpus = attacks()
    _known("--group", asked.groups, dict.fromkeys(one.group for one in corpus))
    _known("--only", asked.only, [one.name for one in corpus])
    if not (asked.groups or asked.only):
        return corpus
    return tuple(one for one in corpus if one.group in asked.groups or one.name in asked.only)


def _known(option: str, given: Sequence[str], known: Any) -> None:
    for name in given:
        if name not in known:
            raise Invalid(f"{option} {name}: there are {', '.join(known)}")


async def _attacked(config: "Config", asked: Asked, chosen: Sequence[Attack]) -> Outcomes:
    begun = time.monotonic()
    hostname = socket.gethostname()
    with Bait() as bait:
        async with _target(config, asked) as (target, ways, left):
            outcomes = Outcomes(target=target)
            picked = [way for way in ways if not asked.ways or way.name in asked.ways]
            with _progress(len(picked) * len(chosen), quiet=asked.as_json) as advance:
                await tried(picked, chosen, bait.stdin, outcomes, advance)
        outcomes.visitors = bait.visitors()
    outcomes.left = [*left, *([] if socket.gethostname() == hostname else [f"this host is now {socket.gethostname()}"])]
    outcomes.seconds = time.monotonic() - begun
    return outcomes


async def tried(
    ways: Sequence[Way],
    chosen: Sequence[Attack],
    stdin: bytes,
    outcomes: Outcomes,
    advance: Callable[[Trial], object] = lambda _: None,
) -> None:
    """Try all of *chosen* by each of *ways*, then an honest program; what is found goes to *outcomes*."""
    for way in ways:
        outcomes.trials += await try_out(way, chosen, stdin, at_once=AT_ONCE, done=advance)
        outcomes.honest.append(await try_honest(way))


@contextlib.asynccontextmanager
async def _target(config: "Config", asked: Asked) -> AsyncIterator[tuple[str, tuple[Way, ...], list[str]]]:
    """What it is, the ways in, and where to find later what is left of it."""
    from stockade.attacks.wire_ways import WireServer, wire_ways

    if asked.server is not None:
        async with WireServer(asked.server.url, asked.server.api_key) as wire:
            yield asked.server.url, wire_ways(wire), []
        return
    from stockade.cli.attack_server import own_server

    name = asked.backend or config.sandbox.backend
    left: list[str] = []
    ordinary = os.geteuid() != 0 and config.sandbox.warden_socket is None
    async with (
        own_server(config, backend=asked.backend, left=left) as server,
        WireServer(server.url, server.key) as wire,
    ):
        yield f"this host, backend {name}", wire_ways(wire, ordinary=ordinary), left


@contextlib.contextmanager
def _progress(total: int, *, quiet: bool) -> Any:
    """A bar on standard error where that is a terminal. Its value is told of each trial."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)

        def advance(trial: Trial) -> None:
            if trial.failed:
                progress.console.print(f"[red]{verdict_of(trial)}[/] {trial.way}: {trial.attack.name}")
            progress.update(task, advance=1, description=f"{trial.way}: {trial.attack.group}")

        yield advance


def verdict_of(trial: Trial) -> str:
    """As it is printed: what must not be overlooked in capitals."""
    return trial.finding.value.upper() if trial.finding is Finding.ESCAPED else trial.finding.value
