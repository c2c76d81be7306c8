"""The service of jobs: what it takes and refuses, who sees what, and what those who wait are told."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stockade.config import Config
from stockade.config_jobs import JobsConfig
from stockade.engine import Languages, LimitPolicy, Runs, Templates
from stockade.engine.jobs import JobRequest, Jobs, StateChanged
from stockade.engine.webhooks import retry_in, signature
from stockade.errors import Conflict, Invalid, InvalidLimit, LanguageUnavailable, NotFound, UnknownLanguage
from stockade.model import Actor, LimitOverrides, Outcome, RunSpec
from stockade.model.jobs import Job, JobFilter, JobResult, JobState, OutputPiece
from stockade.store.jobs import TooManyJobs
from tests.worker.fake_store import FakeStore
from tests.worker.working import becomes

pytestmark = pytest.mark.anyio

ANN = Actor(id="ann-key", account_id="ann")
BOB = Actor(id="bob-key", account_id="bob")
ROOT = Actor(id="root-key", account_id="root", is_admin=True)
GUEST = Actor(id="anonymous:127.0.0.1")
DONE = JobResult(outcome=Outcome.EXITED, exit_code=0, stdout=b"one\ntwo\n", stderr=b"three\n")


def runs(*installed: str) -> Runs:
    """Runs that check as the real ones, and run nothing."""
    languages = Languages.load(which=lambda image, requirement: any(one in requirement for one in installed))
    config = Config()
    nothing: Any = None
    return Runs(
        languages=languages,
        limits=LimitPolicy(defaults=config.sandbox.defaults, maximum=config.sandbox.maximum),
        queue=nothing,
        backend=nothing,
        compilations=nothing,
        toolchains=nothing,
        templates=Templates(languages, {}, enabled=True),
    )


@pytest.fixture
async def store(anyio_backend: str) -> FakeStore:
    return FakeStore()


@pytest.fixture
def jobs(store: FakeStore) -> Jobs:
    return Jobs(store=store, runs=runs("python"), config=JobsConfig(most_of_account=5, most_of_batch=3))


def asked(code: str = "print(1)", *, language: str = "python", **members: Any) -> JobRequest:
    spec = RunSpec(language=language, code=code, limits=members.pop("limits", LimitOverrides()))
    return JobRequest(spec=spec, dialect="test", **members)


async def take(store: FakeStore, job: Job) -> Job:
    """The job as a worker's."""
    (taken,) = await store.claim("w1", most=1, lease_s=60)
    assert taken.id == job.id
    return taken


async def finish(store: FakeStore, job: Job, result: JobResult = DONE) -> None:
    taken = await take(store, job)
    assert await store.finish(job.id, taken.fence, result, keep_s=None)


# What is taken


async def test_a_job_is_queued_with_all_that_was_asked_for(jobs: Jobs) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    job = await jobs.submit(
        ANN,
        asked(
            language="PY",
            priority=7,
            run_at=later,
            labels={"ci": "1"},
            webhook_url="https://example.com/done",
            trace=trace,
        ),
    )
    found = await jobs.get(ANN, job.id)
    assert found.state is JobState.QUEUED
    assert uuid.UUID(found.id).version == 4
    assert (found.language, found.spec.language) == ("python", "PY")
    assert (found.account_id, found.key_id, found.priority, found.run_at) == ("ann", "ann-key", 7, later)
    assert (found.labels, found.trace) == ({"ci": "1"}, trace)
    assert found.webhook is not None
    assert found.webhook.url == "https://example.com/done"


async def test_a_moment_that_has_passed_means_now_and_a_malformed_trace_means_none(jobs: Jobs) -> None:
    job = await jobs.submit(ANN, asked(run_at=datetime(2001, 1, 1, tzinfo=UTC), trace="00-nothing"))
    assert (job.run_at, job.trace) == (job.created_at, "")


