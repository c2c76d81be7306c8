"""What the dialect does with executions: the engine's use cases, asked for and answered in the protocol's terms."""

import signal
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from stockade.backends.sandboxing import LiveProcess, ProcessEnd
from stockade.dialects.boxlite.attach import Attachment
from stockade.dialects.boxlite.execution_wire import Ending, ExecBody, ResizeBody, ending_of, status_of, to_spec
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.sse import STOPPED, event, exit_event, output_events
from stockade.engine import Sandboxes
from stockade.engine.executions import Executions
from stockade.engine.processes import PROCESS
from stockade.errors import LimitExceeded, NotFound, StockadeError, Unsupported
from stockade.model import Actor, Box, Sandbox, TerminalSize
from stockade.wire.bodies import Upload
from stockade.wire.dialect import Services
from stockade.wire.events import EventStream

__all__ = ["MAIN", "BoxExecutions", "executions_of"]

MAIN = Box.MAIN.removeprefix(PROCESS)
"""Id of the execution that is a box's main command."""
EXECUTION_HEADER = b"x-boxlite-execution-id"
_FALSE = ("0", "false")
_MOST_PLACES = 50_000
_NOT_KEPT = b"[what it printed is no longer kept]\n"

# An app of its own and the merged one serve the same executions: who is attached counts for both.
_by_server: "WeakKeyDictionary[CollectorRegistry, _Shared]" = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where an execution was started."""

    account_id: str
    box_id: str
    sandbox_id: str


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What all apps of a server have in common."""

    executions: Executions
    places: OrderedDict[str, _Place]
    """By id. A box that was stopped and started again has another sandbox; its older executions are still known."""


def executions_of(services: Services) -> Executions:
    """The executions of this server; enter their `running` once, after the engine has started.

    Raises:
        Unsupported: it has no sandboxes that live.
    """
    return _shared(services).executions


def _shared(services: Services) -> _Shared:
    found = _by_server.get(services.registry)
    if found is None:
        sandboxes = _sandboxes(services)
        found = _by_server[services.registry] = _Shared(executions=Executions(sandboxes), places=OrderedDict())
    return found


def _sandboxes(services: Services) -> Sandboxes:
    if services.engine.sandboxes is None:
        raise Unsupported("this server has no sandboxes that live")
    return services.engine.sandboxes


