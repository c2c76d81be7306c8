"""The server's end of the channel to a sandbox's file agent.

The agent runs our code with a tenant's rights, so what it says is taken as what a tenant may have said: lengths are
bounded, shapes are checked, and every wait has a deadline. One request at a time is under way. Whatever goes wrong in
the middle of one closes the channel; what the agent was writing under a temporary name goes with it.
"""

import asyncio
import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Generic, NoReturn, TypeVar

from stockade.errors import (
    Conflict,
    Denied,
    Fault,
    Invalid,
    LimitExceeded,
    NotFound,
    StockadeError,
    Unavailable,
    Unsupported,
)
from stockade.warden import agent_channel as wire

__all__ = ["FileChannel", "Stream"]

_KINDS: dict[str, Callable[[str], StockadeError]] = {
    kind.code: kind for kind in (Invalid, Denied, NotFound, Conflict, LimitExceeded, Unsupported, Unavailable, Fault)
}
_NUMBERS = {name: number for number, name in errno.errorcode.items()}
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]")
_LONG = 64 << 10
"""Bytes after whose transfer everybody else gets a turn of the event loop, ..."""
_FRAMES_A_TURN = 64
"""... and frames, however small: an agent that sends enough of nothing would never be waited for."""

_Item = TypeVar("_Item")


