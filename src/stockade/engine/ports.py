"""Exposed ports: which port of this host leads to which port of a sandbox, and who carries the bytes.

A port of the host is taken when the sandbox is made and stays the sandbox's for its life, whether something listens
inside or not: connections are made inside when they come, one by one. What nobody takes inside is refused as the kernel
would refuse it.

`Port.BOUND` leads to whichever port of the sandbox is bound (`engine.bindings`) at the moment in which a connection
comes; to nothing while none is. It is reached whatever the network mode is: who binds a port acts from outside. There a
connection ends in an orderly way where nobody takes it, since clients and load balancers probe the port.

| threat | mechanism |
|---|---|
| a flood of connections to one sandbox stalls the backend for all | few dials at once for each; each has a deadline |
| … or takes the server's descriptors and memory | bounds for each and for all; slow takers slow their senders down |
| connections that lead nowhere are kept waiting | they count, and are closed after `PROBE_S` |
| a dial on the loopback meets its own other end (TCP simultaneous open) | that is no service: refused |
| the link to a sandbox that has ended leads to another one's | a port is given out again after all others have been |
"""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from stockade.engine.datagrams import Datagrams
from stockade.engine.host_ports import HostPorts
from stockade.engine.relays import READ_BYTES, Relay, end, is_its_own_peer, reset, set_no_delay
from stockade.engine.tasks import Tasks
from stockade.errors import BackendLost, Conflict, LimitExceeded, NotFound, StockadeError, Unavailable
from stockade.model import Network, NetworkMode, Port
from stockade.model import Protocol as Transport

__all__ = ["FIRST_PORT", "LAST_PORT", "MOST_CONNECTIONS", "MOST_OF_ALL", "Dialler", "Ports"]

log = structlog.get_logger()

FIRST_PORT, LAST_PORT = 20000, 29999
"""Below those that outgoing connections of this host are given (32768 to 60999, ip(7)): one of these could have a
sandbox's port just when the server is started again."""
MOST_CONNECTIONS = 2048
"""Of one sandbox at once, over all its ports and the HTTP proxy."""
MOST_OF_ALL = 8192
"""Connections of all sandboxes; each takes two descriptors."""
DIAL_S = 5.0
"""Time to connect inside, waiting for a turn included."""
BOUND_DIAL_S = 30.0
"""The same for the bound port, where a thousand may come at once to a service that takes them one by one."""
PROBE_S = 0.1
"""A connection that leads nowhere is closed when its client has sent something, after this time at the latest."""
LINGER_S = 5.0
"""Once a sandbox has ended, what it said last may take so long to reach its client."""
_DIALS_AT_ONCE = 16
_ACCEPTS_AT_ONCE = 64
_PAUSE_S = 1.0
_SWEEP_S = 15.0


class Dialler(Protocol):
    """What connects inside: `Sandboxing` does."""

    async def dial(self, name: str, port: int, protocol: Transport) -> socket.socket:
        """A non-blocking socket; raises NotFound, Conflict, Unavailable."""
        ...


@dataclass(kw_only=True, eq=False)
class _Served:
    """A sandbox whose ports are open."""

    id: str
    ports: tuple[Port, ...]
    """Those that are open, with the host's."""
    listeners: list[socket.socket] = field(default_factory=list)
    datagrams: list[Datagrams] = field(default_factory=list)
    joining: set[socket.socket] = field(default_factory=set)
    """Accepted, not yet connected inside."""
    relays: set[Relay] = field(default_factory=set)
    connections: int = 0
    dials: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_DIALS_AT_ONCE))
    is_closed: bool = False
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    """No relay is left, once it is closed."""

    def exposes(self, port: int, protocol: Transport) -> bool:
        """Whether *port* is one of them; `Port.BOUND` is no number that could be asked for."""
        return port != Port.BOUND and any(one.container == port and one.protocol is protocol for one in self.ports)


