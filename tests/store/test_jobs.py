"""What every store of jobs does: one suite for all drivers."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from stockade.engine.jobs import CANCELLED_AT_ONCE, cancel_each
from stockade.errors import Invalid
from stockade.model.jobs import (
    Job,
    JobFailure,
    JobFilter,
    JobState,
    OutputPiece,
    Renewal,
    Webhook,
)
from stockade.model.outcomes import Outcome
from stockade.model.runs import RunSpec
from stockade.store.jobs import JobStore, TooManyJobs
from tests.store.job_stores import Place, a_job, a_result, a_worker, until

pytestmark = pytest.mark.anyio

LEASE_S = 60.0
NOTHING = Renewal(lost=frozenset(), cancelled=frozenset(), watched=frozenset())


async def take(store: JobStore, most: int = 1, **options: object) -> list[Job]:
    return list(await store.claim("worker", most=most, lease_s=LEASE_S, **options))


async def lapsed(store: JobStore) -> Job:
    """Take a job whose lease has run out by then."""
    [job] = await store.claim("dead", most=1, lease_s=0.0)
    assert job.lease_until is not None
    lease_until = job.lease_until
    await until(lambda: datetime.now(UTC) > lease_until)
    return job


# Adding, reading


async def test_a_job_is_read_as_it_was_added(store: JobStore) -> None:
    job = a_job(
        priority=7,
        labels={"a": "1", "b": ""},
        batch_id="batch",
        retry_of="another",
        trace="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
        webhook=Webhook(url="https://example.com/told"),
    )
    await store.add([job])
    assert await store.get(job.id) == job
    assert await store.get("00000000-0000-4000-8000-000000000000") is None


@pytest.mark.parametrize("text", ["", "\0", "\ud800", "\udc00\ud800", "a\0\N{SNOWMAN}\U0001f600\r\n", "x" * 100_000])
async def test_programs_and_labels_may_hold_any_text(store: JobStore, text: str) -> None:
    spec = RunSpec(language="python", code=text, stdin=text.encode(errors="surrogatepass"), args=(text,))
    job = a_job(spec=spec, labels={text[:9]: text})
    await store.add([job])
    assert await store.get(job.id) == job
    assert (await take(store))[0].spec == spec


async def test_output_is_kept_byte_by_byte(store: JobStore) -> None:
    await store.add([a_job()])
    [job] = await take(store)
    every = bytes(range(256)) * 1000
    result = a_result(every, stderr=every[::-1], stdout_truncated=True, message="\0\ud800")
    await store.finish(job.id, job.fence, result, keep_s=60)
    found = await store.get(job.id)
    assert found is not None
    assert found.result == result


@pytest.mark.parametrize("id", ["\0", "\ud800", "", "x" * 10_000])
async def test_an_odd_id_is_nobodys(store: JobStore, id: str) -> None:
    assert await store.get(id) is None
    assert await store.cancel(id, keep_s=1) is None
    assert await store.output_after(id, 0) == []
    assert await store.forget([id]) == 0
    await store.watch(id, for_s=1)


async def test_a_job_that_is_there_is_not_added_again(store: JobStore) -> None:
    """Whoever lost the answer may ask again."""
    one, other = a_job(), a_job()
    await store.add([one])
    await take(store)
    await store.add([one, other])
    found = await store.get(one.id)
    assert found is not None
    assert found.state is JobState.RUNNING
    depth = await store.depth()
    assert (depth.running, depth.queued) == (1, {"python": 1})


async def test_an_account_has_no_more_unended_jobs_than_it_may_have(store: JobStore) -> None:
    await store.add([a_job(), a_job(after_s=60)], most_of_account=3)
    [running] = await take(store)
    with pytest.raises(TooManyJobs):
        await store.add([a_job(), a_job()], most_of_account=3)  # all or none
    await store.add([a_job()], most_of_account=3)
    with pytest.raises(TooManyJobs):
        await store.add([a_job()], most_of_account=3)
    await store.add([a_job("bob")], most_of_account=3)
    await store.finish(running.id, running.fence, a_result(), keep_s=None)
    await store.add([a_job()], most_of_account=3)


async def test_keys_without_an_account_are_counted_each_for_itself(store: JobStore) -> None:
    await store.add([a_job("", key_id="one")], most_of_account=1)
    await store.add([a_job("", key_id="two")], most_of_account=1)
    with pytest.raises(TooManyJobs):
        await store.add([a_job("", key_id="one")], most_of_account=1)


async def test_the_queue_has_no_more_unended_jobs_than_it_may_have(both: tuple[JobStore, JobStore]) -> None:
    """However many ask at once, in however many servers."""
    results = await asyncio.gather(
        *(both[n % 2].add([a_job(f"account {n}")], most=10) for n in range(30)), return_exceptions=True
    )
    assert sum(one is None for one in results) == 10, results
    assert all(one is None or isinstance(one, TooManyJobs) for one in results), results
    assert sum((await both[0].depth()).queued.values()) == 10


# Claiming


async def test_a_claimed_job_runs(store: JobStore) -> None:
    job = a_job()
    await store.add([job])
    [claimed] = await store.claim("w1", most=5, lease_s=LEASE_S)
    assert claimed == replace(
        job,
        state=JobState.RUNNING,
        attempts=1,
        fence=1,
        worker="w1",
        started_at=claimed.started_at,
        updated_at=claimed.updated_at,
        lease_until=claimed.lease_until,
    )
    assert claimed.lease_until is not None
    assert claimed.started_at is not None
    assert claimed.lease_until > datetime.now(UTC)
    assert job.created_at <= claimed.started_at
    assert await store.get(job.id) == claimed
    assert await take(store) == []


async def test_no_job_is_given_to_two(both: tuple[JobStore, JobStore]) -> None:
    jobs = [a_job(f"account {n % 7}") for n in range(60)]
    await both[0].add(jobs)
    got: list[Job] = []

    async def work(store: JobStore) -> None:
        while claimed := await take(store, 3):
            got.extend(claimed)

    await asyncio.gather(*(work(both[n % 2]) for n in range(6)))
    assert sorted(one.id for one in got) == sorted(one.id for one in jobs)


async def test_higher_priority_goes_first_and_then_what_waited_longer(store: JobStore) -> None:
    now = datetime.now(UTC)

    def at(seconds: float, priority: int = 0) -> Job:
        return a_job(priority=priority, run_at=now - timedelta(seconds=seconds))

    late, early, urgent, lazy = at(1), at(9), at(0, 100), at(99, -100)
    await store.add([late, lazy])
    await store.add([early, urgent])
    assert [one.id for one in await take(store, 4)] == [urgent.id, early.id, late.id, lazy.id]


async def test_accounts_take_turns(store: JobStore) -> None:
    """One with many waiting jobs, however urgent, delays another one's single job by one turn at most."""
    await store.add([a_job("big", priority=100, language="python" if n % 2 else "go") for n in range(20)])
    await take(store, 3)
    await store.add([a_job("small")])
    await store.add([a_job("", key_id="anonymous:1")])
    order = [one.account_id for one in [(await take(store))[0] for _ in range(4)]]
    assert sorted(order[:3]) == ["", "big", "small"]
    assert order[3] == "big"
    await store.add([a_job("a") for _ in range(3)] + [a_job("b") for _ in range(3)])
    taken = [one.account_id for one in await take(store, 9)]
    assert [taken.count(one) for one in ("a", "b", "big")] == [3, 3, 3], taken


