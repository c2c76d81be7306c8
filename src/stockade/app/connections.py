"""What one client, or very many at once, can take of the server: time, memory and places to wait.

uvicorn by itself waits for a request's headers for ever and keeps as many bytes of them as a client sends.
"""

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stockade.wire.clients import HANG_UP

__all__ = ["MOST_HEADER_BYTES", "Bounded", "Connection", "connection"]

MOST_HEADER_BYTES = 64 * 1024
"""Request line, headers, and whatever else of a request is no body."""
_TOO_SLOW = (408, "Request timeout", "the request's headers did not arrive in time")
_TOO_LONG = (431, "Request header fields too large", f"at most {MOST_HEADER_BYTES} bytes of headers are read")
_KEEP_ALIVE: dict[int, int] = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
_PHRASES = {408: "Request Timeout", 431: "Request Header Fields Too Large"}


class _Joining(asyncio.Transport):
    """What one answer is written to: its head goes out together with the body where that follows at once.

    uvicorn writes one after the other. Without Nagle's algorithm that is two packets, which wake the client twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._kept: bytes | bytearray | memoryview = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._kept:
            self._transport.write(b"".join((self._kept, data)))
            self._kept = b""
        else:
            self._kept = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._kept:
            self._transport.write(self._kept)
            self._kept = b""


class Connection(HttpToolsProtocol):
    """A client's connection: headers must come in time and be of bounded size."""

    patience_s: float
    """Time for the headers of a request; set by `connection`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._in_headers = True
        self._taken = 0
        """Bytes since the last piece of a body: what the parser has to keep."""
        self._hung_up: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if not self._hung_up.done():
            self._hung_up.set_result(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._taken += len(data)
        super().data_received(data)
        if self._taken > MOST_HEADER_BYTES and not self.transport.is_closing():
            self._refuse(*_TOO_LONG)
        elif self._taken and self._in_headers and self._deadline is None:
            self._be_patient()  # most requests come in one piece and never need it

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._in_headers = False
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = _Joining(self.transport, self.loop)
            connection: dict[object, object]
            connection = {"left": self._left, "cut": self.transport.abort, "wait_for_reader": self._wait_for_reader}
            self.cycle.scope["extensions"] = {HANG_UP: connection}

    def on_body(self, body: bytes) -> None:
        self._taken = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._taken = 0
        self._in_headers = True
        super().on_message_complete()

    def _left(self) -> asyncio.Future[None]:
        self.flow.resume_reading()  # else a client that leaves is not seen to
        return self._hung_up

    def _wait_for_reader(self, *, however_long: bool) -> None:
        """Whether the kernel keeps a client that takes nothing of its answer; else it has `patience_s` (tcp(7))."""
        connection = self.transport.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:  # closed: uvloop raises ValueError for those
            return
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return
        with contextlib.suppress(OSError):  # it is gone already
            # One that has died is found out all the same.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(however_long))
            patience_ms = 0 if however_long else math.ceil(1000 * self.patience_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
            for option, value in _KEEP_ALIVE.items():
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def _be_patient(self) -> None:
        self._deadline = self.loop.call_later(self.patience_s, self._lose_patience)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _lose_patience(self) -> None:
        self._deadline = None
        if self._is_answering:
            self._be_patient()  # a further request has begun to come while this one is answered
        elif self._taken:
            self._refuse(*_TOO_SLOW)
        else:
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, error: str, message: str) -> None:
        """Answer and hang up; where another answer is under way, hang up at once."""
        if self._is_answering:
            self.transport.abort()
            return
        body = json.dumps({"error": error, "message": message}).encode()
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def connection(patience_s: float) -> type[Connection]:
    """The class of connections whose clients have *patience_s* for the headers of a request."""
    return type("Connection", (Connection,), {"patience_s": patience_s})


class Bounded:
    """Answers 503 at once while *most* requests are under way: more would only fill memory."""

    def __init__(self, app: ASGIApp, *, most: int, excepted: Callable[[str], bool] = lambda _: False) -> None:
        """*excepted*: whether requests to a path are not counted, since their dialect bounds them itself."""
        self._app = app
        self._most = most
        self._excepted = excepted
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Streams are long, and dialects bound them.
        if scope["type"] != "http" or self._excepted(scope.get("path", "")):
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._most:
            await _busy(send, self._most)
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1


async def _busy(send: Send, most: int) -> None:
    body = json.dumps({"error": "Server busy", "message": f"{most} requests are under way already"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"1"),
        (b"connection", b"close"),  # its body, which may be long, will not be read
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
