"""Chores: lost jobs go to others, old ones go, usage is added up once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from stockade.config_jobs import JobsConfig
from stockade.errors import Fault, Unavailable
from stockade.model import Outcome
from stockade.model.jobs import Job, JobResult, JobState
from stockade.worker import Chores
from tests.worker.fake_store import FakeStore
from tests.worker.working import a_job, becomes

pytestmark = pytest.mark.anyio
QUICK = JobsConfig(lease_s=0.5, most_attempts=2, retention_s=100.0)
DONE = JobResult(outcome=Outcome.EXITED, exit_code=0, stdout=b"x")


@contextlib.asynccontextmanager
async def at_work(store: FakeStore, **members: Any) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(Chores(store=store, config=QUICK, **members).run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(60):
            await task


async def an_ended_job(store: FakeStore) -> Job:
    await store.add([a_job()])
    (taken,) = await store.claim("w", most=1, lease_s=60)
    ended = await store.finish(taken.id, taken.fence, DONE, keep_s=100.0)
    assert ended is not None
    return ended


async def test_a_job_whose_worker_died_is_queued_again_and_dead_in_the_end(anyio_backend: str) -> None:
    store, job = FakeStore(), a_job()
    await store.add([job])
    async with at_work(store):
        await store.claim("w1", most=1, lease_s=0.0)
        await becomes(lambda: store.jobs[job.id].state is JobState.QUEUED)
        await store.claim("w2", most=1, lease_s=0.0)
        await becomes(lambda: store.jobs[job.id].has_ended)
    assert store.jobs[job.id].is_dead


async def test_ended_jobs_go_when_their_time_has_come(anyio_backend: str) -> None:
    store = FakeStore()
    job = await an_ended_job(store)
    chores = Chores(store=store, config=QUICK)
    assert not await chores.forget()
    assert job.id in store.jobs
    store.ahead = timedelta(seconds=101)
    assert not await chores.forget()
    assert not store.jobs


async def test_usage_is_recorded_once_and_tried_again_while_accounts_are_away(anyio_backend: str) -> None:
    store, tries = FakeStore(), 0
    recorded: list[str] = []

    async def record(jobs: Sequence[Job]) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Unavailable("the database is away")
        recorded.extend(job.id for job in jobs)

    job = await an_ended_job(store)
    async with at_work(store, record_usage=record):
        await becomes(lambda: store.recorded)
    assert recorded == [job.id]
    assert store.recorded == {job.id}


async def test_usage_that_can_never_be_recorded_holds_up_no_others(anyio_backend: str) -> None:
    store = FakeStore()
    recorded: list[str] = []
    bad, good = await an_ended_job(store), await an_ended_job(store)

    async def record(jobs: Sequence[Job]) -> None:
        if bad.id in [job.id for job in jobs]:
            raise Fault("that makes no sense")
        recorded.extend(job.id for job in jobs)

    assert not await Chores(store=store, config=QUICK, record_usage=record).record()
    assert recorded == [good.id]
    assert store.recorded == {bad.id, good.id}


async def test_what_fails_is_done_again(anyio_backend: str) -> None:
    store, job = FakeStore(), a_job()
    store.is_away = True
    async with at_work(store):
        await becomes(lambda: store.calls["reap"] >= 2)
        store.is_away = False
        await store.add([replace(job)])
        await store.claim("w1", most=1, lease_s=0.0)
        await becomes(lambda: store.jobs[job.id].state is JobState.QUEUED)


async def test_usage_is_left_to_those_who_have_the_accounts(anyio_backend: str) -> None:
    store = FakeStore()
    job = await an_ended_job(store)
    assert not await Chores(store=store, config=QUICK, record_usage=None).record()
    assert [one.id for one in await store.unrecorded(most=10)] == [job.id]