async def test_whoever_was_served_waits_for_the_others(store: JobStore) -> None:
    """A client that keeps submitting single jobs gets no more than one that has a thousand waiting."""
    await store.add([a_job("big") for _ in range(10)])
    taken = []
    for _ in range(5):
        await store.add([a_job("eager")])
        taken += [one.account_id for one in await take(store, 2)]
    assert taken.count("eager") == 5


async def test_a_worker_gets_jobs_of_its_languages_only(store: JobStore) -> None:
    jobs = [a_job(language=one) for one in ("go", "python", "go", "node")]
    await store.add(jobs)
    assert await take(store, 9, languages=["rust"]) == []
    assert await take(store, 9, languages=[]) == []
    [node] = await take(store, 9, languages=["node", "rust"])
    assert node.language == "node"
    assert len(await take(store, 9)) == 3


async def test_no_more_of_a_language_are_given_than_there_is_room_for(store: JobStore) -> None:
    await store.add([a_job(f"account {n}", language="go" if n % 2 else "python") for n in range(12)])
    assert await take(store, 9, languages=["go"], room={"go": 0}) == []
    taken = [one.language for one in await take(store, 5, room={"go": 1})]
    assert (taken.count("go"), taken.count("python")) == (1, 4)
    taken = [one.language for one in await take(store, 9, room={"go": 2, "python": 1})]
    assert (taken.count("go"), taken.count("python")) == (2, 1)


