"""What has to be done about jobs from time to time, by whoever is there: several doing it at once do no harm."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from stockade.config_jobs import JobsConfig
from stockade.engine.jobs import kept_s
from stockade.errors import StockadeError, Unavailable
from stockade.model.jobs import Job
from stockade.store.jobs import JobStore
from stockade.worker.observing import Observer
from stockade.worker.pauses import Pause, sleep_until

__all__ = ["Chores"]

log = structlog.get_logger()

FORGET_EVERY_S = 15.0
FORGET_AT_ONCE = 500
RECORD_EVERY_S = 2.0
RECORD_AT_ONCE = 100


async def _record_nothing(_jobs: Sequence[Job]) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Chores:
    """Gives lost jobs to others, forgets old ones, has usage added up."""

    store: JobStore
    config: JobsConfig
    record_usage: Callable[[Sequence[Job]], Awaitable[None]] | None = _record_nothing
    """Adds what ended jobs used to their accounts' sums; called again for the same job, it changes nothing. `None`
    where others do that.

    Raises Unavailable: it is asked again later.
    """
    observer: Observer = field(default_factory=Observer)

    async def run(self, stop: asyncio.Event) -> None:
        """Do all of it until *stop*."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_every(self.config.lease_s / 3, self.reap, stop), name="reap jobs")
            group.create_task(_every(FORGET_EVERY_S, self.forget, stop), name="forget jobs")
            if self.record_usage is not None:
                group.create_task(_every(RECORD_EVERY_S, self.record, stop), name="record usage of jobs")

    async def reap(self) -> bool:
        """Queue jobs again whose worker has not been heard of; False: that is all."""
        queued_again, ended = await self.store.reap(most_attempts=self.config.most_attempts, keep_s=kept_s(self.config))
        for job in ended:
            _say_ended(job)
        if queued_again:
            log.warning("job.leases_ran_out", queued_again=queued_again)
        if queued_again or ended:
            self.observer.reaped(queued_again, ended)
        return False

    async def forget(self) -> bool:
        """Remove jobs whose time has come; whether there may be more."""
        removed = await self.store.forget_expired(most=FORGET_AT_ONCE)
        if removed:
            log.debug("job.forgotten_by_age", jobs=removed)
        return removed >= FORGET_AT_ONCE

    async def record(self) -> bool:
        """Have the usage of ended jobs added up; whether there may be more."""
        if self.record_usage is None:
            return False
        jobs = await self.store.unrecorded(most=RECORD_AT_ONCE)
        try:
            await self.record_usage(jobs)
        except Unavailable:
            raise
        except StockadeError:
            # One that can never be added must not hold up the others.
            for job in jobs:
                await _record(self.record_usage, job)
        if jobs:
            await self.store.mark_recorded([job.id for job in jobs])
        return len(jobs) >= RECORD_AT_ONCE


async def _record(record_usage: Callable[[Sequence[Job]], Awaitable[None]], job: Job) -> None:
    try:
        await record_usage([job])
    except Unavailable:
        raise
    except StockadeError as error:
        log.error("job.usage_not_recorded", job_id=job.id, reason=str(error))


def _say_ended(job: Job) -> None:
    """As a worker would have, had it lived."""
    bound = log.bind(job_id=job.id, attempt=job.attempts, worker_id=job.worker)
    if job.trace_id:
        bound = bound.bind(trace_id=job.trace_id)
    failure = job.result.failure if job.result is not None else None
    bound.info(
        "job.ended",
        state=job.state.value,
        outcome=None,
        failure=failure.value if failure else None,
        language=job.language,
    )
    if job.is_dead:
        bound.warning("job.dead")


async def _every(period_s: float, work: Callable[[], Awaitable[bool]], stop: asyncio.Event) -> None:
    """Do *work* every so often until *stop*, and again at once while it says that there is more."""
    pause = Pause(first_s=max(0.1, period_s / 4), longest_s=max(10.0, period_s))
    while not stop.is_set():
        wait_s = period_s
        try:
            if await work():
                wait_s = 0.0
            pause.over()
        except Exception as error:
            wait_s = pause.next_s()
            if isinstance(error, StockadeError):
                log.warning("jobs.chore_failed", chore=work.__name__, reason=str(error))
            else:
                log.error("jobs.chore_failed", chore=work.__name__, exc_info=error)
        await sleep_until(stop, wait_s)
