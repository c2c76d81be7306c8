"""Executions: processes with input and output that belong to nobody's connection, and may have a time limit.

One is started by one request, read by others, written to by yet others, and asked about long after it has ended. As
`engine.processes`, this keeps nothing that matters: the backend keeps the process and its output, and the id says what
the time limit is, so all of it is there again after a restart of the server. What is lost then is how far a reader has
come.

The records of sandboxes come from who has looked them up for an actor; nothing here asks again whose they are.
"""

import asyncio
import contextlib
import signal
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog

from stockade.backends.sandboxing import LiveExec, LiveProcess, Reading, Sandboxing, Streams
from stockade.engine.execution_ids import new_id, timeout_of
from stockade.engine.processes import PROCESS
from stockade.engine.sandboxes import Sandboxes
from stockade.engine.tasks import Tasks
from stockade.errors import Conflict, InvalidLimit, NoAnswer, NotFound, StockadeError, Unavailable
from stockade.model import ExecSpec, Sandbox, TerminalSize

__all__ = ["AlreadyAttached", "Executions", "Follower", "NotRead"]

T = TypeVar("T")
log = structlog.get_logger()

_LONGEST_S = 366 * 86400.0
_KILLED_S = 10.0
"""Time that a process has to be gone after SIGKILL."""
_AGAIN_S = 0.05
"""Between two attempts to have a process killed where its sandbox is too busy to listen."""
_TAKEN_S = 300.0
"""Time in which a process has to read what is written to it, before who writes is told that it does not."""
_UNREAD_S = 30.0
"""So long a process is held back, once, for a reader who has not come yet, or takes nothing."""
_MOST_STATES = 20_000
_FOLLOWING = Reading(patience_s=_UNREAD_S)
_NOT_READING = Reading(patience_s=0.0)


class AlreadyAttached(Conflict):
    """Somebody is attached to the execution; one at a time may be."""

    code = "execution.attachment_exists"


class NotRead(Conflict):
    """Nobody reads what was written to the execution: it has ended, has closed its input, or takes nothing."""

    code = "execution.not_read"


@dataclass(eq=False, kw_only=True)
class _State:
    """What is known of an execution here and now."""

    holder: Streams | None = None
    """Keeps its output for the first who comes to read it."""
    readers: int = 0
    is_attached: bool = False
    at: tuple[int, int] = (0, 0)
    """What of both streams was delivered to those who were attached."""
    is_dropped: bool = False
    """To be forgotten once nobody reads it any more."""
    found: LiveProcess | None = None
    """What was known of it at its end."""

    def let_go(self) -> None:
        if self.holder is not None:
            self.holder.close()
            self.holder = None


@dataclass(eq=False)
class Follower:
    """Somebody who reads an execution."""

    streams: Streams
    at: tuple[int, int]
    """From where to go on. Who is attached moves it with what was delivered; the next to attach goes on from there."""


