"""Input and output of a process that lives: rings in memory files, which the warden fills, and a pipe."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from itertools import count

from stockade.backends.native.connection import ANSWER_WITHIN_S, Connection, close_all, error_of, set_once
from stockade.backends.sandboxing import Output, OutputSlice, ProcessEnd
from stockade.errors import BackendLost, StockadeError
from stockade.model import Outcome, TerminalSize

__all__ = ["NativeStreams", "Stdin", "readers"]

_END_OF_FILE = b"\x04"  # what a terminal in its usual mode takes for it
readers = count(1)
"""Numbers by which the warden tells readers apart."""


class Stdin:
    """Writing end of a process's standard input; all streams of the process share it."""

    def __init__(self, fd: int, *, is_terminal: bool, let_go: Callable[[], object]) -> None:
        self.users = 0
        self._fd = fd
        self._is_terminal = is_terminal
        self._let_go = let_go
        self._turn = asyncio.Lock()

    @property
    def is_closed(self) -> bool:
        return self._fd < 0

    async def write(self, data: bytes) -> bool:
        """See `Streams.write`."""
        async with self._turn:  # one writer's bytes are not mixed with another's
            view = memoryview(data)
            while view:
                if self._fd < 0:
                    return False
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    await self._until_writable()
                except OSError:  # EPIPE: nobody reads it; EIO: the terminal is gone
                    return False
            return True

    async def end(self) -> bool:
        """Send an end of file, where that is a character; whether it is."""
        if self._is_terminal:
            await self.write(_END_OF_FILE)
        return self._is_terminal

    async def _until_writable(self) -> None:
        loop = asyncio.get_running_loop()
        writable: asyncio.Future[None] = loop.create_future()
        fd = self._fd
        loop.add_writer(fd, set_once, writable)
        self._waiting = writable
        try:
            await writable
        finally:
            loop.remove_writer(fd)
            self._waiting = None

    _waiting: "asyncio.Future[None] | None" = None

    def release(self) -> None:
        """One of those who share it is gone."""
        self.users -= 1
        if self.users <= 0:
            self.close()

    def close(self) -> None:
        """Close it for everybody."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._let_go()
            if self._waiting is not None:
                asyncio.get_running_loop().remove_writer(fd)
                set_once(self._waiting)
            os.close(fd)


class NativeStreams:
    """Satisfies `stockade.backends.sandboxing.Streams`."""

    def __init__(
        self,
        connection: Connection,
        sandbox: str,
        process: str,
        *,
        reader: int,
        fds: tuple[int, int],
        stdin: Stdin | None,
        ring: int,
    ) -> None:
        self._connection = connection
        self._about = {"sandbox": sandbox, "process": process}
        self._reader = reader
        self._fds = fds
        self._stdin = stdin
        self._ring = ring
        self._at = [0, 0]
        """From here on ..."""
        self._ends = [0, 0]
        """... up to here the rings hold still for us."""
        self._end: ProcessEnd | None = None
        self._is_closed = False

    async def read(self, stdout_at: int, stderr_at: int, *, most: int = 1 << 18) -> Output:
        """See `Streams.read`."""
        asked = [stdout_at, stderr_at]
        has_some = any(a < end for a, end in zip(asked, self._ends, strict=True))
        if not (has_some and all(a >= kept for a, kept in zip(asked, self._at, strict=True))):
            await self._ask(asked)
        slices = [self._slice(n, asked[n], most) for n in range(2)]
        done = all(one.end == end for one, end in zip(slices, self._ends, strict=True))
        return Output(stdout=slices[0], stderr=slices[1], end=self._end if done else None)

    async def _ask(self, at: list[int]) -> None:
        message = {"op": "wait", **self._about, "reader": self._reader, "at": at}
        answer, fds = await self._connection.ask(message, (), None)
        close_all(fds)
        if "error" in answer:
            raise error_of(answer["error"])
        facts = answer["ok"]
        self._at, self._ends = facts["at"], facts["ends"]
        if facts["end"] is not None:
            self._end = ProcessEnd(outcome=Outcome(facts["end"]["outcome"]), exit_code=facts["end"]["exit_code"])

    def _slice(self, number: int, asked: int, most: int) -> OutputSlice:
        at = max(asked, self._at[number])
        length = max(0, min(self._ends[number] - at, most))
        data = b""
        if length:
            place = at % self._ring
            data = os.pread(self._fds[number], min(length, self._ring - place), place)
            if len(data) < length:
                data += os.pread(self._fds[number], length - len(data), 0)
        return OutputSlice(data=data, at=at, dropped=at - asked)

    async def write(self, data: bytes) -> bool:
        """See `Streams.write`."""
        return self._stdin is not None and await self._stdin.write(data)

    async def close_stdin(self) -> None:
        """See `Streams.close_stdin`."""
        stdin = self._stdin
        if stdin is None or stdin.is_closed or await stdin.end():
            return
        stdin.close()
        with contextlib.suppress(StockadeError):  # it has ended: nothing is left to close
            await self._tell("close_stdin")

    async def signal(self, number: int) -> None:
        """See `Streams.signal`."""
        await self._tell("signal", signal=number)

    async def resize(self, size: TerminalSize) -> None:
        """See `Streams.resize`."""
        await self._tell("resize", terminal={"rows": size.rows, "columns": size.columns})

    async def _tell(self, operation: str, **what: object) -> None:
        answer, fds = await self._connection.ask({"op": operation, **self._about, **what}, (), ANSWER_WITHIN_S)
        close_all(fds)
        if "error" in answer:
            raise error_of(answer["error"])

    def close(self) -> None:
        """See `Streams.close`."""
        if self._is_closed:
            return
        self._is_closed = True
        for fd in self._fds:
            os.close(fd)
        if self._stdin is not None:
            self._stdin.release()
        if self._connection.lost is None:
            with contextlib.suppress(BackendLost):
                self._connection.tell({"op": "leave", **self._about, "reader": self._reader})
