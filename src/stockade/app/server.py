"""The server process: binds, starts the engine, gives up privileges, serves, drains."""

import asyncio
import contextlib
import errno
import gc
import math
import pwd
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from stockade import __version__, registry
from stockade.app import lock, privileges
from stockade.app.connections import connection
from stockade.app.engine import build_engine, prepare_data_dir
from stockade.app.guard import Guard
from stockade.app.http import Parts, create_app, new_registry
from stockade.app.job_metrics import JobMetrics
from stockade.app.jobs import prepare_jobs, running_jobs
from stockade.app.logs import configure
from stockade.app.proxy import Proxy
from stockade.app.records import STATE, Records, open_records, prepare_records, with_sandboxes
from stockade.app.tracing import tracing
from stockade.app.warden import keep_warden
from stockade.config import Config, is_loopback, parse_address
from stockade.engine import Engine, Sandboxes
from stockade.errors import Invalid, Unavailable
from stockade.store.identity import server_id
from stockade.wire.dialect import Services, SoleSandbox
from stockade.wire.websockets import WebSocketConnection

__all__ = ["Caretaker", "Listener", "serve"]

log = structlog.get_logger()

BACKLOG = 2048
START_S = 30.0
KEEP_ALIVE_S = 75
SAME_SIGNAL_S = 0.5
"""make, timeout and the like pass a signal on that their whole process group has got already: that is one, not two."""
CANCEL_S = 5.0
"""Time that cancelled requests have to clean up."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """An address with an application of its own."""

    dialect: str
    """Alone on this address; empty for the merged application."""
    host: str
    port: int
    sockets: tuple[socket.socket, ...]

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host == "0.0.0.0" else "::1" if self.host == "::" else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class _Server(uvicorn.Server):
    """uvicorn without its signal handling (ours covers all listeners), telling when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answering.set()

    def end(self, *, at_once: bool) -> None:
        """Stop accepting and let requests end; *at_once*: cancel them."""
        self.should_exit = True
        if at_once:
            self.force_exit = True
            for task in self.server_state.tasks:
                task.cancel()


class Caretaker(Protocol):
    """Who looks after the one sandbox that a server is there for."""

    def sandbox(
        self, engine: Engine, records: Records, *, end: Callable[[], None]
    ) -> contextlib.AbstractAsyncContextManager[SoleSandbox]:
        """The sandbox, during the block; ended at its end. *end* has the server end as a first signal does."""
        ...

    def on_signal(self, number: int, *, again: bool) -> None:
        """The server was sent a signal, and ends; *again*: at once."""
        ...


