"""What the database's driver of jobs promises beyond what all drivers do."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.util import await_only

from stockade.errors import Unavailable
from stockade.model.jobs import JobFilter, JobState
from stockade.store import Database, job_batches, job_units
from stockade.store.job_units import Unit
from stockade.store.jobs_database import DatabaseJobs
from tests.postgres import Postgres
from tests.store.job_stores import a_job, a_result, a_worker, counted, figures, in_database, until

pytestmark = pytest.mark.anyio


async def test_no_statement_looks_at_more_than_it_needs(made_sqlite: Path, tmp_path: Path) -> None:
    """By the database's own plans: a backlog, or what has ended, may be as long as it likes."""
    said: list[tuple[str, Any]] = []

    def note(_: Any, cursor: Any, statement: str, parameters: Any, context: Any, is_many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            said.append((statement, parameters[0] if is_many else parameters))

    async with await Database.open(tmp_path / "stockade.db") as database:
        store = DatabaseJobs(database)
        await store.open()
        event.listen(Engine, "before_cursor_execute", note)
        try:
            jobs = [a_job(f"account {n % 3}", language="go" if n % 2 else "python", after_s=n % 5) for n in range(20)]
            await store.add(jobs, most_of_account=1000, most=1000)
            claimed = [*await store.claim("w", most=4, lease_s=60)]
            claimed += await store.claim("w", most=2, lease_s=60, languages=["go"], room={"go": 1})
            await store.renew(a_worker(), {job.id: job.fence for job in claimed}, lease_s=60)
            await store.finish(claimed[0].id, claimed[0].fence, a_result(), keep_s=0)
            await store.cancel(jobs[-1].id, keep_s=0)
            await store.wait_for_change(claimed[1].id, 0.3)
            await store.reap(most_attempts=3, keep_s=60)
            await store.due_webhooks(most=5, hold_s=1)
            await store.unrecorded(most=5)
            await store.mark_recorded([claimed[0].id])
            await store.forget_expired(most=5)
            await store.depth()
            for states in (frozenset[JobState](), frozenset({JobState.RUNNING})):
                await store.list(JobFilter(account_id="account 1", states=states), limit=5)
                await store.list(JobFilter(states=states), limit=5)
            await store.list(JobFilter(batch_id="b"), limit=5)
            await store.list(JobFilter(is_dead=True), limit=5)
        finally:
            event.remove(Engine, "before_cursor_execute", note)
            await store.close()

        def plans(connection: Connection) -> list[str]:
            return [
                f"{row[-1]}: {statement}"
                for statement, parameters in said
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            ]

        found = await database.read(plans)
    assert len(said) > 40
    scans = [one for one in found if re.match(r"SCAN (jobs|job_lanes|job_payloads|job_outputs)\b(?! USING INDEX)", one)]
    assert scans == []


async def test_those_who_ask_at_once_share_a_transaction(made_sqlite: Path, tmp_path: Path) -> None:
    commits = 0

    def note(_: Any) -> None:
        nonlocal commits
        commits += 1

    async with in_database(tmp_path / "stockade.db")() as store:
        event.listen(Engine, "commit", note)
        try:
            await asyncio.gather(*(store.add([a_job()]) for _ in range(200)))
        finally:
            event.remove(Engine, "commit", note)
        assert sum((await store.depth()).queued.values()) == 200
    assert 1 <= commits <= 3


async def test_a_worker_that_waits_here_claims_in_the_transaction_that_adds(made_sqlite: Path, tmp_path: Path) -> None:
    """Nobody is sent to look for a job that has been taken already."""
    commits = 0

    def note(_: Any) -> None:
        nonlocal commits
        commits += 1

    async with in_database(tmp_path / "stockade.db")() as store:

        async def work() -> tuple[str, bool]:
            assert not await store.claim("worker", most=1, lease_s=60)
            assert await store.wait_for_work(30)
            (job,) = await store.claim("worker", most=1, lease_s=60)
            return job.id, await store.wait_for_work(0)

        worker = asyncio.create_task(work())
        for _ in range(100):  # long after it has begun to wait
            await asyncio.sleep(0.001)
        job = a_job()
        event.listen(Engine, "commit", note)
        try:
            await store.add([job])
            assert await worker == (job.id, False)
        finally:
            event.remove(Engine, "commit", note)
    assert commits == 1


async def test_whoever_waited_for_an_end_is_told_of_it(database: Database) -> None:
    """It has not to be read again; but what has happened to the job since is not kept from anybody."""
    store = DatabaseJobs(database)
    await store.open()
    try:
        for is_forgotten in (False, True):
            await store.add([a_job()])
            (job,) = await store.claim("w", most=1, lease_s=60)
            await store.get(job.id)

            async def see(job_id: str, is_forgotten: bool) -> Any:
                assert await store.wait_for_change(job_id, 30)
                if is_forgotten:
                    assert await store.forget([job_id]) == 1
                return await store.get(job_id)

            waiting = asyncio.create_task(see(job.id, is_forgotten))
            await asyncio.sleep(0.05)
            ended = await store.finish(job.id, job.fence, a_result(), keep_s=60)
            assert await waiting == (None if is_forgotten else ended)
            assert await store.get(job.id) == (None if is_forgotten else ended)
    finally:
        await store.close()


async def test_an_unexpected_failure_is_its_own_callers_only(database: Database) -> None:
    store = DatabaseJobs(database)
    await store.open()

    def broken(unit: Unit) -> None:
        unit.connection.exec_driver_sql("SELECT nothing FROM nowhere")

    jobs = [a_job() for _ in range(6)]
    batches: job_batches.Batcher = store._batches
    results = await asyncio.gather(
        *(store.add([job]) for job in jobs[:3]),
        batches.do(broken),
        *(store.add([job]) for job in jobs[3:]),
        return_exceptions=True,
    )
    failed = [one for one in results if one is not None]
    assert len(failed) == 1, results
    assert isinstance(results[3], Exception)
    assert sum((await store.depth()).queued.values()) == 6
    assert await database.read(figures) == await database.read(counted)
    await store.close()


async def test_a_process_that_is_stopped_within_a_transaction_holds_nobody_up_for_long(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Database.open(postgres_url) as stopped, in_database(postgres_url)() as store:
        has_lock = asyncio.Event()
        ended = asyncio.Event()

        def stop(connection: Connection) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(job_units, "STUCK_MS", 300)
                Unit(connection, is_sqlite=False)
            has_lock.set()
            await_only(ended.wait())

        frozen = asyncio.create_task(stopped.write(stop, timeout_s=60))
        await has_lock.wait()
        job = a_job()
        await store.add([job])
        assert await store.get(job.id) == job
        ended.set()
        with pytest.raises(Unavailable):
            await frozen


async def test_another_server_hears_of_changes_again_after_the_database_was_away(
    postgres: Postgres, postgres_url: str
) -> None:
    async with in_database(postgres_url)() as here, in_database(postgres_url)() as there:
        assert isinstance(there, DatabaseJobs)
        await until(lambda: there._waits._hears)
        await asyncio.to_thread(postgres.stop)
        await until(lambda: not there._waits._hears)
        await asyncio.to_thread(postgres.start)
        await until(lambda: there._waits._hears)
        assert await there.claim("w", most=1, lease_s=60) == []
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(there.wait_for_work(30))
            await here.add([a_job()])
        assert waiting.result()


async def test_an_empty_lane_is_not_remembered(made_sqlite: Path, tmp_path: Path) -> None:
    """Owners may be as many as there are addresses."""
    async with await Database.open(tmp_path / "stockade.db") as database:
        store = DatabaseJobs(database)
        await store.open()
        await store.add([a_job("", key_id=f"anonymous:{n}") for n in range(20)])
        for job in await store.claim("w", most=99, lease_s=60):
            await store.finish(job.id, job.fence, a_result(), keep_s=60)
        lanes, counts = await database.read(figures)
        assert (lanes, counts) == ({}, {})
        await store.close()
