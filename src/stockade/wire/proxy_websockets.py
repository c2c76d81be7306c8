"""One WebSocket to a service in a sandbox: messages pass both ways, as fast as the slower side takes them.

Each side's pings are answered on that side; extensions (compression) are not offered inwards.

| threat | mechanism |
|---|---|
| many messages that never end fill memory | a message is of bounded size, and all that are on their way of bounded size together |
| a service that floods a client who takes nothing | a message is read when the one before has been taken |
"""  # noqa: E501

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any, ClassVar
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.frames import CloseCode
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from stockade.wire.proxy import BadAnswer, BadRequest
from stockade.wire.proxy_headers import Headers, Target, first, request_headers, response_headers

__all__ = ["MOST_MESSAGE_BYTES", "Refused", "WebSocketExchange"]

MOST_MESSAGE_BYTES = 16 * 1024 * 1024
"""The longest message from inside; a longer one ends the connection (1009)."""
MOST_HELD_BYTES = 256 * 1024 * 1024
"""Of all messages that are on their way; past that, who brings the next long one is cut off (1013)."""
_SMALL_BYTES = 1024 * 1024
_CLOSE_S = 5.0

# What tenants' services do wrong is no event of ours.
_log = logging.getLogger("stockade.proxy")
_log.setLevel(logging.CRITICAL)


class Refused(Exception):
    """The service answered the handshake in plain HTTP, which is to be passed on."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        super().__init__(f"status {status}")


class _Inner(ClientConnection):
    """The connection inside; counts what it holds of messages that are on their way outwards."""

    held_by_all: ClassVar[int] = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unfinished = 0
        self._passing = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._count(unfinished=len(self.protocol.reader.buffer))
        if self.is_too_much():
            self.protocol.fail(CloseCode.TRY_AGAIN_LATER, "too much is on its way")
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._count(unfinished=0)
        super().connection_lost(exc)

    def is_too_much(self) -> bool:
        """Whether all connections hold too much, and this one a good part of it."""
        return _Inner.held_by_all > MOST_HELD_BYTES and self._unfinished + self._passing > _SMALL_BYTES

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count *size* bytes as this connection's during the block."""
        self._count(passing=self._passing + size)
        try:
            yield
        finally:
            self._count(passing=self._passing - size)

    def _count(self, *, unfinished: int | None = None, passing: int | None = None) -> None:
        before = self._unfinished + self._passing
        self._unfinished = self._unfinished if unfinished is None else unfinished
        self._passing = self._passing if passing is None else passing
        _Inner.held_by_all += self._unfinished + self._passing - before


