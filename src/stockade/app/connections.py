"""What one client, or very many at once, can take of the server: time, memory and places to wait.

uvicorn by itself waits for a request's headers for ever and keeps as many bytes of them as a client sends. What two
programs could read differently is no request here, however harmless: one of them may be a proxy in front of this server.

| threat | mechanism |
|---|---|
| a request that hides in another one (smuggling) | llhttp's strict parser; no transfer coding but `chunked`, none in HTTP/1.0; no version but 1.0 and 1.1 |
| a name in `Host` that one program checks and another goes by | one `Host`, of the form that it has; a target with a host of its own names the same one |
| headers behind the body (trailers), which come after all checks | they are dropped |
| a WebSocket on a connection that still answers | an upgrade is the last of what was asked, and the only thing |
| requests sent without waiting for answers, until memory is full | so many, then the connection ends |
"""  # noqa: E501

import asyncio
import contextlib
import json
import math
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stockade.app.room import Room
from stockade.wire.clients import HANG_UP

__all__ = [
    "MOST_CONNECTIONS",
    "MOST_HEADERS",
    "MOST_HEADER_BYTES",
    "MOST_PIPELINED",
    "Bounded",
    "Connection",
    "connection",
]

MOST_HEADER_BYTES = 64 * 1024
"""Request line, headers, and whatever else of a request is no body."""
MOST_HEADERS = 256
MOST_PIPELINED = 16
"""Requests of one client that have come while an earlier one is answered."""
MOST_CONNECTIONS = 4096
"""Where the server is not told otherwise."""
LINGER_S = 2.0
"""Time in which a client that is refused may still send: a connection that is closed before is reset, and a reset takes
our answer with it (RFC 9112, section 9.6)."""
SPARE_CONNECTIONS = 256
"""Beyond the bound, those that are answered before they go; all further ones just go."""
GRACE_S = 2.0
"""Time that every request has to come in, however many others there are."""
_LEAST_BYTES_PER_S = 1024
"""Of an answer that is complete on our side; who takes it more slowly is cut off."""

_Words = tuple[int, str, str]
_MALFORMED = (400, "Bad request", "this is no HTTP/1.1 request")
_ONE_HOST = (400, "Bad request", "a request has one Host header, with a name or address and perhaps a port")
_OTHER_HOST = (400, "Bad request", "the request's target names another host than its Host header")
_MORE_THAN_UPGRADE = (400, "Bad request", "a WebSocket begins with a GET without a body, before anything else is sent")
_TOO_SLOW = (408, "Request timeout", "the request's headers did not arrive in time")
_TOO_LONG = (
    431,
    "Request header fields too large",
    f"at most {MOST_HEADER_BYTES} bytes and {MOST_HEADERS} fields of headers are read",
)
_NO_SUCH_CODING = (501, "Not implemented", "the only transfer coding is chunked, and HTTP/1.0 has none")
_FULL = (503, "Server busy", "as many connections are open as this server keeps; try again later")
_OTHER_VERSION = (505, "HTTP version not supported", "this server speaks HTTP/1.1 and HTTP/1.0")
_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
_KEEP_ALIVE: dict[int, int] = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
_OF_UPGRADES = frozenset({b"http2-settings", b"upgrade"})
_HOST = re.compile(rb"(?:\[[0-9a-zA-Z:.%]+\]|[a-zA-Z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")
_AUTHORITY = re.compile(rb"https?://(?:[^/?#@]*@)?([^/?#]*)", re.IGNORECASE)


class _Refusal(Exception):
    """Ends the parsing of what a client has sent: it is refused."""

    def __init__(self, words: _Words) -> None:
        super().__init__(words[2])
        self.words = words


