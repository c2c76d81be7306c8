"""Processes that nobody waits for: start, list, kill, and follow what they print.

They belong to their sandbox, not to whoever asked for them, and the backend keeps what is known of them and of their
output: nothing here has to be told again after a restart of the server.
"""

import asyncio
import contextlib
import re
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace
from typing import TypeVar
from weakref import WeakValueDictionary

from stockade.backends.sandboxing import LiveExec, LiveProcess, Output, Reading, Refusal, Sandboxing, Streams
from stockade.engine.process_lines import LastLines, LineMaker, Lines, Start, skip_lines
from stockade.engine.sandboxes import Sandboxes
from stockade.engine.tasks import Tasks
from stockade.errors import Conflict, Invalid, NoAnswer, NotFound, StockadeError, Unavailable
from stockade.model import Actor, ExecSpec, Outcome, Sandbox

__all__ = ["PROCESS", "CannotStart", "HasEnded", "Processes"]

T = TypeVar("T")

PROCESS = "proc-"
"""How their names begin in the sandbox, so that they are told from others."""
_ID = re.compile(r"[a-z0-9-]{1,48}")
_KILLED_S = 10.0
"""Time that a process has to be gone after SIGKILL."""
_CHUNK = 1 << 18
"""Bytes of each stream that a reader takes at a time; all that the server holds for one that does not go on."""
_MOST_HELD = 256 << 20
"""Bytes that all readers of a sandbox together may hold of long lines; from then on a line is cut to its last
`_CHUNK`. A tenant chooses how many readers there are, and how long the lines."""
_PATIENCE_S = 0.2
"""So long a process is held back for a reader of its log that keeps up, so that nothing is missed of a burst; one that
does not read costs it this once."""
_SCANS = 4
"""Readers for whom the server may look for the beginning of what they are to be told, at the same time."""


class CannotStart(Invalid):
    """The process was never started, and never will be so."""

    code = "process.cannot_start"

    def __init__(self, refusal: Refusal, message: str) -> None:
        self.refusal = refusal
        super().__init__(message)


class HasEnded(Conflict):
    """The process does not run any more."""

    code = "process.has_ended"

    def __init__(self, process: LiveProcess) -> None:
        self.process = process
        super().__init__(f"process {process.name} has ended already")


