"""One attempt at a job: run it, decide what came of it, store that."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog

from stockade.config_jobs import JobsConfig
from stockade.engine.jobs import kept_s
from stockade.engine.runs import Runs
from stockade.errors import Fault, StockadeError, Unavailable
from stockade.model import Actor, Outcome, RunResult
from stockade.store.jobs import JobStore
from stockade.worker import results
from stockade.worker.held import CutShort, Held
from stockade.worker.observing import Observer
from stockade.worker.output import EVERY_S, OutputNotes
from stockade.worker.pauses import Pause, sleep_until
from stockade.worker.results import Finish, Forget, GiveBack, Verdict

__all__ = ["Attempt", "Freed"]

log = structlog.get_logger()

MOST_FAULTS = 5
"""Times that a result is offered to a store that does not want it, which is not just away."""


class Freed(Protocol):
    """Called when a run has ended, and its place is free."""

    def __call__(self, *, is_busy: bool) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a worker does with a job that it has claimed."""

    held: Held
    store: JobStore
    runs: Runs
    config: JobsConfig
    observer: Observer
    freed: Freed
    give_up: asyncio.Event
    """The worker ends: whatever is left is not tried again."""

    async def run(self) -> None:
        """All of it; raises nothing but the cancellation."""
        held, job = self.held, self.held.job
        bound = log.bind(job_id=job.id, attempt=job.attempts, fence=job.fence, worker_id=job.worker)
        try:
            with self.observer.running(job):
                verdict = await self._decide(bound)
        finally:
            held.is_running = False
        is_busy = isinstance(verdict, GiveBack) and verdict.reason in ("busy", "unavailable")
        self.freed(is_busy=is_busy)
        self.observer.decided(job, verdict)
        with self.observer.storing(job):
            await self._store(verdict, bound)

    async def _decide(self, bound: structlog.BoundLogger) -> Verdict:
        """Run the job to its end, or until it is cut short, and say what is to be done with it."""
        held, job = self.held, self.held.job
        if held.cut_short is None:
            # A job has no more of its key than this: limits of rate and number were looked at when it was submitted.
            actor = Actor(id=job.key_id, account_id=job.account_id)
            held.run = asyncio.create_task(
                self.runs.run(actor, job.spec, watched=held.look), name=f"run of job {job.id}"
            )
            notes = asyncio.create_task(self._note_output(), name=f"output of job {job.id}")
            try:
                await asyncio.wait([held.run])
            finally:
                for task in (held.run, notes):
                    task.cancel()
                await asyncio.wait([held.run, notes])
            run = held.run
            if not run.cancelled():
                error = run.exception()
                if error is None:
                    # It may have ended by itself just before it was to be cut short: then that is what happened.
                    return self._of_run(run.result())
                if not isinstance(error, StockadeError) or isinstance(error, Fault):
                    bound.error("job.run_failed", exc_info=error)
                if held.cut_short is None:
                    return results.of_error(
                        error,
                        attempts=job.attempts,
                        most_attempts=self.config.most_attempts,
                        age_s=(datetime.now(UTC) - job.created_at).total_seconds(),
                    )
        return self._cut_short()

    def _of_run(self, run: RunResult) -> Verdict:
        match run.last.outcome:
            case Outcome.LOST:
                return results.was_lost(attempts=self.held.job.attempts, most_attempts=self.config.most_attempts)
            case Outcome.CANCELLED if self.held.cut_short is not None:
                return self._cut_short()
            case _:
                return Finish(result=results.of_run(run))

    def _cut_short(self) -> Verdict:
        match self.held.cut_short:
            case CutShort.CANCELLED:
                stdout, stderr = self.held.saved
                took_ns = round(1e9 * (time.monotonic() - self.held.began))
                return Finish(result=results.cancelled(stdout, stderr, duration_ns=took_ns))
            case CutShort.LOST:
                return Forget()
            case CutShort.LAPSED:
                # The store takes it only where nobody else has the job yet.
                return GiveBack(after_s=0, refund=True, reason="lapsed")
            case _:
                return GiveBack(after_s=0, refund=True, reason="draining")

    async def _note_output(self) -> None:
        """Pass on what the run prints, whenever somebody watches."""
        notes = OutputNotes(self.store, self.held.job)
        while True:
            await self.held.is_watched.wait()
            if self.held.glimpse is None:  # it waits for a place, or is compiled
                await asyncio.sleep(EVERY_S)
                continue
            await notes.keep(self.held.glimpse, self.held.is_watched)

    async def _store(self, verdict: Verdict, bound: structlog.BoundLogger) -> None:
        """Tell the store, again and again while it is away: nothing that has run is thrown away."""
        pause, faults = Pause(longest_s=2.0), 0
        if isinstance(verdict, Forget):
            bound.warning("job.lost")  # another worker has it
        while not isinstance(verdict, Forget):
            try:
                await self._tell(verdict, bound)
                return
            except Unavailable as error:
                bound.warning("job.cannot_store", reason=str(error))
            except Exception as error:
                # Should it not take this result at all, the lease runs out, and in the end the job is dead.
                faults += 1
                bound.error("job.not_stored", exc_info=error)
                if faults >= MOST_FAULTS:
                    return
            if await sleep_until(self.give_up, pause.next_s()):
                return

    def _tell(self, verdict: Finish | GiveBack, bound: structlog.BoundLogger) -> Awaitable[None]:
        return self._finish(verdict, bound) if isinstance(verdict, Finish) else self._give_back(verdict, bound)

    async def _finish(self, verdict: Finish, bound: structlog.BoundLogger) -> None:
        job, result = self.held.job, verdict.result
        ended = await self.store.finish(job.id, job.fence, result, keep_s=kept_s(self.config), is_dead=verdict.is_dead)
        if ended is None:
            bound.warning("job.result_not_taken")  # another attempt's counts, or an answer was lost
            return
        bound.info(
            "job.ended",
            state=ended.state.value,
            outcome=result.outcome.value if result.outcome else None,
            failure=result.failure.value if result.failure else None,
            language=job.language,
            duration_ms=result.duration_ns // 1_000_000,
        )
        if verdict.is_dead:
            bound.warning("job.dead")
        self.observer.ended(job, result)

    async def _give_back(self, verdict: GiveBack, bound: structlog.BoundLogger) -> None:
        job = self.held.job
        run_at = datetime.now(UTC) + timedelta(seconds=verdict.after_s)
        if await self.store.release(job.id, job.fence, run_at=run_at, refund=verdict.refund):
            # That there was no place, or that the worker ends, is nothing to look into.
            tell = bound.debug if verdict.reason in ("busy", "draining") else bound.warning
            tell("job.given_back", reason=verdict.reason)
            self.observer.given_back(job, verdict.reason)
