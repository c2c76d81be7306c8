"""Jobs: runs that are submitted now, done by a worker when there is one, and remembered for a while.

What a job passes through: `submit` checks and stores it; a worker (`stockade.worker`) claims it, runs it through `Runs`
and stores its result; `get`, `wait` and `events` show it. This service runs nothing itself.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from stockade.config_jobs import JobsConfig
from stockade.engine.job_events import JobEvent, StateChanged, follow, until_ended
from stockade.engine.runs import Runs
from stockade.engine.webhooks import check_url, secret_of
from stockade.errors import Conflict, Invalid, InvalidLimit, NotFound
from stockade.model import Actor, LimitOverrides, Limits, RunSpec
from stockade.model.jobs import (
    Job,
    JobFailure,
    JobFilter,
    JobPage,
    JobState,
    OutputPiece,
    QueueDepth,
    Webhook,
    WorkerRecord,
)
from stockade.spans import span, traceparent
from stockade.store.jobs import JobStore

__all__ = ["JobEvent", "JobRequest", "Jobs", "OutputPiece", "StateChanged", "again", "cancel_each", "kept_s"]

log = structlog.get_logger()

HIGHEST_PRIORITY = 100
FURTHEST_RUN = timedelta(days=366)
MOST_LABELS = 32
MOST_LABEL_NAME = 63
MOST_LABEL_TEXT = 255
MOST_LISTED = 1000
CANCELLED_AT_ONCE = 32
"""Of an account: the store takes several together, but the client of Redis has a hundred connections for all."""
MOST_ARGUMENT_BYTES = 32 * 1024
"""Of all arguments together: lists show them, and a list has up to `MOST_LISTED` jobs."""
MOST_OUTPUT_BYTES = 4 * 1024 * 1024
"""Of each stream. Unlike that of a run, it is kept, and shown to however many ask for it at once."""
SILENT_BEATS = 3
"""A worker that has left out so many signs of life is not listed any more."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A job that somebody asks for."""

    spec: RunSpec
    dialect: str
    """By which protocol."""
    priority: int = 0
    """-100 to 100; of the jobs of an account, higher ones first."""
    run_at: datetime | None = None
    """It does not start before; `None`, or a moment that has passed: at once."""
    webhook_url: str = ""
    """Whom to tell when it has ended; empty for nobody."""
    labels: Mapping[str, str] = field(default_factory=dict)
    trace: str = ""
    """W3C `traceparent` that the client sent; one that is malformed is left out. Where the request has a span of ours,
    that one counts."""