class BoxExecutions:
    """Executions in boxes."""

    def __init__(self, context: Context) -> None:
        shared = _shared(context.services)
        self._context = context
        self._sandboxes = _sandboxes(context.services)
        self._executions = shared.executions
        self._places = shared.places

    async def start(self, actor: Actor, name: str, body: ExecBody) -> str:
        """Start a process in a box, which is started or resumed for that; the execution's id."""
        box = await self._context.boxes.get(actor, name)
        counts = self._context.counts
        with self._context.boxes.using(box.id):
            sandbox = await self._context.boxes.sandbox(actor, box)
            most = self._context.settings.most_executions
            if self._executions.running_in(sandbox.id) >= most:
                raise LimitExceeded(f"{most} executions run in box {box.id} already; more may not at the same time")
            try:
                spec = to_spec(body, user=sandbox.user)
                process = await self._executions.start(sandbox, spec, timeout_s=body.timeout_seconds)
            except StockadeError:
                counts.add_failure(actor.owner, box.id)
                raise
        counts.add_execution(actor.owner, box.id)
        self._remember(process.name, _Place(account_id=box.account_id, box_id=box.id, sandbox_id=sandbox.id))
        return process.name

    async def status(self, actor: Actor, name: str, id: str) -> dict[str, Any]:
        """What is known of an execution."""
        row = await self._row(await self._context.boxes.get(actor, name), id)
        return self._status(row, await self._executions.find(row, id))

    async def list(self, actor: Actor, name: str) -> list[dict[str, Any]]:
        """What is known of those since the box's last start, in the order of theirs."""
        box = await self._context.boxes.get(actor, name)
        try:
            row = await self._row(box, MAIN)
            found = await self._executions.list(row)
        except NotFound:
            return []
        return [self._status(row, one) for one in found]

    def _status(self, row: Sandbox, process: LiveProcess) -> dict[str, Any]:
        is_attached = self._executions.is_attached(row, process.name)
        return status_of(process, is_attached=is_attached, now=self._sandboxes.lives.clock())

    async def output(self, request: Request, actor: Actor, name: str, id: str) -> Response:
        """All that an execution prints, from the beginning, as server-sent events."""
        box = await self._context.boxes.get(actor, name)
        row = await self._row(box, id)
        counts = self._context.counts.of(box.id)

        def sent(size: int) -> None:
            counts.received_bytes += size

        async with AsyncExitStack() as held:
            held.enter_context(self._context.edge.streams.hold(actor))
            held.enter_context(self._context.boxes.using(box.id))
            try:
                follower = await held.enter_async_context(self._executions.following(row, id))
            except NotFound:
                frames = _remains(await self._executions.find(row, id))
            else:
                frames = output_events(follower, self._ending(row, id), sent=sent)
            return EventStream(request, frames, held.pop_all())

    def _ending(self, row: Sandbox, id: str) -> Callable[[ProcessEnd], Awaitable[Ending]]:
        async def ending(end: ProcessEnd) -> Ending:
            try:
                return ending_of(await self._executions.ended(row, id), end)
            except StockadeError:  # it has been forgotten this moment
                return Ending(status="completed", exit_code=end.exit_code)

        return ending

    async def write(self, actor: Actor, name: str, id: str, body: Upload, *, close: bool) -> None:
        """Write to the standard input of an execution, and with *close* end it.

        Clients end the input of every execution, also of one that has ended, or whose box is gone: that is no error.
        """
        try:
            box = await self._context.boxes.get(actor, name)
            counts = self._context.counts.of(box.id)
            # It lasts until the execution has read it, so it counts as a stream.
            with self._context.edge.streams.hold(actor), self._context.boxes.using(box.id):
                row = await self._row(box, id)
                counts.sent_bytes += await self._executions.write(row, id, body.parts(), close=close)
        except NotFound:
            if not (close and await self._was_known(actor, name, id)) or await _has_more(body):
                raise

    async def _was_known(self, actor: Actor, name: str, id: str) -> bool:
        place = self._places.get(id)
        if place is not None:
            return place.account_id == actor.account_id
        try:
            row = await self._row(await self._context.boxes.get(actor, name), id)
            await self._executions.find(row, id)
        except NotFound:
            return False
        return True

    async def signal(self, actor: Actor, name: str, id: str, number: int) -> None:
        """Send a signal; SIGKILL to all that the execution has started."""
        row = await self._row(await self._context.boxes.get(actor, name), id)
        await self._executions.signal(row, id, number)

    async def resize(self, actor: Actor, name: str, id: str, size: ResizeBody) -> None:
        """Set the size of the terminal."""
        row = await self._row(await self._context.boxes.get(actor, name), id)
        await self._executions.resize(row, id, TerminalSize(rows=size.rows, columns=size.cols))

    async def drop(self, actor: Actor, name: str, id: str) -> None:
        """Kill an execution and forget it; the main command is only killed, for its box tells how it ended."""
        row = await self._row(await self._context.boxes.get(actor, name), id)
        if id == MAIN:
            await self._executions.signal(row, id, signal.SIGKILL)
        else:
            await self._executions.drop(row, id)

    async def attach(self, actor: Actor, name: str, id: str, socket: WebSocket) -> None:
        """Serve a connection to an execution."""
        box = await self._context.boxes.get(actor, name)
        with self._context.boxes.using(box.id):
            await self._attach(box, await self._row(box, id), id, socket)

    async def attach_main(self, actor: Actor, name: str, socket: WebSocket) -> None:
        """Serve a connection to a box's main command; the box is started for that."""
        box = await self._context.boxes.get(actor, name)
        with self._context.boxes.using(box.id):
            row = await self._context.boxes.sandbox(actor, box)
            try:
                await self._attach(box, row, MAIN, socket)
            except NotFound as error:
                reason = f"box {box.id} has no main command: neither it nor its image names one"
                raise NotFound(reason) from error

    async def _attach(self, box: Box, row: Sandbox, id: str, socket: WebSocket) -> None:
        counts = self._context.counts.of(box.id)

        def sent(size: int) -> None:
            counts.received_bytes += size

        def received(size: int) -> None:
            counts.sent_bytes += size

        async def send_signal(number: int) -> None:
            await self._executions.signal(row, id, number)

        async with self._executions.following(row, id, attach=True) as follower:
            await socket.accept(headers=[(EXECUTION_HEADER, id.encode("ascii"))])
            attachment = Attachment(
                socket=socket,
                follower=follower,
                ending=self._ending(row, id),
                signal=send_signal,
                takes_input=socket.query_params.get("stdin", "") not in _FALSE,
                sent=sent,
                received=received,
            )
            await attachment.serve()

    async def _row(self, box: Box, id: str) -> Sandbox:
        """The record of the sandbox in which an execution is, or was. Raises NotFound."""
        place = self._places.get(id)
        sandbox_id = place.sandbox_id if place is not None and place.box_id == box.id else box.sandbox_id
        if sandbox_id is None:
            raise NotFound(f"execution {id[:100]} not found: box {box.id} has never been started")
        return await self._sandboxes.of_account(box.account_id, sandbox_id)

    def _remember(self, id: str, place: _Place) -> None:
        self._places[id] = place
        if len(self._places) > _MOST_PLACES:
            self._places.popitem(last=False)


async def _remains(process: LiveProcess) -> AsyncGenerator[bytes, None]:
    """Of an execution whose output had to go: that, and how it ended."""
    last = STOPPED if process.end is None else ending_of(process, process.end)
    yield event(True, _NOT_KEPT) + exit_event(last)


async def _has_more(body: Upload) -> bool:
    """Whether anything comes of *body*, of which nothing has been read."""
    async for _ in body.parts():
        return True
    return False
