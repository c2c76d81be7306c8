"""A hundred at once: made, used and removed, by us, by Docker and by bubblewrap."""

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.boxes_client import Boxes
from bench.context import Bench
from bench.docker import Docker
from bench.measure import BenchError, Figure, Timing
from bench.programs import TRUE, bubblewrap

__all__ = ["crowd", "together"]

CROWD = 100
TURNS = 3
NAME = f"{CROWD} boxes at once: create, exec true, remove"


def crowd(bench: Bench, url: str, key: str, engine: Docker | None) -> None:
    """From the moment at which all begin to the end of the last."""
    results = bench.results
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(contextlib.closing(Boxes(url, key))) for _ in range(CROWD)]

        def life(client: Boxes) -> None:
            box = client.create("host")
            client.exec(box, TRUE)
            client.remove(box)

        found = [together([lambda one=one: life(one) for one in clients]) for _ in range(TURNS)]  # type: ignore[misc]
    results.add({NAME: Timing(name=NAME, seconds=tuple(seconds for seconds, _ in found))})
    failed = [error for _, errors in found for error in errors]
    notes = [f"{len(failed)} of {TURNS * CROWD} failed{f': {failed[0]}' if failed else ''}"]
    if engine is not None:
        seconds, errors = together([_running(engine)] * CROWD)
        notes.append(f"docker run --rm true {seconds:.1f} s, {len(errors)} failed")
    confined = bubblewrap((TRUE,), b"")
    if confined is not None:
        taken = []
        for _ in range(TURNS):
            began = time.perf_counter()
            for _ in range(CROWD):
                confined()
            taken.append(time.perf_counter() - began)
        notes.append(f"bubblewrap + true, one after the other, {statistics.median(taken):.2f} s")
    results.figures.append(
        Figure(
            name=NAME,
            # One that fails misses the bar, however fast it was.
            value=results.timings[NAME].median if not failed else float("inf"),
            unit="s",
            most=5,
            note="; ".join(notes),
        )
    )


def _running(engine: Docker) -> Callable[[], object]:
    return engine.running((TRUE,))


def together(works: Sequence[Callable[[], object]]) -> tuple[float, list[str]]:
    """Do all at once: seconds until the last is done, and what went wrong."""
    start = threading.Barrier(len(works) + 1)

    def one(work: Callable[[], object]) -> str | None:
        start.wait()
        try:
            work()
        except (BenchError, OSError) as error:
            return str(error)[:300]
        return None

    with ThreadPoolExecutor(len(works)) as threads:
        waiting = [threads.submit(one, work) for work in works]
        start.wait()
        began = time.perf_counter()
        said = [future.result() for future in waiting]
        seconds = time.perf_counter() - began
    return seconds, [error for error in said if error is not None]