async def _admit(_actor: Actor) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """The jobs that dialects and the portal see.

    A job of an account is its actors' and the administrators' alone; to all others it is not there. One that nobody
    with an account has submitted belongs to whoever knows its id, as in the protocol that it comes from.
    """

    store: JobStore
    runs: Runs
    config: JobsConfig
    runs_here: bool = True
    """Whether a worker of this process may do the work. If not, languages need not be installed here."""
    nudge: Callable[[], None] = lambda: None
    """Makes workers of this process look at once at what is asked of them, not at their next heartbeat."""
    admit: Callable[[Actor], Awaitable[None]] = _admit
    """Raises LimitExceeded for who has used up what the account may cost."""
    webhook_secret: str = field(default="", repr=False)
    """Of the server: no account's, and shown to none."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def check(self, actor: Actor, request: JobRequest) -> Limits:
        """The limits that the job would run under; raises all that `submit` refuses before it asks the store.

        Raises:
            UnknownLanguage, LanguageUnavailable, UnknownTemplate, InvalidLimit, Invalid: see the message.
        """
        if not -HIGHEST_PRIORITY <= request.priority <= HIGHEST_PRIORITY:
            raise Invalid(f"priority: must be from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY} (got {request.priority})")
        if request.run_at is not None:
            if request.run_at.tzinfo is None:
                raise Invalid("run_at: must name its time zone")
            if request.run_at > self.now() + FURTHEST_RUN:
                raise Invalid(f"run_at: must be within {FURTHEST_RUN.days} days")
        if request.webhook_url:
            check_url(request.webhook_url)
        _check_labels(request.labels)
        return self._limits(actor, request.spec)[0]

    def _limits(self, actor: Actor, spec: RunSpec) -> tuple[Limits, LimitOverrides]:
        """The limits that the job would run under, and what has to be asked of a worker, who does not know the actor,
        for that.
        """
        given = self._check_spec(spec)
        asked = spec.limits
        for name, most in _bounds(actor).items():
            value = getattr(given, name)
            if most is None or value <= most:
                continue
            if getattr(asked, name) is not None:
                raise InvalidLimit(name, value, f"a job of yours may have {most:g} at most", maximum=most)
            less: dict[str, Any] = {name: most}
            given, asked = replace(given, **less), replace(asked, **less)
        return given, asked

    def _check_spec(self, spec: RunSpec) -> Limits:
        runs = self.runs
        if sum(len(one.encode(errors="surrogatepass")) for one in spec.args) > MOST_ARGUMENT_BYTES:
            raise Invalid(f"args: must have at most {MOST_ARGUMENT_BYTES} bytes together; use the standard input")
        if self.runs_here or runs.languages.is_available(spec.language):
            return runs.check(spec)
        # As `Runs.check`, but for what is installed: some worker has it, or will have.
        language = runs.languages.find(spec.language)
        runs.templates.check(language, spec.template)
        if any("\0" in arg for arg in spec.args):
            raise Invalid("an argument must not hold a NUL character")
        return runs.limits.resolve(language.limits, spec.limits)

    async def submit(self, actor: Actor, request: JobRequest) -> Job:
        """Queue a job; when this returns, it is stored and will be run.

        Raises:
            Invalid and the like: see `check`.
            TooManyJobs: the account, or the whole queue, has too many unended ones.
            LimitExceeded: the account has cost as much as it may.
            Unavailable: the store is away. Whether the job is queued is not known then.
        """
        new = self._new(actor, request)
        await self.admit(actor)
        (job,) = await self._submit([new])
        return job

    async def submit_batch(self, actor: Actor, requests: Sequence[JobRequest]) -> tuple[Job, ...]:
        """Queue several jobs under one `batch_id`, all or none.

        Raises:
            Invalid: there are none, or too many; or one of them is wrong, which the message then numbers from 0.
            As `submit` otherwise.
        """
        if not 1 <= len(requests) <= self.config.most_of_batch:
            raise Invalid(f"jobs: must be 1 to {self.config.most_of_batch} (got {len(requests)})")
        batch_id = str(uuid.uuid4())
        new = [self._new(actor, request, batch_id=batch_id) for request in requests]
        await self.admit(actor)
        return await self._submit(new)

    def _new(self, actor: Actor, request: JobRequest, *, batch_id: str | None = None) -> Job:
        self.check(actor, request)
        # A worker knows nothing of the key: what it says is said with the job.
        backend = self.runs.backends.choose(actor, request.spec.backend)
        spec, now = replace(request.spec, limits=self._limits(actor, request.spec)[1], backend=backend), self.now()
        if not actor.templates and spec.template is None:
            spec = replace(spec, template="none")
        return Job(
            id=str(uuid.uuid4()),
            account_id=actor.account_id,
            key_id=actor.id,
            dialect=request.dialect,
            spec=spec,
            language=self.runs.languages.find(spec.language).name,
            priority=request.priority,
            labels=dict(request.labels),
            batch_id=batch_id,
            trace=traceparent(request.trace),
            created_at=now,
            updated_at=now,
            run_at=max(now, request.run_at.astimezone(UTC)) if request.run_at is not None else now,
            webhook=Webhook(url=request.webhook_url) if request.webhook_url else None,
        )

    async def _submit(self, jobs: Sequence[Job]) -> tuple[Job, ...]:
        first = jobs[0]
        of_batch = {"batch_id": first.batch_id} if first.batch_id else {"job_id": first.id, "language": first.language}
        with span("job.submit", jobs=len(jobs), dialect=first.dialect, **of_batch):
            await self.store.add(jobs, most_of_account=self.config.most_of_account, most=self.config.most_unended)
        for job in jobs:
            log.debug("job.queued", job_id=job.id, language=job.language, dialect=job.dialect, key_id=job.key_id)
        return tuple(jobs)

    async def get(self, actor: Actor, job_id: str) -> Job:
        """The job as it is now, with all of its result.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        job = await self.store.get(job_id)
        if job is None or not _is_visible(actor, job):
            raise NotFound(f"there is no job {job_id!r}")
        return job

    async def list(self, actor: Actor, which: JobFilter, *, limit: int = 100, cursor: str | None = None) -> JobPage:
        """Jobs, newest first, without their output: those of the actor's account; of whom an administrator asks for,
        everybody's by default; without an account, those submitted from the same address.

        Raises:
            Invalid: *limit* is not from 1 to 1000, or *cursor* is none of ours.
        """
        if not 1 <= limit <= MOST_LISTED:
            raise Invalid(f"limit: must be from 1 to {MOST_LISTED} (got {limit})")
        if not actor.is_admin:
            if actor.account_id:
                which = replace(which, account_id=actor.account_id)
            else:
                which = replace(which, account_id=None, key_id=actor.id)
        return await self.store.list(which, limit=limit, cursor=cursor)

    async def cancel(self, actor: Actor, job_id: str) -> Job:
        """End a job: at once while it waits, within a heartbeat while it runs. One that has ended stays as it is.

        Raises:
            NotFound: as `get`.
        """
        before = await self.get(actor, job_id)
        job = await self.store.cancel(job_id, keep_s=kept_s(self.config))
        if job is None:
            raise NotFound(f"there is no job {job_id!r}")
        if not before.has_ended:
            _log_cancelled(job)
        self.nudge()
        return job

    async def cancel_all(self, account_id: str) -> None:
        """End all jobs of an account that have not ended, as `cancel` does."""
        async for job in cancel_each(self.store, account_id, keep_s=kept_s(self.config)):
            _log_cancelled(job)
        self.nudge()

    async def retry(self, actor: Actor, job_id: str) -> Job:
        """Submit a job that has ended once more, as a new one of the same owner.

        Raises:
            Conflict: it has not ended.
            NotFound: as `get`; the rest as `submit`.
        """
        job = await self.get(actor, job_id)
        if not job.has_ended:
            raise Conflict(f"job {job_id} is {job.state.value}: only one that has ended can be repeated")
        job = replace(job, spec=replace(job.spec, limits=self._limits(actor, job.spec)[1]))
        await self.admit(actor)
        owner = (job.account_id, job.key_id) if job.account_id else (actor.account_id, actor.id)
        (new,) = await self._submit([again(job, owner=owner, now=self.now())])
        return new

    async def forget(self, actor: Actor, job_id: str) -> None:
        """Remove a job that has ended, with its output.

        Raises:
            Conflict: it has not ended; cancel it first.
            NotFound: as `get`.
        """
        job = await self.get(actor, job_id)
        if not job.has_ended or not await self.store.forget([job_id]):
            raise Conflict(f"job {job_id} is {job.state.value}: only one that has ended can be removed; cancel it")
        log.debug("job.forgotten", job_id=job_id)

    async def wait(self, actor: Actor, job_id: str, *, timeout_s: float) -> Job:
        """The job once it has ended, or as it is after *timeout_s*.

        Raises:
            NotFound: as `get`.
        """
        return await self.ended(await self.get(actor, job_id), timeout_s=timeout_s)

    async def ended(self, job: Job, *, timeout_s: float) -> Job:
        """As `wait`, for whoever has just been given the *job*."""
        return await until_ended(self.store, job, timeout_s=timeout_s)

    async def events(self, actor: Actor, job_id: str) -> AsyncIterator[JobEvent]:
        """How the job is, then what happens to it; the last event has the ended job. See `follow`.

        Raises:
            NotFound: as `get`; also when it is removed meanwhile.
        """
        async for event in follow(self.store, await self.get(actor, job_id), nudge=self.nudge):
            yield event

    def secret_of(self, actor: Actor) -> str:
        """What signs the messages about jobs of the actor's account.

        Raises:
            NotFound: the actor has no account. Messages about jobs of nobody are the operator's to check.
        """
        if not actor.account_id or not self.webhook_secret:
            raise NotFound("only accounts have a secret for webhooks; the operator of this server knows the others'")
        return secret_of(self.webhook_secret, actor.account_id)

    async def depth(self) -> QueueDepth:
        """How many jobs of everybody wait, run, are dead."""
        return await self.store.depth()

    async def workers(self) -> Sequence[WorkerRecord]:
        """Workers that live, as far as is known."""
        seen_within_s = max(self.config.lease_s, SILENT_BEATS * self.config.heartbeat_s)
        return await self.store.workers(seen_within_s=seen_within_s)


