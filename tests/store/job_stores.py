"""Places where jobs are kept: one for each driver of `JobStore`, empty.

A driver's entry in `PLACES` is all that it takes to have it tested like the others.
"""

import asyncio
import importlib.util
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, func, select

from stockade.model.jobs import Job, JobResult, WorkerRecord
from stockade.model.limits import LimitOverrides
from stockade.model.outcomes import Outcome
from stockade.model.runs import RunSpec
from stockade.store import Database, job_tables
from stockade.store.jobs import JobStore
from stockade.store.jobs_database import DatabaseJobs
from tests.postgres import Postgres

Place = Callable[[], AbstractAsyncContextManager[JobStore]]
"""Opens the store there; each time as another server would."""

PLACES: dict[str, Callable[[pytest.FixtureRequest], Place]] = {}
"""A new, empty place, by the driver's name."""


def in_database(where: str | Path) -> Place:
    @asynccontextmanager
    async def opened() -> AsyncIterator[JobStore]:
        async with await Database.open(where) as database:
            store = DatabaseJobs(database)
            await store.open()
            try:
                yield store
            finally:
                await store.close()

    return opened


def _sqlite(request: pytest.FixtureRequest) -> Place:
    folder: Path = request.getfixturevalue("tmp_path")
    shutil.copy(request.getfixturevalue("made_sqlite"), folder / "stockade.db")
    return in_database(folder / "stockade.db")


def _postgresql(request: pytest.FixtureRequest) -> Place:
    url: str = request.getfixturevalue("made_postgresql")
    request.getfixturevalue("emptied")
    return in_database(url)


@pytest.fixture(scope="session")
def made_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with our tables: making them takes longer than most tests."""
    path = tmp_path_factory.mktemp("made") / "stockade.db"
    asyncio.run(_make(path))
    return path


@pytest.fixture(scope="session")
def made_postgresql(postgres: Postgres) -> str:
    url = postgres.new_database()
    asyncio.run(_make(url))
    return url


@pytest.fixture
async def emptied(made_postgresql: str, anyio_backend: str) -> None:
    async with await Database.open(made_postgresql) as database:
        names = ", ".join(one.name for one in job_tables.job_lanes.metadata.sorted_tables if "job" in one.name)
        await database.write(lambda connection: connection.exec_driver_sql(f"TRUNCATE {names}"))


async def _make(where: str | Path) -> None:
    await (await Database.open(where)).close()


PLACES["sqlite"] = _sqlite
PLACES["postgresql"] = _postgresql

if importlib.util.find_spec("tests.store.job_stores_redis") is not None:
    importlib.import_module("tests.store.job_stores_redis")  # it adds its own


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param not in PLACES:
        pytest.skip(f"there is no driver for {request.param} yet")
    return PLACES[request.param](request)


@pytest.fixture
async def store(place: Place, anyio_backend: str) -> AsyncIterator[JobStore]:
    async with place() as opened:
        yield opened


@pytest.fixture
async def both(place: Place, anyio_backend: str) -> AsyncIterator[tuple[JobStore, JobStore]]:
    """Two servers' stores on one place."""
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(place()), await stack.enter_async_context(place())


def a_job(account_id: str = "ann", *, language: str = "python", after_s: float = 0, **changes: Any) -> Job:
    """A job that is asked for now, to start after some seconds."""
    now = datetime.now(UTC)
    members: dict[str, Any] = {
        "id": str(uuid4()),
        "account_id": account_id,
        "key_id": f"key of {account_id}" if account_id else "anonymous:127.0.0.1",
        "dialect": "code-sandbox",
        "spec": RunSpec(
            language=language.upper(),
            code="print(1)",
            stdin=b"\x00\xff",
            args=("a", "é"),
            limits=LimitOverrides(wall_s=2.5, memory_bytes=1 << 26),
        ),
        "language": language,
        "created_at": now,
        "updated_at": now,
        "run_at": now + timedelta(seconds=after_s),
    }
    return Job(**(members | changes))


def a_result(stdout: bytes = b"1\n", **changes: Any) -> JobResult:
    return replace(
        JobResult(
            outcome=Outcome.EXITED,
            exit_code=0,
            stdout=stdout,
            duration_ns=123_456_789_012,
            cpu_ns=5_000_000,
            memory_peak_bytes=1 << 33,
        ),
        **changes,
    )


def a_worker(id: str = "worker", **changes: Any) -> WorkerRecord:
    now = datetime.now(UTC)
    members: dict[str, Any] = {
        "id": id,
        "host": "here",
        "pid": 7,
        "languages": ("python", "go"),
        "places": 4,
        "running": 1,
        "started_at": now,
        "seen_at": now,
    }
    return WorkerRecord(**(members | changes))


async def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def figures(connection: Connection) -> tuple[Any, Any]:
    """What the store keeps instead of counting."""
    lanes = {
        (row.owner, row.language): (row.ready, row.unended) for row in connection.execute(select(job_tables.job_lanes))
    }
    counts = {
        row.language: (row.ready, row.delayed, row.running, row.dead)
        for row in connection.execute(select(job_tables.job_counts))
    }
    return lanes, {name: numbers for name, numbers in counts.items() if any(numbers)}


def counted(connection: Connection) -> tuple[Any, Any]:
    """What there is."""
    lanes: dict[tuple[str, str], tuple[int, int]] = {}
    counts: dict[str, list[int]] = {}
    jobs = job_tables.jobs
    query = select(
        jobs.c.owner, jobs.c.language, jobs.c.state, jobs.c.is_ready, jobs.c.is_dead, func.count().label("number")
    ).group_by(jobs.c.owner, jobs.c.language, jobs.c.state, jobs.c.is_ready, jobs.c.is_dead)
    for row in connection.execute(query):
        numbers = counts.setdefault(row.language, [0, 0, 0, 0])
        numbers[3] += row.number * row.is_dead
        if row.state in ("queued", "running"):
            ready, unended = lanes.get((row.owner, row.language), (0, 0))
            lanes[row.owner, row.language] = (ready + row.number * row.is_ready, unended + row.number)
            numbers[2 if row.state == "running" else 0 if row.is_ready else 1] += row.number
    return lanes, {name: tuple(numbers) for name, numbers in counts.items() if any(numbers)}