class FileChannel:
    """Frames to and from an agent. Close it.

    Every method raises Unavailable when the channel is closed or the agent is silent for longer than the deadline; the
    channel is closed then.
    """

    def __init__(self, connection: socket.socket, silence_s: float) -> None:
        connection.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, wire.SOCKET_BUFFER)
        self._connection = connection
        self._silence_s = silence_s
        self._turn = asyncio.Lock()
        self._buffer = memoryview(b"")
        self._received = memoryview(b"")
        """What of the buffer has arrived and was not taken yet."""
        self._is_open = True
        self._is_waited_for = False
        self._frames = 0

    def close(self) -> None:
        """Hang up. Idempotent. Whoever waits for the agent at this moment gets an Unavailable."""
        self._is_open = False
        if self._is_waited_for:
            # The event loop minds the descriptor: who waits wakes up, and closes it.
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        else:
            self._connection.close()
        self._received = self._buffer = memoryview(b"")

    def release(self) -> socket.socket | None:
        """Give the connection up to whoever is to use it next: this channel is closed then.

        `None`, and nothing happens, where it is closed or something is under way, or was and has not been read.
        """
        if not self._is_open or self._turn.locked() or self._received:
            return None
        self._is_open = False
        # Whoever still waits for their turn has a channel without a connection, not one that is another's by now.
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=self._connection.detach())

    @contextlib.asynccontextmanager
    async def in_turn(self, *, keep: bool = False) -> AsyncIterator[None]:
        """Have the channel to ourselves; with *keep* beyond the block, until `_end_turn`."""
        try:
            async with asyncio.timeout(self._silence_s):
                await self._turn.acquire()
        except TimeoutError:
            raise Unavailable("the sandbox's files are in use by another request on the same channel") from None
        try:
            self._expect_open()
            yield
        except StockadeError:  # the agent's answer; or the channel is closed already
            self.end_turn()
            raise
        except BaseException:
            self.close()
            self.end_turn()
            raise
        if not keep:
            self.end_turn()

    def end_turn(self) -> None:
        """Let the next request have its turn."""
        if not self._received:
            self._received = self._buffer = memoryview(b"")  # what waits for its next request needs none
        self._turn.release()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _expect_open(self) -> None:
        if not self._is_open:
            raise Unavailable("the channel to the sandbox's files is closed")

    async def call(self, operation: str, **members: Any) -> dict[str, Any]:
        """A request without data, and its result."""
        async with self.in_turn():
            await self.request(operation, **members)
            return await self.result(await self.frame())

    async def request(self, operation: str, **members: Any) -> None:
        """Ask for something; it is our turn."""
        data = wire.frame(wire.REQUEST, {"op": operation, **members})
        if len(data) > wire.MOST_TEXT:
            raise Invalid("the path is too long")
        await self._send([data])

    async def upload(self, operation: str, content: AsyncIterable[bytes], **members: Any) -> dict[str, Any]:
        """A request with data, and its result. What *content* raises breaks it off and is passed on."""
        failed: Exception
        async with self.in_turn():
            await self.request(operation, **members)
            pieces = aiter(content)
            while True:
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    await self._send([wire.FRAME.pack(wire.END, 0)])
                    return await self.result(await self.frame())
                except Exception as error:  # the source's; the channel is in order
                    with contextlib.suppress(StockadeError):
                        await self._abort()
                    failed = error
                    break
                if self._has_answer():  # before the end: it has failed, and says why
                    await self._abort()
                view = memoryview(piece)
                while view:
                    part, view = view[: wire.MOST_DATA], view[wire.MOST_DATA :]
                    await self._send([wire.FRAME.pack(wire.DATA, len(part)), part])
        raise failed

    async def _abort(self) -> None:
        """Break an upload off, and raise what the agent has to say to it."""
        await self._send([wire.FRAME.pack(wire.ABORT, 0)])
        await self.result(await self.frame())
        self.give_up("it takes a part for the whole")

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def head(self) -> dict[str, Any]:
        """What is said before data comes."""
        kind, length = await self.frame()
        if kind == wire.HEAD:
            return self._object(await self._exactly(length))
        await self.result((kind, length))
        return self.give_up("it answers before its time")

    async def result(self, frame: tuple[bytes, int]) -> dict[str, Any]:
        """The result of a request. Raises what the agent reports instead."""
        kind, length = frame
        if kind not in (wire.END, wire.ERROR):
            self.give_up("it does not keep to the protocol")
        body = self._object(await self._exactly(length))
        if kind == wire.END:
            return body
        named, numbered = body.get("kind"), body.get("errno")
        make = _KINDS.get(named, Unavailable) if isinstance(named, str) else Unavailable
        said = body.get("message")
        message = said[:2000] if isinstance(said, str) else ""
        error = make(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", message))
        # The number is what a dialect words the error by whose clients look for the C library's words.
        number = _NUMBERS.get(numbered) if isinstance(numbered, str) else None
        raise error from (None if number is None else OSError(number, os.strerror(number)))

    def count(self, body: dict[str, Any], name: str) -> int:
        """A number that is not negative, out of a result."""
        count = body.get(name)
        if type(count) is not int or count < 0:
            self.give_up("it counts wrongly")
        return count

    async def items(self, length: int) -> list[Any]:
        """The body of a frame of items."""
        body = self._parsed(await self._exactly(length))
        if not isinstance(body, list):
            self.give_up("it does not keep to the protocol")
        return body

    def _object(self, text: bytes) -> dict[str, Any]:
        body = self._parsed(text)
        if not isinstance(body, dict):
            self.give_up("it does not keep to the protocol")
        return body

    def _parsed(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            self.give_up("it does not keep to the protocol")

    def give_up(self, why: str) -> NoReturn:
        """Hang up on an agent that says what it cannot."""
        self.close()
        raise Unavailable(f"the sandbox's file agent cannot be relied on: {why}")

    # ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def frame(self) -> tuple[bytes, int]:
        """The next frame that says something: its kind and the length of its body."""
        while True:
            kind, length = wire.FRAME.unpack(await self._exactly(wire.FRAME.size))
            self._frames += 1
            if not self._frames % _FRAMES_A_TURN:
                await asyncio.sleep(0)
            if length > (wire.MOST_DATA if kind == wire.DATA else wire.MOST_TEXT):
                self.give_up("it says too much at once")
            if kind != wire.ALIVE:
                return kind, length
            if length:
                self.give_up("it does not keep to the protocol")

    async def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += await self.some(count - len(data))
        return data

    async def some(self, most: int) -> bytes:
        """What has arrived, or arrives next; never nothing."""
        if not self._received:
            await self._receive()
        data, self._received = self._received[:most], self._received[most:]
        return bytes(data)

    async def _receive(self) -> None:
        if not self._buffer:
            self._buffer = memoryview(bytearray(wire.CHUNK))
        self._expect_open()
        try:
            try:
                count = self._connection.recv_into(self._buffer)
            except BlockingIOError:
                async with self._waited_for():
                    count = await asyncio.get_running_loop().sock_recv_into(self._connection, self._buffer)
            else:
                if count >= _LONG:
                    await asyncio.sleep(0)
        except TimeoutError:
            self.close()
            raise Unavailable(f"the sandbox's file agent has been silent for {self._silence_s:g} s") from None
        except OSError as error:
            self.close()
            raise Unavailable(f"the sandbox's file agent went away: {error}") from error
        if not count or not self._is_open:
            self.close()
            raise Unavailable("the sandbox's file agent went away")
        self._received = self._buffer[:count]

    @contextlib.asynccontextmanager
    async def _waited_for(self) -> AsyncIterator[None]:
        self._is_waited_for = True
        try:
            async with asyncio.timeout(self._silence_s):
                yield
        finally:
            self._is_waited_for = False
            if not self._is_open:
                self._connection.close()

    def _has_answer(self) -> bool:
        """Whether the agent has said something, or hung up."""
        if self._received:
            return True
        self._expect_open()
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass  # the next that is sent or received tells
        return True

    async def _send(self, pieces: list[bytes | memoryview]) -> None:
        self._expect_open()
        try:
            try:
                sent = self._connection.sendmsg(pieces)
            except BlockingIOError:
                sent = 0
            size = sum(map(len, pieces))
            if sent == size:
                if size >= _LONG:
                    await asyncio.sleep(0)
                return
            loop = asyncio.get_running_loop()
            for piece in pieces:
                if sent < len(piece):
                    async with self._waited_for():
                        await loop.sock_sendall(self._connection, memoryview(piece)[sent:])
                sent = max(0, sent - len(piece))
        except TimeoutError:
            self.close()
            raise Unavailable(f"the sandbox's file agent has taken nothing for {self._silence_s:g} s") from None
        except OSError as error:
            self.close()
            raise Unavailable(f"the sandbox's file agent went away: {error}") from error


class Stream(Generic[_Item]):
    """What arrives until the end of a request; it has the channel to itself until then.

    Whoever stops before closes the channel (`aclose`, or by forgetting it): the agent would go on sending.
    """

    def __init__(self, channel: FileChannel) -> None:
        self.channel = channel
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[_Item]:
        return self

    async def __anext__(self) -> _Item:
        if self._is_over:
            raise StopAsyncIteration
        try:
            return await self._next()
        except (StopAsyncIteration, StockadeError):  # the end, the agent's answer; or the channel is closed already
            self._finish()
            raise
        except BaseException:
            self.channel.close()
            self._finish()
            raise

    async def aclose(self) -> None:
        if not self._is_over:
            self.channel.close()
            self._finish()

    def __del__(self) -> None:
        if not self._is_over:
            self.channel.close()
            self._finish()

    def _finish(self) -> None:
        self._is_over = True
        self.channel.end_turn()

    async def _next(self) -> _Item:
        raise NotImplementedError
