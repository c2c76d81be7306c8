"""Whatever dies while jobs are queued and run: what was acknowledged is there, and each job ends once."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

from stockade.errors import Unavailable
from stockade.model.jobs import Job, JobState
from stockade.store import Database
from stockade.store.jobs_database import DatabaseJobs
from tests.postgres import Postgres
from tests.store.job_stores import a_job, a_result, counted, figures, until

pytestmark = pytest.mark.anyio

T = TypeVar("T")
WAIT_S = 60.0

SERVER = """
import asyncio, sys
from stockade.store import Database
from stockade.store.jobs_database import DatabaseJobs
from tests.store.job_stores import a_job, a_result

async def submit(store):
    while True:
        job = a_job()
        await store.add([job], most=10_000)
        print("added", job.id, flush=True)

async def work(store, name):
    while True:
        for job in await store.claim(name, most=2, lease_s=0):
            print("claimed", job.id, job.fence, flush=True)
            done = await store.finish(job.id, job.fence, a_result(f"{job.fence}".encode()), keep_s=None)
            if done is not None:
                print("ended", job.id, job.fence, flush=True)
        await store.reap(most_attempts=1000, keep_s=None)

async def main():
    async with await Database.open(sys.argv[1]) as database:
        store = DatabaseJobs(database)
        await store.open()
        async with asyncio.TaskGroup() as tasks:
            for n in range(3):
                tasks.create_task(submit(store))
                tasks.create_task(work(store, f"worker {n}"))

