"""What a store of jobs must do. Drivers: `jobs_database` (SQLite, PostgreSQL) and `jobs_redis`.

The store is the queue: which job is whose is decided there, in one transaction, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from stockade.errors import LimitExceeded
from stockade.model.jobs import (
    Job,
    JobFilter,
    JobPage,
    JobResult,
    OutputPiece,
    QueueDepth,
    Renewal,
    Webhook,
    WorkerRecord,
)

__all__ = ["JobStore", "TooManyJobs"]


class TooManyJobs(LimitExceeded):
    """The account has as many jobs waiting as it may have, or the whole queue is full."""

    code = "jobs.too_many"


class JobStore(Protocol):
    """Jobs, each of which ends exactly once. Every method raises Unavailable while the database is away.

    What a method has changed is durable when it returns. Moments are UTC.
    """

    async def open(self) -> None:
        """Connect. Raises Unavailable when that cannot be done, Invalid when name or password are refused."""
        ...

    async def close(self) -> None:
        """Let go of all connections. Idempotent."""
        ...

    async def ping(self) -> None:
        """Raises Unavailable when the store does not answer."""
        ...

    async def add(self, jobs: Sequence[Job], *, most_of_account: int | None = None, most: int | None = None) -> None:
        """Queue *jobs*: all of them or none.

        Args:
            most_of_account: jobs of one account (of one key, without an account) that may be unended.
            most: jobs of everybody that may be unended. Both are counted together with the insertion, so that no two
                at once take the last place.

        Raises:
            TooManyJobs: none was queued.
        """
        ...

    async def get(self, job_id: str) -> Job | None:
        """The job, with all of its result."""
        ...

    async def list(self, which: JobFilter, *, limit: int, cursor: str | None = None) -> JobPage:
        """Jobs, newest first.

        Raises:
            Invalid: *cursor* is none that `list` has returned.
        """
        ...

    async def claim(
        self,
        worker: str,
        *,
        most: int,
        lease_s: float,
        languages: Sequence[str] | None = None,
        room: Mapping[str, int] | None = None,
    ) -> Sequence[Job]:
        """Take up to *most* jobs that may start now: each becomes `running`, with the next fence and one attempt more.

        Accounts take turns (an account with a thousand waiting jobs delays another one's single job by one turn at
        most); within an account the higher priority goes first, then the older `run_at`.

        Args:
            languages: only jobs of these; `None` for any.
            room: at most so many of each of these languages.
        """
        ...

    async def wait_for_work(self, timeout_s: float) -> bool:
        """Wait until something may have come that can be claimed; False after *timeout_s*.

        It may be wrong either way: whoever waits tries again after a while.
        """
        ...

    async def wait_for_change(self, job_id: str, timeout_s: float) -> bool:
        """Wait until something about the job, or its output, may have changed; as `wait_for_work`."""
        ...

    async def renew(self, worker: WorkerRecord, held: Mapping[str, int], *, lease_s: float) -> Renewal:
        """Prolong the leases of jobs (fence by id), and say that the worker lives."""
        ...

    async def finish(
        self, job_id: str, fence: int, result: JobResult, *, keep_s: float | None, is_dead: bool = False
    ) -> Job | None:
        """Record what came of a job.

        Args:
            keep_s: seconds after which the job may be forgotten; `None` for never.

        Returns:
            The ended job; `None` when it has ended before or is another worker's by now: nothing has changed.
        """
        ...

    async def release(self, job_id: str, fence: int, *, run_at: datetime, refund: bool) -> bool:
        """Give a job back unfinished; it may start again at *run_at*. With *refund*, the attempt does not count."""
        ...

    async def cancel(self, job_id: str, *, keep_s: float | None) -> Job | None:
        """End a queued job as cancelled; ask for the end of one that runs.

        Returns:
            The job as it is then; `None`: there is no such job.
        """
        ...

    async def reap(self, *, most_attempts: int, keep_s: float | None) -> tuple[int, Sequence[Job]]:
        """Look for leases that have run out: their jobs are queued again, or, after *most_attempts*, end as lost and
        dead; one whose end was asked for ends as cancelled.

        Returns:
            How many were queued again; the jobs that have ended.
        """
        ...

    async def watch(self, job_id: str, *, for_s: float) -> None:
        """Ask whichever worker runs the job to note its output, for a while."""
        ...

    async def note_output(self, job_id: str, pieces: Sequence[OutputPiece]) -> None:
        """Keep what a running job has printed, until shortly after its end. Pieces of earlier attempts are dropped."""
        ...

    async def output_after(self, job_id: str, number: int) -> Sequence[OutputPiece]:
        """The pieces of the present attempt after *number*."""
        ...

    async def due_webhooks(self, *, most: int, hold_s: float) -> Sequence[Job]:
        """Ended jobs whom somebody must be told of now; each is held back from others for *hold_s*."""
        ...

    async def set_webhook(self, job_id: str, webhook: Webhook) -> None:
        """Note how far telling has come."""
        ...

    async def forget(self, job_ids: Sequence[str]) -> int:
        """Remove ended jobs. How many there were."""
        ...

    async def forget_expired(self, *, most: int) -> int:
        """Remove ended jobs whose time has come, at most so many at once. How many there were."""
        ...

    async def unrecorded(self, *, most: int) -> Sequence[Job]:
        """Ended jobs whose usage nobody has added up yet, without their output."""
        ...

    async def mark_recorded(self, job_ids: Sequence[str]) -> None:
        """Their usage has been added up. Idempotent."""
        ...

    async def depth(self) -> QueueDepth:
        """How many wait, run, are dead. Cheap: it may be asked every few seconds, whatever the number of jobs."""
        ...

    async def workers(self, *, seen_within_s: float) -> Sequence[WorkerRecord]:
        """Workers that have announced themselves lately."""
        ...