async def test_a_delayed_job_does_not_start_before_its_moment(store: JobStore) -> None:
    later, soon = a_job(after_s=3600), a_job(after_s=0.3)
    await store.add([later, soon])
    assert await take(store, 9) == []
    depth = await store.depth()
    assert (dict(depth.queued), depth.delayed, depth.oldest_queued_at) == ({}, 2, None)
    taken: list[Job] = []
    while not taken:
        await store.wait_for_work(0.5)
        taken = await take(store, 9)
    assert [one.id for one in taken] == [soon.id]
    assert datetime.now(UTC) >= soon.run_at


# Ending


async def test_a_job_ends_once(both: tuple[JobStore, JobStore]) -> None:
    job = a_job(webhook=Webhook(url="https://example.com/"))
    await both[0].add([job])
    [claimed] = await take(both[0])
    results = await asyncio.gather(
        *(both[n % 2].finish(job.id, claimed.fence, a_result(b"%d" % n), keep_s=60) for n in range(8))
    )
    [done] = [one for one in results if one is not None]
    assert await both[1].get(job.id) == done
    assert done.state is JobState.SUCCEEDED
    assert done.ended_at is not None
    assert done.expires_at == done.ended_at + timedelta(seconds=60)
    assert done.webhook == Webhook(url="https://example.com/", next_at=done.ended_at)
    assert done.spec == job.spec
    assert await both[0].release(job.id, claimed.fence, run_at=datetime.now(UTC), refund=True) is False


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"exit_code": 3}, JobState.FAILED),
        ({"outcome": Outcome.SIGNALED, "exit_code": None, "signal": 9}, JobState.FAILED),
        ({"outcome": None, "exit_code": None, "failure": JobFailure.REFUSED, "message": "why"}, JobState.FAILED),
        ({"outcome": Outcome.CANCELLED, "exit_code": None}, JobState.CANCELLED),
    ],
)
async def test_the_state_follows_from_the_result(store: JobStore, changes: dict[str, object], state: JobState) -> None:
    await store.add([a_job()])
    [claimed] = await take(store)
    done = await store.finish(claimed.id, claimed.fence, a_result(**changes), keep_s=None)
    assert done is not None
    assert (done.state, done.result, done.expires_at) == (state, a_result(**changes), None)
    assert await store.get(claimed.id) == done


async def test_whoever_lost_a_job_changes_nothing_any_more(store: JobStore) -> None:
    await store.add([a_job()])
    old = await lapsed(store)
    assert await store.reap(most_attempts=3, keep_s=60) == (1, [])
    assert await store.finish(old.id, old.fence, a_result(b"old"), keep_s=60) is None
    [new] = await take(store)
    assert (new.id, new.attempts, new.fence > old.fence) == (old.id, 2, True)
    assert await store.finish(old.id, old.fence, a_result(b"old"), keep_s=60) is None
    assert await store.release(old.id, old.fence, run_at=old.run_at, refund=False) is False
    assert await store.renew(a_worker(), {old.id: old.fence}, lease_s=60) == replace(NOTHING, lost=frozenset({old.id}))
    done = await store.finish(new.id, new.fence, a_result(b"new"), keep_s=60)
    assert done is not None
    assert done.result == a_result(b"new")


async def test_a_job_given_back_starts_again(store: JobStore) -> None:
    await store.add([a_job()])
    [first] = await take(store)
    assert await store.release(first.id, first.fence, run_at=datetime.now(UTC), refund=True)
    [second] = await take(store)
    assert (second.attempts, second.fence > first.fence) == (1, True)
    at = datetime.now(UTC) + timedelta(seconds=3600)
    assert await store.release(second.id, second.fence, run_at=at, refund=False)
    assert await take(store) == []
    found = await store.get(first.id)
    assert found is not None
    assert (found.state, found.run_at, found.attempts, found.lease_until) == (JobState.QUEUED, at, 1, None)


