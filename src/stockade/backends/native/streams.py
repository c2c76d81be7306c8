"""Input and output of a process that lives: rings in memory files, which the warden fills, and a pipe."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from itertools import count
from typing import Any

from stockade.backends.native.connection import ANSWER_WITHIN_S, Connection, close_all, error_of, set_once
from stockade.backends.sandboxing import Mark, Output, OutputSlice, ProcessEnd, Refusal
from stockade.errors import BackendLost, StockadeError
from stockade.model import Outcome, TerminalSize
from stockade.warden.logs import FLOORS, HEAD_BYTES, MARK, MOST_MARKS

__all__ = ["NativeStreams", "Stdin", "end_of", "readers"]

_END_OF_FILE = b"\x04"  # what a terminal in its usual mode takes for it
_MARKS_AT_ONCE = 64
readers = count(1)
"""Numbers by which the warden tells readers apart."""


class Stdin:
    """Writing end of a process's standard input; all streams of the process share it.

    While one of us has it open, the process does not see its end: so there must be no second one beside it.
    """

    def __init__(self, fd: int, *, is_terminal: bool, let_go: Callable[["Stdin"], object]) -> None:
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
            self._let_go(self)
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
        file: int,
        stdin: Stdin | None,
        facts: dict[str, Any],
        is_once: bool = False,
    ) -> None:
        """Take over *file*, in which the warden keeps the process's output (see `stockade.warden.logs`).

        Args:
            reader: number by which the warden knows us.
            facts: what it has answered.
            is_once: it forgets the process by itself when it has told us of its end.
        """
        self.pid: int = facts["pid"]
        self.refusal = None if facts["refusal"] is None else Refusal(facts["refusal"])
        self._is_once = is_once
        self._connection = connection
        self._about = {"sandbox": sandbox, "process": process}
        self._reader = reader
        self._file = file
        self._stdin = stdin
        self._ring: int = facts["most"]
        self._at = [0, 0]
        """From here on ..."""
        self._ends = [0, 0]
        """... up to here there is something to read."""
        self._asked = [0, 0]
        self._marks = 0
        """How many marks there are."""
        self._next_mark = 0
        """No mark before this one is about what will be read next."""
        self._end: ProcessEnd | None = None
        self._is_closed = False
        self._is_new = facts["position"] is not None
        """Whether nothing has been read since we were told what there is."""
        if facts["position"] is not None:
            self._note(facts["position"])

    async def read(self, stdout_at: int, stderr_at: int, *, most: int = 1 << 18, least: int = 1) -> Output:
        """See `Streams.read`."""
        asked = [stdout_at, stderr_at]
        has_some = any(a < end for a, end in zip(asked, self._ends, strict=True))
        is_at_end = self._end is not None and asked == self._ends
        # Who begins is given what was kept when it came; who goes back may be given more than that.
        is_kept = self._is_new or all(a >= kept for a, kept in zip(asked, self._at, strict=True))
        self._is_new = False
        if not ((has_some or is_at_end) and is_kept):
            await self._ask(asked, least)
        if any(a < before for a, before in zip(asked, self._asked, strict=True)):
            self._next_mark = 0  # somebody goes back
        self._asked = asked
        slices = [self._slice(n, asked[n], most) for n in range(2)]
        done = all(one.end == end for one, end in zip(slices, self._ends, strict=True))
        return Output(stdout=slices[0], stderr=slices[1], end=self._end if done else None, marks=self._marks_of(slices))

    async def _ask(self, at: list[int], least: int) -> None:
        message = {"op": "wait", **self._about, "reader": self._reader, "at": at}
        if least > 1:
            message["least"] = least
        answer, fds = await self._connection.ask(message, (), None)
        close_all(fds)
        if "error" in answer:
            raise error_of(answer["error"])
        self._note(answer["ok"])

    def _note(self, position: dict[str, Any]) -> None:
        self._at, self._ends, self._marks = position["at"], position["ends"], position["marks"]
        if position["end"] is not None:
            self._end = end_of(position["end"])

    def _slice(self, number: int, asked: int, most: int) -> OutputSlice:
        at = max(asked, self._at[number])
        length = max(0, min(self._ends[number] - at, most))
        data = b""
        if length:
            base, place = HEAD_BYTES + number * self._ring, at % self._ring
            data = os.pread(self._file, min(length, self._ring - place), base + place)
            if len(data) < length:
                data += os.pread(self._file, length - len(data), base)
            late = self._floor(number) - at  # asked only now: what is before it may have been overwritten meanwhile
            if late > 0:
                data, at = data[late:], at + min(late, length)
        return OutputSlice(data=data, at=at, dropped=at - asked)

    def _floor(self, number: int) -> int:
        return int(FLOORS.unpack(os.pread(self._file, FLOORS.size, 0).ljust(FLOORS.size, b"\0"))[number])

    def _marks_of(self, slices: list[OutputSlice]) -> tuple[Mark, ...]:
        """The marks that are about what has been read."""
        wanted = [one.end if one.data else 0 for one in slices]
        if not any(wanted):
            return ()
        found: list[Mark] = []
        first = None
        index = max(self._next_mark, self._marks - MOST_MARKS, self._floor(2))
        place = HEAD_BYTES + 2 * self._ring
        while index < self._marks and any(wanted):
            slot = index % MOST_MARKS
            count = min(self._marks - index, MOST_MARKS - slot, _MARKS_AT_ONCE)
            block = os.pread(self._file, count * MARK.size, place + slot * MARK.size)
            for at_ns, packed in MARK.iter_unpack(block):
                number, end = packed & 1, packed >> 1
                if wanted[number] and end > slices[number].at:
                    first = index if first is None else first
                    found.append(Mark(at_ns=at_ns, is_stderr=bool(number), end=end))
                    if end >= wanted[number]:
                        wanted[number] = 0
                        if not any(wanted):
                            break
                index += 1
        # What comes next begins in the last of these, or in one of the other stream before it.
        self._next_mark = self._next_mark if first is None else first
        return tuple(found)

    async def write(self, data: bytes) -> bool:
        """See `Streams.write`."""
        return self._stdin is not None and await self._stdin.write(data)

    async def close_stdin(self) -> None:
        """See `Streams.close_stdin`."""
        stdin = self._stdin
        if stdin is None or stdin.is_closed or await stdin.end():
            return
        # Open until the warden has answered: those to whom it has given one of their own before share this one by then.
        stdin.users += 1
        try:
            with contextlib.suppress(StockadeError):  # it has ended: nothing is left to close
                await self._tell("close_stdin")
        finally:
            stdin.close()
            stdin.users -= 1

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
        self._let_go()
        if self._connection.lost is None:
            with contextlib.suppress(BackendLost):
                self._connection.tell({"op": "leave", **self._about, "reader": self._reader})

    def discard(self) -> None:
        """See `Streams.discard`."""
        if self._is_closed:
            return
        self._let_go()
        if self._connection.lost is None and not (self._is_once and self._end is not None):
            self._connection.insist({"op": "forget", **self._about, "quiet": True})

    def _let_go(self) -> None:
        self._is_closed = True
        os.close(self._file)
        if self._stdin is not None:
            self._stdin.release()


def end_of(end: dict[str, Any]) -> ProcessEnd:
    """How a process ended, as the warden tells it."""
    refusal = end.get("refusal")
    return ProcessEnd(
        outcome=Outcome(end["outcome"]),
        exit_code=end["exit_code"],
        refusal=None if refusal is None else Refusal(refusal),
    )
