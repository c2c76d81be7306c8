"""A store of jobs in memory, which a test can take away, and whose clock it can turn."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from stockade.errors import Invalid, Unavailable
from stockade.model.jobs import (
    Job,
    JobFailure,
    JobFilter,
    JobPage,
    JobResult,
    JobState,
    OutputPiece,
    QueueDepth,
    Renewal,
    Webhook,
    WorkerRecord,
)
from stockade.store.jobs import TooManyJobs

__all__ = ["FakeStore"]


class FakeStore:
    """Satisfies `JobStore`."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.is_away = False
        self.ahead = timedelta()
        """By how much its clock is ahead of the real one."""
        self.calls: Counter[str] = Counter()
        self.pieces: dict[str, list[OutputPiece]] = {}
        self.announced: dict[str, WorkerRecord] = {}
        self.recorded: set[str] = set()
        self._watched: dict[str, datetime] = {}
        self._turns: Counter[str] = Counter()
        self._changed = asyncio.Event()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def _called(self, name: str) -> None:
        self.calls[name] += 1
        if self.is_away:
            raise Unavailable("the store is away")

    def _put(self, job: Job) -> Job:
        self.jobs[job.id] = replace(job, updated_at=self.now())
        self._tell()
        return self.jobs[job.id]

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> None:
        self._called("ping")

    async def add(self, jobs: Sequence[Job], *, most_of_account: int | None = None, most: int | None = None) -> None:
        self._called("add")
        unended = [job for job in self.jobs.values() if not job.has_ended]
        if most is not None and len(unended) + len(jobs) > most:
            raise TooManyJobs("the queue is full")
        for job in jobs:
            own = sum(_owner(one) == _owner(job) for one in [*unended, *jobs])
            if most_of_account is not None and own > most_of_account:
                raise TooManyJobs("the account has too many jobs")
        for job in jobs:
            self._put(job)

    async def get(self, job_id: str) -> Job | None:
        self._called("get")
        return self.jobs.get(job_id)

    async def list(self, which: JobFilter, *, limit: int, cursor: str | None = None) -> JobPage:
        self._called("list")
        if cursor is not None and not cursor.isdecimal():
            raise Invalid("cursor: is none of ours")
        begin = int(cursor or 0)
        found = [job for job in reversed(self.jobs.values()) if _matches(job, which)]
        page = tuple(_without_output(job) for job in found[begin : begin + limit])
        return JobPage(jobs=page, cursor=str(begin + limit) if len(found) > begin + limit else None)

    async def claim(
        self,
        worker: str,
        *,
        most: int,
        lease_s: float,
        languages: Sequence[str] | None = None,
        room: Mapping[str, int] | None = None,
    ) -> Sequence[Job]:
        self._called("claim")
        left, claimed = dict(room or {}), []
        for _ in range(most):
            due = [
                job
                for job in self.jobs.values()
                if job.state is JobState.QUEUED
                and job.run_at <= self.now()
                and (languages is None or job.language in languages)
                and left.get(job.language, 1) > 0
            ]
            if not due:
                break
            job = min(due, key=lambda one: (self._turns[_owner(one)], -one.priority, one.run_at))
            self._turns[_owner(job)] += 1
            if job.language in left:
                left[job.language] -= 1
            claimed.append(
                self._put(
                    replace(
                        job,
                        state=JobState.RUNNING,
                        started_at=self.now(),
                        attempts=job.attempts + 1,
                        fence=job.fence + 1,
                        worker=worker,
                        lease_until=self.now() + timedelta(seconds=lease_s),
                    )
                )
            )
        return claimed

    async def wait_for_work(self, timeout_s: float) -> bool:
        return await self._wait(timeout_s)

    async def wait_for_change(self, job_id: str, timeout_s: float) -> bool:
        return await self._wait(timeout_s)

    async def _wait(self, timeout_s: float) -> bool:
        if self.is_away:
            raise Unavailable("the store is away")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._changed.wait()
        except TimeoutError:
            return False

    async def renew(self, worker: WorkerRecord, held: Mapping[str, int], *, lease_s: float) -> Renewal:
        self._called("renew")
        self.announced[worker.id] = worker
        lost, cancelled, watched = set(), set(), set()
        for job_id, fence in held.items():
            job = self.jobs.get(job_id)
            if job is None or job.fence != fence or job.state is not JobState.RUNNING:
                lost.add(job_id)
                continue
            self.jobs[job_id] = replace(job, lease_until=self.now() + timedelta(seconds=lease_s))
            if job.cancel_requested:
                cancelled.add(job_id)
            if self._watched.get(job_id, self.now()) > self.now():
                watched.add(job_id)
        return Renewal(lost=frozenset(lost), cancelled=frozenset(cancelled), watched=frozenset(watched))

    async def finish(
        self, job_id: str, fence: int, result: JobResult, *, keep_s: float | None, is_dead: bool = False
    ) -> Job | None:
        self._called("finish")
        job = self.jobs.get(job_id)
        if job is None or job.fence != fence or job.state is not JobState.RUNNING:
            return None
        return self._end(job, result, keep_s=keep_s, is_dead=is_dead)

    def _end(self, job: Job, result: JobResult, *, keep_s: float | None, is_dead: bool = False) -> Job:
        now = self.now()
        return self._put(
            replace(
                job,
                state=result.state,
                result=result,
                ended_at=now,
                is_dead=is_dead,
                lease_until=None,
                expires_at=now + timedelta(seconds=keep_s) if keep_s is not None else None,
                webhook=replace(job.webhook, next_at=now) if job.webhook else None,
            )
        )

    async def release(self, job_id: str, fence: int, *, run_at: datetime, refund: bool) -> bool:
        self._called("release")
        job = self.jobs.get(job_id)
        if job is None or job.fence != fence or job.state is not JobState.RUNNING:
            return False
        attempts = job.attempts - (1 if refund else 0)
        self._put(replace(job, state=JobState.QUEUED, run_at=run_at, attempts=attempts, lease_until=None))
        return True

    async def cancel(self, job_id: str, *, keep_s: float | None) -> Job | None:
        self._called("cancel")
        job = self.jobs.get(job_id)
        if job is None or job.has_ended:
            return job
        if job.state is JobState.RUNNING:
            return self._put(replace(job, cancel_requested=True))
        return self._end(job, JobResult(outcome=None, failure=JobFailure.CANCELLED), keep_s=keep_s)

    async def reap(self, *, most_attempts: int, keep_s: float | None) -> tuple[int, Sequence[Job]]:
        self._called("reap")
        queued_again, ended = 0, []
        for job in list(self.jobs.values()):
            if job.state is not JobState.RUNNING or job.lease_until is None or job.lease_until > self.now():
                continue
            if job.cancel_requested:
                ended.append(self._end(job, JobResult(outcome=None, failure=JobFailure.CANCELLED), keep_s=keep_s))
            elif job.attempts < most_attempts:
                queued_again += 1
                self._put(replace(job, state=JobState.QUEUED, lease_until=None))
            else:
                lost = JobResult(outcome=None, failure=JobFailure.LOST)
                ended.append(self._end(job, lost, keep_s=keep_s, is_dead=True))
        return queued_again, ended

    async def watch(self, job_id: str, *, for_s: float) -> None:
        self._called("watch")
        self._watched[job_id] = self.now() + timedelta(seconds=for_s)

    async def note_output(self, job_id: str, pieces: Sequence[OutputPiece]) -> None:
        self._called("note_output")
        job = self.jobs[job_id]
        self.pieces.setdefault(job_id, []).extend(piece for piece in pieces if piece.fence == job.fence)
        self._tell()

    async def output_after(self, job_id: str, number: int) -> Sequence[OutputPiece]:
        self._called("output_after")
        fence = self.jobs[job_id].fence
        return [one for one in self.pieces.get(job_id, []) if one.fence == fence and one.number > number]

    async def due_webhooks(self, *, most: int, hold_s: float) -> Sequence[Job]:
        self._called("due_webhooks")
        due = [
            job
            for job in self.jobs.values()
            if job.has_ended and job.webhook and job.webhook.next_at and job.webhook.next_at <= self.now()
        ][:most]
        for job in due:
            assert job.webhook is not None
            held = replace(job.webhook, next_at=self.now() + timedelta(seconds=hold_s))
            self.jobs[job.id] = replace(job, webhook=held)
        return due

    async def set_webhook(self, job_id: str, webhook: Webhook) -> None:
        self._called("set_webhook")
        self._put(replace(self.jobs[job_id], webhook=webhook))

    async def forget(self, job_ids: Sequence[str]) -> int:
        self._called("forget")
        found = [one for one in job_ids if one in self.jobs and self.jobs[one].has_ended]
        for one in found:
            del self.jobs[one]
        return len(found)

    async def forget_expired(self, *, most: int) -> int:
        self._called("forget_expired")
        found = [job.id for job in self.jobs.values() if job.expires_at and job.expires_at <= self.now()]
        return await self.forget(found[:most])

    async def unrecorded(self, *, most: int) -> Sequence[Job]:
        self._called("unrecorded")
        found = [job for job in self.jobs.values() if job.has_ended and job.id not in self.recorded]
        return [_without_output(job) for job in found[:most]]

    async def mark_recorded(self, job_ids: Sequence[str]) -> None:
        self._called("mark_recorded")
        self.recorded.update(job_ids)

    async def depth(self) -> QueueDepth:
        self._called("depth")
        queued = [job for job in self.jobs.values() if job.state is JobState.QUEUED]
        due = [job for job in queued if job.run_at <= self.now()]
        return QueueDepth(
            queued=Counter(job.language for job in due),
            delayed=len(queued) - len(due),
            running=sum(job.state is JobState.RUNNING for job in self.jobs.values()),
            dead=sum(job.is_dead for job in self.jobs.values()),
            oldest_queued_at=min((job.run_at for job in due), default=None),
        )

    async def workers(self, *, seen_within_s: float) -> Sequence[WorkerRecord]:
        self._called("workers")
        since = self.now() - timedelta(seconds=seen_within_s)
        return [one for one in self.announced.values() if one.seen_at >= since]


def _owner(job: Job) -> str:
    return job.account_id or job.key_id


def _without_output(job: Job) -> Job:
    return replace(job, result=replace(job.result, stdout=b"", stderr=b"")) if job.result else job


def _matches(job: Job, which: JobFilter) -> bool:
    return (
        (not which.account_id or job.account_id == which.account_id)
        and (not which.key_id or job.key_id == which.key_id)
        and (not which.states or job.state in which.states)
        and (not which.language or job.language == which.language)
        and (not which.batch_id or job.batch_id == which.batch_id)
        and (which.is_dead is None or job.is_dead == which.is_dead)
        and (which.created_after is None or job.created_at >= which.created_after)
        and (which.created_before is None or job.created_at < which.created_before)
    )