async def test_a_lease_that_is_renewed_does_not_run_out(store: JobStore) -> None:
    await store.add([a_job(), a_job()])
    kept = (await store.claim("w", most=1, lease_s=0.0))[0]
    assert await store.renew(a_worker(), {kept.id: kept.fence}, lease_s=60) == NOTHING
    lost = await lapsed(store)
    assert await store.reap(most_attempts=3, keep_s=None) == (1, [])
    assert [one.id for one in await take(store, 9)] == [lost.id]


async def test_a_job_that_is_lost_too_often_ends_as_dead(store: JobStore) -> None:
    await store.add([a_job(webhook=Webhook(url="https://example.com/"))])
    for _ in range(2):
        job = await lapsed(store)
        assert await store.reap(most_attempts=3, keep_s=60) == (1, [])
    job = await lapsed(store)
    requeued, gone = await store.reap(most_attempts=3, keep_s=60)
    assert (requeued, [one.id for one in gone]) == (0, [job.id])
    found = await store.get(job.id)
    assert found == gone[0]
    assert found.is_dead
    assert (found.state, found.attempts) == (JobState.FAILED, 3)
    assert found.result is not None
    assert (found.result.outcome, found.result.failure) == (None, JobFailure.LOST)
    assert found.webhook is not None
    assert found.webhook.next_at is not None
    assert [one.id for one in (await store.list(JobFilter(is_dead=True), limit=9)).jobs] == [job.id]
    assert (await store.depth()).dead == 1
    assert await store.forget([job.id]) == 1
    assert (await store.depth()).dead == 0


async def test_a_worker_may_declare_a_job_dead(store: JobStore) -> None:
    await store.add([a_job()])
    [job] = await take(store)
    lost = a_result(outcome=None, failure=JobFailure.LOST)
    done = await store.finish(job.id, job.fence, lost, keep_s=None, is_dead=True)
    assert done is not None
    assert done.is_dead
    assert (await store.depth()).dead == 1
    assert (await store.list(JobFilter(is_dead=False), limit=9)).jobs == ()


# Cancelling


async def test_a_queued_job_is_cancelled_at_once(store: JobStore) -> None:
    jobs = [a_job(), a_job(after_s=3600)]
    await store.add(jobs)
    for job in jobs:
        gone = await store.cancel(job.id, keep_s=60)
        assert gone is not None
        assert (gone.state, gone.started_at) == (JobState.CANCELLED, None)
        assert gone.result is not None
        assert (gone.result.outcome, gone.result.failure) == (None, JobFailure.CANCELLED)
        assert gone.expires_at is not None
        assert await store.get(job.id) == gone
        assert await store.cancel(job.id, keep_s=60) == gone
    assert await take(store, 9) == []
    depth = await store.depth()
    assert (dict(depth.queued), depth.delayed) == ({}, 0)


async def test_whoever_runs_a_job_is_told_of_its_cancelling(store: JobStore) -> None:
    await store.add([a_job()])
    [job] = await take(store)
    asked = await store.cancel(job.id, keep_s=60)
    assert asked is not None
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    told = await store.renew(a_worker(), {job.id: job.fence}, lease_s=60)
    assert told == replace(NOTHING, cancelled=frozenset({job.id}))
    result = a_result(outcome=Outcome.CANCELLED, exit_code=None)
    done = await store.finish(job.id, job.fence, result, keep_s=60)
    assert done is not None
    assert done.state is JobState.CANCELLED
    assert await store.cancel(job.id, keep_s=60) == done


async def test_a_cancelled_job_never_starts_again(store: JobStore) -> None:
    """Whether its worker falls silent or gives it back."""
    await store.add([a_job(), a_job()])
    silent = await lapsed(store)
    [returned] = await take(store)
    for job in (silent, returned):
        await store.cancel(job.id, keep_s=60)
    requeued, gone = await store.reap(most_attempts=3, keep_s=60)
    assert (requeued, [one.id for one in gone]) == (0, [silent.id])
    assert gone[0].state is JobState.CANCELLED
    assert await store.release(returned.id, returned.fence, run_at=datetime.now(UTC), refund=False)
    found = await store.get(returned.id)
    assert found is not None
    assert (found.state, found.is_dead) == (JobState.CANCELLED, False)
    assert found.expires_at is not None
    assert await take(store, 9) == []


