"""A process's stream: output as it comes, input as it is wanted, the exit code at the end.

A stream of a sandbox's main process outlives its connection: when that breaks it is opened again where it was, and
each byte of output is seen once. A process started by `exec` dies with its connection.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from stockade.sdk._frames import STDIN_CLOSE, Chunk, Exit, Source, decode, resize, stdin
from stockade.sdk.errors import (
    ApiError,
    ConnectionFailed,
    ConnectionLost,
    LimitExceeded,
    ProtocolError,
    SdkError,
    ServerError,
    StreamFailed,
    TimedOut,
)
from stockade.sdk.records import Finished

__all__ = ["AsyncProcess", "Dial"]

Dial = Callable[[int, int], Awaitable[ClientConnection]]
"""Opens the stream where so many bytes of standard output and standard error have been read."""

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 2.0
STABLE_S = 5.0
"""A connection that has lasted so long was a good one."""
LOST = re.compile(r"(?P<size>\d{1,18}) bytes of (?P<stream>stdout|stderr) are lost\b")
"""How our server says that a reader came too late for some output."""
OUR_COMPLAINTS = (
    CloseCode.PROTOCOL_ERROR,
    CloseCode.INVALID_DATA,
    CloseCode.MESSAGE_TOO_BIG,
)
"""With which we close on a server that breaks the rules."""


class AsyncProcess:
    """The input and output of one process. One task may read while others write.

        async with client.exec(sandbox.id, ["ls", "-l"]) as process:
            async for chunk in process:
                print(chunk.source, chunk.data)
        print(process.exit_code)

    Args:
        dial: opens the stream.
        stdout_offset: bytes of standard output that the caller has already.
        stderr_offset: the same of standard error.
        reconnect_s: a broken connection is tried to be opened again for so long; 0 for not at all.
    """

    def __init__(self, dial: Dial, *, stdout_offset: int = 0, stderr_offset: int = 0, reconnect_s: float = 0.0) -> None:
        self.exit_code: int | None = None
        """Once the process has ended and its output is read to the end."""
        self.stdout_offset = stdout_offset
        """Bytes of standard output so far: where a later attachment goes on."""
        self.stderr_offset = stderr_offset
        self._dial = dial
        self._reconnect_s = reconnect_s
        self._connection: ClientConnection | None = None
        self._recovering = asyncio.Lock()
        self._failure: SdkError | None = None
        self._opened_at = 0.0
        self._has_heard = False
        self._broken_at: float | None = None
        self._delay_s = 0.0
        self._last_notice = ""
        self._size: tuple[int, int] | None = None
        self._is_stdin_closed = False
        self._is_closed = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect. Raises ApiError (NotFound, Conflict when the sandbox has ended, …), ConnectionFailed."""
        self._connection = await self._dial(self.stdout_offset, self.stderr_offset)
        self._opened_at, self._has_heard = asyncio.get_running_loop().time(), False

    async def close(self) -> None:
        """Let go of it. A process started by `exec` is killed, a main process goes on. Idempotent."""
        self._is_closed = True
        if self._connection is not None:
            await self._connection.close()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[Chunk]:
        while (chunk := await self.read()) is not None:
            yield chunk

    async def read(self, *, timeout_s: float | None = None) -> Chunk | None:
        """The next output, `None` when the process has ended and there is no more.

        Raises:
            TimedOut: none came within *timeout_s*; reading may go on.
            ConnectionLost: the connection broke and could not be resumed.
            StreamFailed: the server gave the stream up.
            ApiError: when it was to be resumed, the server refused.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read()
        except TimeoutError:
            raise TimedOut(f"no output within {timeout_s:g} s") from None

    async def _read(self) -> Chunk | None:
        while self.exit_code is None:
            connection = self._opened()
            try:
                message = await connection.recv()
            except ConnectionClosed as closed:
                await self._recover(connection, closed)
                continue
            self._has_heard = True
            frame = decode(message)
            if isinstance(frame, Exit):
                self.exit_code = frame.code
                await connection.close()
            elif frame.data:
                self._count(frame)
                return frame
        return None

    def _count(self, chunk: Chunk) -> None:
        if chunk.source is Source.STDOUT:
            self.stdout_offset += len(chunk.data)
        elif chunk.source is Source.STDERR:
            self.stderr_offset += len(chunk.data)
        else:
            self._last_notice = chunk.text
            if lost := LOST.match(chunk.text):
                # Where the stream goes on is as far behind as if we had got them.
                if lost["stream"] == "stdout":
                    self.stdout_offset += int(lost["size"])
                else:
                    self.stderr_offset += int(lost["size"])

    async def collect(self, *, most_bytes: int = 64 << 20, timeout_s: float | None = None) -> Finished:
        """Read to the end and return everything.

        Raises:
            StreamFailed: there was more than *most_bytes*.
            TimedOut, ConnectionLost, ApiError: as `read`; *timeout_s* is for all of it.
        """
        parts: dict[Source, list[bytes]] = {source: [] for source in Source}
        size = 0
        try:
            async with asyncio.timeout(timeout_s):
                while (chunk := await self._read()) is not None:
                    parts[chunk.source].append(chunk.data)
                    size += len(chunk.data)
                    if size > most_bytes:
                        raise StreamFailed(f"the process wrote more than {most_bytes} bytes")
        except TimeoutError:
            raise TimedOut(f"the process did not end within {timeout_s:g} s") from None
        assert self.exit_code is not None
        return Finished(
            exit_code=self.exit_code,
            stdout=b"".join(parts[Source.STDOUT]),
            stderr=b"".join(parts[Source.STDERR]),
            notices=tuple(one.decode(errors="replace") for one in parts[Source.NOTICE]),
        )

    async def write(self, data: bytes) -> bool:
        """Write to standard input, waiting while it is full; False when the process has ended.

        What was on its way when a connection broke may be lost: the protocol has no receipt.

        Raises:
            ConnectionLost, StreamFailed, ApiError: as `read`.
        """
        for message in stdin(data):
            if not await self._send(message):
                return False
        return True

    async def close_stdin(self) -> None:
        """Let the process see the end of its input. Idempotent."""
        self._is_stdin_closed = True
        await self._send(STDIN_CLOSE)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the process's terminal its size. Only for one that was started with a terminal."""
        self._size = (rows, columns)
        await self._send(resize(rows, columns))

    async def _send(self, message: bytes) -> bool:
        while self.exit_code is None:
            connection = self._opened()
            try:
                await connection.send(message)
                return True
            except ConnectionClosed as closed:
                if closed.rcvd is not None and closed.rcvd.code == CloseCode.NORMAL_CLOSURE:
                    return False  # it has ended; who reads will see its exit code
                await self._recover(connection, closed)
        return False

    def _opened(self) -> ClientConnection:
        if self._failure is not None:
            raise self._failure
        if self._connection is None or self._is_closed:
            raise ConnectionLost("the stream is not open")
        return self._connection

    async def _recover(self, broken: ClientConnection, closed: ConnectionClosed) -> None:
        """Have another connection in place of *broken*, or raise. Whoever notices first does it."""
        async with self._recovering:
            if self._connection is not broken:
                return
            try:
                await self._resume(closed)
            except SdkError as error:
                self._failure = error
                raise

    async def _resume(self, closed: ConnectionClosed) -> None:
        code = closed.rcvd.code if closed.rcvd is not None else None
        if closed.sent is not None and closed.sent.code in OUR_COMPLAINTS and not closed.rcvd_then_sent:
            raise ProtocolError(f"the server's stream broke the rules of WebSocket: {closed.sent.reason}")
        if code == CloseCode.INTERNAL_ERROR:
            reason = closed.rcvd.reason if closed.rcvd is not None else ""
            raise StreamFailed(self._last_notice or reason or "the server gave the stream up")
        if self._is_closed or not self._reconnect_s:
            raise ConnectionLost(f"the connection to the process broke ({_why(closed)})")
        now = asyncio.get_running_loop().time
        if self._broken_at is None or self._has_heard or now() - self._opened_at > STABLE_S:
            self._broken_at, self._delay_s = now(), 0.0
        deadline = self._broken_at + self._reconnect_s
        problem: SdkError = ConnectionLost(f"it breaks again and again ({_why(closed)})")
        while True:
            if now() + self._delay_s > deadline:
                text = f"the connection broke, and for {self._reconnect_s:g} s could not be resumed: {problem}"
                raise ConnectionLost(text) from problem
            # Not at once when the last one was opened and lost without a word.
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(max(2 * self._delay_s, FIRST_DELAY_S), LONGEST_DELAY_S)
            try:
                await self.open()
                break
            except (ConnectionFailed, LimitExceeded, ServerError) as error:
                # A server that starts again refuses connections at first, then is not ready.
                problem = error
                if isinstance(error, ApiError) and error.retry_after_s is not None:
                    self._delay_s = max(self._delay_s, error.retry_after_s)
        # What the lost connection may not have carried. Both may be said twice.
        if self._is_stdin_closed:
            await self._say(STDIN_CLOSE)
        if self._size is not None:
            await self._say(resize(*self._size))

    async def _say(self, message: bytes) -> None:
        try:
            await self._opened().send(message)
        except ConnectionClosed:
            return  # whoever uses the connection next notices, and comes back here


def _why(closed: ConnectionClosed) -> str:
    if closed.rcvd is not None:
        return f"closed with {closed.rcvd.code}{' ' + closed.rcvd.reason if closed.rcvd.reason else ''}"
    cause = closed.__cause__
    return str(cause) if isinstance(cause, OSError) and str(cause) else "no more data came"