class Ports:
    """Takes ports of this host for sandboxes and carries what comes. All in the loop that `running` was entered in."""

    def __init__(
        self,
        dialler: Dialler,
        *,
        host: str = "127.0.0.1",
        first: int = FIRST_PORT,
        last: int = LAST_PORT,
        idle_s: float = 3600.0,
        connections: int = MOST_CONNECTIONS,
        connections_of_all: int = MOST_OF_ALL,
        bound: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            host: IP address to listen on.
            first, last: the ports that are given out, both included.
            idle_s: a connection on which nothing has passed for so long is closed, `Port.BOUND`'s as well.
            connections, connections_of_all: as many at once for one sandbox, and for all; further ones are reset.
            bound: the port of a sandbox that is bound; see the attribute of that name.

        Raises:
            ValueError: *host* is no IP address.
        """
        self.bound = bound
        """Which port of a sandbox is bound, by its id; `None` for none. Asked when a connection to `Port.BOUND` comes.
        Can be set later: who knows (`Lives.bound_port`) is made after the ports."""
        self._dialler = dialler
        self._host_ports = HostPorts(host, first=first, last=last)
        self._idle_s = idle_s
        self._most = connections
        self._most_of_all = connections_of_all
        self._served: dict[str, _Served] = {}
        self._ending: set[_Served] = set()
        self._connections = 0
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._tasks = Tasks()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry connections during the block; at its end all are reset and every port is let go."""
        async with self._tasks.running():
            self._start(self._sweep())
            try:
                yield
            finally:
                for served in list(self._served.values()):
                    self._shut(served)
                self._served.clear()
                for served in list(self._ending):
                    self._reset(served)

    async def assign(self, sandbox_id: str, network: Network) -> Network:
        """Open a port of the host for each of the ports in *network*, the one that it names or the next that is free:
        all of them or none.

        Returns:
            *network* with the ports of the host. Those that its mode does not expose are as they were.

        Raises:
            Unavailable: a port that is named is taken, none of the range is free, or the host's address is not there.
            Conflict: the sandbox has its ports already.
        """
        wanted = _shown(network)
        if not wanted:
            return network
        if sandbox_id in self._served:
            raise Conflict(f"the ports of sandbox {sandbox_id} are open already")
        with contextlib.ExitStack() as stack:
            taken: dict[Port, socket.socket] = {}
            for port in sorted(wanted, key=lambda one: one.host == 0):  # what is named first, or another might get it
                taken[port] = stack.enter_context(self._host_ports.take(port))
            stack.pop_all()
        opened = {port: replace(port, host=one.getsockname()[1]) for port, one in taken.items()}
        served = self._served[sandbox_id] = _Served(id=sandbox_id, ports=tuple(opened[port] for port in wanted))
        for port, one in taken.items():
            self._listen(served, opened[port], one)
        return replace(network, ports=tuple(opened.get(port, port) for port in network.ports))

    def open(self, sandbox_id: str, network: Network) -> None:
        """Open the ports that a sandbox had before the server was started again. Idempotent.

        A port that somebody else has meanwhile taken is tried again, each second, until it is free: it is in links that
        people hold.
        """
        had = tuple(port for port in _shown(network) if port.host)
        if sandbox_id in self._served or not had:
            return
        served = self._served[sandbox_id] = _Served(id=sandbox_id, ports=had)
        for port in had:
            if not self._reopen(served, port):
                log.warning("ports.taken", sandbox_id=sandbox_id, host_port=port.host)
                self._start(self._reclaim(served, port))

    def close(self, sandbox_id: str) -> None:
        """Let go of a sandbox's ports. Idempotent.

        New connections are refused at once; those that are there have `LINGER_S` to pass on what the sandbox said last.
        """
        served = self._served.pop(sandbox_id, None)
        if served is None:
            return
        self._shut(served)
        if served.relays:
            self._start(self._linger(served))

    def exposes(self, sandbox_id: str, port: int) -> bool:
        """Whether *port* (TCP) of a sandbox can be reached from outside."""
        served = self._served.get(sandbox_id)
        return served is not None and served.exposes(port, Transport.TCP)

    @contextlib.asynccontextmanager
    async def connected(self, sandbox_id: str, port: int) -> AsyncIterator[socket.socket]:
        """A connection to an exposed TCP port, for who speaks a protocol over it; closed at the end of the block.

        Raises:
            NotFound: the port is not exposed, or there is no such sandbox.
            LimitExceeded: too many connections are open already.
            Unavailable: nothing listens there (yet).
            TimeoutError: nothing answers within `DIAL_S`.
        """
        served = self._served.get(sandbox_id)
        if served is None or not served.exposes(port, Transport.TCP):
            raise NotFound(f"no port {port} of a sandbox {sandbox_id!r} is exposed here")
        if self._is_full(served):
            raise LimitExceeded(f"sandbox {sandbox_id} has too many connections; retry when some have ended")
        self._count_in(served)
        try:
            with await self._dial(served, port, Transport.TCP) as connection:
                yield connection
        finally:
            self._count_out(served)

    def _reopen(self, served: _Served, port: Port) -> bool:
        try:
            taken = self._host_ports.open(port.host, port.protocol)
        except OSError:
            return False
        self._listen(served, port, taken)
        return True

    async def _reclaim(self, served: _Served, port: Port) -> None:
        while not served.is_closed:
            await asyncio.sleep(_PAUSE_S)
            if not served.is_closed and self._reopen(served, port):
                log.info("ports.reopened", sandbox_id=served.id, host_port=port.host)
                return

    def _listen(self, served: _Served, port: Port, taken: socket.socket) -> None:
        if port.protocol is Transport.TCP:
            served.listeners.append(taken)
            asyncio.get_running_loop().add_reader(taken, self._accept, served, port, taken)
        else:
            dial = functools.partial(self._dial, served, port.container, Transport.UDP)
            served.datagrams.append(Datagrams(taken, dial=dial, start=self._start))

    def _accept(self, served: _Served, port: Port, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                outer, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor is left: they wait in the kernel until one is
                log.warning("ports.accept_failed", sandbox_id=served.id, error=error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                self._start(self._resume(served, port, listener))
                return
            outer.setblocking(False)
            if self._is_full(served):
                reset(outer)
            else:
                self._begin(served, port, outer)

    async def _resume(self, served: _Served, port: Port, listener: socket.socket) -> None:
        await asyncio.sleep(_PAUSE_S)
        if not served.is_closed:
            asyncio.get_running_loop().add_reader(listener, self._accept, served, port, listener)

    def _begin(self, served: _Served, port: Port, outer: socket.socket) -> None:
        """See to a connection that has been accepted."""
        self._count_in(served)
        is_bound = port.container == Port.BOUND
        # Chosen now: what is bound later counts for later connections.
        target = self.bound(served.id) if is_bound else port.container
        if target is None:
            self._turn_away(served, outer)
        else:
            served.joining.add(outer)
            self._start(self._join(served, target, outer, is_bound=is_bound))

    async def _join(self, served: _Served, target: int, outer: socket.socket, *, is_bound: bool) -> None:
        """Connect inside and let the bytes flow; what cannot be connected is refused."""
        try:
            inner = await self._dial(served, target, Transport.TCP, is_bound=is_bound)
        except (StockadeError, TimeoutError):
            self._refuse(served, outer, is_orderly=is_bound)
            return
        except BaseException:
            self._refuse(served, outer)
            raise
        if outer not in served.joining:  # too late: the sandbox has ended
            inner.close()
            return
        served.joining.discard(outer)
        for one in (outer, inner):
            set_no_delay(one)
        relay = Relay(outer, inner, buffer=self._buffer, on_end=functools.partial(self._left, served))
        relay.idle_since = asyncio.get_running_loop().time()
        served.relays.add(relay)

    def _turn_away(self, served: _Served, outer: socket.socket) -> None:
        """Close a connection that leads nowhere, once its client has sent something or has had the time for it."""

        async def probe() -> None:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(PROBE_S):
                    await asyncio.get_running_loop().sock_recv(outer, 1)

        def done(_: object) -> None:
            end(outer, self._buffer)
            self._count_out(served)

        # When it is done, not at its end: one that is cancelled before its first step has none.
        self._tasks.start(probe(), name="ports").add_done_callback(done)

    def _refuse(self, served: _Served, outer: socket.socket, *, is_orderly: bool = False) -> None:
        if outer in served.joining:
            served.joining.discard(outer)
            if is_orderly:
                end(outer, self._buffer)
            else:
                reset(outer)
            self._count_out(served)

    async def _dial(self, served: _Served, port: int, protocol: Transport, *, is_bound: bool = False) -> socket.socket:
        """Raises Unavailable, TimeoutError."""
        within_s = BOUND_DIAL_S if is_bound else DIAL_S
        try:
            async with asyncio.timeout(within_s), served.dials:
                inner = await self._dialler.dial(served.id, port, protocol)
        except TimeoutError:
            raise TimeoutError(f"port {port} of sandbox {served.id} took no connection within {within_s:g} s") from None
        except BackendLost:
            raise
        except (StockadeError, OSError) as error:
            # Also where the sandbox has ended: who opened its ports is about to close them.
            raise Unavailable(f"nothing listens on port {port} of sandbox {served.id} (yet)") from error
        if protocol is Transport.TCP and is_its_own_peer(inner):
            inner.close()
            raise Unavailable(f"nothing listens on port {port} of sandbox {served.id} (yet)")
        return inner

    def _left(self, served: _Served, relay: Relay) -> None:
        served.relays.discard(relay)
        self._count_out(served)
        if served.is_closed and not served.relays:
            served.drained.set()

    def _is_full(self, served: _Served) -> bool:
        return served.connections >= self._most or self._connections >= self._most_of_all

    def _count_in(self, served: _Served) -> None:
        served.connections += 1
        self._connections += 1

    def _count_out(self, served: _Served) -> None:
        served.connections -= 1
        self._connections -= 1

    def _shut(self, served: _Served) -> None:
        """Take no more; what is connected stays until `_reset`."""
        served.is_closed = True
        loop = asyncio.get_running_loop()
        for listener in served.listeners:
            loop.remove_reader(listener)
            listener.close()
        for one in served.datagrams:
            one.close()
        for outer in list(served.joining):
            self._refuse(served, outer)
        if served.relays:
            self._ending.add(served)

    async def _linger(self, served: _Served) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                await served.drained.wait()
        except TimeoutError:
            pass
        self._reset(served)

    def _reset(self, served: _Served) -> None:
        for relay in list(served.relays):
            relay.reset()
        self._ending.discard(served)

    async def _sweep(self) -> None:
        """Close what has been idle for too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._idle_s / 4))
            now = loop.time()
            for served in self._served.values():
                for relay in list(served.relays):
                    if relay.has_moved:
                        relay.has_moved = False
                        relay.idle_since = now
                    elif now - relay.idle_since >= self._idle_s:
                        relay.reset()
                for one in served.datagrams:
                    one.forget_idle(now)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.background(work, name="ports")


def _shown(network: Network) -> tuple[Port, ...]:
    """The ports of *network* that are reached from outside."""
    is_exposed = network.mode is NetworkMode.EXPOSED
    return tuple(port for port in network.ports if is_exposed or port.container == Port.BOUND)
