"""Jobs of a process: their store, the service, and who does the work."""

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

import structlog

from stockade.accounts import Barred
from stockade.accounts.usage import MIB, cost_microcents
from stockade.app.job_metrics import JobMetrics
from stockade.app.job_traces import JobTraces
from stockade.config import Config
from stockade.config_accounts import PriceConfig
from stockade.engine import Engine, Languages
from stockade.engine.jobs import Jobs
from stockade.errors import Unsupported
from stockade.model import Actor, Outcome
from stockade.model.accounts import UsageRecord
from stockade.model.jobs import Job, JobFailure
from stockade.store import Database, UsageTable
from stockade.store.jobs import JobStore
from stockade.store.jobs_database import DatabaseJobs
from stockade.store.secret_file import kept_secret
from stockade.store.usage import JobUsage
from stockade.worker import Chores, Observer, Observers, WebhookSender, Worker
from stockade.worker.webhooks import permission
from stockade.worker.worker import pools_of

__all__ = [
    "check_jobs_config",
    "open_job_store",
    "places_of_server",
    "prepare_jobs",
    "running_jobs",
    "used_by_job",
    "webhook_secret",
]

log = structlog.get_logger()

_STATE = "state"
_SECRET_FILE = "webhook-secret"
_ENDING_S = 10.0
"""Time beyond the drain until what is left is cancelled."""


class _OnDatabase(Protocol):
    """Something that has an open database: `stockade.app.records.Records`."""

    @property
    def database(self) -> Database: ...


def webhook_secret(config: Config) -> str:
    """What signs webhooks: the configured secret, else one that is made once and kept in the data directory.

    Raises:
        Unavailable, Fault: see `kept_secret`.
    """
    return config.jobs.webhooks.secret or kept_secret(config.data_dir / _STATE, _SECRET_FILE)


def check_jobs_config(config: Config, languages: Languages) -> None:
    """Refuse what no single setting of jobs can tell by itself.

    Raises:
        ConfigError: a pool or a network makes no sense.
    """
    pools_of(config.jobs, languages)
    permission(config.jobs.webhooks.permit_private)


def prepare_jobs(config: Config) -> None:
    """Load what `open_job_store` needs, as long as we may read it: the user that a server becomes may not."""
    if config.jobs.redis_url:
        with contextlib.suppress(ImportError):  # which is told when it is opened
            importlib.import_module("stockade.store.jobs_redis")


