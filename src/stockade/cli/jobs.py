"""`stockade jobs`: the queue, for its operator: straight from the database or from Redis, with or without a server."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from stockade.cli.options import AsJson, ConfigFile, DataDir
from stockade.errors import Conflict, NotFound

if TYPE_CHECKING:
    from stockade.config import Config
    from stockade.model.jobs import Job, JobPage, QueueDepth, WorkerRecord
    from stockade.store.jobs import JobStore

__all__ = ["jobs", "loaded_config"]

T = TypeVar("T")

jobs = typer.Typer(help="Queued jobs: list them, look at one, cancel or repeat one.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")]
States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="queued, running, succeeded, failed or cancelled. May be repeated.",
        show_default=False,
    ),
]
Language = Annotated[str | None, typer.Option("--language", help="The language's own name.", show_default=False)]
Account = Annotated[str | None, typer.Option("--account", help="Id of an account.", show_default=False)]
Most = Annotated[int, typer.Option("--most", metavar="N", min=1, max=1000, help="At most so many, the newest.")]


@jobs.command("list")
def list_jobs(
    state: States = None,
    language: Language = None,
    account: Account = None,
    most: Most = 50,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """List jobs, the newest first."""
    from stockade.model.jobs import JobFilter, JobState

    try:
        states = frozenset(JobState(name) for name in state or ())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--state") from None
    which = JobFilter(states=states, language=language, account_id=account)
    _print(_with_store(data_dir, config, lambda store, _: store.list(which, limit=most)), as_json=as_json)


@jobs.command("dead")
def list_dead(most: Most = 50, as_json: AsJson = False, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """List jobs that were given up because every worker that had them was lost."""
    from stockade.model.jobs import JobFilter

    which = JobFilter(is_dead=True)
    _print(_with_store(data_dir, config, lambda store, _: store.list(which, limit=most)), as_json=as_json)


@jobs.command("show")
def show_job(id: Id, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Print all about a job but its program and input, as JSON."""

    async def find(store: "JobStore", _: "Config") -> "Job":
        return await _found(store, id)

    job = _with_store(data_dir, config, find)
    shown = _shown(job)
    if (result := job.result) is not None:
        shown["result"] = {
            "outcome": result.outcome.value if result.outcome else None,
            "failure": result.failure.value if result.failure else None,
            "message": result.message,
            "exit_code": result.exit_code,
            "signal": result.signal,
            "duration_s": result.duration_ns / 1e9,
            "cpu_s": result.cpu_ns / 1e9,
            "memory_peak_bytes": result.memory_peak_bytes,
            "stdout": result.stdout.decode(errors="replace"),
            "stderr": result.stderr.decode(errors="replace"),
        }
    if (webhook := job.webhook) is not None:
        shown["webhook"] = {
            "url": webhook.url,
            "attempts": webhook.attempts,
            "next": _moment(webhook.next_at),
            "delivered": _moment(webhook.delivered_at),
            "error": webhook.error,
        }
    print(json.dumps(shown, indent=2))