async def cancel_each(store: JobStore, account_id: str, *, keep_s: float | None) -> AsyncIterator[Job]:
    """Cancel all jobs of an account that have not ended, and tell each as it is then."""
    which, cursor = JobFilter(account_id=account_id, states=frozenset({JobState.QUEUED, JobState.RUNNING})), None
    while True:
        page = await store.list(which, limit=CANCELLED_AT_ONCE, cursor=cursor)
        wanted = [job.id for job in page.jobs if not job.cancel_requested]
        found = await asyncio.gather(*(store.cancel(id, keep_s=keep_s) for id in wanted), return_exceptions=True)
        for job in found:
            if isinstance(job, BaseException):
                raise job
            if job is not None:
                yield job
        if (cursor := page.cursor) is None:
            return


def _log_cancelled(job: Job) -> None:
    if not job.has_ended:
        log.debug("job.cancel_requested", job_id=job.id)
        return
    log.info(  # as its worker would have said, had it come to one
        "job.ended",
        job_id=job.id,
        state=job.state.value,
        outcome=None,
        failure=JobFailure.CANCELLED.value,
        language=job.language,
    )


def again(job: Job, *, owner: tuple[str, str], now: datetime) -> Job:
    """A new job that repeats *job*, to start now.

    Args:
        owner: ids of account and key.
    """
    account_id, key_id = owner
    return Job(
        id=str(uuid.uuid4()),
        account_id=account_id,
        key_id=key_id,
        dialect=job.dialect,
        spec=job.spec,
        language=job.language,
        priority=job.priority,
        labels=job.labels,
        retry_of=job.id,
        trace=traceparent(),
        created_at=now,
        updated_at=now,
        run_at=now,
        webhook=Webhook(url=job.webhook.url) if job.webhook is not None else None,
    )


def kept_s(config: JobsConfig) -> float | None:
    """Seconds for which an ended job is kept; `None` for ever."""
    return config.retention_s or None


def _bounds(actor: Actor) -> Mapping[str, float | None]:
    """The most that a job of the actor's may have, beside what the server allows to everybody; `None`: no less."""
    return {
        "wall_s": actor.max_duration_s,
        "memory_bytes": actor.max_memory_bytes,
        "output_bytes": MOST_OUTPUT_BYTES,
    }


def _is_visible(actor: Actor, job: Job) -> bool:
    return not job.account_id or job.account_id == actor.account_id or actor.is_admin


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MOST_LABELS:
        raise Invalid(f"labels: must be at most {MOST_LABELS} (got {len(labels)})")
    for name, text in labels.items():
        if not 1 <= len(name) <= MOST_LABEL_NAME or len(text) > MOST_LABEL_TEXT:
            raise Invalid(
                f"labels: a name has 1 to {MOST_LABEL_NAME} characters, its text at most {MOST_LABEL_TEXT} "
                f"(got {name[:80]!r})"
            )
        # No database takes them as text.
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in name + text):
            raise Invalid("labels: must not hold NUL characters or halves of surrogate pairs")