async def test_a_key_that_wants_no_templates_has_none_in_its_jobs(jobs: Jobs) -> None:
    job = await jobs.submit(replace(ANN, templates=False), asked())
    assert job.spec.template == "none"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (asked(language="klingon"), UnknownLanguage),
        (asked(language="go"), LanguageUnavailable),
        (asked(limits=LimitOverrides(wall_s=1e9)), InvalidLimit),
        (asked(priority=101), Invalid),
        (asked(priority=-101), Invalid),
        (asked(run_at=datetime(2001, 1, 1)), Invalid),  # without a zone, which is what is refused
        (asked(run_at=datetime.now(UTC) + timedelta(days=4000)), Invalid),
        (asked(labels={"": "x"}), Invalid),
        (asked(labels={"x": "y" * 256}), Invalid),
        (asked(labels={"x": "\0"}), Invalid),
        (asked(labels={"x": "\ud800"}), Invalid),
        (asked(labels={str(number): "" for number in range(33)}), Invalid),
        *[
            (asked(webhook_url=url), Invalid)
            for url in (
                "ftp://example.com/",
                "example.com",
                "https://",
                "https://user@example.com/",
                "https://:pw@example.com/",
                "https://example.com:99999/",
                "https://example.com:0/",
                "https://exämple.com/",
                "https://example.com/a b",
                "https://example.com/\n",
                "https://[::1/",
                "https://example.com/" + "x" * 2048,
            )
        ],
    ],
)
async def test_what_is_wrong_is_refused_before_anything_is_stored(
    jobs: Jobs, store: FakeStore, request_: JobRequest, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await jobs.submit(ANN, request_)
    with pytest.raises(error):
        await jobs.submit_batch(ANN, [asked(), request_])
    assert not store.jobs


async def test_where_others_do_the_work_a_language_need_not_be_installed(store: FakeStore) -> None:
    jobs = Jobs(store=store, runs=runs("python"), config=JobsConfig(), runs_here=False)
    assert (await jobs.submit(ANN, asked(language="golang"))).language == "go"
    with pytest.raises(UnknownLanguage):
        await jobs.submit(ANN, asked(language="klingon"))
    with pytest.raises(Invalid):
        jobs.check(ANN, replace(asked(), spec=RunSpec(language="go", code="", args=("\0",))))


async def test_a_batch_has_one_id_and_is_taken_as_a_whole(jobs: Jobs, store: FakeStore) -> None:
    made = await jobs.submit_batch(ANN, [asked(str(number)) for number in range(3)])
    assert len({job.id for job in made}) == 3
    (batch_id,) = {job.batch_id for job in made}
    assert batch_id
    page = await jobs.list(ANN, JobFilter(batch_id=batch_id))
    assert {job.id for job in page.jobs} == {job.id for job in made}
    with pytest.raises(TooManyJobs):
        await jobs.submit_batch(ANN, [asked()] * 3)
    assert len(store.jobs) == 3


@pytest.mark.parametrize("size", [0, 4])
async def test_a_batch_of_no_or_too_many_jobs_is_refused(jobs: Jobs, size: int) -> None:
    with pytest.raises(Invalid, match="1 to 3"):
        await jobs.submit_batch(ANN, [asked()] * size)


# Who sees what


async def test_a_job_of_an_account_is_not_there_for_others(jobs: Jobs) -> None:
    job = await jobs.submit(ANN, asked())
    for work in (jobs.get, jobs.cancel, jobs.retry, jobs.forget):
        for stranger in (BOB, GUEST):
            with pytest.raises(NotFound):
                await work(stranger, job.id)
    with pytest.raises(NotFound):
        await jobs.wait(BOB, job.id, timeout_s=1)
    with pytest.raises(NotFound):
        _ = [event async for event in jobs.events(BOB, job.id)]
    assert (await jobs.get(ROOT, job.id)).id == job.id
    assert (await jobs.get(replace(ANN, id="another-key"), job.id)).id == job.id


async def test_a_job_without_an_account_is_whoevers_knows_its_id(jobs: Jobs) -> None:
    job = await jobs.submit(GUEST, asked())
    assert (await jobs.get(BOB, job.id)).id == job.id


async def test_lists_hold_ones_own_jobs_and_an_administrators_all(jobs: Jobs) -> None:
    for actor in (ANN, BOB, GUEST):
        await jobs.submit(actor, asked())

    async def keys(actor: Actor, **which: str) -> list[str]:
        return [job.key_id for job in (await jobs.list(actor, JobFilter(**which))).jobs]  # type: ignore[arg-type]

    assert await keys(ANN) == ["ann-key"]
    assert await keys(ANN, account_id="bob") == ["ann-key"]
    assert await keys(GUEST) == [GUEST.id]
    assert await keys(GUEST, key_id="ann-key") == [GUEST.id]
    assert await keys(ROOT) == [GUEST.id, "bob-key", "ann-key"]
    assert await keys(ROOT, account_id="bob") == ["bob-key"]
    with pytest.raises(Invalid):
        await jobs.list(ANN, JobFilter(), limit=0)


# What becomes of it


async def test_a_queued_job_is_cancelled_at_once_and_an_ended_one_stays_as_it_is(jobs: Jobs, store: FakeStore) -> None:
    job = await jobs.submit(ANN, asked())
    assert (await jobs.cancel(ANN, job.id)).state is JobState.CANCELLED
    done = await jobs.submit(ANN, asked())
    await finish(store, done)
    assert (await jobs.cancel(ANN, done.id)).state is JobState.SUCCEEDED


async def test_a_running_jobs_end_is_asked_for_and_workers_here_hear_of_it_at_once(store: FakeStore) -> None:
    nudged: list[bool] = []
    jobs = Jobs(store=store, runs=runs("python"), config=JobsConfig(), nudge=lambda: nudged.append(True))
    job = await jobs.submit(ANN, asked())
    await take(store, job)
    assert (await jobs.cancel(ANN, job.id)).cancel_requested
    assert nudged


async def test_an_ended_job_can_be_repeated_for_its_owner_and_removed(jobs: Jobs, store: FakeStore) -> None:
    job = await jobs.submit(ANN, asked(labels={"a": "b"}, priority=3, webhook_url="http://example.com/"))
    for refused in (jobs.retry, jobs.forget):
        with pytest.raises(Conflict):
            await refused(ANN, job.id)
    await finish(store, job)
    new = await jobs.retry(ROOT, job.id)
    assert (new.retry_of, new.account_id, new.key_id, new.attempts) == (job.id, "ann", "ann-key", 0)
    assert (new.spec, new.labels, new.priority) == (job.spec, job.labels, job.priority)
    assert new.webhook is not None
    await jobs.forget(ANN, job.id)
    with pytest.raises(NotFound):
        await jobs.get(ANN, job.id)


async def test_who_waits_is_told_of_the_end_or_how_it_stands_when_the_time_is_up(jobs: Jobs, store: FakeStore) -> None:
    job = await jobs.submit(ANN, asked())
    assert (await jobs.wait(ANN, job.id, timeout_s=0.05)).state is JobState.QUEUED
    waiting = asyncio.create_task(jobs.wait(ANN, job.id, timeout_s=60))
    await finish(store, job)
    assert (await waiting).state is JobState.SUCCEEDED


async def test_events_tell_of_states_then_all_output_then_the_end(jobs: Jobs, store: FakeStore) -> None:
    job = await jobs.submit(ANN, asked())
    seen: list[StateChanged | OutputPiece] = []

    async def listen(events: AsyncIterator[StateChanged | OutputPiece]) -> None:
        async for event in events:
            seen.append(event)

    listening = asyncio.create_task(listen(jobs.events(ANN, job.id)))
    await becomes(lambda: seen and store.calls["watch"])
    taken = await take(store, job)
    await becomes(lambda: len(seen) == 2)
    await store.note_output(job.id, [OutputPiece(number=1, fence=taken.fence, is_stderr=False, data=b"one\n")])
    await becomes(lambda: len(seen) == 3)
    await store.finish(job.id, taken.fence, DONE, keep_s=None)
    await asyncio.wait_for(listening, 60)
    words = [event.job.state.value if isinstance(event, StateChanged) else event.data.decode() for event in seen]
    assert words == ["queued", "running", "one\n", "two\n", "three\n", "succeeded"]
    last = seen[-1]
    assert isinstance(last, StateChanged)
    assert last.job.result == DONE


async def test_output_of_an_attempt_that_was_lost_is_not_mixed_with_the_next_ones(jobs: Jobs, store: FakeStore) -> None:
    job = await jobs.submit(ANN, asked())
    first = await take(store, job)
    seen: list[Any] = []

    async def listen() -> None:
        async for event in jobs.events(ANN, job.id):
            seen.append((event.job.attempts,) if isinstance(event, StateChanged) else event.data)

    listening = asyncio.create_task(listen())
    await store.note_output(job.id, [OutputPiece(number=1, fence=first.fence, is_stderr=False, data=b"on")])
    await becomes(lambda: b"on" in seen)
    await store.release(job.id, first.fence, run_at=store.now(), refund=False)
    await finish(store, job)
    await asyncio.wait_for(listening, 60)
    assert [one for one in seen if isinstance(one, bytes)] == [b"on", b"one\ntwo\n", b"three\n"]
    assert seen[-1] == (2,)


async def test_the_events_of_an_ended_job_are_its_end(jobs: Jobs, store: FakeStore) -> None:
    job = await jobs.submit(ANN, asked())
    await finish(store, job)
    (event,) = [event async for event in jobs.events(ANN, job.id)]
    assert isinstance(event, StateChanged)
    assert event.job.result == DONE


# Webhooks


def test_waits_between_attempts_double_up_to_the_longest() -> None:
    def waits(chance: float) -> list[float]:
        return [retry_in(number, first_s=2, longest_s=30, chance=chance) for number in (1, 2, 3, 4, 5, 50, 5000)]

    assert waits(0.5) == [2, 4, 8, 16, 30, 30, 30]
    assert waits(1.0)[0] == pytest.approx(2.4)
    assert waits(0.0)[0] == pytest.approx(1.6)


def test_a_signature_is_of_time_and_body_and_secret() -> None:
    # echo -n '1700000000.{}' | openssl dgst -sha256 -hmac secret
    assert signature("secret", b"{}", at=1_700_000_000) == (
        "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"
    )
    assert len({signature(secret, body, at=at) for secret in "ab" for body in (b"1", b"2") for at in (1, 2)}) == 8