@jobs.command("cancel")
def cancel_job(id: Id, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """End a job: at once while it waits, within a heartbeat of its worker while it runs."""
    from stockade.engine.jobs import kept_s

    async def cancel(store: "JobStore", loaded: "Config") -> "Job":
        job = await store.cancel(id, keep_s=kept_s(loaded.jobs))
        if job is None:
            raise NotFound(f"there is no job {id!r}")
        return job

    job = _with_store(data_dir, config, cancel)
    print("being cancelled" if not job.has_ended else job.state.value)


@jobs.command("retry")
def retry_job(id: Id, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Queue a job that has ended once more, as a new one of the same owner, and print the new one's id."""
    from stockade.engine.jobs import again

    async def retry(store: "JobStore", _: "Config") -> "Job":
        job = await _found(store, id)
        if not job.has_ended:
            raise Conflict(f"job {id} is {job.state.value}: only one that has ended can be repeated")
        new = again(job, owner=(job.account_id, job.key_id), now=datetime.now(UTC))
        await store.add([new])
        return new

    print(_with_store(data_dir, config, retry).id)


@jobs.command("depth")
def show_depth(as_json: AsJson = False, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Show how many jobs wait, run and are dead, and who works."""

    async def ask(store: "JobStore", loaded: "Config") -> "tuple[QueueDepth, list[WorkerRecord]]":
        return await store.depth(), list(await store.workers(seen_within_s=loaded.jobs.lease_s))

    depth, workers = _with_store(data_dir, config, ask)
    told: dict[str, Any] = {
        "queued": dict(depth.queued),
        "delayed": depth.delayed,
        "running": depth.running,
        "dead": depth.dead,
        "oldest_queued": _moment(depth.oldest_queued_at),
        "workers": [
            {
                "id": one.id,
                "languages": list(one.languages),
                "places": one.places,
                "running": one.running,
                "draining": one.is_draining,
            }
            for one in workers
        ],
    }
    if as_json:
        print(json.dumps(told))
        return
    queued = ", ".join(f"{number} {language}" for language, number in sorted(depth.queued.items()) if number) or "none"
    print(f"queued   {queued}")
    print(f"delayed  {depth.delayed}\nrunning  {depth.running}\ndead     {depth.dead}")
    print(f"workers  {len(workers)}")
    for one in workers:
        state = ", draining" if one.is_draining else ""
        print(f"  {one.id}  {one.running} of {one.places} places{state}")


@jobs.command("webhook-secret")
def show_webhook_secret(account: Account = None, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Print what signs webhooks of an account's jobs: receivers need it to check them, and nobody else.

    Without an account: of jobs that were submitted without one. It is also what all others are made of: keep it.
    """
    from stockade.app.jobs import webhook_secret
    from stockade.engine.webhooks import secret_of

    print(secret_of(webhook_secret(loaded_config(data_dir, config)), account or ""))


async def _found(store: "JobStore", id: str) -> "Job":
    job = await store.get(id)
    if job is None:
        raise NotFound(f"there is no job {id!r}")
    return job


def loaded_config(data_dir: DataDir, config: ConfigFile) -> "Config":
    """The configuration, as a server on that directory has it."""
    from stockade.app.engine import prepare_data_dir
    from stockade.app.http import translated
    from stockade.config import load

    loaded = load(file=config, environ=translated(os.environ)[0], options={"data_dir": data_dir})
    if not loaded.data_dir.is_dir():
        prepare_data_dir(loaded.data_dir)
    return loaded


def _with_store(data_dir: DataDir, config: ConfigFile, work: "Callable[[JobStore, Config], Awaitable[T]]") -> T:
    """What *work* makes of the configured store of jobs."""
    from stockade.app.jobs import open_job_store
    from stockade.app.records import database_place
    from stockade.store import Database

    loaded = loaded_config(data_dir, config)

    async def run() -> T:
        async with (
            await Database.open(database_place(loaded), timeout_s=loaded.database.timeout_s) as database,
            open_job_store(loaded, database) as store,
        ):
            return await work(store, loaded)

    return asyncio.run(run())


def _print(page: "JobPage", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_shown(job) for job in page.jobs]))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, collapse_padding=True)
    # As much as fits into 80 columns; `jobs show` and --json have the rest.
    for title in ("Id", "State", "Language", "Account", "Created"):
        table.add_column(title, overflow="fold", no_wrap=title != "Language")
    for job in page.jobs:
        state = f"{job.state.value}, dead" if job.is_dead else job.state.value
        created = job.created_at.astimezone(UTC).strftime("%m-%d %H:%M")
        table.add_row(job.id, state, escape(job.language), escape(job.account_id[:8]), created)
    Console().print(table)


def _shown(job: "Job") -> dict[str, Any]:
    """What may be told of a job without looking into it."""
    return {
        "id": job.id,
        "state": job.state.value,
        "language": job.language,
        "dialect": job.dialect,
        "account": job.account_id,
        "key": job.key_id,
        "priority": job.priority,
        "labels": dict(job.labels),
        "batch": job.batch_id,
        "retry_of": job.retry_of,
        "created": _moment(job.created_at),
        "run_at": _moment(job.run_at),
        "started": _moment(job.started_at),
        "ended": _moment(job.ended_at),
        "attempts": job.attempts,
        "worker": job.worker,
        "dead": job.is_dead,
    }


def _moment(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