# Waiting


async def test_whoever_waits_for_work_is_told_of_it(both: tuple[JobStore, JobStore]) -> None:
    for one in both:
        assert await take(one) == []
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(one.wait_for_work(30))
            await both[0].add([a_job()])
        assert waiting.result()
        assert len(await take(one)) == 1


async def test_waiting_ends_without_news(store: JobStore) -> None:
    await store.add([a_job()])
    [job] = await take(store)
    await store.get(job.id)
    # News of what the test has done itself may still be on their way: they end, and then there are none.
    async with asyncio.timeout(30):
        while await store.wait_for_work(0.01):
            pass
        while await store.wait_for_change(job.id, 0.01):
            pass


async def test_whoever_waits_for_a_job_is_told_of_its_end(both: tuple[JobStore, JobStore]) -> None:
    await both[0].add([a_job(), a_job(), a_job()])
    for one in (*both, both[0]):
        [job] = await take(both[0])
        assert await one.get(job.id) == job
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(one.wait_for_change(job.id, 30))
            await both[0].finish(job.id, job.fence, a_result(), keep_s=60)
        assert waiting.result()


async def test_a_change_between_reading_and_waiting_is_not_missed(both: tuple[JobStore, JobStore]) -> None:
    await both[0].add([a_job(), a_job()])
    for one in both:
        [job] = await take(both[0])
        await one.get(job.id)
        await both[0].finish(job.id, job.fence, a_result(), keep_s=60)
        async with asyncio.timeout(20):
            assert await one.wait_for_change(job.id, 30)


