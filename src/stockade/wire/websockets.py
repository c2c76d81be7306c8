"""WebSocket connections: uvicorn's, on the `websockets` library without its own I/O, with six changes.

- A client that takes nothing of its stream is kept, with the little that is on its way to it. The time-out for taking
  an answer (TCP_USER_TIMEOUT), which the listening socket hands down, is for answers that would else stay in memory;
  here the sender waits. A peer that is gone is noticed by the kernel, which repeats our pings for a quarter of an hour.
- What clients have sent of messages that are not yet complete is bounded for all of them together.
- A client that sends pings and takes no pongs gets no more of them: they would pile up here. So does a message in very
  many pieces, however small they are: it closes the connection.
- A handshake that the library does not even take for one is answered. uvicorn would keep the connection for ever.
- A refusal before the upgrade is nothing to be logged, and neither is a request's query: an exec's arguments are in it.
- An application can send a ping at a moment of its own choice (`PING`): some clients give up a connection on which
  nothing comes for a while, sooner than all others need.
"""

import contextlib
import logging
import socket
from asyncio.transports import BaseTransport
from typing import Any, ClassVar

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

from stockade.wire.frames import MOST_MESSAGE_BYTES

__all__ = ["MOST_HELD_BYTES", "MOST_WEBSOCKET_BYTES", "PING", "PING_S", "WebSocketConnection"]

MOST_WEBSOCKET_BYTES = MOST_MESSAGE_BYTES
"""The longest message that is taken; a longer one closes the connection (1009)."""
PING_S = 20.0
"""Between two pings: proxies take a connection without traffic for dead."""
PING = "stockade.ping"
"""ASGI extension of our server's WebSocket connections: `now()` sends a ping, and says whether the connection is still
there, which who does not read from it is told by nothing else."""
MOST_HELD_BYTES = 256 * 1024 * 1024
"""Of messages that have begun to come, of all clients together; past that, who sends more is cut off (1013)."""
MOST_PIECES = 4096
"""Frames of one message."""
_SMALL_BYTES = 1024 * 1024
"""Who holds no more than that is never cut off: those who only type need not suffer for others."""
_TRY_AGAIN_LATER = 1013
_TOO_BIG = 1009
_REFUSAL = b"Failed to open a WebSocket connection: its headers are too long or too many, or it is no handshake.\n"

_log = logging.getLogger("stockade.websockets")
_log.setLevel(logging.WARNING)
# A mistake of the client's, which is told: no error of ours, and no trace for each.
_log.addFilter(lambda record: not record.getMessage().startswith("Invalid UTF-8"))


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A client's WebSocket."""

    held_by_all: ClassVar[int] = 0
    """Bytes of incomplete messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _log
        self._held = 0
        self._pieces_bytes = 0
        """Of the frames of a message that is not complete."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):  # the client may be gone again
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hold(0)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self._refuse_handshake()  # the whole head has come: our HTTP side hands it over at once
            return
        self._hold(len(self.conn.reader.buffer) + self._pieces_bytes)
        if self.held_by_all > MOST_HELD_BYTES and self._held > _SMALL_BYTES and not self.close_sent:
            self.conn.fail(_TRY_AGAIN_LATER, "the server holds too much of unfinished messages")
            self.handle_parser_exception()
            self._hold(0)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.handshake_initiated and not self.handshake_complete:  # else it was refused, and nothing will be asked
            self.scope["extensions"][PING] = {"now": self._ping}

    def handle_cont(self, event: Frame) -> None:
        if self.close_sent:
            return
        self._pieces_bytes += len(event.data)
        if len(self.frames) >= MOST_PIECES:
            self.conn.fail(_TOO_BIG, f"a message has at most {MOST_PIECES} frames")
            self.handle_parser_exception()
            self.frames = []
            return
        super().handle_cont(event)

    def handle_text(self, event: Frame) -> None:
        self._pieces_bytes = len(event.data)
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        self._pieces_bytes = len(event.data)
        super().handle_bytes(event)

    def send_receive_event_to_app(self) -> None:
        self._pieces_bytes = 0
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # the pong; an answer to the last ping alone would do (RFC 6455, section 5.5.3)

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        self._end_soon()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self._end_soon()

    def _end_soon(self) -> None:
        """Who has been told that it is over, and takes nothing, is not waited for."""
        if self.transport.is_closing():
            self.loop.call_later(self.close_timeout, self.transport.abort)

    def _refuse_handshake(self) -> None:
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head % len(_REFUSAL) + _REFUSAL)
        self.transport.close()

    def _ping(self) -> bool:
        if self.close_sent or self.transport.is_closing():
            return False
        if self.writable.is_set():  # else there is more than a ping on its way already
            self.conn.send_ping(b"")
            self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # by a refusal; uvicorn would report it as forgotten

    def _hold(self, size: int) -> None:
        WebSocketConnection.held_by_all += size - self._held
        self._held = size

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """What `uvicorn.Config` has to be told to use it."""
        return {
            "ws": cls,
            "ws_max_size": MOST_WEBSOCKET_BYTES,
            "ws_ping_interval": PING_S,
            # A pong is not read while the client's input waits for a process that takes none, and a ping waits behind
            # output that the client is slow to take: that an answer is late says nothing.
            "ws_ping_timeout": None,
            # Output is compressed at 50 MB/s at best; whoever is far away has SSH or a proxy that can.
            "ws_per_message_deflate": False,
        }
