"""Whatever is done to jobs in whatever order: the store says of them what a simple model says."""

import asyncio
import os
import shutil
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from stockade.model.jobs import JobFilter, JobState
from stockade.store import Database
from stockade.store.jobs import TooManyJobs
from stockade.store.jobs_database import DatabaseJobs
from tests.store.job_stores import a_job, a_result, a_worker, counted, figures

OWNERS = ("ann", "bob", "")
LANGUAGES = ("python", "go")
MOST_OF_ACCOUNT = 6
MOST_ATTEMPTS = 2

some_job = strategies.integers(0, 1000)
RARELY = strategies.sampled_from((False, False, False, True))


@dataclass
class Known:
    owner: str
    language: str
    rank: tuple[int, datetime]
    state: JobState = JobState.QUEUED
    is_delayed: bool = False
    attempts: int = 0
    fence: int = 0
    lapses: bool = False
    is_cancelled: bool = False
    is_dead: bool = False


class Jobs(RuleBasedStateMachine):
    made: Path
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.known: dict[str, Known] = {}

    @initialize()
    def begin(self) -> None:
        path = self.folder / "stockade.db"
        for ending in ("", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        shutil.copy(self.made, path)

        async def opened() -> None:
            self.database = await self.stack.enter_async_context(await Database.open(path))
            self.store = DatabaseJobs(self.database)
            self.stack.push_async_callback(self.store.close)
            await self.store.open()

        self.runner.run(opened())
        for owner, languages in (("ann", ["python", "go", "python"]), ("bob", ["go", "go"]), ("", ["python"])):
            self.add(owner, languages, 0, False)

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()

    def pick(self, number: int) -> tuple[str, Known] | None:
        """Some job: one that runs, unless *number* is one of a few."""
        if number % 5 and not any(one.state is JobState.RUNNING for one in self.known.values()):
            self.claim(3, None, None, number % 3 == 0)
        running = [one for one in self.known.items() if one[1].state is JobState.RUNNING]
        among = running if running and number % 5 else list(self.known.items())
        return among[number // 5 % len(among)] if among else None

    @rule(
        owner=strategies.sampled_from(OWNERS),
        languages=strategies.lists(strategies.sampled_from(LANGUAGES), min_size=1, max_size=3),
        priority=strategies.integers(-1, 1),
        delayed=RARELY,
    )
    def add(self, owner: str, languages: list[str], priority: int, delayed: bool) -> None:
        given = [a_job(owner, language=one, priority=priority, after_s=3600 * delayed) for one in languages]
        unended = sum(one.owner == owner and one.state in ("queued", "running") for one in self.known.values())
        if unended + len(given) > MOST_OF_ACCOUNT:
            with pytest.raises(TooManyJobs):
                self.runner.run(self.store.add(given, most_of_account=MOST_OF_ACCOUNT))
            return
        self.runner.run(self.store.add(given, most_of_account=MOST_OF_ACCOUNT))
        for job in given:
            rank = (-job.priority, job.run_at)
            self.known[job.id] = Known(owner=owner, language=job.language, rank=rank, is_delayed=delayed)

    @rule(
        most=strategies.sampled_from((1, 2, 3, 5, 0)),
        languages=strategies.sampled_from((None, None, None, {"go"}, {"python", "rust"}, set())),
        room=strategies.sampled_from((None, None, None, {"go": 1}, {"go": 0, "python": 2})),
        lapses=strategies.booleans(),
    )
    def claim(self, most: int, languages: set[str] | None, room: dict[str, int] | None, lapses: bool) -> None:
        wanted = None if languages is None else sorted(languages)
        claimed = self.runner.run(
            self.store.claim("w", most=most, lease_s=-1 if lapses else 60, languages=wanted, room=room)
        )
        ready = {
            id: one
            for id, one in self.known.items()
            if one.state is JobState.QUEUED and not one.is_delayed and (languages is None or one.language in languages)
        }
        fitting = Counter(one.language for one in ready.values())
        possible = sum(min(number, (room or {}).get(name, number)) for name, number in fitting.items())
        assert len(claimed) == min(most, possible)
        taken = Counter(job.language for job in claimed)
        assert all(taken[name] <= number for name, number in (room or {}).items())
        for job in claimed:
            one = ready.pop(job.id)
            rivals = [other for other in ready.values() if (other.owner, other.language) == (one.owner, one.language)]
            assert all(one.rank <= other.rank for other in rivals)
            one.state, one.lapses = JobState.RUNNING, lapses
            one.attempts, one.fence = one.attempts + 1, one.fence + 1
            assert (job.attempts, job.fence, job.state) == (one.attempts, one.fence, one.state)
        if room is None and languages is None and claimed:
            # Nobody has a second turn while somebody who waits has had none.
            turns = Counter(job.account_id for job in claimed)
            assert all(turns[one.owner] >= max(turns.values()) - 1 for one in ready.values())

    @rule(number=some_job, late=RARELY, dead=RARELY)
    def finish(self, number: int, late: bool, dead: bool) -> None:
        if (picked := self.pick(number)) is None:
            return
        id, one = picked
        done = self.runner.run(self.store.finish(id, one.fence - late, a_result(), keep_s=None, is_dead=dead))
        assert (done is not None) == (one.state is JobState.RUNNING and not late)
        if done is not None:
            one.state, one.is_dead = JobState.SUCCEEDED, dead

    @rule(number=some_job, delayed=RARELY, refund=strategies.booleans())
    def release(self, number: int, delayed: bool, refund: bool) -> None:
        if (picked := self.pick(number)) is None:
            return
        id, one = picked
        run_at = datetime.now(UTC) + timedelta(hours=1 if delayed else -1)
        was_running = one.state is JobState.RUNNING
        assert self.runner.run(self.store.release(id, one.fence, run_at=run_at, refund=refund)) == was_running
        if was_running and one.is_cancelled:
            one.state = JobState.CANCELLED
        elif was_running:
            one.state, one.is_delayed, one.rank = JobState.QUEUED, delayed, (one.rank[0], run_at)
            one.attempts -= refund

    @rule(number=some_job)
    def cancel(self, number: int) -> None:
        if number % 3 or (picked := self.pick(number)) is None:  # else few jobs live long
            return
        id, one = picked
        job = self.runner.run(self.store.cancel(id, keep_s=None))
        if one.state is JobState.QUEUED:
            one.state = JobState.CANCELLED
        elif one.state is JobState.RUNNING:
            one.is_cancelled = True
        assert job is not None
        assert (job.state, job.cancel_requested) == (one.state, one.is_cancelled)

    @rule()
    def reap(self) -> None:
        requeued, gone = self.runner.run(self.store.reap(most_attempts=MOST_ATTEMPTS, keep_s=None))
        expected = 0
        ended = set()
        for id, one in self.known.items():
            if one.state is not JobState.RUNNING or not one.lapses:
                continue
            if one.is_cancelled:
                one.state = JobState.CANCELLED
                ended.add(id)
            elif one.attempts >= MOST_ATTEMPTS:
                one.state, one.is_dead = JobState.FAILED, True
                ended.add(id)
            else:
                one.state, one.is_delayed = JobState.QUEUED, False
                expected += 1
        assert (requeued, {job.id for job in gone}) == (expected, ended)

    @rule(number=some_job, late=RARELY)
    def renew(self, number: int, late: bool) -> None:
        if (picked := self.pick(number)) is None:
            return
        id, one = picked
        told = self.runner.run(self.store.renew(a_worker(), {id: one.fence - late}, lease_s=60))
        is_held = one.state is JobState.RUNNING and not late
        assert told.lost == (frozenset() if is_held else {id})
        assert told.cancelled == ({id} if is_held and one.is_cancelled else frozenset())
        one.lapses = one.lapses and not is_held

    @rule(number=some_job, recorded=strategies.booleans())
    def forget(self, number: int, recorded: bool) -> None:
        if (picked := self.pick(number)) is None:
            return
        id, one = picked
        if recorded:
            self.runner.run(self.store.mark_recorded([id]))
        has_ended = one.state not in (JobState.QUEUED, JobState.RUNNING)
        assert self.runner.run(self.store.forget([id])) == has_ended
        if has_ended:
            del self.known[id]

    @invariant()
    def says_what_the_model_says(self) -> None:
        if hasattr(self, "store"):
            self.runner.run(self._compare())

    async def _compare(self) -> None:
        page = await self.store.list(JobFilter(), limit=1000)
        assert {
            job.id: (job.state, job.attempts, job.fence, job.is_dead, job.cancel_requested) for job in page.jobs
        } == {id: (one.state, one.attempts, one.fence, one.is_dead, one.is_cancelled) for id, one in self.known.items()}
        queued = [one for one in self.known.values() if one.state is JobState.QUEUED]
        depth = await self.store.depth()
        assert depth.queued == Counter(one.language for one in queued if not one.is_delayed)
        assert depth.delayed == sum(one.is_delayed for one in queued)
        assert depth.running == sum(one.state is JobState.RUNNING for one in self.known.values())
        assert depth.dead == sum(one.is_dead for one in self.known.values())
        assert await self.database.read(figures) == await self.database.read(counted)


def test_jobs_are_as_the_model_says(made_sqlite: Path, tmp_path: Path) -> None:
    Jobs.made, Jobs.folder = made_sqlite, tmp_path
    run_state_machine_as_test(
        Jobs,
        settings=settings(
            max_examples=300 if os.environ.get("STOCKADE_LONG_TESTS") == "1" else 15,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
