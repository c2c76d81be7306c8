"""What is made of a run: a result to store, or a job to give back. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from stockade.errors import (
    BackendLost,
    Conflict,
    Denied,
    Invalid,
    LimitExceeded,
    NoAnswer,
    NotFound,
    QueueFull,
    Unavailable,
    Unsupported,
)
from stockade.model import Outcome, RunResult
from stockade.model.jobs import JobFailure, JobResult

__all__ = ["Finish", "Forget", "GiveBack", "Verdict", "cancelled", "of_error", "of_run", "was_lost"]

BUSY_S = 0.5
"""Before a job is tried again for which there was no place."""
LONGEST_S = 30.0
LOST_S = 0.2
_LOST = "the host or its warden was lost while the job ran"


@dataclass(frozen=True, kw_only=True)
class Finish:
    """The job has ended so."""

    result: JobResult
    is_dead: bool = False


@dataclass(frozen=True, kw_only=True)
class GiveBack:
    """The job has not ended: it is queued again."""

    after_s: float
    refund: bool
    """The attempt does not count."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Forget:
    """The job is somebody else's by now."""


Verdict = Finish | GiveBack | Forget


def of_run(run: RunResult) -> JobResult:
    """The result of a job whose run was *run*."""
    last = run.last
    # A compilation that an equal program left has cost this job nothing.
    steps = [one for one in (None if run.compilation_cached else run.compilation, run.process) if one is not None]
    return JobResult(
        outcome=last.outcome,
        exit_code=last.exit_code,
        signal=last.signal,
        stdout=last.stdout,
        stderr=last.stderr,
        stdout_truncated=last.stdout_truncated,
        stderr_truncated=last.stderr_truncated,
        duration_ns=_sum_ns(one.usage.wall_s for one in steps),
        cpu_ns=_sum_ns(one.usage.cpu_s for one in steps),
        memory_peak_bytes=max((one.usage.memory_peak_bytes for one in steps), default=0),
        compilation_failed=run.process is None,
    )


def _sum_ns(seconds: Iterable[float]) -> int:
    return round(1e9 * sum(seconds))


def cancelled(stdout: bytes = b"", stderr: bytes = b"", *, duration_ns: int = 0) -> JobResult:
    """The result of a job that somebody wanted ended, with what it had printed."""
    return JobResult(
        outcome=Outcome.CANCELLED,
        stdout=stdout,
        stderr=stderr,
        duration_ns=duration_ns,
        failure=JobFailure.CANCELLED,
        message="execution cancelled",
    )


def of_error(error: BaseException, *, attempts: int, most_attempts: int, age_s: float) -> Verdict:
    """What is to be done with a job whose run has raised *error*.

    Args:
        age_s: since the job was submitted.
    """
    match error:
        case BackendLost() | NoAnswer():
            return was_lost(attempts=attempts, most_attempts=most_attempts)
        case QueueFull() | LimitExceeded():
            return GiveBack(after_s=BUSY_S, refund=True, reason="busy")
        case Unavailable():
            # Nothing is wrong with the job, so it waits; and nothing of it has run, so it has lost no attempt. One that
            # has waited for long need not be looked at so often, lest it keep others from their turns.
            after_s = min(LONGEST_S, max(2 * BUSY_S, age_s / 10))
            return GiveBack(after_s=after_s, refund=True, reason="unavailable")
        case Invalid() | Denied() | NotFound() | Conflict() | Unsupported():
            return Finish(result=JobResult(outcome=None, failure=JobFailure.REFUSED, message=str(error)))
        case _:
            # Its words are for the operator, who finds them in the log: they may tell of the host.
            message = "the sandbox could not be made"
            return Finish(result=JobResult(outcome=None, failure=JobFailure.FAULT, message=message))


def was_lost(*, attempts: int, most_attempts: int) -> Verdict:
    """What is to be done with a job whose host died under it."""
    if attempts < most_attempts:
        return GiveBack(after_s=LOST_S, refund=False, reason="lost")
    return Finish(
        result=JobResult(outcome=Outcome.LOST, failure=JobFailure.LOST, message=f"{_LOST}, {attempts} times"),
        is_dead=True,
    )
