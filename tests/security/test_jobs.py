"""What tenants try by way of jobs: to reach or hold up others with webhooks, to have more than their plan gives, to
fill the server's memory, to speak for a worker that has lost a job.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stockade.config_jobs import JobsConfig, WebhooksConfig
from stockade.engine.jobs import MOST_ARGUMENT_BYTES, MOST_OUTPUT_BYTES, JobRequest, Jobs
from stockade.errors import Invalid, InvalidLimit
from stockade.model import Actor, LimitOverrides, Outcome, RunSpec
from stockade.model.jobs import JobFilter, JobResult, JobState, OutputPiece, WorkerRecord
from stockade.store import Database
from stockade.store.jobs_database import DatabaseJobs
from stockade.worker.webhooks import AT_ONCE
from tests.engine.test_jobs import runs
from tests.worker.fake_store import FakeStore
from tests.worker.test_webhooks import LOOPBACK, an_ended_job, hook, receiving, sending
from tests.worker.working import a_job, becomes

pytestmark = pytest.mark.anyio

FREE = Actor(id="eve-key", account_id="eve", tier="free", max_duration_s=60.0, max_memory_bytes=512 << 20)
PLAIN = Actor(id="bob-key", account_id="bob")
ROOT = Actor(id="root-key", account_id="root", is_admin=True)
DONE = JobResult(outcome=Outcome.EXITED, exit_code=0, stdout=b"true")
FORGED = JobResult(outcome=Outcome.EXITED, exit_code=0, stdout=b"forged")


# Webhooks


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "0",
        "169.254.169.254",
        "100.64.0.1",
        "[::]",
        "[::1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00::1]",
        "[ff02::1]",
    ],
)
async def test_no_spelling_of_an_inner_address_is_reached(host: str) -> None:
    store = FakeStore()
    async with receiving() as receiver:
        job = an_ended_job(f"http://{host}:{receiver.port}/")
        await store.add([job])
        async with sending(store, WebhooksConfig(attempts=1, timeout_s=5.0)):
            await becomes(lambda: hook(store, job).attempts)
    assert hook(store, job).delivered_at is None
    assert not receiver.heads


@pytest.mark.parametrize("to", ["https:foo", "javascript:alert(1)", "http://[", "http://127.0.0.1:1/inner"])
async def test_an_answer_that_leads_nowhere_harms_no_other_message(to: str) -> None:
    """Some of these made the HTTP library fail in a way of its own, which ended the messages beside it, for ever."""
    store = FakeStore()
    async with receiving() as receiver, receiving() as good:
        receiver.answers = [f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()] * 3
        hostile, other = an_ended_job(receiver.url), an_ended_job(good.url, key_id="bob")
        await store.add([hostile, other])
        async with sending(store):
            await becomes(lambda: hook(store, hostile).attempts == 3 and hook(store, other).delivered_at)
    assert (hook(store, hostile).next_at, len(receiver.heads)) == (None, 3)
    assert "redirects are not followed" in hook(store, hostile).error
    assert hook(store, other).attempts == 1


async def test_whatever_goes_wrong_with_a_message_it_is_given_up_in_the_end() -> None:
    async def resolve(host: str, port: int) -> Any:
        raise RuntimeError("no such thing was ever seen")

    store = FakeStore()
    job = an_ended_job("http://example.com/")
    await store.add([job])
    async with sending(store, resolve=resolve):
        await becomes(lambda: hook(store, job).attempts == LOOPBACK.attempts)
    assert (hook(store, job).next_at, hook(store, job).error) == (None, "the message could not be sent")


async def test_receivers_that_never_answer_hold_up_their_own_account_only() -> None:
    store = FakeStore()
    settings = replace(LOOPBACK, attempts=8, timeout_s=1.0, first_retry_s=0.01, longest_retry_s=600.0)
    async with receiving() as silent, receiving() as good:
        silent.is_silent = True
        of_eve = [an_ended_job(silent.url, key_id="eve") for _ in range(6 * AT_ONCE)]
        of_bob = an_ended_job(good.url, key_id="bob")
        await store.add([*of_eve, of_bob])  # due before his
        async with sending(store, settings):
            await becomes(lambda: hook(store, of_bob).delivered_at)
            tried = len(silent.heads)
    # One lot of hers, by which it is known; without care, all of them come before his.
    assert tried < 2 * AT_ONCE
    waiting = [one for one in of_eve if hook(store, one).attempts == 0]
    assert len(waiting) > 3 * AT_ONCE
    assert all(hook(store, one).next_at is not None for one in waiting)


# More than a plan gives


@pytest.fixture
async def jobs(anyio_backend: str) -> Jobs:
    return Jobs(store=FakeStore(), runs=runs("python"), config=JobsConfig())


def asked(*, args: tuple[str, ...] = (), **limits: Any) -> JobRequest:
    spec = RunSpec(language="python", code="print(1)", args=args, limits=LimitOverrides(**limits))
    return JobRequest(spec=spec, dialect="test")


@pytest.mark.parametrize("limits", [{"wall_s": 60.5}, {"memory_bytes": (512 << 20) + 1}])
async def test_a_job_has_no_more_than_the_plan_gives(jobs: Jobs, limits: dict[str, Any]) -> None:
    for refused in (
        jobs.submit(FREE, asked(**limits)),
        jobs.submit_batch(FREE, [asked(), asked(**limits)]),
    ):
        with pytest.raises(InvalidLimit):
            await refused
    assert (await jobs.list(FREE, JobFilter())).jobs == ()
    await jobs.submit(PLAIN, asked(**limits))


async def test_what_a_plan_gives_holds_where_nothing_was_asked_for(jobs: Jobs) -> None:
    """The worker knows nothing of plans: what it is to enforce stands in the job."""
    poor = replace(FREE, max_duration_s=2.0, max_memory_bytes=32 << 20)
    job = await jobs.submit(poor, asked())
    assert (job.spec.limits.wall_s, job.spec.limits.memory_bytes) == (2.0, 32 << 20)


async def test_a_job_of_richer_days_is_not_repeated_beyond_the_plan_of_today(jobs: Jobs) -> None:
    job = await jobs.submit(replace(FREE, max_duration_s=None), asked(wall_s=200))
    await jobs.cancel(FREE, job.id)
    with pytest.raises(InvalidLimit):
        await jobs.retry(FREE, job.id)
    assert (await jobs.retry(ROOT, job.id)).account_id == "eve"


async def test_no_job_is_so_large_that_a_list_of_them_does_not_fit(jobs: Jobs) -> None:
    with pytest.raises(Invalid, match="args"):
        await jobs.submit(PLAIN, asked(args=("x" * MOST_ARGUMENT_BYTES, "y")))
    with pytest.raises(Invalid, match="args"):
        await jobs.submit(PLAIN, asked(args=("é" * (MOST_ARGUMENT_BYTES // 2 + 1),)))
    await jobs.submit(PLAIN, asked(args=("x" * MOST_ARGUMENT_BYTES,)))


async def test_no_output_is_kept_that_many_readers_at_once_would_make_too_much(jobs: Jobs) -> None:
    with pytest.raises(InvalidLimit):
        await jobs.submit(ROOT, asked(output_bytes=MOST_OUTPUT_BYTES + 1))
    assert jobs.check(ROOT, asked(output_bytes=MOST_OUTPUT_BYTES)).output_bytes == MOST_OUTPUT_BYTES


# Workers that come late


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: str) -> AsyncIterator[DatabaseJobs]:
    async with await Database.open(tmp_path / "jobs.db") as database:
        store = DatabaseJobs(database)
        await store.open()
        try:
            yield store
        finally:
            await store.close()


def worker(id: str) -> WorkerRecord:
    now = datetime.now(UTC)
    return WorkerRecord(id=id, host="h", pid=1, languages=(), places=1, running=1, started_at=now, seen_at=now)


async def test_a_worker_that_was_given_up_can_say_nothing_more(store: DatabaseJobs) -> None:
    job = a_job()
    await store.add([job])
    (late,) = await store.claim("late", most=1, lease_s=0.0)
    assert await store.reap(most_attempts=3, keep_s=None) == (1, [])
    (held,) = await store.claim("w2", most=1, lease_s=60.0)
    forged = OutputPiece(number=1, fence=late.fence, is_stderr=False, data=b"forged")
    await store.note_output(job.id, [forged])
    assert await store.output_after(job.id, 0) == []
    for fence in (late.fence, late.fence - 1, held.fence + 1):
        assert await store.finish(job.id, fence, FORGED, keep_s=None) is None
        assert not await store.release(job.id, fence, run_at=datetime.now(UTC), refund=True)
    assert (await store.renew(worker("late"), {job.id: late.fence}, lease_s=60.0)).lost == {job.id}
    ended = await store.finish(job.id, held.fence, DONE, keep_s=None)
    assert ended is not None
    assert await store.finish(job.id, held.fence, FORGED, keep_s=None) is None
    found = await store.get(job.id)
    assert found is not None
    assert (found.state, found.result) == (JobState.SUCCEEDED, DONE)
