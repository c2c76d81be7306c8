"""Carries bytes between a program in a sandbox and whom it talks to, both ways, until both have said all.

A side that ends its half is passed on as such; a side that breaks the connection breaks the other's. What is under way
is bounded: no more is read while the other side does not take it.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

__all__ = ["Relay", "break_off", "prepare"]

_CHUNK = 128 * 1024
_LINGER_NOT = struct.pack("ii", 1, 0)
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 5))
_CLOSED = 7  # TCP_CLOSE, the first byte of struct tcp_info
_buffer = memoryview(bytearray(_CHUNK))
"""Where bytes arrive; what cannot be passed on at once is copied. One will do: there is one thread."""


def break_off(connection: socket.socket) -> None:
    """Close so that the other side sees a reset, as of a connection that was refused."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    connection.close()


def prepare(connection: socket.socket, size: int) -> None:
    """Bound what the kernel holds for a connection, in bytes each way, and have it look whether the other side lives.

    That is nobody's memory but the host's. The window, and not SO_RCVBUF: below that the kernel may go on fitting
    buffers to the traffic.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, size)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size // 2)  # the kernel doubles it
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Relay:
    """One connection. Both sockets must be connected and non-blocking; they are closed with it."""

    def __init__(
        self,
        inner: socket.socket,
        outer: socket.socket,
        *,
        count: Callable[[int, int], None],
        ended: Callable[["Relay"], None],
    ) -> None:
        """Begin to relay.

        Args:
            count: called with bytes that came in and bytes that went out.
            ended: called once, when both sockets are closed.
        """
        self._loop = asyncio.get_running_loop()
        self._sockets = (inner, outer)
        self._ended = ended
        self._is_open = True
        self.touched = self._loop.time()
        """When bytes last moved."""
        self._out = _Half(self, inner, outer, lambda n: count(0, n))
        self._in = _Half(self, outer, inner, lambda n: count(n, 0))

    def half_ended(self) -> None:
        if self._out.is_over and self._in.is_over:
            self._close()

    def touch(self) -> None:
        self.touched = self._loop.time()

    @property
    def awaits_the_other(self) -> bool:
        """The program has said all: it waits for the answer, or has closed its side for good."""
        return self._out.is_over

    @property
    def is_dead(self) -> bool:
        """The kernel has found that one side is gone. Where we wait for nothing of it, no event tells."""
        states = (one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] for one in self._sockets)
        return _CLOSED in states

    def abort(self) -> None:
        """Break both connections off. Idempotent."""
        if self._is_open:
            with contextlib.suppress(OSError):
                for one in self._sockets:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            for one in self._sockets:
                self._loop.remove_reader(one)
                self._loop.remove_writer(one)
                one.close()
            self._ended(self)


class _Half:
    """One direction."""

    def __init__(
        self, relay: Relay, source: socket.socket, target: socket.socket, count: Callable[[int], None]
    ) -> None:
        self._relay, self._source, self._target, self._count = relay, source, target, count
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(b"")
        self.is_over = False
        self._loop.add_reader(source, self._read)

    def _read(self) -> None:
        # One chunk a turn of the loop: a fast connection leaves room for the others.
        try:
            length = self._source.recv_into(_buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._relay.abort()
            return
        if length == 0:
            self._loop.remove_reader(self._source)
            self._end()
            return
        self._relay.touch()
        self._count(length)
        sent = self._send(_buffer[:length])
        if 0 <= sent < length:
            self._rest = memoryview(bytes(_buffer[sent:length]))
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._write)

    def _write(self) -> None:
        sent = self._send(self._rest)
        if sent < 0:
            return
        self._relay.touch()
        self._rest = self._rest[sent:]
        if not self._rest:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._read)

    def _send(self, data: memoryview) -> int:
        """How many bytes went; -1 when the connection is over."""
        try:
            return self._target.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._relay.abort()
            return -1

    def _end(self) -> None:
        self.is_over = True
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self._relay.half_ended()
