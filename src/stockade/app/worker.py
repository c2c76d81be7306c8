"""`stockade worker`: a process that does jobs and nothing else. It listens nowhere, but for its figures if asked to.

It takes jobs from the queue of its configuration: the database, or Redis. Its sandboxes are made by a warden of its
own, which ends with it, unless the configuration names one: so a server may be stopped and started beside it.
"""

import asyncio
import codecs
import contextlib
import os
import pwd
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from stockade import __version__
from stockade.app import lock, privileges
from stockade.app.engine import build_engine, load_languages, prepare_data_dir
from stockade.app.job_metrics import JobMetrics
from stockade.app.jobs import check_jobs_config, prepare_jobs, running_jobs
from stockade.app.logs import configure
from stockade.app.records import STATE, database_place
from stockade.app.tracing import tracing
from stockade.app.warden import keep_warden
from stockade.config import Config, parse_address
from stockade.errors import Conflict, Unavailable
from stockade.settings import ConfigError
from stockade.store import Database
from stockade.store.identity import has_server

__all__ = ["WorkerOptions", "knows_accounts", "work"]

log = structlog.get_logger()

WORKERS = "workers"
"""Directory below the data directory with one for each worker that runs there."""
MOST_WORKERS = 256
WAIT_S = 20.0
"""Time that a start waits for a database that cannot be reached."""
SAME_SIGNAL_S = 0.5
"""As for the server: whole process groups are sent a signal, and some pass it on."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What one worker is to do."""

    places: int | None = None
    """Jobs at once; `None` for `queue.places`."""
    languages: tuple[str, ...] = ()
    """Names or aliases; empty for all that are installed."""
    metrics: str = ""
    """Where to show figures, `HOST:PORT`; empty for nowhere."""


@dataclass(frozen=True, kw_only=True)
class _Stop:
    first: asyncio.Event = field(default_factory=asyncio.Event)
    second: asyncio.Event = field(default_factory=asyncio.Event)


def work(config: Config, options: WorkerOptions, *, ready: Callable[[], None] = lambda: None) -> None:
    """Do jobs until SIGTERM or SIGINT: the first lets those that run end, for `server.drain_s`; a second gives them
    back at once, for others to run.

    Args:
        ready: called once jobs are taken.

    Raises:
        ConfigError, UnknownLanguage: *options* or the configuration is wrong.
        Unavailable: the queue or the warden cannot be reached, or the address of `metrics` is taken.
        CannotEnforce, Invalid, Fault: see the parts.
    """
    configure(config.log)
    address = _address(options.metrics)
    _check(config, options)
    user = privileges.find_user(config.server.user) if config.server.user else None
    prepare_data_dir(config.data_dir, passable=user is not None)
    prepare_data_dir(config.data_dir / WORKERS, passable=user is not None)
    _prepare_state(config, user)
    with _own_directory(config.data_dir / WORKERS, passable=user is not None) as directory:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(config, options, directory, address, user, ready))


async def _work(
    config: Config,
    options: WorkerOptions,
    directory: Path,
    address: tuple[str, int] | None,
    user: pwd.struct_passwd | None,
    ready: Callable[[], None],
) -> None:
    places = options.places or config.queue.places
    has_accounts = knows_accounts(config)
    own = replace(config, data_dir=directory, queue=replace(config.queue, places=max(places, config.queue.places)))
    with _signals() as stop:
        # As in the server: threads that were there before keep their capabilities.
        loop = asyncio.get_running_loop()
        loop.set_default_executor(starting := ThreadPoolExecutor())
        async with (
            keep_warden(own, owner=user.pw_uid if user else None) as warden_socket,
            build_engine(own, warden_socket=warden_socket) as engine,
            contextlib.AsyncExitStack() as stack,
        ):
            # These are loaded now: whom we become may not be able to read where Python is.
            codecs.lookup("ascii")
            database = await stack.enter_async_context(
                Database.at(
                    database_place(config),
                    timeout_s=config.database.timeout_s,
                    connections=config.database.connections,
                )
            )
            starting.shutdown()
            loop.set_default_executor(ThreadPoolExecutor())
            prepare_jobs(config)
            privileges.drop(user)
            stack.enter_context(tracing(config.tracing))
            await database.migrate(wait_s=WAIT_S)
            metrics = stack.enter_context(_shown(address)) if address else None
            await stack.enter_async_context(
                running_jobs(
                    config,
                    engine,
                    _Records(database=database),
                    places=places,
                    languages=options.languages,
                    metrics=metrics,
                    has_accounts=has_accounts,
                    stop=stop.first,
                    at_once=stop.second,
                )
            )
            log.info("worker.ready", version=__version__, places=places, languages=options.languages or "all")
            ready()
            await stop.first.wait()


@dataclass(frozen=True, kw_only=True)
class _Records:
    database: Database


def knows_accounts(config: Config) -> bool:
    """Whether this configuration's database is the one with the accounts whose jobs are in the queue.

    On a machine that knows of Redis alone it is a file of the worker's own, which nobody looks into.
    """
    return not config.jobs.redis_url or bool(config.database.url) or has_server(config.data_dir / STATE)


def _address(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    try:
        return parse_address(text)
    except ValueError as error:
        raise ConfigError(f"option --metrics: {error} (got {text!r})") from None


def _check(config: Config, options: WorkerOptions) -> None:
    """Tell of mistakes before anything is started that would have to be stopped again."""
    languages = load_languages(config)
    for name in options.languages:
        languages.find(name)
    check_jobs_config(config, languages)


def _prepare_state(config: Config, user: pwd.struct_passwd | None) -> None:
    """Make the directory of the state, and the file of its database, for whom we become, where they are missing.

    Whoever has them already is not trusted: nothing that is there is opened.
    """
    state, place = config.data_dir / STATE, database_place(config)
    user = user if os.geteuid() == 0 else None
    if not state.exists():
        prepare_data_dir(state)
        if user is not None:
            os.chown(state, user.pw_uid, user.pw_gid)
    if user is not None and isinstance(place, Path):
        with contextlib.suppress(FileExistsError):
            file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.fchown(file, user.pw_uid, user.pw_gid)
            os.close(file)


@contextlib.contextmanager
def _own_directory(parent: Path, *, passable: bool) -> Iterator[Path]:
    """A directory that no other worker uses now; one that an earlier worker had, if there is one, with its caches.

    Raises:
        Unavailable: there are too many workers, or it cannot be made.
    """
    for number in range(1, MOST_WORKERS + 1):
        directory = parent / str(number)
        prepare_data_dir(directory, passable=passable)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.exclusive(directory))
            except Conflict:
                continue
            yield directory
            return
    raise Unavailable(f"{MOST_WORKERS} workers use {parent.parent} already; stop some")


@contextlib.contextmanager
def _shown(address: tuple[str, int]) -> Iterator[JobMetrics]:
    """Figures of jobs, which Prometheus can read there during the block."""
    host, port = address
    registry = CollectorRegistry()
    ProcessCollector(namespace="stockade", registry=registry)
    metrics = JobMetrics(registry)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host} port {port} for --metrics: {error.strerror}") from error
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    loop = asyncio.get_running_loop()
    stop = _Stop()
    first_at = 0.0

    def handle() -> None:
        nonlocal first_at
        if not stop.first.is_set():
            first_at = loop.time()
            log.info("worker.told_to_stop")
            stop.first.set()
        elif loop.time() - first_at >= SAME_SIGNAL_S:
            log.info("worker.told_to_stop_at_once")
            stop.second.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
