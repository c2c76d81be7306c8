"""Byte streams of diverted connections: as they come, and as the end of TLS that a sandbox's program takes for its
host's.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Protocol

__all__ = ["IDLE_S", "READ_BYTES", "Bare", "Secured", "Stream", "relay"]

IDLE_S = 3600.0
"""A stream from which nothing comes for so long, or that takes nothing, is given up; as the way out does."""
READ_BYTES = 64 << 10
_CLOSE_S = 5.0


class Stream(Protocol):
    """Both ways of a connection. Every method raises OSError when it is broken, or nothing moved for `IDLE_S`."""

    async def read(self) -> bytes:
        """What has come; empty at the end."""
        ...

    async def write(self, data: bytes) -> None: ...

    def end(self) -> bool:
        """Say no more; False where that cannot be told without closing."""
        ...

    async def close(self) -> None:
        """Let go of it, once what was written has been taken; in bounded time."""
        ...


class Bare:
    """A connection as it is (or with TLS that the event loop does)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._returned = b""

    async def is_silent(self) -> bool:
        """Whether nothing has come, and not the end: to be asked where nothing should. What did come is lost."""
        try:
            async with asyncio.timeout(0):
                await self._reader.read(1)
        except TimeoutError:
            return True
        except OSError:
            pass
        return False

    def give_back(self, data: bytes) -> None:
        """Have *data* read again."""
        self._returned = data + self._returned

    async def read(self) -> bytes:
        if self._returned:
            data, self._returned = self._returned, b""
            return data
        async with asyncio.timeout(IDLE_S):
            return await self._reader.read(READ_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        async with asyncio.timeout(IDLE_S):
            await self._writer.drain()

    def end(self) -> bool:
        if not self._writer.can_write_eof():
            return False
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        return True

    async def close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._writer.wait_closed()
        except OSError:  # TimeoutError is one
            self._writer.transport.abort()
        except asyncio.CancelledError:
            self._writer.transport.abort()
            raise


class Secured:
    """The server's end of TLS over a stream of the sandbox's."""

    def __init__(self, stream: Bare, session: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._stream, self._session = stream, session
        self._incoming, self._outgoing = incoming, outgoing

    @classmethod
    async def accept(cls, stream: Bare, choose: Callable[[str | None], ssl.SSLContext | None]) -> "Secured | None":
        """Be the server of a handshake that begins now.

        Args:
            choose: gives, for the name that the client wants, what to be it with; `None` to leave it alone.

        Returns:
            `None` when it is left alone: what the client said can be read from *stream* again.

        Raises:
            ssl.SSLError: the client does not take us for whom it wants, or speaks no TLS of today.
            OSError: the connection broke.
        """
        chosen: list[ssl.SSLContext | None] = []

        def named(session: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> int | None:
            chosen.append(choose(name))
            if chosen[-1] is None:
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME  # is never sent
            session.context = chosen[-1]
            return None

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        context.sni_callback = named
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_side=True)
        self = cls(stream, session, incoming, outgoing)
        heard = bytearray()
        while True:
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError:
                if chosen == [None]:
                    stream.give_back(bytes(heard))
                    return None
                with contextlib.suppress(OSError):
                    await self._flush()  # the alert says what is wrong
                raise
            else:
                await self._flush()
                return self
            data = await stream.read()
            if not data:
                raise ConnectionResetError("hung up in the handshake")
            if not chosen:
                heard += data
            incoming.write(data)

    async def read(self) -> bytes:
        while True:
            try:
                return self._session.read(READ_BYTES)
            except ssl.SSLWantReadError:
                await self._flush()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            data = await self._stream.read()
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    async def write(self, data: bytes) -> None:
        self._session.write(data)
        await self._flush()

    def end(self) -> bool:
        return False  # not every program takes it for half of the end

    async def close(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self._session.unwrap()
        try:
            with contextlib.suppress(OSError):
                await self._flush()
        finally:
            await self._stream.close()

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._stream.write(data)


async def relay(one: Stream, other: Stream) -> None:
    """Carry bytes both ways until both sides have said all, or one that the other cannot be told of.

    Raises:
        OSError: one of them broke.
    """
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_carry(one, other))
            group.create_task(_carry(other, one))
    except ExceptionGroup as errors:
        first = errors.exceptions[0]
        if not isinstance(first, _Over):
            raise first from None


class _Over(Exception):
    """One side has said all, and the other cannot be told."""


async def _carry(source: Stream, target: Stream) -> None:
    while data := await source.read():
        await target.write(data)
    if not target.end():
        raise _Over
