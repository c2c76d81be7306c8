"""`kill -9` in the middle of many jobs: each one that was accepted ends once, with its own result.

Killed are, each twice in a row: the server with the worker in it, a worker process, PostgreSQL, Redis.
"""

import asyncio
import contextlib
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from stockade.app.jobs import open_job_store
from stockade.config import Config
from stockade.config_jobs import JobsConfig
from stockade.model.jobs import Job, JobState
from stockade.store import Database, UsageTable
from stockade.store.jobs import JobStore
from stockade.store.jobs_database import DatabaseJobs
from tests.app.serving import START_S, Server, serving
from tests.faults.sessions import LONG, nothing_left
from tests.postgres import Postgres
from tests.redis_server import redis_server
from tests.worker.processes import WorkerProcess, worker_process

pytestmark = pytest.mark.anyio

MANY = 1000 if LONG else 200
TIMES = [1, 2] if LONG else [2]
AT_ONCE = 8
WITHIN_S = 600.0 if LONG else 180.0
KEY = "sk_" + "7a" * 32
QUICK = {
    "STOCKADE_API_KEY": KEY,
    "STOCKADE_JOBS_HEARTBEAT_S": "0.2",
    # Longer than a loaded machine keeps a worker from its heartbeat, shorter than a test's patience.
    "STOCKADE_JOBS_LEASE_S": "5",
    # Each kill costs an attempt of what runs; none must be given up here.
    "STOCKADE_JOBS_MOST_ATTEMPTS": "10",
}


@dataclass
class Cast:
    """Who takes part: processes that may be killed, and those that take their place."""

    folder: Path
    variables: dict[str, str]
    has_worker: bool
    note: Callable[[Server], None]
    server: Server | None = None
    worker: WorkerProcess | None = None
    logs: list[list[str]] = field(default_factory=list)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start_server(self) -> None:
        """Start one on the same data; what it is called changes."""
        places = {"STOCKADE_JOBS_PLACES": "0"} if self.has_worker else {}
        self.server = self._stack.enter_context(serving(self.folder, **self.variables, **places))
        self.logs.append(self.server.log)
        self.note(self.server)

    def start_worker(self) -> None:
        self.worker = self._stack.enter_context(worker_process(self.folder, "--places", "8", **self.variables))
        self.logs.append(self.worker.log)

    def kill_server(self) -> None:
        assert self.server is not None
        self.server.process.kill()
        self.server.process.wait(START_S)
        self.start_server()

    def kill_worker(self) -> None:
        assert self.worker is not None
        self.worker.process.kill()
        self.worker.process.wait(START_S)
        self.start_worker()

    def endings(self) -> list[str]:
        """The jobs that workers have ended, as they have logged it: each time that the store took a result."""
        events = [json.loads(line) for log in self.logs for line in list(log) if '"job.ended"' in line]
        return [event["job_id"] for event in events]

    def end(self) -> None:
        """In good order."""
        processes = [one.process for one in (self.worker, self.server) if one is not None]
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(START_S)
        self._stack.close()


@contextlib.contextmanager
def playing(folder: Path, *, has_worker: bool = False, **variables: str) -> Iterator[Cast]:
    """A server, and a worker process where the server is not to run jobs itself."""
    with nothing_left(folder) as note:
        cast = Cast(folder=folder, variables=QUICK | variables, has_worker=has_worker, note=note)
        try:
            cast.start_server()
            if has_worker:
                cast.start_worker()
            yield cast
        finally:
            cast.end()


async def submit(cast: Cast, accepted: dict[str, int]) -> None:
    """Submit `MANY` jobs, each until one is accepted; one that was not acknowledged may be there or not."""
    left = iter(range(MANY))

    async def some(client: httpx.AsyncClient) -> None:
        for number in left:
            while True:
                assert cast.server is not None
                with contextlib.suppress(httpx.HTTPError):
                    answer = await client.post(
                        f"{cast.server.url}/v1/execute",
                        json={"language": "python", "code": f"print({number})"},
                        headers={"X-API-Key": KEY},
                    )
                    if answer.status_code == 202:
                        accepted[answer.json()["id"]] = number
                        break
                    assert answer.status_code >= 500, answer.text
                await asyncio.sleep(0.1)

    async with httpx.AsyncClient(timeout=30, trust_env=False) as client, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some(client))