class _Joining(asyncio.Transport):
    """What one answer is written to: its head goes out together with the body where that follows at once.

    uvicorn writes one after the other. Without Nagle's algorithm that is two packets, which wake the client twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._kept: bytes | bytearray | memoryview = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._transport.is_closing():
            return  # cut off; uvloop raises RuntimeError until it has told so, and the application learns of it then
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
        if self._kept and not self._transport.is_closing():
            self._transport.write(self._kept)
        self._kept = b""


class Connection(HttpToolsProtocol):
    """A client's connection: headers must come in time, be of bounded size, and leave no doubt."""

    patience_s: float
    """Time for the headers of a request; set by `connection`, as is the next."""
    room: Room

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._in_headers = True
        self._taken = 0
        """Bytes since the last piece of a body: what the parser has to keep."""
        self._header_bytes = 0
        self._refusal: _Words | None = None
        self._is_refused = False
        self._is_surplus = False
        self._is_unwanted = False
        """The request that is being read asks for a protocol that is not offered."""
        self._unread_then = 0
        self._hung_up: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_surplus = not self.room.make(len(self.connections))
        if self._is_surplus and len(self.connections) > self.room.most + SPARE_CONNECTIONS:
            transport.abort()
            return
        self.room.waits(self)
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        self.room.leaves(self)
        self._stop_waiting()
        if not self._hung_up.done():
            self._hung_up.set_result(None)
        super().connection_lost(exc)

    def unread(self) -> int:
        try:
            return self.transport.get_write_buffer_size()
        except RuntimeError:  # uvloop's word for a connection that is closed
            return 0

    def cut(self) -> None:
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return  # it is thrown away until the client has read why, or for so long
        self._taken += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except _Refusal as refusal:
            self._refuse(*refusal.words)
            return
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or _MALFORMED))
            return
        if self._taken > MOST_HEADER_BYTES and not self.transport.is_closing():
            self._refuse(*_TOO_LONG)
        elif self._taken and self._in_headers and self._deadline is None:
            self._be_patient()  # most requests come in one piece and never need it

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            if self._should_upgrade():
                self._begin_websocket(data)
                return
            if self.parser.get_method() == b"CONNECT":
                raise _Refusal(_MALFORMED)
            # To another protocol: not offered, and so the request is as good without it (RFC 9110, section 7.8). llhttp
            # has not taken its body for one, so it is read anew.
            data = self._without_upgrade() + data
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            self._is_unwanted = False
            self._header_bytes = 0

    def _without_upgrade(self) -> bytes:
        """The head that has been read, as it would be without the wish for another protocol."""
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.lower().split(b",")]
                value = b", ".join(token for token in tokens if token not in _OF_UPGRADES)
            if name not in _OF_UPGRADES:
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _begin_websocket(self, rest: bytes) -> None:
        names = {name for name, _ in self.headers}
        has_body = b"transfer-encoding" in names or b"content-length" in names
        if rest or has_body or self._is_answering or self.scope["method"] != "GET":
            raise _Refusal(_MORE_THAN_UPGRADE)
        self._stop_waiting()
        self.handle_websocket_upgrade()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_headers:
            return  # a trailer: what it says was not there when the request was checked
        self._count(name, value)
        if len(self.headers) >= MOST_HEADERS:
            self._stop(_TOO_LONG)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and not self._should_upgrade():
            self._is_unwanted = True  # see `_parse`
            return
        self._stop_waiting()
        self._in_headers = False
        self._header_bytes = 0
        self.room.works(self)
        if (words := self._objection()) is not None:
            self._stop(words)
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = _Joining(self.transport, self.loop)
            connection: dict[object, object]
            connection = {
                "left": self._left,
                "cut": self.transport.abort,
                "keeps_us_waiting": self._keeps_us_waiting,
                "wait_for_reader": self._wait_for_reader,
            }
            self.cycle.scope["extensions"] = {HANG_UP: connection}

    def on_body(self, body: bytes) -> None:
        self._taken = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_unwanted:
            return
        self._taken = 0
        self._in_headers = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_answering:  # the next one, which had come already
            return
        self.room.waits(self)
        if not self._in_headers and not self.transport.is_closing():
            self._be_patient()  # with what is left of a body that nobody has asked for

    def timeout_keep_alive_handler(self) -> None:
        unread = self.unread()
        least = _LEAST_BYTES_PER_S * self.timeout_keep_alive
        if unread and (not self._unread_then or self._unread_then - unread > least):
            self._unread_then = unread
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self.transport.abort()

    def _objection(self) -> _Words | None:
        """What is wrong with the head of a request that llhttp has nothing against."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            return _OTHER_VERSION
        host: bytes | None = None
        for name, value in self.headers:
            if name == b"host":
                if host is not None or not _HOST.fullmatch(value):
                    return _ONE_HOST
                host = value
            elif name == b"transfer-encoding" and (version == "1.0" or value.strip().lower() != b"chunked"):
                return _NO_SUCH_CODING
        if host is None and version == "1.1":
            return _ONE_HOST
        if (named := _AUTHORITY.match(self.url)) is not None and named[1].lower() != (host or b"").lower():
            return _OTHER_HOST
        if self._is_surplus:
            return _FULL
        return _MALFORMED if len(self.pipeline) >= MOST_PIPELINED else None

    def _count(self, *parts: bytes) -> None:
        self._header_bytes += sum(map(len, parts))
        if self._header_bytes > MOST_HEADER_BYTES:
            self._stop(_TOO_LONG)

    def _stop(self, words: _Words) -> None:
        """Have the parser stop here, and *words* said."""
        self._refusal = words
        raise _Refusal(words)

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
        elif self._taken and self._in_headers:
            self._refuse(*_TOO_SLOW)
        else:
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _keeps_us_waiting(self) -> bool:
        """Whether the client still sends its request, or is slow to take the answer."""
        return (self.cycle is not None and self.cycle.more_body) or self.flow.write_paused

    def _refuse(self, status: int, error: str, message: str) -> None:
        """Answer and hang up; where another answer has begun, or is to come first, hang up at once."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._stop_waiting()
        if self._is_answering:
            if self.cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            self.cycle.disconnected = True  # whatever was to be said: the request turned out to be none
            self.cycle.message_event.set()
        body = json.dumps({"error": error, "message": message}).encode()
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\nx-content-type-options: nosniff\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self.room.waits(self)
        self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)


