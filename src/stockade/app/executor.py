"""A server that is there for one sandbox alone, and everything that is so about it.

The sandbox is made when the server starts and ended with it. Only where the server was killed is it there again: the
next one, on the same data directory, finds it with its processes and their output, if it would make the very same.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import math
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import structlog

from stockade.app.companion import Console, relay
from stockade.app.records import Records
from stockade.backends.sandboxing import Reading, Streams
from stockade.config import Config, default_data_dir
from stockade.engine import Engine, Sandboxes
from stockade.engine.tasks import Tasks
from stockade.errors import Conflict, Fault, NotFound, StockadeError, Unsupported
from stockade.model import Actor, Limits, Network, NetworkMode, Port, Sandbox, SandboxRequest
from stockade.wire.dialect import SoleSandbox

__all__ = ["DIALECT", "Asked", "Executor", "Secret", "executor_config", "executor_data_dir", "request_of"]

log = structlog.get_logger()

DIALECT = "executor"
LABEL = "stockade.executor"
"""Of the sandbox: what it was made from, as a digest."""
GRACE_S = 5.0
"""Time that open requests, and the companion, have after a signal."""
_STOPPED_S = 5.0
"""Time that the end of the companion takes to be seen, and what it said last to be written, beyond the grace."""
_READING = Reading(patience_s=math.inf)
"""Whoever does not read our output holds the companion back, as if it had our streams itself."""
_YEAR_S = 365 * 86400.0
_PATIENCE_S = 300.0
"""Commands run, and answers wait for their readers, for as long as they like; half a request does not."""
_REQUESTS = 65_536
"""Requests under way at once: the protocol knows no limit, our memory does."""
_CONNECTIONS = 65_536
_KILLED = 128 + signal.SIGKILL


class Secret(Protocol):
    """Who may use the sandbox."""

    @property
    def is_known(self) -> bool:
        """False while nobody has presented one yet."""
        ...

    @property
    def name(self) -> bytes:
        """What stays the same as long as it is the same people's."""
        ...

    async def verify(self, presented: str) -> bool:
        """Raises Fault: it was to be written down, and could not be."""
        ...


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the sandbox of an executor shall be like; `None` leaves it to the server."""

    command: tuple[str, ...] = ()
    """The companion; empty for none."""
    image: str = "host"
    network: NetworkMode = NetworkMode.OUTGOING
    proxy_port: int
    """Port of this host that leads to whichever port of it is bound; 0 takes a free one."""
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str = "user"
    cpus: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    processes: int | None = None


def executor_data_dir(port: int) -> Path:
    """Where an executor on *port* keeps its records by default: each has a directory of its own."""
    return default_data_dir() / f"executor-{port}"


def executor_config(config: Config, asked: Asked, *, host: str, port: int) -> Config:
    """*config* as a server has it that listens for one such sandbox alone, and whose operator asked for its limits."""
    limits = _limits(config, asked)
    maximum = replace(
        config.sandbox.maximum,
        cpus=max(config.sandbox.maximum.cpus, limits.cpus),
        memory_bytes=max(config.sandbox.maximum.memory_bytes, limits.memory_bytes),
        disk_bytes=max(config.sandbox.maximum.disk_bytes, limits.disk_bytes),
        processes=max(config.sandbox.maximum.processes, limits.processes),
    )
    return replace(
        config,
        server=replace(
            config.server,
            host=host,
            port=port,
            listen={},
            dialects=(DIALECT,),
            drain_s=GRACE_S,
            body_timeout_s=max(config.server.body_timeout_s, _PATIENCE_S),
        ),
        # Languages run no programs here: what would make them quick is not prepared.
        sandbox=replace(config.sandbox, maximum=maximum, templates=False),
        cache=replace(config.cache, toolchains=False),
        live=replace(config.live, most_lifetime_s=max(config.live.most_lifetime_s, _YEAR_S)),
        ports=replace(
            config.ports,
            host=host,
            domain="",
            by_path=False,
            connections=max(config.ports.connections, _CONNECTIONS),
            connections_of_all=max(config.ports.connections_of_all, _CONNECTIONS),
            idle_s=_YEAR_S,
        ),
        queue=replace(config.queue, length=max(config.queue.length, _REQUESTS)),
    )


def request_of(config: Config, asked: Asked, *, has_terminal: bool = False) -> SandboxRequest:
    """What the sandbox is made from, but for its id and its terminal's size.

    Args:
        config: from `executor_config`.
        has_terminal: the companion gets one.
    """
    return SandboxRequest(
        id="",
        image=asked.image,
        command=asked.command,
        env=asked.env,
        cwd=asked.cwd,
        user=asked.user,
        limits=_limits(config, asked),
        network=Network(mode=asked.network, ports=(Port(container=Port.BOUND, host=asked.proxy_port),)),
        labels={"terminal": "true"} if has_terminal else {},
        dialect=DIALECT,
        is_quota_free=True,
    )


def _limits(config: Config, asked: Asked) -> Limits:
    """Those of the sandbox: it has the machine to itself, but for what keeps the machine alive."""
    most = config.sandbox.maximum
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    life_s = max(config.live.most_lifetime_s, _YEAR_S)
    cpus = asked.cpus or most.cpus
    return replace(
        most,
        wall_s=life_s,
        cpu_s=life_s * max(1.0, cpus),
        cpus=cpus,
        memory_bytes=asked.memory_bytes or min(most.memory_bytes, installed * 3 // 4),
        disk_bytes=asked.disk_bytes or most.disk_bytes,
        processes=asked.processes or most.processes,
    )


@dataclass(frozen=True, kw_only=True)
class _Held:
    """The sandbox, once there is one."""

    sandboxes: Sandboxes
    id: str
    actor: Actor
    companion: Streams | None

    async def stop(self) -> None:
        """End it at once. What its companion printed can still be read then."""
        with contextlib.suppress(NotFound, Conflict):  # it has ended
            await self.sandboxes.stop(self.actor, self.id, grace_s=0)

    async def kill(self) -> Sandbox:
        """End it at once, with all that it left."""
        return await self.sandboxes.kill(self.actor, self.id)

    async def pass_on(self, number: int) -> None:
        """Send the companion a signal."""
        if self.companion is not None:
            with contextlib.suppress(StockadeError):  # it has ended meanwhile
                await self.companion.signal(number)


class Executor:
    """Looks after the one sandbox: satisfies `stockade.app.server.Caretaker`."""

    def __init__(self, request: SandboxRequest, secret: Secret, *, console: Console | None = None) -> None:
        """Nothing is made yet.

        Args:
            request: see `request_of`.
            console: our standard streams, for the companion; needed where the request has a command.
        """
        self.exit_code = 0
        """What this process shall end with, once the server has ended."""
        self._request = request
        self._secret = secret
        self._console = console
        self._tasks = Tasks()
        self._held: _Held | None = None
        self._is_ending = False
        self._hurry = asyncio.Event()

    @contextlib.asynccontextmanager
    async def sandbox(self, engine: Engine, records: Records, *, end: Callable[[], None]) -> AsyncIterator[SoleSandbox]:
        """The sandbox, during the block; *end* is called when it, or its companion, has ended by itself.

        Raises:
            Unsupported: the backend has no sandboxes that live.
            Unavailable: a port is taken, or there is no room.
            Invalid: something that was asked for cannot be.
        """
        sandboxes = engine.sandboxes
        if sandboxes is None:
            raise Unsupported("an executor needs a backend whose sandboxes can live")
        async with self._tasks.running():
            row, companion = await self._find(sandboxes), None
            if row is None:
                row, companion = await self._make(sandboxes, records)
            held = _Held(sandboxes=sandboxes, id=row.id, actor=_owner(row), companion=companion)
            accompanying: asyncio.Task[None] | None = None
            try:
                if row.command and self._console is not None:
                    if companion is None:
                        companion = await sandboxes.attach(held.actor, held.id, reading=_READING)
                        held = replace(held, companion=companion)
                    accompanying = self._tasks.start(self._accompany(held, self._console, end), name="companion")
                else:
                    self._tasks.background(self._watch(held, end), name="watch the sandbox")
                self._held = held
                proxy_port = row.network.ports[0].host
                log.info("executor.started", sandbox_id=row.id, proxy_port=proxy_port)
                yield SoleSandbox(
                    actor=held.actor, sandbox_id=held.id, verify=self._secret.verify, proxy_port=proxy_port
                )
            finally:
                await self._end(held, accompanying)

    def on_signal(self, number: int, *, again: bool) -> None:
        """Pass a signal on to the companion, which then has `GRACE_S`; *again*: no longer."""
        if again:
            self._hurry.set()
        elif self._held is not None and self._held.companion is not None:
            self._tasks.background(self._held.pass_on(number), name="pass a signal on")
            self._let_end(self._held)

    async def _find(self, sandboxes: Sandboxes) -> Sandbox | None:
        """The sandbox that an executor before us left, where it is what we would make; any other is ended."""
        found = None
        for sandbox_id in sandboxes.lives.ids:
            row = sandboxes.lives.find(sandbox_id)
            if row is None:
                continue
            # While nobody has presented a secret, nobody can say that what is in it is theirs.
            if found is None and self._secret.is_known and row.labels.get(LABEL) == self._digest():
                found = row
            else:
                log.warning("executor.other_sandbox_ended", sandbox_id=sandbox_id)
                await sandboxes.kill(_owner(row), sandbox_id)
        return found

    async def _make(self, sandboxes: Sandboxes, records: Records) -> tuple[Sandbox, Streams | None]:
        keys = await records.accounts.operation.list_keys()
        key = next((key for key, account in keys if account.is_admin), None)
        if key is None:
            raise Fault("the operator's account has no key, although the start makes one")
        request = replace(
            self._request,
            id=f"executor-{secrets.token_hex(8)}",
            terminal=self._console.terminal if self._console is not None else None,
            labels={**self._request.labels, LABEL: self._digest()},
        )
        actor = Actor(id=key.id, account_id=key.account_id, is_admin=True)
        if request.command:
            return await sandboxes.create_attached(actor, request, reading=_READING)
        return await sandboxes.create(actor, request), None

    def _digest(self) -> str:
        """What the sandbox is made from, and for whom: of another secret's holder nobody shall find anything."""
        asked = json.dumps(asdict(self._request), sort_keys=True, default=str).encode()
        return hmac.new(self._secret.name, asked, hashlib.sha256).hexdigest()

    async def _accompany(self, held: _Held, console: Console, end: Callable[[], None]) -> None:
        """Relay the companion's streams to its end, which is the server's."""
        assert held.companion is not None
        try:
            ended = await relay(held.companion, console)
        except StockadeError as error:
            log.error("executor.companion_lost", reason=str(error))
            self.exit_code = 1
        else:
            log.info("executor.companion_ended", exit_code=ended.exit_code, outcome=ended.outcome)
            self.exit_code = ended.exit_code
        finally:
            held.companion.close()
        end()

    async def _watch(self, held: _Held, end: Callable[[], None]) -> None:
        row = await held.sandboxes.lives.ended(held.id, within_s=_YEAR_S)
        if not self._is_ending:
            by, outcome, reason = (row.ended_by, row.outcome, row.message) if row is not None else (None, None, "")
            log.error("executor.sandbox_ended", ended_by=by, outcome=outcome, reason=reason)
            self.exit_code = 1
            end()

    def _let_end(self, held: _Held) -> None:
        """Give the companion its grace, once."""
        if not self._is_ending:
            self._is_ending = True
            self._tasks.background(self._stop(held), name="stop the companion")

    async def _stop(self, held: _Held) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._hurry.wait()
        await held.stop()

    async def _end(self, held: _Held, accompanying: "asyncio.Task[None] | None") -> None:
        """End everything: the companion as it deserves, then the rest at once."""
        is_cut_short = False
        if accompanying is not None and not accompanying.done():
            if not self._is_ending:  # the server ends for a reason of its own
                await held.pass_on(signal.SIGTERM)
                self._let_end(held)
            await asyncio.wait([accompanying], timeout=GRACE_S + _STOPPED_S)
            is_cut_short = not accompanying.done()
        self._is_ending = True
        try:
            row = await held.kill()
        except StockadeError as error:
            log.error("executor.sandbox_not_ended", sandbox_id=held.id, reason=str(error))
            self.exit_code = self.exit_code or 1
        else:
            if is_cut_short:
                self.exit_code = row.exit_code or _KILLED


def _owner(row: Sandbox) -> Actor:
    return Actor(id=row.key_id, account_id=row.account_id, is_admin=True)
