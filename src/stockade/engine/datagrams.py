"""UDP of an exposed port: each client outside has a socket of its own inside, so that answers find their way back."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from stockade.errors import StockadeError

__all__ = ["MOST_CLIENTS", "Datagrams"]

MOST_CLIENTS = 256
"""Of one port at once. Further ones are not answered until others have been idle: addresses are easily forged, and
those who were there first must not suffer for it."""
IDLE_S = 60.0
_MOST_WAITING = 16
"""Datagrams of one client that are kept while its socket is being made."""
_AT_ONCE = 64
"""Datagrams that are passed on before others have their turn."""
_DATAGRAM_BYTES = 65536

_Address = Any  # (host, port) or (host, port, flow, scope): the socket module's own


class _Client:
    """Who sends from outside, and its socket inside."""

    def __init__(self, now: float) -> None:
        self.inner: socket.socket | None = None
        self.waiting: list[bytes] = []
        self.seen_at = now


class Datagrams:
    """Passes datagrams between a bound socket and a port inside."""

    def __init__(
        self,
        outer: socket.socket,
        *,
        dial: Callable[[], Awaitable[socket.socket]],
        start: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """Take over *outer* and begin.

        Args:
            outer: bound and non-blocking.
            dial: gives a non-blocking socket addressed to the port inside; raises StockadeError, OSError, TimeoutError.
            start: has a coroutine done by somebody who waits for its end.
        """
        self._outer = outer
        self._dial = dial
        self._start = start
        self._clients: dict[_Address, _Client] = {}
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        self._loop.add_reader(outer, self._inwards)

    def __len__(self) -> int:
        return len(self._clients)

    def forget_idle(self, now: float) -> None:
        """Let go of clients that have been silent for `IDLE_S`."""
        for address in [one for one, client in self._clients.items() if now - client.seen_at >= IDLE_S]:
            self._forget(address)

    def close(self) -> None:
        """Let go of all sockets. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._outer)
        self._outer.close()
        for address in list(self._clients):
            self._forget(address)

    def _inwards(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, address = self._outer.recvfrom(_DATAGRAM_BYTES)
            except OSError:  # none is there; or an earlier answer could not be delivered, which its sender is not told
                return
            client = self._clients.get(address)
            if client is None:
                if len(self._clients) >= MOST_CLIENTS:
                    continue
                client = self._clients[address] = _Client(self._loop.time())
                self._start(self._join(address, client))
            client.seen_at = self._loop.time()
            if client.inner is not None:
                _send(client.inner, data)
            elif len(client.waiting) < _MOST_WAITING:
                client.waiting.append(data)

    async def _join(self, address: _Address, client: _Client) -> None:
        try:
            inner = await self._dial()
        except (StockadeError, OSError, TimeoutError):
            if self._clients.get(address) is client:
                del self._clients[address]  # its next datagram tries again
            return
        if self._clients.get(address) is not client:
            inner.close()
            return
        client.inner = inner
        for data in client.waiting:
            _send(inner, data)
        client.waiting.clear()
        self._loop.add_reader(inner, self._outwards, address, client)

    def _outwards(self, address: _Address, client: _Client) -> None:
        assert client.inner is not None
        for _ in range(_AT_ONCE):
            try:
                data = client.inner.recv(_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:  # nobody listens inside (ICMP port unreachable): it may later
                return
            client.seen_at = self._loop.time()
            try:
                self._outer.sendto(data, address)
            except OSError:
                pass  # as a network drops what it has no room for

    def _forget(self, address: _Address) -> None:
        client = self._clients.pop(address)
        if client.inner is not None:
            self._loop.remove_reader(client.inner)
            client.inner.close()


def _send(inner: socket.socket, data: bytes) -> None:
    try:
        inner.send(data)
    except OSError:
        pass  # no room, or nobody listens inside yet: dropped, as networks do