def serve(
    config: Config,
    *,
    only: str = "",
    caretaker: Caretaker | None = None,
    made_key: Callable[[str], None] = lambda _: None,
    ready: Callable[[tuple[Listener, ...]], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    The first signal drains: no new connections, running requests have `server.drain_s` to end. The second ends at once.

    Args:
        only: the dialect that is alone on the main address; empty for the merged application.
        caretaker: looks after the one sandbox that the server is there for; SIGHUP then ends it, too.
        made_key: called with the API key that a first start makes; nothing can show it again.
        ready: called once every listener answers.

    Raises:
        Conflict: another server uses the data directory.
        Unavailable: an address is in use, or the warden does not start.
        CannotEnforce, Invalid, Fault: see the parts.
    """
    configure(config.log)
    user = privileges.find_user(config.server.user) if config.server.user else None
    # Whom we become must reach what it writes itself, and the socket of a warden that we keep.
    prepare_data_dir(config.data_dir, passable=user is not None)
    with lock.exclusive(config.data_dir), contextlib.ExitStack() as sockets:
        listeners = _bind(config, only, sockets)
        _raise_descriptor_limit()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, listeners, caretaker, made_key, ready, user))


async def _serve(
    config: Config,
    listeners: tuple[Listener, ...],
    caretaker: Caretaker | None,
    made_key: Callable[[str], None],
    ready: Callable[[tuple[Listener, ...]], None],
    user: pwd.struct_passwd | None,
) -> None:
    with _signals(caretaker) as stop:
        # Threads keep their capabilities when the process gives up its own: those that starting needs have a pool of
        # their own, which has ended by then.
        loop = asyncio.get_running_loop()
        loop.set_default_executor(starting := ThreadPoolExecutor())
        identity = server_id(config.data_dir / STATE)
        async with (
            keep_warden(config, owner=user.pw_uid if user else None) as warden_socket,
            build_engine(config, warden_socket=warden_socket, instance=identity) as runs,
            contextlib.AsyncExitStack() as stack,
        ):
            # What still needs root; the very last of it is giving it up.
            if secret := await prepare_records(config, owner=user):
                made_key(secret)
            starting.shutdown()
            loop.set_default_executor(ThreadPoolExecutor())
            prepare_jobs(config)
            privileges.drop(user)
            stack.enter_context(tracing(config.tracing))  # which has a thread of its own
            records = await stack.enter_async_context(open_records(config))
            engine = await stack.enter_async_context(with_sandboxes(config, runs, records))
            sole: SoleSandbox | None = None
            if caretaker is not None:
                sole = await stack.enter_async_context(caretaker.sandbox(engine, records, end=stop.end))
            elif engine.sandboxes is not None:
                stack.push_async_callback(_end_sandboxes, engine.sandboxes, stop)
            metrics = new_registry(engine)
            if caretaker is None:
                jobs = running_jobs(
                    config,
                    engine,
                    records,
                    metrics=JobMetrics(metrics),
                    stop=stop.jobs_drain,
                    at_once=stop.jobs_end,
                )
                engine = replace(engine, jobs=await stack.enter_async_context(jobs))
            parts = Parts(
                config=config,
                engine=engine,
                keys=records.accounts,
                accounts=records.accounts,
                database=records.database,
                registry=metrics,
                sole=sole,
            )
            apps = [create_app(parts, host=one.host, only=one.dialect) for one in listeners]
            await _enter_dialect_listeners(parts, listeners, stack)
            proxied = [_proxied(config, engine, app, one.host) for app, one in zip(apps, listeners, strict=True)]
            stop.servers += [_Server(_uvicorn_config(config, app)) for app in proxied]
            _freeze()
            async with asyncio.TaskGroup() as group:
                for server, listener in zip(stop.servers, listeners, strict=True):
                    group.create_task(server.serve(list(listener.sockets)))
                async with asyncio.timeout(START_S):
                    for server in stop.servers:
                        await server.answering.wait()
                stop.are_answering()
                log.info("server.started", version=__version__, addresses=[one.url for one in listeners])
                ready(listeners)
            await _cancelled(stop.servers)
    log.info("server.stopped")


def _bind(config: Config, only: str, stack: contextlib.ExitStack) -> tuple[Listener, ...]:
    """Open every address, before anything is started that would have to be stopped again."""
    patience_s = config.server.body_timeout_s
    listeners = [_listener(only, config.server.host, config.server.port, patience_s, stack)]
    for name, address in config.server.listen.items():
        if name not in registry.names("dialects"):
            raise Invalid(f"server.listen: unknown dialect {name!r}; known: {', '.join(registry.names('dialects'))}")
        listeners.append(_listener(name, *parse_address(address), patience_s, stack))
    return tuple(listeners)


def _listener(dialect: str, host: str, port: int, patience_s: float, stack: contextlib.ExitStack) -> Listener:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}: {error.strerror}") from error
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        one = stack.enter_context(socket.socket(family, kind, protocol))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: the kernel drops a client that takes nothing of its answer for so long (tcp(7)), and
        # with it the answer that would else stay in memory.
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(1000 * patience_s))
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            one.bind((address[0], port, *address[2:]))
            one.listen(BACKLOG)  # now, so that a second server on the port is refused and not left half-bound
        except OSError as error:
            raise Unavailable(_why_not_bound(host, port, error)) from error
        port = one.getsockname()[1]  # port 0: the same free port for every address of a name
        sockets.append(one)
    return Listener(dialect=dialect, host=host, port=port, sockets=tuple(sockets))


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    reasons = {
        errno.EADDRINUSE: "the port is in use; stop the other program, or choose another port (--port, or PORT)",
        errno.EACCES: "ports below 1024 need root; choose another one (--port, or PORT)",
        errno.EADDRNOTAVAIL: "this machine has no such address; choose another one with --host",
    }
    return f"cannot listen on {host} port {port}: {reasons.get(error.errno or 0, error.strerror)}"


def _raise_descriptor_limit() -> None:
    """A connection is a descriptor, a run some more; the usual soft limit of 1024 is for programs that use select."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _most_connections(config: Config) -> int:
    """What runs and streams need of the descriptors must be left when clients have taken theirs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return config.server.max_connections if soft < 0 else min(config.server.max_connections, max(16, soft // 2))


def _freeze() -> None:
    """Take what there is now out of the garbage collector's sight: it stays, and looking through it again and again
    stops every request for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()


def _proxied(config: Config, engine: Engine, app: ASGIApp, host: str) -> ASGIApp:
    """*app* behind what sandboxes expose: their long streams take none of its places."""
    if engine.ports is None:
        return app
    open_access = is_loopback(host) or config.server.insecure
    return Proxy(
        app=app,
        ports=engine.ports,
        domain=config.ports.domain,
        by_path=config.ports.by_path,
        hosts=Guard.names(host, config.server.trusted_hosts, open_access=open_access),
        answer_s=config.ports.answer_s,
        idle_s=config.ports.idle_s,
    )


async def _end_sandboxes(sandboxes: Sandboxes, stop: "_Stop") -> None:
    """At a Ctrl-C nobody is to come back: what lives is ended. Whoever stops a service (SIGTERM) starts it again."""
    if stop.by_hand:
        await sandboxes.end_all()
    elif living := sandboxes.living:
        log.info("server.leaves_sandboxes", living=living)


def _uvicorn_config(config: Config, app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection(config.server.body_timeout_s, _most_connections(config)),
        **WebSocketConnection.settings(),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # Anybody else who connects would choose the address that rate limits and the queue's fairness go by.
        proxy_headers=bool(config.server.trusted_proxies),
        forwarded_allow_ips=list(config.server.trusted_proxies),
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(config.server.drain_s),
    )


async def _enter_dialect_listeners(
    parts: Parts, listeners: tuple[Listener, ...], stack: contextlib.AsyncExitStack
) -> None:
    """Start what dialects serve beside HTTP, once each."""
    config = parts.config
    names = (config.server.dialects or registry.names("dialects")) + tuple(config.server.listen)
    for name in dict.fromkeys(names):
        dialect = registry.find("dialects", name)
        if dialect.listeners is None:
            continue
        services = Services(
            engine=parts.engine,
            keys=parts.keys,
            accounts=parts.accounts,
            settings=config.dialects.get(name),
            server=config.server,
            registry=parts.registry,
            open_access=config.server.insecure or all(is_loopback(one.host) for one in listeners),
        )
        async with asyncio.timeout(START_S):
            await stack.enter_async_context(dialect.listeners(services))


@dataclass
class _Stop:
    """That the server ends, and why."""

    servers: list[_Server] = field(default_factory=list)
    by_hand: bool = False
    """SIGINT: somebody at a terminal."""
    is_wanted: bool = False
    jobs_drain: asyncio.Event = field(default_factory=asyncio.Event)
    jobs_end: asyncio.Event = field(default_factory=asyncio.Event)
    _answer: bool = False

    def end(self, *, at_once: bool = False) -> None:
        """Have every server drain, or end *at_once*: as soon as it answers, for a start cannot be left half-way."""
        self.is_wanted = True
        self.jobs_drain.set()
        if at_once:
            self.jobs_end.set()
        if self._answer:
            for server in self.servers:
                server.end(at_once=at_once)

    def are_answering(self) -> None:
        """All servers do."""
        self._answer = True
        if self.is_wanted:
            self.end()


@contextlib.contextmanager
def _signals(caretaker: Caretaker | None) -> Iterator[_Stop]:
    """SIGTERM and SIGINT: the first drains, the second ends at once. Before anything is served, any ends the start."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    first_at: float | None = None
    why = _Stop()

    def stop(number: int) -> None:
        nonlocal first_at
        why.by_hand = why.by_hand or number == signal.SIGINT
        if not why.servers:
            task.cancel()
            return
        again = first_at is not None
        if first_at is None:
            first_at = loop.time()
        elif loop.time() - first_at < SAME_SIGNAL_S:
            return
        log.info("server.stopping_at_once" if again else "server.draining")
        why.end(at_once=again)
        if caretaker is not None:
            caretaker.on_signal(number, again=again)

    handled = [signal.SIGTERM, signal.SIGINT]
    if caretaker is not None and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sees to
        # Whoever closes the terminal ends what is there for its user; a service outlives it.
        handled.append(signal.SIGHUP)
    for number in handled:
        loop.add_signal_handler(number, stop, number)
    try:
        yield why
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def _cancelled(servers: list[_Server]) -> None:
    """Wait until requests that were cancelled have cleaned up."""
    tasks = [task for server in servers for task in server.server_state.tasks]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=CANCEL_S)
        log.warning("server.cancelled_requests", cancelled=len(tasks), late=len(late))
