"""Jobs: runs that are queued, remembered, and taken by workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from stockade.model.outcomes import Outcome
from stockade.model.runs import RunSpec

__all__ = [
    "FINAL_STATES",
    "Job",
    "JobFailure",
    "JobFilter",
    "JobPage",
    "JobResult",
    "JobState",
    "OutputPiece",
    "QueueDepth",
    "Renewal",
    "Webhook",
    "WorkerRecord",
]


class JobState(StrEnum):
    """Where a job is. The last three are final."""

    QUEUED = "queued"
    """It waits for a worker, or for the moment at which it may start."""
    RUNNING = "running"
    """A worker has it."""
    SUCCEEDED = "succeeded"
    """Its program exited with status 0."""
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES = frozenset((JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED))


class JobFailure(StrEnum):
    """Why a job has no result of its program's."""

    LOST = "lost"
    """Every worker that had it died."""
    REFUSED = "refused"
    """No worker could run it: the language is gone, a limit too high."""
    FAULT = "fault"
    """The sandbox could not be made."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Whom to tell when a job has ended, and how far that has come."""

    url: str
    attempts: int = 0
    next_at: datetime | None = None
    """When to try again; `None` before the end of the job, and when nothing is left to do."""
    delivered_at: datetime | None = None
    error: str = ""
    """Why the last attempt failed. With neither `next_at` nor `delivered_at` after the job's end, it was given up."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What came of a job's program."""

    outcome: Outcome | None
    """`None`: nothing was run; `failure` says why."""
    exit_code: int | None = None
    """Exit status when it exited by itself."""
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    duration_ns: int = 0
    """Wall time of the run, its compilation included."""
    cpu_ns: int = 0
    memory_peak_bytes: int = 0
    compilation_failed: bool = False
    """Outcome and output are the compiler's: there was nothing to run."""
    failure: JobFailure | None = None
    message: str = ""
    """More about `failure`, in words for the user."""

    @property
    def state(self) -> JobState:
        """The state of a job with this result."""
        if self.failure is JobFailure.CANCELLED or self.outcome is Outcome.CANCELLED:
            return JobState.CANCELLED
        if self.outcome is Outcome.EXITED and self.exit_code == 0:
            return JobState.SUCCEEDED
        return JobState.FAILED


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that somebody asked for, and what has become of it."""

    id: str
    """A random UUID."""
    account_id: str
    """Empty for one that nobody with an account has submitted."""
    key_id: str
    """Id of the actor."""
    dialect: str
    """By which protocol it came."""
    spec: RunSpec
    language: str
    """The language's own name; `spec.language` is how the client spelled it."""
    state: JobState = JobState.QUEUED
    priority: int = 0
    """-100 to 100; of the jobs of an account, higher ones first."""
    labels: Mapping[str, str] = field(default_factory=dict)
    batch_id: str | None = None
    """Of those submitted together."""
    retry_of: str | None = None
    """The job that this one repeats."""
    trace: str = ""
    """W3C `traceparent` of the request that submitted it; empty without one."""
    created_at: datetime
    updated_at: datetime
    run_at: datetime
    """It does not start before."""
    started_at: datetime | None = None
    """Of the last attempt."""
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    """Forgotten from then on; set at its end. `None`: kept for ever."""
    attempts: int = 0
    """Times that a worker has taken it."""
    fence: int = 0
    """Grows with each claim: what the holder of an earlier one says does not count any more."""
    worker: str = ""
    """Id of the worker that has it, or had it last."""
    lease_until: datetime | None = None
    """Unless renewed, another worker may take it from then on."""
    cancel_requested: bool = False
    is_dead: bool = False
    """In the dead-letter list: it was lost too often, and nobody has looked at it."""
    result: JobResult | None = None
    webhook: Webhook | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def trace_id(self) -> str:
        """Of `trace`: 32 hex digits; empty without one."""
        return self.trace[3:35]


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs to list. `None`, or empty: any."""

    account_id: str | None = None
    key_id: str | None = None
    states: frozenset[JobState] = frozenset()
    language: str | None = None
    """The language's own name."""
    batch_id: str | None = None
    is_dead: bool | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """Some jobs, newest first."""

    jobs: tuple[Job, ...]
    """Without what may be large: `spec.code`, `spec.stdin`, `result.stdout` and `result.stderr` are empty here."""
    cursor: str | None
    """Where the next page begins; `None` at the end."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What a worker is told with its heartbeat."""

    lost: frozenset[str]
    """Jobs that are its no more: what runs of them is to be ended, and told to nobody."""
    cancelled: frozenset[str]
    """Jobs that somebody wants ended."""
    watched: frozenset[str]
    """Jobs whose output somebody wants to see while they run."""


@dataclass(frozen=True, kw_only=True)
class OutputPiece:
    """A piece of what a running job has printed."""

    number: int
    """1, 2, 3, … within an attempt."""
    fence: int
    """The attempt: output of an earlier one is worth nothing."""
    is_stderr: bool
    data: bytes


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """A worker, as it announces itself with each heartbeat."""

    id: str
    host: str
    pid: int
    languages: tuple[str, ...]
    """Languages' own names; empty for all."""
    places: int
    """Jobs that it runs at once."""
    running: int
    started_at: datetime
    seen_at: datetime
    is_draining: bool = False


@dataclass(frozen=True, kw_only=True)
class QueueDepth:
    """How things stand, for metrics and for the portal."""

    queued: Mapping[str, int]
    """Jobs that could start now, by language."""
    delayed: int
    """Jobs whose moment has not come."""
    running: int
    dead: int
    oldest_queued_at: datetime | None
    """Since when the job that has waited longest could have started."""