class Executions:
    """Executions in sandboxes that live. One of these for each server."""

    def __init__(self, sandboxes: Sandboxes, *, log_bytes: int = 4 << 20) -> None:
        """Take what it needs.

        Args:
            log_bytes: how much is kept of each stream of an execution.
        """
        self._sandboxes = sandboxes
        self._log_bytes = log_bytes
        self._states: OrderedDict[tuple[str, str], _State] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._writing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Enforce again the time limits of what runs since before the server's start; enter it once sandboxes run."""
        lives = self._sandboxes.lives
        rows = [row for one in lives.ids if (row := lives.find(one)) is not None]
        await asyncio.gather(*map(self._resume, rows))
        yield

    async def start(self, row: Sandbox, spec: ExecSpec, *, timeout_s: float | None = None) -> LiveProcess:
        """Start a process, and return what is known of it; `name` is its id.

        A program that cannot be started is one that has ended, with 126 or 127, and says why on standard error.

        Args:
            timeout_s: seconds after which it is killed, with all that it started, whoever reads it.

        Raises:
            Invalid: it cannot be started so; InvalidLimit for *timeout_s*.
            Conflict: the sandbox does not run.
            Unavailable: it has no room for another process, or the backend does not answer.
        """
        if timeout_s is not None and not 0 < timeout_s <= _LONGEST_S:
            raise InvalidLimit("timeout_s", timeout_s, f"must be more than 0 and at most {_LONGEST_S:.0f} seconds")
        id = new_id(timeout_s)
        live = self._sandboxes.live_exec(row, spec, keep=True, log_bytes=self._log_bytes)
        starting = self._tasks.start(self._start(row, id, live), name=f"start {id} in {row.id}")
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._tasks.background(self._take_back(row, id, starting), name=f"drop {id} in {row.id}")
            raise

    async def find(self, row: Sandbox, id: str) -> LiveProcess:
        """What is known now of an execution, or of another process that is kept.

        Raises:
            NotFound: there is none of that id (any more).
            Unavailable: the backend does not answer.
        """
        for one in await self.list(row):
            if one.name == id:
                return one
        raise _no_execution(id)

    async def list(self, row: Sandbox) -> list[LiveProcess]:
        """All executions that are known of a sandbox, in the order of their start, by their ids.

        Raises:
            NotFound: nothing is known of the sandbox any more.
            Unavailable: the backend does not answer.
        """
        try:
            async with self._sandboxes.asking(row):
                known = await self._backend.processes(row.id)
        except Conflict as error:
            raise NotFound(str(error)) from None
        return [replace(one, name=one.name.removeprefix(PROCESS)) for one in known if one.name.startswith(PROCESS)]

    async def ended(self, row: Sandbox, id: str) -> LiveProcess:
        """Wait until an execution has ended, as long as it takes.

        Raises:
            NotFound: as `find`.
            BackendLost: the warden died.
        """
        state = self._states.get((row.id, id))
        if state is not None and state.found is not None:
            return state.found
        try:
            found = await self._backend.process_ended(row.id, f"{PROCESS}{id}")
        except NotFound:
            raise _no_execution(id) from None
        return replace(found, name=id)

    @contextlib.asynccontextmanager
    async def following(self, row: Sandbox, id: str, *, attach: bool = False) -> AsyncIterator[Follower]:
        """Read an execution, or one that was started elsewhere and is kept, during the block.

        From the beginning; with *attach* from behind what was delivered to whoever was attached before.

        Raises:
            AlreadyAttached: *attach*, and somebody is.
            NotFound: there is no such execution, or its output is no longer kept.
            Unavailable: the backend does not answer.
        """
        self._check_free(row, id, attach)
        with contextlib.closing(self._held(row, id) or await self._open(row, id, _FOLLOWING)) as streams:
            self._check_free(row, id, attach)  # of two who came at once, one is
            state = self._state(row, id)
            follower = Follower(streams, state.at if attach else (0, 0))
            state.readers += 1
            state.is_attached = state.is_attached or attach
            try:
                yield follower
            finally:
                state.readers -= 1
                if attach:
                    state.is_attached, state.at = False, follower.at
                if state.is_dropped and not state.readers:
                    with contextlib.suppress(Unavailable):  # the server ends; then it goes with its sandbox
                        self._tasks.background(self._forget(row, id), name=f"forget {id} in {row.id}")

    async def write(self, row: Sandbox, id: str, content: AsyncIterator[bytes], *, close: bool) -> int:
        """Write to an execution's standard input, and with *close* end it; the number of bytes. In the order of calls.

        To end the input of what has ended is no error.

        Raises:
            NotRead: nobody reads it.
            NotFound, Unavailable: as `following`.
        """
        written = 0
        turn = self._writing.setdefault((row.id, id), asyncio.Lock())
        async with turn, self._touching(row, id) as streams:
            async for part in content:
                try:
                    async with asyncio.timeout(_TAKEN_S):
                        is_read = await streams.write(part)
                except TimeoutError:
                    raise NotRead(f"execution {id} has not read its input for {_TAKEN_S:g} s") from None
                if not is_read:
                    raise NotRead(f"nobody reads the input of execution {id}")
                written += len(part)
            if close:
                await streams.close_stdin()
        return written

    async def signal(self, row: Sandbox, id: str, number: int) -> None:
        """Send a signal to an execution and its process group; SIGKILL to all that descends from it.

        Nothing happens where it has ended.

        Raises:
            NotFound, Unavailable: as `find`.
        """
        whole = number == signal.SIGKILL
        await self._of_process(row, id, self._backend.signal_process(row.id, f"{PROCESS}{id}", number, tree=whole))

    async def resize(self, row: Sandbox, id: str, size: TerminalSize) -> None:
        """Tell an execution's terminal its size; nothing happens where it has none, or has ended.

        Raises:
            NotFound, Unavailable: as `find`.
        """
        try:
            async with self._touching(row, id) as streams:
                await streams.resize(size)
        except NotFound:
            await self.find(row, id)  # it may be only its output that is gone

    async def drop(self, row: Sandbox, id: str) -> None:
        """Kill an execution where it runs, with all that it started, and forget it. Who reads it reads it to its end.

        Raises:
            NotFound: there is no such execution.
            Unavailable: the backend does not answer, or it did not end in time.
        """
        await self._kill(row, id)
        state = self._states.get((row.id, id))
        if state is not None and state.readers:
            state.is_dropped = True
        else:
            await self._forget(row, id)

    def running_in(self, sandbox_id: str) -> int:
        """How many run in a sandbox, of those that were started by this server since it was."""
        return self._running[sandbox_id]

    def is_attached(self, row: Sandbox, id: str) -> bool:
        """Whether somebody is."""
        state = self._states.get((row.id, id))
        return state is not None and state.is_attached

    # ── what happens behind ─────────────────────────────────────────────────────────────────────────────────────

    async def _start(self, row: Sandbox, id: str, live: LiveExec) -> LiveProcess:
        try:
            async with self._sandboxes.asking(row):
                streams = await self._backend.exec(row.id, f"{PROCESS}{id}", live, reading=_FOLLOWING)
        except (Unavailable, asyncio.CancelledError):
            # It may be there all the same, and who is told to try again would have it twice.
            self._tasks.background(self._forget(row, id), name=f"forget {id} in {row.id}")
            raise
        self._state(row, id).holder = streams
        self._watch_over(row, id, timeout_of(id))
        return LiveProcess(name=id, argv=live.argv, pid=streams.pid, started_at=self._sandboxes.lives.clock())

    async def _take_back(self, row: Sandbox, id: str, starting: "asyncio.Task[LiveProcess]") -> None:
        """Drop an execution whose caller went away while it was being started, and does not know its id."""
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            await self._forget(row, id)

    async def _resume(self, row: Sandbox) -> None:
        """Enforce the time limits of the executions of a sandbox that were started before the server was."""
        with contextlib.suppress(StockadeError):  # its sandbox ends just now, and they with it
            for one in await self.list(row):
                timeout_s = timeout_of(one.name)
                if one.end is None and timeout_s is not None and (row.id, one.name) not in self._states:
                    self._state(row, one.name)
                    left_s = one.started_at + timeout_s - self._sandboxes.lives.clock()
                    self._watch_over(row, one.name, max(0.0, left_s))

    def _watch_over(self, row: Sandbox, id: str, left_s: float | None) -> None:
        self._tasks.background(self._watch(row, id, left_s), name=f"watch {id} in {row.id}")

    async def _watch(self, row: Sandbox, id: str, left_s: float | None) -> None:
        """Wait for an execution's end, and see that it comes in time."""
        self._running[row.id] += 1
        try:
            async with asyncio.timeout(left_s):
                found = await self.ended(row, id)
            state = self._states.get((row.id, id))
            if state is not None:
                state.found = found
        except TimeoutError:
            log.info("execution.timed_out", sandbox_id=row.id, execution_id=id)
            await self._kill(row, id)
        except StockadeError:
            return  # it is gone with its sandbox
        finally:
            self._running[row.id] -= 1
            if not self._running[row.id]:
                del self._running[row.id]
            state = self._states.get((row.id, id))
            if state is not None:
                state.let_go()  # it has ended: what it printed is kept without anybody who holds it

    async def _kill(self, row: Sandbox, id: str) -> None:
        """Kill an execution, and wait for its end."""
        deadline = asyncio.get_running_loop().time() + _KILLED_S
        while True:
            try:
                await self.signal(row, id, signal.SIGKILL)
                break
            except Unavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_AGAIN_S)
        try:
            async with asyncio.timeout(_KILLED_S):
                await self.ended(row, id)
        except TimeoutError:
            raise NoAnswer(f"execution {id} was sent SIGKILL and has not ended within {_KILLED_S:g} s") from None

    async def _forget(self, row: Sandbox, id: str) -> None:
        state = self._states.pop((row.id, id), None)
        if state is not None:
            state.let_go()
        with contextlib.suppress(StockadeError):  # gone with its sandbox; or it goes with it
            async with self._sandboxes.asking(row):
                await self._backend.forget_process(row.id, f"{PROCESS}{id}")

    def _held(self, row: Sandbox, id: str) -> Streams | None:
        """The streams that were kept for the first who comes, if nobody has come."""
        state = self._states.get((row.id, id))
        if state is None:
            return None
        streams, state.holder = state.holder, None
        return streams

    async def _open(self, row: Sandbox, id: str, reading: Reading) -> Streams:
        return await self._of_process(row, id, self._backend.open(row.id, f"{PROCESS}{id}", reading=reading))

    @contextlib.asynccontextmanager
    async def _touching(self, row: Sandbox, id: str) -> AsyncIterator[Streams]:
        """The streams of an execution, for somebody who does not read them."""
        with contextlib.closing(await self._open(row, id, _NOT_READING)) as streams:
            yield streams

    async def _of_process(self, row: Sandbox, id: str, question: Coroutine[object, object, T]) -> T:
        """The answer to a question about an execution. Raises NotFound, also where its sandbox is gone."""
        try:
            async with self._sandboxes.asking(row):
                return await question
        except Conflict as error:  # what the backend does not know is of a sandbox that has ended, to `asking`
            if isinstance(error.__cause__, NotFound):
                raise _no_execution(id) from None
            raise

    def _check_free(self, row: Sandbox, id: str, attach: bool) -> None:
        if attach and self.is_attached(row, id):
            raise AlreadyAttached(f"somebody is attached to execution {id} already; one at a time may be")

    def _state(self, row: Sandbox, id: str) -> _State:
        state = self._states.setdefault((row.id, id), _State())
        self._states.move_to_end((row.id, id))
        if len(self._states) > _MOST_STATES:
            oldest = next((key for key, one in self._states.items() if not one.readers and one is not state), None)
            if oldest is not None:
                self._states.pop(oldest).let_go()
        return state

    @property
    def _backend(self) -> Sandboxing:
        return self._sandboxes.lives.backend

    @property
    def _tasks(self) -> Tasks:
        return self._sandboxes.lives.tasks


def _no_execution(id: str) -> NotFound:
    return NotFound(f"execution {id[:100]} not found")