async def test_waiting_may_be_given_up(store: JobStore) -> None:
    await store.add([a_job()])
    [job] = await take(store)
    for _ in range(3):
        tasks = [asyncio.create_task(store.wait_for_change(job.id, 30)) for _ in range(5)]
        tasks += [asyncio.create_task(store.wait_for_work(30)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await store.finish(job.id, job.fence, a_result(), keep_s=60)


# Live output


async def test_output_is_noted_while_somebody_watches(both: tuple[JobStore, JobStore]) -> None:
    here, there = both
    await here.add([a_job()])
    [job] = await take(here)
    assert await here.renew(a_worker(), {job.id: job.fence}, lease_s=60) == NOTHING
    await there.watch(job.id, for_s=60)
    told = await here.renew(a_worker(), {job.id: job.fence}, lease_s=60)
    assert told.watched == {job.id}
    pieces = [
        OutputPiece(number=n, fence=job.fence, is_stderr=n == 2, data=bytes([n, 0, 255]) * 1000) for n in range(1, 4)
    ]
    assert await there.output_after(job.id, 0) == []
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(there.wait_for_change(job.id, 30))
        await here.note_output(job.id, pieces[:2])
    assert waiting.result()
    assert await there.output_after(job.id, 0) == pieces[:2]
    await here.note_output(job.id, pieces[1:])  # again, as whoever lost the answer does
    assert await there.output_after(job.id, 1) == pieces[1:]
    await here.finish(job.id, job.fence, a_result(), keep_s=60)
    assert await there.output_after(job.id, 2) == pieces[2:]
    await here.forget([job.id])
    assert await there.output_after(job.id, 0) == []


async def test_output_of_an_earlier_attempt_is_dropped(store: JobStore) -> None:
    await store.add([a_job()])
    [first] = await take(store)
    await store.note_output(first.id, [OutputPiece(number=1, fence=first.fence, is_stderr=False, data=b"old")])
    await store.release(first.id, first.fence, run_at=datetime.now(UTC), refund=False)
    [second] = await take(store)
    assert await store.output_after(first.id, 0) == []
    await store.note_output(first.id, [OutputPiece(number=2, fence=first.fence, is_stderr=False, data=b"late")])
    assert await store.output_after(first.id, 0) == []
    new = OutputPiece(number=1, fence=second.fence, is_stderr=False, data=b"new")
    await store.note_output(first.id, [new])
    assert await store.output_after(first.id, 0) == [new]


# Webhooks


async def test_ended_jobs_are_told_of_until_it_is_done(store: JobStore) -> None:
    job = a_job(webhook=Webhook(url="https://example.com/"))
    await store.add([job, a_job(priority=-1)])
    [claimed] = await take(store)
    assert await store.due_webhooks(most=9, hold_s=60) == []
    await store.finish(claimed.id, claimed.fence, a_result(b"said"), keep_s=60)
    [due] = await store.due_webhooks(most=9, hold_s=60)
    assert due.id == job.id
    assert due.result == a_result(b"said")
    assert await store.due_webhooks(most=9, hold_s=60) == []  # held for whoever has it now
    soon = Webhook(url="https://example.com/", attempts=1, next_at=datetime.now(UTC), error="connection refused")
    await store.set_webhook(job.id, soon)
    [due] = await store.due_webhooks(most=9, hold_s=0)
    assert due.webhook is not None
    assert (due.webhook.attempts, due.webhook.error) == (1, "connection refused")
    told = Webhook(url="https://example.com/", attempts=2, delivered_at=datetime.now(UTC))
    await store.set_webhook(job.id, told)
    assert await store.due_webhooks(most=9, hold_s=0) == []
    found = await store.get(job.id)
    assert found is not None
    assert found.webhook == told


async def test_one_webhook_is_given_to_one_sender(both: tuple[JobStore, JobStore]) -> None:
    await both[0].add([a_job(webhook=Webhook(url="https://example.com/")) for _ in range(10)])
    for job in await take(both[0], 10):
        await both[0].finish(job.id, job.fence, a_result(), keep_s=60)
    held = await asyncio.gather(*(both[n % 2].due_webhooks(most=3, hold_s=60) for n in range(6)))
    ids = [job.id for one in held for job in one]
    assert len(ids) == len(set(ids)) == 10


# Lists


async def every_page(store: JobStore, which: JobFilter, limit: int) -> list[Job]:
    found: list[Job] = []
    cursor = None
    while True:
        page = await store.list(which, limit=limit, cursor=cursor)
        assert len(page.jobs) <= limit
        found += page.jobs
        if (cursor := page.cursor) is None:
            return found


async def test_lists_are_newest_first_and_come_in_pages(store: JobStore) -> None:
    now = datetime.now(UTC)
    jobs = [a_job(created_at=now - timedelta(seconds=n // 2)) for n in range(9)]
    await store.add(jobs)
    for job in await take(store, 3):
        await store.finish(job.id, job.fence, a_result(stderr=b"x"), keep_s=60)
    await take(store, 2)
    for limit in (1, 2, 4, 9, 10):
        found = await every_page(store, JobFilter(account_id="ann"), limit)
        assert sorted(one.id for one in found) == sorted(one.id for one in jobs)
        assert [one.created_at for one in found] == sorted((one.created_at for one in jobs), reverse=True)
    assert all(one.result is None or (one.result.stdout, one.result.stderr) == (b"", b"") for one in found)
    assert [one.result for one in found if one.result] == [a_result(b"")] * 3


async def test_lists_hold_what_was_asked_for(store: JobStore) -> None:
    now = datetime.now(UTC)
    jobs = {
        "old": a_job(created_at=now - timedelta(hours=2)),
        "go": a_job(language="go", created_at=now - timedelta(hours=1)),
        "key": a_job(key_id="other", batch_id="b"),
        "bob": a_job("bob", batch_id="b", language="go"),
        "nobody": a_job("", key_id="anonymous:1"),
    }
    await store.add(list(jobs.values()))
    [running] = await take(store, 1, languages=["go"])
    [cancelled] = [jobs["key"]]
    await store.cancel(cancelled.id, keep_s=60)
    names = {job.id: name for name, job in jobs.items()}

    async def listed(which: JobFilter) -> set[str]:
        return {names[job.id] for job in await every_page(store, which, 2)}

    assert await listed(JobFilter()) == set(jobs)
    assert await listed(JobFilter(account_id="ann")) == {"old", "go", "key"}
    assert await listed(JobFilter(account_id="")) == {"nobody"}
    assert await listed(JobFilter(account_id="carl")) == set()
    assert await listed(JobFilter(account_id="ann", key_id="other")) == {"key"}
    assert await listed(JobFilter(language="go")) == {"go", "bob"}
    assert await listed(JobFilter(batch_id="b")) == {"key", "bob"}
    assert await listed(JobFilter(account_id="ann", batch_id="b")) == {"key"}
    assert await listed(JobFilter(states=frozenset({JobState.RUNNING}))) == {names[running.id]}
    assert await listed(JobFilter(states=frozenset({JobState.RUNNING, JobState.CANCELLED}))) == {
        "key",
        names[running.id],
    }
    hour = timedelta(minutes=60)
    assert await listed(JobFilter(created_before=now - hour / 2)) == {"old", "go"}
    assert await listed(JobFilter(created_after=now - hour * 1.5, created_before=now - hour / 2)) == {"go"}
    assert await listed(JobFilter(is_dead=True)) == set()
    assert await listed(JobFilter(account_id="\0")) == set()
    assert await listed(JobFilter(batch_id="\ud800")) == set()


async def test_all_of_an_account_is_cancelled_however_much_it_is(store: JobStore) -> None:
    running, other = a_job(account_id="eve"), a_job(account_id="ann")
    await store.add([running])
    await take(store)
    waiting = [a_job(account_id="eve") for _ in range(4 * CANCELLED_AT_ONCE + 5)]
    await store.add([*waiting, other])
    found = [job async for job in cancel_each(store, "eve", keep_s=None)]
    assert {job.id for job in found if job.state is JobState.CANCELLED} == {job.id for job in waiting}
    assert [(job.id, job.cancel_requested) for job in found if not job.has_ended] == [(running.id, True)]
    assert [job async for job in cancel_each(store, "eve", keep_s=None)] == []
    untouched = await store.get(other.id)
    assert untouched is not None
    assert (untouched.state, untouched.cancel_requested) == (JobState.QUEUED, False)


@pytest.mark.parametrize("cursor", ["", "x", "\ud800", "WzEsMl0", "W10", "bnVsbA", "é"])
async def test_a_cursor_of_nobodys_is_refused(store: JobStore, cursor: str) -> None:
    with pytest.raises(Invalid):
        await store.list(JobFilter(), limit=1, cursor=cursor)


# Forgetting, usage


async def test_ended_jobs_are_forgotten_when_their_time_has_come(store: JobStore) -> None:
    jobs = [a_job() for _ in range(5)]
    await store.add(jobs)
    claimed = await take(store, 4)
    for job, keep_s in zip(claimed, (0.0, 0.0, 3600.0, None), strict=True):
        await store.finish(job.id, job.fence, a_result(), keep_s=keep_s)
    await store.mark_recorded([job.id for job in claimed])
    deadline = time.monotonic() + 30
    gone = 0
    while gone < 2:
        gone += await store.forget_expired(most=1)
        assert time.monotonic() < deadline
    assert await store.forget_expired(most=9) == 0
    left = {job.id for job in (await store.list(JobFilter(), limit=9)).jobs}
    assert left == {job.id for job in jobs} - {job.id for job in claimed[:2]}
    assert await store.get(claimed[0].id) is None


async def test_only_ended_jobs_can_be_forgotten(store: JobStore) -> None:
    jobs = [a_job() for _ in range(3)]
    await store.add(jobs)
    done, running = await take(store, 2)
    await store.finish(done.id, done.fence, a_result(), keep_s=None)
    assert await store.forget([job.id for job in jobs] + ["nobody's"]) == 1
    assert await store.forget([job.id for job in jobs]) == 0
    assert await store.get(done.id) is None
    assert await store.get(running.id) == running
    assert len((await store.list(JobFilter(), limit=9)).jobs) == 2


async def test_what_ended_jobs_used_is_offered_until_it_is_recorded(store: JobStore) -> None:
    """Also that of jobs that were forgotten meanwhile."""
    await store.add([a_job() for _ in range(4)])
    claimed = await take(store, 3)
    assert await store.unrecorded(most=9) == []
    for job in claimed:
        await store.finish(job.id, job.fence, a_result(), keep_s=None)
    await store.forget([claimed[0].id])
    assert len(await store.unrecorded(most=2)) == 2
    found = await store.unrecorded(most=9)
    assert {job.id for job in found} == {job.id for job in claimed}
    assert all(job.result is not None and job.result.cpu_ns == a_result().cpu_ns for job in found)
    await store.mark_recorded([job.id for job in claimed[:2]])
    await store.mark_recorded([job.id for job in claimed[:2]])
    assert [job.id for job in await store.unrecorded(most=9)] == [claimed[2].id]


# Figures, workers


async def test_the_figures_follow_every_change(store: JobStore) -> None:
    async def figures() -> tuple[dict[str, int], int, int, int]:
        depth = await store.depth()
        return dict(depth.queued), depth.delayed, depth.running, depth.dead

    assert await figures() == ({}, 0, 0, 0)
    assert (await store.depth()).oldest_queued_at is None
    jobs = [a_job(), a_job(language="go"), a_job(), a_job(after_s=3600)]
    await store.add(jobs)
    assert await figures() == ({"python": 2, "go": 1}, 1, 0, 0)
    assert (await store.depth()).oldest_queued_at == min(job.run_at for job in jobs)
    first, second, third = await take(store, 3)
    assert await figures() == ({}, 1, 3, 0)
    await store.finish(first.id, first.fence, a_result(), keep_s=60)
    await store.release(second.id, second.fence, run_at=datetime.now(UTC), refund=True)
    await store.release(third.id, third.fence, run_at=datetime.now(UTC) + timedelta(hours=1), refund=True)
    assert await figures() == ({second.language: 1}, 2, 0, 0)
    await store.cancel(second.id, keep_s=60)
    await store.cancel(third.id, keep_s=60)
    assert await figures() == ({}, 1, 0, 0)
    await store.cancel(jobs[3].id, keep_s=60)
    assert await figures() == ({}, 0, 0, 0)


async def test_workers_are_known_while_they_announce_themselves(both: tuple[JobStore, JobStore]) -> None:
    here, there = both
    one, other = a_worker("one"), a_worker("other", languages=(), is_draining=True)
    for worker in (one, other, replace(one, running=3)):
        await here.renew(worker, {}, lease_s=60)
    found = {worker.id: worker for worker in await there.workers(seen_within_s=60)}
    assert found.keys() == {"one", "other"}
    assert (found["one"].running, found["other"].is_draining, found["one"].languages) == (3, True, ("python", "go"))
    assert found["one"].seen_at >= one.started_at - timedelta(seconds=1)
    assert await there.workers(seen_within_s=-60) == []


# Many at once


async def test_many_callers_at_once_are_all_served(both: tuple[JobStore, JobStore]) -> None:
    """Those who fail fail alone."""
    jobs = [a_job(f"account {n % 5}") for n in range(50)]
    full = [a_job("full") for _ in range(20)]

    async def add(n: int, job: Job) -> Sequence[str]:
        try:
            await both[n % 2].add([job], most_of_account=5 if job.account_id == "full" else None)
        except TooManyJobs:
            return []
        return [job.id]

    results = await asyncio.gather(*(add(n, job) for n, job in enumerate([*jobs, *full])))
    added = {id for one in results for id in one}
    assert {job.id for job in jobs} <= added
    assert len(added) == 55
    ended: list[str] = []

    async def work(store: JobStore) -> None:
        while claimed := await take(store, 4):
            done = await asyncio.gather(
                *(store.finish(job.id, job.fence, a_result(job.id.encode()), keep_s=60) for job in claimed)
            )
            ended.extend(job.id for job in done if job is not None)

    await asyncio.gather(*(work(both[n % 2]) for n in range(6)))
    assert sorted(ended) == sorted(added)
    for job_id in added:
        found = await both[0].get(job_id)
        assert found is not None
        assert found.result is not None
        assert found.result.stdout == job_id.encode()


async def test_a_caller_that_gives_up_holds_nothing_up(store: JobStore) -> None:
    for _ in range(3):
        tasks = [asyncio.create_task(store.add([a_job()])) for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    job = a_job("last")
    async with asyncio.timeout(30):
        await store.add([job])
    assert await store.get(job.id) == job


async def test_what_was_accepted_is_there_after_closing(place: Place) -> None:
    jobs = [a_job() for _ in range(20)]
    async with place() as first:
        await asyncio.gather(*(first.add([job]) for job in jobs))
        claimed = await take(first, 5)
        await first.finish(claimed[0].id, claimed[0].fence, a_result(), keep_s=None)
    async with place() as second:
        depth = await second.depth()
        assert (depth.queued, depth.running) == ({"python": 15}, 4)
        assert len(await take(second, 99)) == 15
        done = await second.get(claimed[0].id)
        assert done is not None
        assert done.state is JobState.SUCCEEDED