async def kill_in_the_middle(cast: Cast, kill: Callable[[], None], times: int) -> None:
    """Call *kill* when a part of the jobs has ended, and again when more have."""
    for number in range(1, times + 1):
        while len(cast.endings()) < number * MANY // (times + 2):  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.02)
        await asyncio.to_thread(kill)


async def all_end(store: JobStore, ids: list[str]) -> list[Job]:
    """Those jobs, once they have ended."""
    found = []
    for job_id in ids:
        while (job := await store.get(job_id)) is None or not job.has_ended:
            assert job is not None, f"{job_id} was accepted, and is not there"
            await store.wait_for_change(job_id, 0.5)
        found.append(job)
    return found


async def play(cast: Cast, kill: Callable[[], None], times: int, store: Callable[[], Any]) -> None:
    """Submit, kill, and look at what has become of the jobs."""
    accepted: dict[str, int] = {}
    async with asyncio.timeout(WITHIN_S):
        async with asyncio.TaskGroup() as group:
            group.create_task(submit(cast, accepted))
            group.create_task(kill_in_the_middle(cast, kill, times))
        async with store() as opened:
            jobs = await all_end(opened, list(accepted))
    assert len(jobs) == MANY
    for job in jobs:
        assert job.state is JobState.SUCCEEDED, (job.result, job.attempts)
        assert job.result is not None
        assert job.result.stdout == f"{accepted[job.id]}\n".encode()
    more_than_once = {job_id: times for job_id, times in Counter(cast.endings()).items() if times > 1}
    assert not more_than_once


@contextlib.asynccontextmanager
async def in_database(where: str | Path) -> AsyncIterator[JobStore]:
    async with Database.at(where) as database:
        store = DatabaseJobs(database)
        await store.open()
        try:
            yield store
        finally:
            await store.close()


async def executions(where: str | Path) -> int:
    """How many runs have been added to the sums of usage."""
    async with Database.at(where) as database:
        days = await UsageTable(database).daily(now=datetime.now(UTC), days=3)
        return sum(one.executions for one in days)


def at_place(folder: Path) -> Path:
    return folder / "state" / "stockade.db"


@pytest.mark.parametrize("times", TIMES)
async def test_the_server_is_killed(tmp_path: Path, times: int) -> None:
    with playing(tmp_path) as cast:
        await play(cast, cast.kill_server, times, lambda: in_database(at_place(tmp_path)))
        # Usage is added up once for each: those too whose acknowledgement was lost on the way, which have run as well.
        async with asyncio.timeout(WITHIN_S):
            while await executions(at_place(tmp_path)) < MANY:  # noqa: ASYNC110  # nothing tells us
                await asyncio.sleep(0.1)
    assert await executions(at_place(tmp_path)) <= MANY + times * AT_ONCE


@pytest.mark.parametrize("times", TIMES)
async def test_a_worker_is_killed(tmp_path: Path, times: int) -> None:
    with playing(tmp_path, has_worker=True) as cast:
        await play(cast, cast.kill_worker, times, lambda: in_database(at_place(tmp_path)))


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of our own, which is killed."""
    binaries = Postgres.find()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    server = Postgres(binaries)
    try:
        server.make()
        yield server
    finally:
        server.remove()


@pytest.mark.parametrize("times", TIMES)
async def test_postgresql_is_killed(tmp_path: Path, postgres: Postgres, times: int) -> None:
    def kill() -> None:
        postgres._signal_all(signal.SIGKILL)
        postgres.stop()
        postgres.start()

    url = postgres.new_database()
    with playing(tmp_path, DATABASE_URL=url) as cast:
        await play(cast, kill, times, lambda: in_database(url))


@pytest.mark.parametrize("times", TIMES)
async def test_redis_is_killed(tmp_path: Path, times: int) -> None:
    @contextlib.asynccontextmanager
    async def in_redis() -> AsyncIterator[JobStore]:
        config = Config(jobs=JobsConfig(redis_url=server.url))
        async with (
            Database.at(at_place(tmp_path / "data")) as database,
            open_job_store(config, database) as store,
        ):
            yield store

    def kill() -> None:
        server.end(signal.SIGKILL)
        server.start()

    with (
        redis_server(tmp_path / "redis") as server,
        playing(tmp_path / "data", REDIS_URL=server.url) as cast,
    ):
        await play(cast, kill, times, in_redis)
