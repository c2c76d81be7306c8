"""Copies of a box's disk while it runs, beside `cp -a` of the same tree; and many copies at once."""

import contextlib
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.boxes_client import Boxes
from bench.context import Bench, ratio
from bench.measure import BenchError, Figure, Sample, Timing, interleaved
from bench.programs import ENVIRONMENT, PYTHON, TRUE, spawn

__all__ = ["copies", "forks"]

FILES, FILE_BYTES = 200, 1_000_000
FORKS = 20
ROUNDS = 7
FORK_ROUNDS = 5
MOST_MS, MOST_RATIO = 50.0, 1.3
SETTLE_S = 3.0
"""For what is written to get to the disk by itself."""
_WRITE = (
    "import os, sys\n"
    "os.makedirs(sys.argv[1], exist_ok=True)\n"
    f"data = os.urandom({FILE_BYTES})\n"
    f"for n in range({FILES}):\n"
    "    with open(f'{sys.argv[1]}/{n}', 'wb') as file:\n"
    "        file.write(data)\n"
)
_PLACE = "/home/user/tree"

SNAPSHOT, CLONE, COPY = "box: snapshot, 200 MB", "box: clone, 200 MB", "cp -a, 200 MB"
FRESH, RESTED = "just written", "written a while ago"
FORK = f"box: fork {FORKS}, until all answer exec true"


def copies(bench: Bench, client: Boxes) -> None:
    """Snapshot, clone and `cp -a`, right after 200 MB were written, and when they are on the disk."""
    results = bench.results
    box = client.create("host")
    client.exec(box, TRUE)
    tree = bench.directory / "tree"
    numbers = iter(range(1000))

    def written_inside() -> None:
        client.exec(box, PYTHON, "-c", _WRITE, _PLACE)

    def snapshot() -> float:
        name = f"s{next(numbers)}"
        seconds = client.snapshot(box, name)
        client.remove_snapshot(box, name)
        return seconds

    def clone() -> float:
        seconds, made = client.clone(box)
        client.remove(made)
        return seconds

    def copy() -> float:
        target = bench.directory / f"tree-{next(numbers)}"
        seconds = spawn(("/usr/bin/cp", "-a", str(tree), str(target)), b"", environment=ENVIRONMENT)
        shutil.rmtree(target)
        return seconds

    def after(write: Sample | None, sample: Sample) -> Sample:
        def both() -> float:
            if write is not None:
                write()
            return sample()

        return both

    def write_inside() -> float:
        written_inside()
        return 0.0

    def write_here() -> float:
        return spawn((PYTHON, "-c", _WRITE, str(tree)), b"", environment=ENVIRONMENT)

    fresh = {
        f"{SNAPSHOT}, {FRESH}": after(write_inside, snapshot),
        f"{CLONE}, {FRESH}": after(write_inside, clone),
        f"{COPY}, {FRESH}": after(write_here, copy),
    }
    results.add(interleaved(fresh, rounds=ROUNDS, warm_up=1))
    os.sync()
    time.sleep(SETTLE_S)
    rested = {f"{SNAPSHOT}, {RESTED}": snapshot, f"{CLONE}, {RESTED}": clone, f"{COPY}, {RESTED}": copy}
    results.add(interleaved(rested, rounds=ROUNDS, warm_up=1))
    client.remove(box)
    shutil.rmtree(tree)
    _judge(bench)


def _judge(bench: Bench) -> None:
    results, times = bench.results, bench.results.timings
    kind = _shares_blocks(bench.directory)
    for state in (FRESH, RESTED):
        bare = f"{COPY}, {state}"
        for what in (SNAPSHOT, CLONE):
            name = f"{what}, {state}"
            note = f"{ratio(times, name, bare):.2f} of cp -a on the host's {kind}, {times[bare].median * 1e3:.0f} ms"
            results.figures.append(
                Figure(name=name, value=times[name].median * 1e3, unit="ms", most=MOST_MS, note=note)
            )


def _shares_blocks(directory: Path) -> str:
    """What the host's own file system is called."""
    done = subprocess.run(["stat", "--file-system", "--format=%T", str(directory)], capture_output=True, text=True)
    return done.stdout.strip() or "file system"


def forks(bench: Bench, client: Boxes, url: str, key: str) -> None:
    """Twenty copies of one snapshot, and `true` in each of them."""
    results = bench.results
    box = client.create("host")
    client.exec(box, PYTHON, "-c", _WRITE, _PLACE)
    client.snapshot(box, "base")
    forked: list[float] = []
    answered: list[float] = []
    with contextlib.ExitStack() as held, ThreadPoolExecutor(FORKS) as threads:
        clients = [held.enter_context(contextlib.closing(Boxes(url, key))) for _ in range(FORKS)]
        for number in range(-1, FORK_ROUNDS):
            began = time.perf_counter()
            made = client.fork(box, FORKS, "base")
            between = time.perf_counter()
            list(threads.map(lambda one, box: one.exec(box, TRUE), clients, made))
            seconds = time.perf_counter() - began
            if len(set(made)) != FORKS:
                raise BenchError(f"fork made {len(set(made))} boxes")
            if number >= 0:
                forked.append(between - began)
                answered.append(seconds)
            for one in made:
                client.remove(one)
    client.remove(box)
    made_name = f"box: fork {FORKS}, made and started"
    results.add(
        {
            made_name: Timing(name=made_name, seconds=tuple(forked)),
            FORK: Timing(name=FORK, seconds=tuple(answered)),
        }
    )
    note = f"of a disk with 200 MB; {results.timings[made_name].median * 1e3:.0f} ms until the request is answered"
    results.figures.append(Figure(name=FORK, value=results.timings[FORK].median * 1e3, unit="ms", most=400, note=note))