@contextlib.asynccontextmanager
async def open_job_store(config: Config, database: Database) -> AsyncIterator[JobStore]:
    """The configured store of jobs during the block: Redis, where that is named, else *database*.

    Raises:
        Unavailable: it cannot be reached.
        Unsupported: the extra `redis` is not installed.
        Invalid: the URL is none, or a password is refused.
    """
    store: JobStore
    if config.jobs.redis_url:
        # What others read there is the document of the protocol that jobs in Redis come from.
        from stockade.dialects.code_sandbox.shown import document

        try:
            from stockade.store.jobs_redis import RedisJobs
        except ModuleNotFoundError as error:
            raise Unsupported("jobs.redis_url needs: pip install 'stockade[redis]'") from error
        store = RedisJobs(
            config.jobs.redis_url,
            timeout_s=config.jobs.redis_timeout_s,
            document=partial(document, default_wall_s=config.sandbox.defaults.wall_s),
        )
    else:
        store = DatabaseJobs(database)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def places_of_server(config: Config) -> int:
    """Jobs that a server runs at once: half of its places, where nobody says otherwise. The rest is for requests that
    are waited for.
    """
    return config.jobs.places if config.jobs.places is not None else max(1, config.queue.places // 2)


@contextlib.asynccontextmanager
async def running_jobs(
    config: Config,
    engine: Engine,
    records: _OnDatabase,
    *,
    places: int | None = None,
    languages: Sequence[str] = (),
    metrics: JobMetrics | None = None,
    has_accounts: bool = True,
    stop: asyncio.Event | None = None,
    at_once: asyncio.Event | None = None,
) -> AsyncIterator[Jobs]:
    """The service on the configured store during the block, and what does the work: a worker, unless there are no
    places for one, the sender of webhooks, and the chores. At the end the worker drains, `server.drain_s` long.

    Args:
        places: jobs that the worker runs at once; `None` for as many as a server has.
        languages: only of these; empty for all that are installed.
        metrics: counts and shows all of it.
        has_accounts: the accounts of these jobs are in *records*. Where they are not, others add up what jobs used, and
            send webhooks, unless the configuration has the secret that signs them.
        stop: set to begin the drain before the block ends.
        at_once: set to end it: what still runs is given back.

    Raises:
        ConfigError, UnknownLanguage: the configuration of pools or webhooks, or *languages*, is wrong.
        Unavailable, Unsupported, Invalid: see `open_job_store`.
    """
    places = places_of_server(config) if places is None else places
    stop = stop or asyncio.Event()
    at_once = at_once or asyncio.Event()
    async with open_job_store(config, records.database) as store:
        observer = _observer(config, metrics)
        check_jobs_config(config, engine.languages)  # even where nobody works
        secret = webhook_secret(config) if has_accounts else config.jobs.webhooks.secret
        worker: Worker | None = None
        if places:
            worker = Worker(
                store,
                engine.runs,
                config.jobs,
                places=places,
                languages=languages,
                drain_s=config.server.drain_s,
                observer=observer,
                # Where the accounts are not, nobody can be asked; whoever locks one cancels its jobs in the store.
                barred=Barred(database=records.database).among if has_accounts else None,
            )
        jobs = Jobs(
            store=store,
            runs=engine.runs,
            config=config.jobs,
            runs_here=worker is not None,
            nudge=worker.nudge if worker is not None else lambda: None,
            admit=_cost_guard(records.database),
            webhook_secret=secret,
        )
        sender = WebhookSender(store, config.jobs.webhooks, secret=secret, observer=observer)
        chores = Chores(
            store=store,
            config=config.jobs,
            record_usage=_recorder(records.database, config.accounts.prices) if has_accounts else None,
            observer=observer,
        )
        # A worker that drains still needs the others: results are told, leases of others run out.
        ended = asyncio.Event()
        working = [asyncio.create_task(worker.run(stop, at_once=at_once), name="worker")] if worker else []
        others = [asyncio.create_task(chores.run(ended), name="chores of jobs")]
        if secret:
            others.append(asyncio.create_task(sender.run(ended), name="webhooks"))
        if metrics is not None:
            others.append(asyncio.create_task(metrics.look(jobs, ended), name="figures of jobs"))
        for task in (*working, *others):
            task.add_done_callback(_report)
        try:
            yield jobs
        finally:
            stop.set()
            try:
                if working:
                    await asyncio.wait(working, timeout=config.server.drain_s + _ENDING_S)
                ended.set()
                await asyncio.wait(others, timeout=_ENDING_S)
            finally:
                for task in (*working, *others):
                    task.cancel()
                await asyncio.wait([*working, *others])


def _observer(config: Config, metrics: JobMetrics | None) -> Observer:
    if not config.tracing.endpoint:
        return metrics or Observer()
    return Observers(JobTraces(), metrics or Observer())


def _report(task: "asyncio.Task[None]") -> None:
    """None of them ends by itself: each goes on after whatever fails in it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("jobs.task_failed", task=task.get_name(), exc_info=error)


def _recorder(database: Database, prices: PriceConfig) -> Callable[[Sequence[Job]], Awaitable[None]]:
    table = UsageTable(database)

    async def record(jobs: Sequence[Job]) -> None:
        await table.record_jobs([_usage_of(job, prices) for job in jobs])

    return record


def _cost_guard(database: Database) -> Callable[[Actor], Awaitable[None]]:
    table = UsageTable(database)

    async def check(actor: Actor) -> None:
        if actor.monthly_cost_limit_cents is not None:
            await table.check_cost(
                actor.account_id, now=datetime.now(UTC), monthly_cost_cents=actor.monthly_cost_limit_cents
            )

    return check


def _usage_of(job: Job, prices: PriceConfig) -> JobUsage:
    word = (job.result.outcome or job.result.failure) if job.result is not None else None
    return JobUsage(
        job_id=job.id,
        account_id=job.account_id,
        key_id=job.key_id,
        ended_at=job.ended_at or job.updated_at,
        outcome=word.value if word is not None else JobFailure.FAULT.value,
        used=used_by_job(job, prices),
    )


def used_by_job(job: Job, prices: PriceConfig) -> UsageRecord:
    """What an ended job used. One of which nothing was run has used, and costs, nothing."""
    result = job.result
    if result is None or result.outcome is None or result.outcome is Outcome.LOST:
        return UsageRecord(executions=1, errors=1)
    wall_s, cpu_s, memory_bytes = result.duration_ns / 1e9, result.cpu_ns / 1e9, result.memory_peak_bytes
    return UsageRecord(
        executions=1,
        errors=0 if result.outcome is Outcome.EXITED and result.exit_code == 0 else 1,
        duration_ms=round(1000 * wall_s),
        cpu_ms=round(1000 * cpu_s),
        memory_mb_seconds=round(memory_bytes / MIB * wall_s),
        cost_microcents=cost_microcents(prices, cpu_s=cpu_s, memory_gb_s=memory_bytes / (1024 * MIB) * wall_s),
    )