asyncio.run(main())
"""


@asynccontextmanager
async def opened(where: str | Path) -> AsyncIterator[tuple[Database, DatabaseJobs]]:
    async with await Database.open(where, wait_s=WAIT_S) as database:
        store = DatabaseJobs(database)
        await store.open()
        try:
            yield database, store
        finally:
            await store.close()


async def drain(store: DatabaseJobs) -> list[Job]:
    """Run all that is left; the workers of before are dead."""
    ended = []
    deadline = time.monotonic() + WAIT_S
    while (depth := await store.depth()).queued or depth.running:
        assert time.monotonic() < deadline, depth
        await store.reap(most_attempts=1000, keep_s=None)
        for job in await store.claim("last", most=50, lease_s=WAIT_S):
            done = await store.finish(job.id, job.fence, a_result(b"%d" % job.fence), keep_s=None)
            assert done is not None
            ended.append(done)
    return ended


@pytest.fixture
def where(request: pytest.FixtureRequest, made_sqlite: Path, tmp_path: Path) -> str:
    """A database in which there is nothing."""
    if request.param == "sqlite":
        return str(tmp_path / "stockade.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.mark.parametrize("where", ["sqlite", "postgresql"], indirect=True)
async def test_a_server_that_is_killed_loses_nothing_that_it_acknowledged(where: str) -> None:
    added: set[str] = set()
    ended: dict[str, str] = {}
    async with opened(where) as (database, store):
        for _ in range(2):  # and once more, over what the first has left
            server = await asyncio.create_subprocess_exec(
                sys.executable, "-c", SERVER, where, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
            )
            try:
                assert server.stdout is not None
                async with asyncio.timeout(WAIT_S):
                    for number in range(150):
                        line = await server.stdout.readline()
                        assert line, "the server has ended by itself"
                        if number == 149:
                            server.kill()
                        _note(line.decode(), added, ended)
                    for rest in (await server.stdout.read()).decode().splitlines():
                        _note(rest, added, ended)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    server.kill()
                await server.wait()
        assert await database.read(figures) == await database.read(counted)
        for job in await drain(store):
            assert job.id not in ended  # a second end
        for job_id in added:
            found = await store.get(job_id)
            assert found is not None, "an acknowledged job is gone"
            assert found.state is JobState.SUCCEEDED
            assert found.result is not None
            assert found.result.stdout == b"%d" % found.fence
            assert ended.get(job_id, f"{found.fence}") == f"{found.fence}"
        assert await database.read(figures) == await database.read(counted)
    assert added
    assert ended


def _note(line: str, added: set[str], ended: dict[str, str]) -> None:
    match line.split():
        case ["added", job_id]:
            added.add(job_id)
        case ["ended", job_id, fence]:
            assert job_id not in ended, "a job has ended twice"
            ended[job_id] = fence


async def test_jobs_outlive_crashes_of_their_database(postgres: Postgres, postgres_url: str) -> None:
    """Callers are told that it is away, ask again, and go on when it is back; twice in a row."""
    added: set[str] = set()
    ended: set[str] = set()
    is_over = asyncio.Event()
    crashes = 0

    async def insist(work: Callable[[], Awaitable[T]]) -> T:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                return await work()
            except Unavailable:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)

    async def submit(store: DatabaseJobs) -> None:
        while not is_over.is_set():
            job = a_job(f"account {len(added) % 3}")
            await insist(lambda job=job: store.add([job], most=10_000))
            added.add(job.id)

    async def work(store: DatabaseJobs) -> None:
        while not is_over.is_set():
            for job in await insist(lambda: store.claim("w", most=2, lease_s=WAIT_S)):
                result = a_result(b"%d" % job.fence)
                done = await insist(lambda job=job, result=result: store.finish(job.id, job.fence, result, keep_s=None))
                # `None`: it was recorded the first time, and the answer was lost.
                if done is not None:
                    assert job.id not in ended
                    ended.add(job.id)

    async def more() -> None:
        goal = len(ended) + 20
        await until(lambda: len(ended) >= goal)

    async def crash() -> None:
        nonlocal crashes
        for _ in range(2):
            await more()
            await asyncio.to_thread(postgres.stop)
            await asyncio.to_thread(postgres.start)
            crashes += 1
        await more()
        is_over.set()

    async with opened(postgres_url) as (database, store), opened(postgres_url) as (_, other):
        async with asyncio.timeout(3 * WAIT_S), asyncio.TaskGroup() as tasks:
            for one in (store, other):
                tasks.create_task(submit(one))
                tasks.create_task(work(one))
            tasks.create_task(crash())
        assert await database.read(figures) == await database.read(counted)
        # Claims whose answer was lost: nobody has these jobs, and their lease is still running.
        async with asyncio.timeout(WAIT_S):
            await _let_lapse(database)
            await drain(store)
        for job_id in added:
            found = await store.get(job_id)
            assert found is not None, "an acknowledged job is gone"
            assert found.state is JobState.SUCCEEDED
            assert found.result is not None
            assert found.result.stdout == b"%d" % found.fence
        assert await database.read(figures) == await database.read(counted)
    assert crashes == 2


async def _let_lapse(database: Database) -> None:
    await database.write(
        lambda connection: connection.exec_driver_sql(
            "UPDATE jobs SET lease_until = now() - interval '1 second' WHERE state = 'running'"
        )
    )


async def test_a_database_that_is_away_is_told_of_and_used_again(postgres: Postgres, postgres_url: str) -> None:
    async with opened(postgres_url) as (_, store):
        await store.add([a_job()])
        await asyncio.to_thread(postgres.stop)
        try:
            attempts: list[Awaitable[object]] = [
                store.add([a_job()]),
                store.get("x"),
                store.claim("w", most=1, lease_s=1),
                store.depth(),
                store.ping(),
            ]
            for attempt in attempts:
                with pytest.raises(Unavailable):
                    await attempt
            began = datetime.now(UTC)
            assert not await store.wait_for_work(0.2)
            assert (datetime.now(UTC) - began).total_seconds() >= 0.15
        finally:
            await asyncio.to_thread(postgres.start)
        assert len(await store.claim("w", most=9, lease_s=1)) == 1


async def test_a_closed_store_says_so(made_sqlite: Path, tmp_path: Path) -> None:
    async with opened(tmp_path / "stockade.db") as (_, store):
        await store.close()
        await store.close()
        with pytest.raises(Unavailable):
            await store.add([a_job()])