class Processes:
    """Processes of sandboxes that live; an id tells them apart inside one sandbox."""

    def __init__(self, sandboxes: Sandboxes, *, log_bytes: int = 4 << 20) -> None:
        """Take what it needs.

        Args:
            log_bytes: how much is kept of each stream of a process.
        """
        self._sandboxes = sandboxes
        self._log_bytes = log_bytes
        self._scans = asyncio.Semaphore(_SCANS)
        self._held: Counter[str] = Counter()
        """Bytes of lines that have not ended, which readers hold, by sandbox."""
        self._killing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def start(
        self, actor: Actor, sandbox_id: str, spec: ExecSpec, *, id: str, has_input: bool = False
    ) -> LiveProcess:
        """Start a process called *id* that goes on when its caller is gone.

        When the caller is cancelled before it has an answer, it does not stay.

        Args:
            has_input: whether somebody may write to it, as *spec* says; else its standard input is `/dev/null`.

        Raises:
            NotFound: there is no such sandbox.
            Invalid: it cannot be started so; CannotStart where the sandbox says that.
            Conflict: the sandbox does not run, or has a process of this id.
            Unavailable: it has no room for another process, or the backend does not answer.
        """
        if not _ID.fullmatch(id):
            raise Invalid(f"id: {id!r} must be 1 to 48 of a-z, 0-9 and -")
        row = await self._sandboxes.require_running(actor, sandbox_id)
        spec = spec if has_input else replace(spec, stdin=False)
        live = self._sandboxes.live_exec(row, spec, keep=True, log_bytes=self._log_bytes)
        starting = self._tasks.start(self._start(row, id, live), name=f"start {id} in {row.id}")
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._tasks.background(self._drop(row, id, starting), name=f"drop {id} in {row.id}")
            raise

    async def list(self, actor: Actor, sandbox_id: str) -> list[LiveProcess]:
        """Those that run and those that are remembered, in the order in which they were started, by their ids.

        Raises:
            NotFound: there is no such sandbox.
            Conflict: it has ended.
            Unavailable: the backend does not answer.
        """
        return list(await self._known(await self._living(actor, sandbox_id)))

    async def kill(self, actor: Actor, sandbox_id: str, id: str, *, number: int = signal.SIGKILL) -> LiveProcess:
        """Send a process, and all that descends from it, a signal; return what is known of it then.

        After SIGKILL it has ended. Of two who kill it at once, one does.

        Raises:
            NotFound: there is no such sandbox, or no such process in it.
            HasEnded: it does not run.
            Conflict: the sandbox has ended.
            Unavailable: the backend does not answer, or the process did not end in time.
        """
        row = await self._living(actor, sandbox_id)
        name = f"{PROCESS}{id}"
        lock = self._killing.setdefault((sandbox_id, id), asyncio.Lock())
        async with lock:
            found = await self._found(row, id)
            if found.end is not None:
                raise HasEnded(found)
            await self._of_process(row, id, self._backend.signal_process(sandbox_id, name, number, tree=True))
            if number != signal.SIGKILL:
                return await self._found(row, id)
            ended = await self._of_process(row, id, self._backend.process_ended(sandbox_id, name), within_s=_KILLED_S)
        ended = replace(ended, name=id)
        if ended.end is not None and ended.end.outcome is Outcome.EXITED:  # it was quicker
            raise HasEnded(ended)
        return ended

    async def logs(
        self, actor: Actor, sandbox_id: str, id: str, *, most_lines: int = 10_000
    ) -> AsyncGenerator[Lines, None]:
        """What a process has printed, and what it prints from now on, until it has ended.

        First come the last *most_lines* lines, over both streams in the order in which they came, as far as they are
        kept; then, without a gap, what follows. A line is told once it has ended, or the process has. Nobody waits
        for this reader: one that falls behind what is kept loses the oldest lines, and goes on with whole ones.

        Close it (`aclose`) where it is not read to its end.

        Raises:
            NotFound: there is no such sandbox, or no such process in it.
            Conflict: the sandbox has ended.
            Unavailable: the backend does not answer (any more).
        """
        row = await self._living(actor, sandbox_id)
        streams = await self._opened(row, id)
        if streams is None:
            return
        with contextlib.closing(streams):
            try:
                start = await self._start_of(row, streams, most_lines)
                async with contextlib.aclosing(self._follow(row, streams, start)) as batches:
                    async for batch in batches:
                        yield batch
            except NotFound:  # its output, or all of the sandbox, is no longer kept
                return

    async def _follow(self, row: Sandbox, streams: Streams, start: Start) -> AsyncGenerator[Lines, None]:
        lines = LineMaker(start, longest=self._log_bytes, unknown_ns=int(self._sandboxes.lives.clock() * 1e9))
        end, held = None, 0
        try:
            while end is None:
                # No deadline: it takes as long as the process does, and a connection that breaks says so.
                output = await streams.read(*lines.at, most=_CHUNK)
                lines.longest = self._log_bytes if self._held[row.id] < _MOST_HELD else _CHUNK
                for batch in lines.take(output, _CHUNK):
                    yield batch
                self._held[row.id] += lines.held - held
                held, end = lines.held, output.end
                await asyncio.sleep(0)  # where there is much to read, nothing else here lets others run
            for batch in lines.finish():
                yield batch
        finally:
            self._held[row.id] -= held
            if not self._held[row.id]:
                del self._held[row.id]

    async def _start(self, row: Sandbox, id: str, live: LiveExec) -> LiveProcess:
        try:
            async with self._sandboxes.asking(row):
                streams = await self._backend.exec(row.id, f"{PROCESS}{id}", live)
        except (Unavailable, asyncio.CancelledError):
            # It may be there all the same, and who is told to try again would have it twice.
            self._tasks.background(self._forget(row, id), name=f"forget {id} in {row.id}")
            raise
        refusal, pid = streams.refusal, streams.pid
        streams.close()
        if refusal is not None:
            await self._forget(row, id)  # for whoever asked, it never was: nobody is to find it in a list
            raise CannotStart(refusal, _reason(refusal, live))
        return LiveProcess(name=id, argv=live.argv, pid=pid, started_at=self._sandboxes.lives.clock())

    async def _drop(self, row: Sandbox, id: str, starting: "asyncio.Task[LiveProcess]") -> None:
        """Take back a process whose caller went away while it was being started."""
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:  # else it is not there, or another's
            await self._forget(row, id)

    async def _forget(self, row: Sandbox, id: str) -> None:
        with contextlib.suppress(StockadeError):  # gone with its sandbox; or it goes with it
            async with self._sandboxes.asking(row):
                await self._backend.forget_process(row.id, f"{PROCESS}{id}")

    async def _start_of(self, row: Sandbox, streams: Streams, most_lines: int) -> Start:
        """Where the last *most_lines* lines begin; waits until there is something at all."""
        last = LastLines(most_lines)
        output = await streams.read(0, 0, most=_CHUNK)
        async with self._scans:
            # A process can print faster than this counts: as much as is kept is counted, and then it is followed.
            left = 2 * self._log_bytes
            while last.count(output, _CHUNK) and left > 0:
                left -= len(output.stdout.data) + len(output.stderr.data)
                output = await self._read_at_once(row, streams, last.again_at, most=_CHUNK)
            start, stretch, skip = last.find(has_ended=output.end is not None)
            if stretch is None:
                return start
            at = list(start.at)
            at[stretch.is_stderr] = stretch.at
            output = await self._read_at_once(row, streams, (at[0], at[1]), most=stretch.end - stretch.at)
        found = output.stderr if stretch.is_stderr else output.stdout
        # Overwritten meanwhile? Whoever reads from there finds that out.
        return start if found.at > stretch.at else skip_lines(start, stretch, skip, found.data)

    async def _read_at_once(self, row: Sandbox, streams: Streams, at: tuple[int, int], *, most: int) -> Output:
        """Read where there is something to be read, and let others run."""
        await asyncio.sleep(0)
        within_s = self._sandboxes.lives.options.answer_s
        try:
            async with asyncio.timeout(within_s):
                return await streams.read(*at, most=most)
        except TimeoutError:
            raise NoAnswer(f"no answer about sandbox {row.id} within {within_s:g} s") from None

    async def _opened(self, row: Sandbox, id: str) -> Streams | None:
        """The streams of a process, for somebody who is hardly waited for; `None` where its output is not kept."""
        streams = None
        async with self._sandboxes.asking(row):
            with contextlib.suppress(NotFound):
                reading = Reading(patience_s=_PATIENCE_S)
                streams = await self._backend.open(row.id, f"{PROCESS}{id}", reading=reading)
        if streams is None:
            await self._found(row, id)
        return streams

    @property
    def _backend(self) -> Sandboxing:
        return self._sandboxes.lives.backend

    @property
    def _tasks(self) -> Tasks:
        return self._sandboxes.lives.tasks

    async def _living(self, actor: Actor, sandbox_id: str) -> Sandbox:
        return await self._sandboxes.require_running(actor, sandbox_id, also_stopping=True)

    async def _known(self, row: Sandbox) -> tuple[LiveProcess, ...]:
        async with self._sandboxes.asking(row):
            known = await self._backend.processes(row.id)
        ours = (one for one in known if one.name.startswith(PROCESS))
        return tuple(replace(one, name=one.name.removeprefix(PROCESS)) for one in ours)

    async def _found(self, row: Sandbox, id: str) -> LiveProcess:
        for one in await self._known(row):
            if one.name == id:
                return one
        raise _no_process(row, id)

    async def _of_process(
        self, row: Sandbox, id: str, question: Coroutine[object, object, T], *, within_s: float | None = None
    ) -> T:
        """The answer to a question about a process, which may have been forgotten meanwhile."""
        async with self._sandboxes.asking(row, within_s=within_s):
            try:
                return await question
            except NotFound:
                await self._backend.inspect(row.id)  # raises where the sandbox is gone, too
        raise _no_process(row, id)


def _reason(refusal: Refusal, live: LiveExec) -> str:
    if refusal is Refusal.CWD:
        return f"cwd: {live.cwd} is no directory of the sandbox"
    return f"command: {live.argv[0]} is not there, cannot be executed, or its arguments are too long"


def _no_process(row: Sandbox, id: str) -> NotFound:
    return NotFound(f"process {id} not found in sandbox {row.id}")
