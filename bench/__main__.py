"""Measure everything side by side and print it. Bars are stated, never enforced: the exit status is 0 in any case."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import growth
from bench.docker import docker
from bench.engine import sandboxed_true
from bench.machine import group_join
from bench.measure import BenchError, Figure, Sample, Timing, interleaved
from bench.programs import HELLO, PYTHON, TRUE, bare, bubblewrap
from bench.server import Server, hello, serving
from bench.table import Results

__all__ = ["main"]

CLIENTS = 16
GROWTH_CLIENTS = 4
IN_A_ROW = 100
LOAD_WARM_UP_S = 1.0
LOAD_DEADLINE_S = 900.0
_PROJECT = Path(__file__).resolve().parent.parent

BARE, BUBBLEWRAP, STOCKADE, IN_TURN = (
    "bare python3 -c", "bubblewrap + python3", "Stockade over HTTP", "Stockade over HTTP, in a row",
)  # fmt: skip
BARE_TRUE, BUBBLEWRAP_TRUE, STOCKADE_TRUE = "bare true", "bubblewrap + true", "Stockade engine API + true"
DOCKER, DOCKER_NO_NETWORK = "docker run --rm", "docker run --rm --network none"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 also where a bar is missed, 1 when something could not be measured at all."""
    options = _options(arguments)
    console = Console(stderr=True)
    results = Results()
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="stockade-bench-") as name, console.status("") as status:
            directory = Path(name)
            with serving(directory) as server:
                status.update("idle memory …")
                _idle(server, results)
                status.update("one at a time …")
                _one_at_a_time(server, directory, options.rounds, results)
                if not options.no_docker:
                    status.update("docker …")
                    _docker(server, directory, options.docker_rounds, results)
                status.update(f"{CLIENTS} clients …")
                _throughput(server, options.windows, options.window_s, results)
                status.update(f"{options.runs:,} runs in a row …")
                _growth(server, options.runs, results)
    except BenchError as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False)
        return 1
    joining = group_join()
    if joining is not None:
        results.figures.append(
            Figure(name=joining.name, value=joining.median * 1e3, unit="ms", note="a fact about this machine's kernel")
        )
    results.took_s = time.monotonic() - began
    if options.json:
        print(results.to_json())
    elif options.markdown:
        print(results.to_markdown(), end="")
    else:
        results.show(Console(width=max(120, console.width)))
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="turns of each contestant (default: 200)")
    parser.add_argument("--docker-rounds", type=int, default=12, help="turns where docker takes part (default: 12)")
    parser.add_argument("--no-docker", action="store_true", help="leave docker out")
    parser.add_argument("--windows", type=int, default=5, help="measurements of throughput (default: 5)")
    parser.add_argument("--window-s", type=float, default=3.0, help="seconds of each (default: 3)")
    parser.add_argument("--runs", type=int, default=1000, help="runs while watching for growth (default: 1000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/performance.md")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.docker_rounds < 2 or options.windows < 1 or options.runs < growth.CHECKPOINTS:
        parser.error(f"at least 2 rounds, 2 rounds of docker, 1 window and {growth.CHECKPOINTS} runs")
    return options


def _idle(server: Server, results: Results) -> None:
    """After the first run, when everything is loaded that a run needs."""
    hello(server)()
    server.belongings()  # comes to rest
    memory = server.memory()
    mib = 1 << 20
    resident = sum(sizes["rss"] for part, sizes in memory.items() if part != "cells") / mib
    proportional = sum(sizes["pss"] for sizes in memory.values()) / mib
    parts = ", ".join(f"{part} {sizes['rss'] / mib:.1f}" for part, sizes in memory.items() if part != "cells")
    results.figures += [
        Figure(name="idle, resident memory", value=resident, unit="MiB", most=120, note=parts),
        Figure(
            name="idle, proportional memory with the waiting sandboxes",
            value=proportional,
            unit="MiB",
            note=f"waiting sandboxes {memory['cells']['pss'] / mib:.1f}",
        ),
    ]
    results.details["idle_memory_bytes"] = memory