class WebSocketExchange:
    """One WebSocket, over a connection that is used for nothing else."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        connection: socket.socket,
        target: Target,
        *,
        answer_s: float,
        idle_s: float,
    ) -> None:
        """As `Exchange`."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._connection = connection
        self._target = target
        self._answer_s = answer_s
        self._idle_s = idle_s
        self._client_left = False
        self._patience = asyncio.timeout(None)

    async def run(self) -> None:
        """Open it inside, then outside, and pass messages until either side closes; the other gets the same code.

        Raises:
            Refused, BadRequest, BadAnswer: it was not opened; nothing has been sent to the client.
            TimeoutError: as those: no answer in time.
        """
        loop = asyncio.get_running_loop()
        _, inner = await loop.create_connection(self._make, sock=self._connection)
        try:
            async with asyncio.timeout(self._answer_s):
                await self._shake_hands(inner)
            await self._accept(inner)
            try:
                async with asyncio.timeout(self._idle_s) as patience:
                    self._patience = patience
                    await self._relay(inner)
            except TimeoutError:
                await self._close(CloseCode.GOING_AWAY, "nothing passed for too long")
        finally:
            inner.transport.abort()
            await inner.wait_closed()

    def _make(self) -> _Inner:
        parts = urlsplit(b"//" + (first(self._scope["headers"], b"host") or b"localhost"))
        try:
            host, port = (parts.hostname or b"localhost").decode("ascii"), parts.port or 80
        except ValueError as error:
            raise BadRequest("the Host header is not a name and a port") from error
        path, _, query = self._target.path.decode("ascii").partition("?")
        protocol = ClientProtocol(
            WebSocketURI(secure=False, host=host, port=port, path=path, query=query),
            subprotocols=[Subprotocol(name) for name in self._scope.get("subprotocols", ())] or None,
            max_size=MOST_MESSAGE_BYTES,
            logger=_log,
        )
        return _Inner(protocol, ping_interval=None, close_timeout=_CLOSE_S, max_queue=1)

    async def _shake_hands(self, inner: _Inner) -> None:
        headers = request_headers(
            self._scope["headers"],
            self._target,
            client=self._scope["client"][0] if self._scope.get("client") else "",
            scheme={"ws": "http", "wss": "https"}[self._scope.get("scheme", "ws")],
        )
        passed = [
            (name.decode("ascii"), value.decode("latin-1"))
            for name, value in headers
            if name not in (b"host", b"content-length") and not name.startswith(b"sec-websocket-")
        ]
        try:
            await inner.handshake(passed, None)
        except InvalidStatus as error:
            found = error.response
            raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in found.headers.raw_items()]
            raise Refused(found.status_code, self._outwards(raw, found.status_code), bytes(found.body)) from error
        except (InvalidHandshake, InvalidMessage, ConnectionClosed, OSError, EOFError) as error:
            raise BadAnswer(f"it does not speak WebSocket: {error}") from error

    def _outwards(self, headers: Headers, status: int) -> Headers:
        passed = response_headers(headers, self._target, status=status, host=first(self._scope["headers"], b"host"))
        return [one for one in passed if one[0] != b"content-length" and not one[0].startswith(b"sec-websocket-")]

    async def _accept(self, inner: _Inner) -> None:
        assert inner.response is not None
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in inner.response.headers.raw_items()]
        await self._send(
            {"type": "websocket.accept", "subprotocol": inner.subprotocol, "headers": self._outwards(raw, 101)}
        )

    async def _relay(self, inner: _Inner) -> None:
        """Both directions, until either has ended; then the other is told, and ends too."""
        tasks = [asyncio.create_task(self._inwards(inner)), asyncio.create_task(self._outwards_from(inner))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _inwards(self, inner: _Inner) -> None:
        try:
            while True:
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    self._client_left = True
                    await inner.close(*_sendable(message.get("code"), message.get("reason")))
                    return
                if message["type"] == "websocket.receive":
                    self._renew()
                    data = message.get("text")
                    data = message["bytes"] if data is None else data
                    with inner.holding(len(data)):
                        await inner.send(data)
        except ConnectionClosed:
            await asyncio.Event().wait()  # the other direction tells the client why, and ends both

    async def _outwards_from(self, inner: _Inner) -> None:
        try:
            while not self._client_left:
                parts: list[Any] = []
                with contextlib.ExitStack() as held:
                    async for part in inner.recv_streaming():
                        held.enter_context(inner.holding(len(part)))
                        parts.append(part)
                        if inner.is_too_much():
                            await self._close(CloseCode.TRY_AGAIN_LATER, "too much is on its way")
                            return
                    self._renew()
                    if isinstance(parts[0], str):
                        await self._tell({"type": "websocket.send", "text": "".join(parts)})
                    else:
                        await self._tell({"type": "websocket.send", "bytes": b"".join(parts)})
        except ConnectionClosed:
            await self._close(*_sendable(inner.close_code, inner.close_reason))

    def _renew(self) -> None:
        if not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + self._idle_s)

    async def _close(self, code: int, reason: str) -> None:
        await self._tell({"type": "websocket.close", "code": code, "reason": reason})

    async def _tell(self, message: Message) -> None:
        if self._client_left:
            return
        try:
            await self._send(message)
        except (OSError, RuntimeError):
            # It has left, or has begun to: then uvicorn takes no more, and calls it a mistake of ours. The other
            # direction will read that, and tell the service.
            self._client_left = True


def _sendable(code: int | None, reason: str | None) -> tuple[int, str]:
    """A close code that may be sent, for one that was received or that stands for the lack of one (RFC 6455, 7.4)."""
    if code is None or code == CloseCode.NO_STATUS_RCVD:
        return CloseCode.NORMAL_CLOSURE, ""
    if code in (CloseCode.ABNORMAL_CLOSURE, CloseCode.TLS_HANDSHAKE):
        return CloseCode.BAD_GATEWAY, "the connection broke off"
    return code, reason or ""
