"""Two connected stream sockets made one: what comes from either goes to the other, as if nobody were between.

Straight on the sockets, with one buffer for all: a connection that waits holds no memory of ours, and one whose taker
is slow holds what was read last and could not be passed on. Nothing more is read before that has gone, so that the
kernel's own flow control slows the sender down.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

__all__ = ["READ_BYTES", "Relay", "end", "is_its_own_peer", "reset", "set_no_delay"]

READ_BYTES = 128 * 1024
"""The most that is passed on at once, and so the most that a direction keeps."""
_MOST_DISCARDED = 1 << 20
"""Bytes that are read of a connection before it is closed in an orderly way; who sends more meets a reset."""
_NO_LINGER = struct.pack("ii", 1, 0)


def reset(connection: socket.socket) -> None:
    """Close *connection* so that its peer is told of a failure (RST, socket(7) SO_LINGER), not of an orderly end."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except OSError:
        pass  # no TCP socket
    connection.close()


def end(connection: socket.socket, buffer: memoryview) -> None:
    """Close a non-blocking *connection* so that its peer is told of an orderly end (FIN).

    What the peer has sent is read first, into *buffer*, and dropped: the kernel tells of a failure where something is
    left unread (RFC 2525, section 2.17).
    """
    discarded = 0
    try:
        while discarded < _MOST_DISCARDED and (size := connection.recv_into(buffer)):
            discarded += size
    except OSError:
        pass  # nothing is there, or it is broken already
    connection.close()


def set_no_delay(connection: socket.socket) -> None:
    """Send what there is at once (tcp(7) TCP_NODELAY): what is passed on has been put together by its sender."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        pass  # it is broken already, which reading will tell


def is_its_own_peer(connection: socket.socket) -> bool:
    """Whether a connection on the loopback has met itself.

    Who dials a port on which nothing listens is given that very port as its own once in some ten thousand times, and is
    then connected to itself (RFC 9293, section 3.5: simultaneous open).
    """
    try:
        return bool(connection.getsockname() == connection.getpeername())
    except OSError:
        return False  # it is broken already, which reading will tell


class Relay:
    """A connection from outside joined to one inside, until both have ended."""

    def __init__(
        self,
        outer: socket.socket,
        inner: socket.socket,
        *,
        buffer: memoryview,
        on_end: Callable[["Relay"], None],
    ) -> None:
        """Take over both sockets and begin.

        Args:
            buffer: of `READ_BYTES`; of no meaning between two events, so that all relays of a loop may share it.
            on_end: called once, when both sockets are closed.
        """
        self.has_moved = True
        """Whether anything has passed since somebody set it to False."""
        self.idle_since = 0.0
        """For who looks after relays that are idle."""
        self._sockets = (outer, inner)
        self._on_end = on_end
        self._is_over = False
        inwards = _Direction(self, outer, inner, buffer)
        outwards = _Direction(self, inner, outer, buffer)
        self._directions = (inwards, outwards)
        inwards.listen()
        outwards.listen()

    def reset(self) -> None:
        """End at once; both peers are told of a failure."""
        self._end(reset)

    def settle(self) -> None:
        """Close both sockets once both directions are done."""
        if all(one.is_done for one in self._directions):
            self._end(socket.socket.close)

    def _end(self, close: Callable[[socket.socket], None]) -> None:
        if self._is_over:
            return
        self._is_over = True
        for direction in self._directions:
            direction.stop()
        for one in self._sockets:
            close(one)
        self._on_end(self)


class _Direction:
    """What comes from *source* goes to *sink*; the end of the one becomes the end of the other's input."""

    def __init__(self, relay: Relay, source: socket.socket, sink: socket.socket, buffer: memoryview) -> None:
        self.is_done = False
        self._relay = relay
        self._source = source
        self._sink = sink
        self._buffer = buffer
        self._kept = memoryview(b"")
        self._loop = asyncio.get_running_loop()

    def listen(self) -> None:
        self._loop.add_reader(self._source, self._pass_on)

    def stop(self) -> None:
        """Watch neither socket any more."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        self._kept = memoryview(b"")

    def _pass_on(self) -> None:
        try:
            size = self._source.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # Reset by its peer. Nothing is kept here, or it would not have been read; what the other direction has
            # nobody takes any more.
            self._relay.reset()
            return
        self._relay.has_moved = True
        if size == 0:
            self._finish()
            return
        sent = self._send(self._buffer[:size])
        if 0 <= sent < size:
            self._kept = memoryview(bytes(self._buffer[sent:size]))
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._pass_kept)

    def _pass_kept(self) -> None:
        sent = self._send(self._kept)
        if sent < 0:
            return
        self._relay.has_moved = True
        self._kept = self._kept[sent:]
        if not self._kept:
            self._loop.remove_writer(self._sink)
            self.listen()

    def _send(self, data: memoryview) -> int:
        """How much was taken; less than 0 when nothing ever will be."""
        try:
            return self._sink.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # The taker is gone. What it said before is still to be read, though: the answer that refuses a long
            # upload, say. That direction goes on until it ends or finds the connection broken.
            self.stop()
            self.is_done = True
            self._relay.settle()
            return -1

    def _finish(self) -> None:
        """The source will send no more: say so to the sink, whose own output may go on."""
        self.stop()
        self.is_done = True
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._relay.reset()
            return
        self._relay.settle()