def _one_at_a_time(server: Server, directory: Path, rounds: int, results: Results) -> None:
    over_http = hello(server)
    with sandboxed_true(directory / "engine") as engine_true:
        contestants: dict[str, Sample] = {BARE: bare((PYTHON, "-c", HELLO), b"hello\n")}
        confined = bubblewrap((PYTHON, "-c", HELLO), b"hello\n")
        confined_true = bubblewrap((TRUE,), b"")
        if confined is not None:
            contestants[BUBBLEWRAP] = confined
        contestants |= {STOCKADE: over_http, BARE_TRUE: bare((TRUE,), b"")}
        if confined_true is not None:
            contestants[BUBBLEWRAP_TRUE] = confined_true
        else:
            results.skipped.append("bubblewrap, which is not installed (Debian package bubblewrap)")
        contestants[STOCKADE_TRUE] = engine_true
        results.add(interleaved(contestants, rounds=rounds))
        in_turn = tuple(over_http() for _ in range(IN_A_ROW))
        in_turn_true = tuple(engine_true() for _ in range(IN_A_ROW))
    results.add({IN_TURN: Timing(name=IN_TURN, seconds=in_turn)})
    row_true = f"{STOCKADE_TRUE}, in a row"
    results.add({row_true: Timing(name=row_true, seconds=in_turn_true)})
    times = results.timings
    note = f"{times[STOCKADE].median * 1e3:.2f} ms ÷ {times[BARE].median * 1e3:.2f} ms"
    results.figures += [
        Figure(name="hello over HTTP ÷ bare", value=_ratio(times, STOCKADE, BARE), most=1.7, note=note),
        Figure(
            name="the same in a row ÷ bare",
            value=_ratio(times, IN_TURN, BARE),
            note="no pause in which sandboxes could be made ahead",
        ),
        Figure(name="sandbox alone (true, engine API)", value=times[STOCKADE_TRUE].median * 1e3, unit="ms", most=4),
    ]
    if BUBBLEWRAP in times:
        results.figures.append(Figure(name="bubblewrap ÷ bare", value=_ratio(times, BUBBLEWRAP, BARE)))
    noise = times[BARE]
    spread = (noise.quantile(0.95) - noise.quantile(0.05)) / noise.median
    least, most = min(noise.seconds) * 1e3, max(noise.seconds) * 1e3
    results.figures.append(
        Figure(
            name="noise of the machine",
            value=spread * 100,
            unit="%",
            note=f"bare python, (p95 - p5) ÷ p50; from {least:.1f} to {most:.1f} ms",
        )
    )


def _docker(server: Server, directory: Path, rounds: int, results: Results) -> None:
    """In rounds of their own: what the engine does after a container would be on the others' bill."""
    try:
        with docker(directory) as engine:
            contestants: dict[str, Sample] = {
                f"{BARE}, beside docker": bare((PYTHON, "-c", HELLO), b"hello\n"),
                f"{STOCKADE}, beside docker": hello(server),
                DOCKER: engine.run(),
                DOCKER_NO_NETWORK: engine.run("--network", "none"),
            }
            results.add(interleaved(contestants, rounds=rounds, warm_up=1))
            results.details["docker"] = {"version": engine.version, "engine": engine.about}
    except BenchError as error:
        results.skipped.append(f"docker run: {error}")
        return
    times = results.timings
    results.figures += [
        Figure(
            name="hello over HTTP ÷ docker run --rm",
            value=_ratio(times, f"{STOCKADE}, beside docker", DOCKER),
            most=0.1,
            note=f"Docker {engine.version}, {engine.about}",
        ),
        Figure(
            name="hello over HTTP ÷ docker run --rm --network none",
            value=_ratio(times, f"{STOCKADE}, beside docker", DOCKER_NO_NETWORK),
        ),
    ]


def _throughput(server: Server, windows: int, window_s: float, results: Results) -> None:
    clients = str(CLIENTS)
    _load("http", server.url, clients, str(LOAD_WARM_UP_S))
    rates: dict[str, list[float]] = {"bare": [], "http": []}
    took: list[float] = []
    runs = 0
    cpu: dict[str, float] = {}
    for _ in range(windows):  # in turn, as everywhere
        _, rate = _load("bare", str(window_s))
        rates["bare"].append(rate)
        before = server.cpu_s()
        answers, rate = _load("http", server.url, clients, str(window_s))
        rates["http"].append(rate)
        took += answers
        runs += len(answers)
        server.belongings()  # at rest: everything that these runs cost has been counted
        cpu = {part: cpu.get(part, 0.0) + after - before[part] for part, after in server.cpu_s().items()}
    name = f"Stockade over HTTP, {clients} clients"
    results.add({name: Timing(name=name, seconds=tuple(took))})
    bare_rate, rate = statistics.median(rates["bare"]), statistics.median(rates["http"])
    each = ", ".join(f"{part} {seconds / runs * 1e3:.2f}" for part, seconds in cpu.items())
    results.figures += [
        Figure(
            name=f"throughput, {clients} clients ÷ bare two at a time",
            value=rate / bare_rate,
            least=0.5,
            note=f"{rate:.0f} ÷ {bare_rate:.0f} runs a second",
        ),
        Figure(name="CPU time of a run", value=sum(cpu.values()) / runs * 1e3, unit="ms", note=each),
    ]
    results.details["throughput_runs_per_s"] = rates


def _growth(server: Server, runs: int, results: Results) -> None:
    def do_runs(count: int) -> None:
        _load("count", server.url, str(GROWTH_CLIENTS), str(count))

    points = growth.watch(server, runs, do_runs)
    results.figures += growth.figures(points)
    results.details["growth"] = [point.facts() for point in points]


def _load(*arguments: str) -> tuple[list[float], float]:
    """How long each run took, and runs a second, as the load generator saw them."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *arguments],
        cwd=_PROJECT,
        capture_output=True,
        text=True,
        timeout=LOAD_DEADLINE_S,
    )
    if done.returncode:
        raise BenchError(f"load generator: {done.stderr.strip()[-500:]}")
    told = json.loads(done.stdout)
    return told["took"], told["runs"] / told["seconds"]


def _ratio(times: dict[str, Timing], one: str, other: str) -> float:
    return times[one].median / times[other].median


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