def connection(patience_s: float, most: int = MOST_CONNECTIONS) -> type[Connection]:
    """The class of a listener's connections.

    Args:
        patience_s: time that clients have for the headers of a request.
        most: connections at once; beyond, those that wait for something to ask are ended for those that come.
    """
    return type("Connection", (Connection,), {"patience_s": patience_s, "room": Room(most=most)})


class Bounded:
    """Answers 503 at once while *most* requests are under way: more would only fill memory.

    A request that is not there yet, or whose answer nobody takes, keeps no place from one that is: the oldest such one
    is cut off instead.
    """

    def __init__(self, app: ASGIApp, *, most: int, excepted: Callable[[str], bool] = lambda _: False) -> None:
        """*excepted*: whether requests to a path are not counted, since their dialect bounds them itself."""
        self._app = app
        self._most = most
        self._excepted = excepted
        self._under_way: dict[object, tuple[float, Scope]] = {}
        """When each began, in that order."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Streams are long, and dialects bound them.
        if scope["type"] != "http" or self._excepted(scope.get("path", "")):
            await self._app(scope, receive, send)
            return
        if len(self._under_way) >= self._most and not self._makes_room():
            await _busy(send, self._most)
            return
        me = object()
        self._under_way[me] = (time.monotonic(), scope)
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way.pop(me, None)

    def _makes_room(self) -> bool:
        now = time.monotonic()
        for one, (began, scope) in self._under_way.items():
            if now - began < GRACE_S:
                return False
            connection = scope.get("extensions", {}).get(HANG_UP, {})
            if "keeps_us_waiting" in connection and connection["keeps_us_waiting"]():
                del self._under_way[one]
                connection["cut"]()
                return True
        return False


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
