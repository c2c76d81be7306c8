"""Honest programs while others attack, and a thousand clients at once."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bench.context import Bench
from bench.generators import our_closed_load
from bench.measure import BenchError, Figure, Timing
from bench.server import serving
from stockade.attacks import LIMITS

__all__ = ["crowd", "mixed"]

HONEST_CLIENTS: Final = 2
HOSTILE_CLIENTS: Final = 8
PAUSE_S: Final = 0.02
PLACES: Final = os.cpu_count() or 1
"""Of one account at once, as on a server for several: whoever sends more than the machine has processors waits for
himself and not for others."""
QUIET_SHARE: Final = 0.1
"""Of the honest runs, as many before the attack to compare with."""
WARM_UP: Final = 40
CLIENTS: Final = 1000
CROWD_S: Final = 60.0
_DEADLINE_S: Final = 1800.0
_END_S: Final = 60.0
_KEYS: Final = {"honest": "bench-honest-0123456789", "hostile": "bench-hostile-0123456789"}
_HERE: Final = Path(__file__).resolve().parent.parent


def mixed(bench: Bench) -> None:
    """`--runs` honest runs by one account while another one sends the corpus, beside runs when it is quiet."""
    limits = "".join(f"{name} = {value}\n" for name, value in LIMITS.given().items())
    config = (
        f"[queue]\nplaces_per_actor = {PLACES}\n[sandbox.defaults]\n{limits}"
        f"[dialects.isobox]\napi_keys = {json.dumps(list(_KEYS.values()))}\n"
    )
    directory = bench.directory / "mixed"
    directory.mkdir()
    runs = bench.options.runs
    with serving(directory, config=config) as server:
        _honest(server.url, WARM_UP)
        quiet, _ = _honest(server.url, max(100, round(QUIET_SHARE * runs)))
        with _attackers(server.url) as attackers:
            timing, seen = _honest(server.url, runs)
            hostile = _ended(attackers)
        calm, _ = _honest(server.url, max(100, round(QUIET_SHARE * runs)))
    wrong = [*seen["wrong"], *hostile["wrong"]]
    if wrong:
        raise BenchError(f"{len(wrong)} answers were wrong; the first: {wrong[0]}")
    attacks = len(hostile["took"])
    note = f"{HONEST_CLIENTS} honest clients, {HOSTILE_CLIENTS} hostile ones, {PLACES} places each"
    bench.results.figures += [
        Figure(
            name="honest runs that were right while others attacked",
            value=100.0 * (len(seen["took"]) - len(seen["wrong"])) / runs,
            unit="%",
            least=100,
            note=f"{len(seen['took']):,} honest runs beside {attacks:,} hostile ones; {seen['refused']} refused",
        ),
        Figure(
            name="honest p99 under attack ÷ quiet",
            value=timing.quantile(0.99) / quiet.quantile(0.99),
            most=3,
            note=f"{timing.quantile(0.99) * 1e3:.1f} ÷ {quiet.quantile(0.99) * 1e3:.1f} ms; {note}",
        ),
        Figure(
            name="honest p50 under attack ÷ quiet",
            value=timing.median / quiet.median,
            note=f"{timing.median * 1e3:.1f} ÷ {quiet.median * 1e3:.1f} ms",
        ),
        Figure(
            name="honest p99 after the attack ÷ before",
            value=calm.quantile(0.99) / quiet.quantile(0.99),
            note=f"{calm.quantile(0.99) * 1e3:.1f} ÷ {quiet.quantile(0.99) * 1e3:.1f} ms",
        ),
    ]
    bench.results.details["mixed"] = {
        "quiet": quiet.facts(),
        "attacked": timing.facts(),
        "after": calm.facts(),
        "hostile_outcomes": hostile["outcomes"],
        "hostile_refused": hostile["refused"],
    }


def crowd(bench: Bench) -> None:
    """A thousand clients, each asking again as soon as it is answered, for a minute, and a queue with room for them."""
    directory = bench.directory / "crowd"
    directory.mkdir()
    config = f"[queue]\nlength = {2 * CLIENTS}\nwait_s = {_END_S:g}\noverload_wait_s = {_END_S:g}\n"
    with serving(directory, config=config) as server:
        our_closed_load(server.url, clients=16, seconds=1.0)
        load = our_closed_load(server.url, clients=CLIENTS, seconds=CROWD_S)
        server.belongings()
    bench.results.figures.append(
        Figure(
            name=f"refused or failed, {CLIENTS} clients for {CROWD_S:.0f} s",
            value=load.refused,
            most=0,
            note=f"{load.runs:,} answers, all as they should be; {load.rate:.0f} a second, p50 {load.p50_s:.2f} s, "
            f"p99 {load.p99_s:.2f} s",
        )
    )


def _command(kind: str, url: str, *more: object) -> list[str]:
    return [sys.executable, "-m", "bench.mixed_client", kind, url, _KEYS[kind], *map(str, more)]


def _honest(url: str, runs: int) -> tuple[Timing, Mapping[str, Any]]:
    """That many honest runs; how long they took, and what else was seen."""
    done = subprocess.run(
        _command("honest", url, HONEST_CLIENTS, runs, PAUSE_S),
        cwd=_HERE, capture_output=True, text=True, timeout=_DEADLINE_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"honest clients: {done.stderr.strip()[-500:]}")
    seen = json.loads(done.stdout)
    if not seen["took"]:
        raise BenchError("no honest run was answered")
    return Timing(name="honest", seconds=tuple(seen["took"])), seen


@contextlib.contextmanager
def _attackers(url: str) -> Iterator["subprocess.Popen[str]"]:
    command = _command("hostile", url, HOSTILE_CLIENTS)
    with subprocess.Popen(
        command, cwd=_HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _ended(process: "subprocess.Popen[str]") -> Mapping[str, Any]:
    """Tell the attackers to end; what they saw."""
    out, err = process.communicate(timeout=_END_S)
    if process.returncode:
        raise BenchError(f"hostile clients: {err.strip()[-500:]}")
    seen: Mapping[str, Any] = json.loads(out)
    return seen
