"""A hundred thousand jobs that wait, and nobody who does them: what is slower then, and what grows."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from bench import processes
from bench.context import Bench
from bench.jobs_client import Client
from bench.measure import BenchError, Figure, Timing
from bench.programs import HELLO
from bench.server import Server
from stockade.store import Database
from stockade.store.jobs import JobStore
from stockade.store.jobs_database import DatabaseJobs

__all__ = ["backlog"]

JOBS = 100_000
BATCH = 1000
SAMPLES = 200
CLAIMS = 50
WARM_UP = 50
LEASE_S = 60.0
DEFAULT_WALL_S = 10.0
SETTLE_S = 1.0
MIB = 1 << 20
_BATCH = json.dumps({"jobs": [{"language": "python", "code": HELLO}] * BATCH}).encode()


def backlog(bench: Bench, name: str, server: Server, *, database: str | Path, redis_url: str) -> None:
    """Queue them over HTTP, a thousand a request.

    Args:
        name: of the store.
        server: that runs no jobs.
        database: where its jobs are, unless they are in the Redis at *redis_url*.
    """
    with contextlib.closing(Client(server.url)) as client:
        for _ in range(WARM_UP):
            client.submit()
        client.ask("POST", "/v1/jobs/batch", _BATCH, expected=202)
        first = [client.submit() for _ in range(SAMPLES)]
        claims_before = asyncio.run(_claims(database, redis_url))
        before = _resident(server)
        began = time.perf_counter()
        for _ in range(JOBS // BATCH):
            client.ask("POST", "/v1/jobs/batch", _BATCH, expected=202)
        queued_s = time.perf_counter() - began
        last = [client.submit() for _ in range(SAMPLES)]
        depth = Timing(name="depth", seconds=tuple(_timed(lambda: _depth(client)) for _ in range(CLAIMS)))
        if (there := _depth(client)) < JOBS:
            raise BenchError(f"{there} jobs wait, not {JOBS}")
        after = _resident(server)
        claims_after = asyncio.run(_claims(database, redis_url))
    timings = {
        "enqueue, {} waiting": (first, last),
        "claim, {} waiting": (claims_before, claims_after),
    }
    for what, (few, many) in timings.items():
        for number, seconds in (("a thousand", few), ("100,000", many)):
            label = f"{what.format(number)}, {name}"
            bench.results.add({label: Timing(name=label, seconds=tuple(seconds))})
    medians = [Timing(name="", seconds=tuple(each)).median * 1e3 for each in (first, last, claims_before, claims_after)]
    bench.results.figures += [
        Figure(
            name=f"enqueue, 100,000 waiting ÷ a thousand waiting, {name}",
            value=medians[1] / medians[0],
            most=1.2,
            note=f"{medians[1]:.2f} ÷ {medians[0]:.2f} ms; in batches of {BATCH:,} {JOBS / queued_s:,.0f} /s",
        ),
        Figure(
            name=f"claim, 100,000 waiting ÷ a thousand waiting, {name}",
            value=medians[3] / medians[2],
            note=f"{medians[3]:.2f} ÷ {medians[2]:.2f} ms, by the store's driver in another process",
        ),
        Figure(
            name=f"growth of the server's memory by 100,000 waiting jobs, {name}",
            value=(after - before) / MIB,
            unit="MiB",
            most=8,
            note=f"{before / MIB:.1f} to {after / MIB:.1f}; queue depth is told in {depth.median * 1e3:.1f} ms",
        ),
    ]


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _depth(client: Client) -> int:
    told = json.loads(client.ask("GET", "/v1/jobs/queue"))
    queued: dict[str, int] = told["queued"]
    return sum(queued.values())


def _resident(server: Server) -> int:
    """Bytes of the server's own process, at rest."""
    time.sleep(SETTLE_S)
    return processes.resident(server.processes()["server"])


@contextlib.asynccontextmanager
async def _opened(database: str | Path, redis_url: str) -> AsyncIterator[JobStore]:
    async with contextlib.AsyncExitStack() as stack:
        store: JobStore
        if redis_url:
            from stockade.dialects.code_sandbox.shown import document
            from stockade.store.jobs_redis import RedisJobs

            as_documented = partial(document, default_wall_s=DEFAULT_WALL_S)
            store = RedisJobs(redis_url, timeout_s=5.0, document=as_documented)
        else:
            store = DatabaseJobs(await stack.enter_async_context(Database.at(database)))
        await store.open()
        stack.push_async_callback(store.close)
        yield store


async def _claims(database: str | Path, redis_url: str) -> list[float]:
    """Seconds that each of some claims of a single job took."""
    took: list[float] = []
    async with _opened(database, redis_url) as store:
        for number in range(-5, CLAIMS):
            began = time.perf_counter()
            if len(await store.claim("bench", most=1, lease_s=LEASE_S, languages=("python",))) != 1:
                raise BenchError("there was nothing to claim")
            if number >= 0:
                took.append(time.perf_counter() - began)
    return took
