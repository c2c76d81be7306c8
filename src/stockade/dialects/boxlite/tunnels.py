"""Tunnels: an address of this server's that leads to one port of a box, until it is revoked or the box stops.

A client says `CONNECT` (HTTP/1.1), and has the bytes to itself once it is answered; whoever says anything else is passed
on as they are, so that a browser or curl reach a service by the same address. Who may ask for a tunnel has the box's
key; who may use it is whoever reaches the address, as with every port that is published.

| threat | mechanism |
|---|---|
| clients that connect and say nothing, or never end their request | a deadline and a bound for it |
| a flood of connections takes the server's descriptors | bounds for each tunnel and each key; slow takers slow their senders down |
| a tunnel outlives its box and leads to another's port | it leads to one sandbox, which no other box ever has |
"""  # noqa: E501

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import structlog

from stockade.dialects.boxlite.engine_needs import Boxes
from stockade.engine.ports import DIAL_S, Dialler
from stockade.engine.relays import READ_BYTES, Relay, is_its_own_peer, set_no_delay
from stockade.engine.tasks import Tasks
from stockade.errors import Conflict, LimitExceeded, NotFound, StockadeError, Unavailable
from stockade.model import Actor, Box, NetworkMode, Protocol, Sandbox

__all__ = ["Tunnels"]

log = structlog.get_logger()

MOST_CONNECTIONS = 256
"""Of one tunnel at once."""
HEAD_S = 30.0
"""Time for the first bytes of a connection, and all of a `CONNECT`."""
MOST_HEAD_BYTES = 16 * 1024
SWEEP_S = 5.0
"""Between two looks for tunnels whose box has stopped, and connections that are idle."""
_PAUSE_S = 1.0
_BACKLOG = 64
_CONNECT = b"CONNECT "
_END = b"\r\n\r\n"
_TAKEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
_NOBODY = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(kw_only=True, eq=False)
class _Tunnel:
    actor: Actor
    box_id: str
    sandbox_id: str
    port: int
    listener: socket.socket
    relays: set[Relay] = field(default_factory=set)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """The box is in use while somebody is connected."""
    connections: int = 0
    is_closed: bool = False


class Tunnels:
    """All tunnels of the server. All in the loop that `running` was entered in."""

    def __init__(self, *, host: str, dialler: Dialler, boxes: Boxes, most_of_actor: int, idle_s: float) -> None:
        """Nothing is opened yet.

        Args:
            host: name or address to listen on.
            most_of_actor: tunnels of one account.
            idle_s: a connection on which nothing has passed for so long is closed.
        """
        self._host = host
        self._dialler = dialler
        self._boxes = boxes
        self._most = most_of_actor
        self._idle_s = idle_s
        self._tunnels: dict[tuple[str, int], _Tunnel] = {}
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._tasks = Tasks()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry connections during the block; at its end all are closed."""
        async with self._tasks.running():
            self._tasks.background(self._sweep(), name="tunnels")
            try:
                yield
            finally:
                for one in list(self._tunnels.values()):
                    self._close(one, at_once=True)

    async def open(self, actor: Actor, box: Box, sandbox: Sandbox, port: int) -> int:
        """The port of this host that leads to a port of a box that runs as *sandbox*; the same one when asked again.

        Raises:
            Conflict: nothing may reach the box.
            LimitExceeded: the account has as many as it may.
            Unavailable: no port can be listened on.
        """
        if box.network.mode is not NetworkMode.EXPOSED:
            raise Conflict(f"box {box.id} cannot be reached from outside: its inbound network is disabled")
        found = self._tunnels.get((box.id, port))
        if found is not None and found.sandbox_id == sandbox.id:
            return self._number(found)
        if found is not None:
            self._close(found, at_once=True)
        if sum(one.actor.account_id == actor.account_id for one in self._tunnels.values()) >= self._most:
            raise LimitExceeded(f"{self._most} tunnels are open already; revoke one of them")
        listener = await self._listener()
        if (other := self._tunnels.get((box.id, port))) is not None:  # somebody else asked for the same meanwhile
            listener.close()
            return self._number(other)
        tunnel = _Tunnel(actor=actor, box_id=box.id, sandbox_id=sandbox.id, port=port, listener=listener)
        self._tunnels[box.id, port] = tunnel
        asyncio.get_running_loop().add_reader(listener, self._accept, tunnel)
        log.info("tunnel.opened", box_id=box.id, port=port, host_port=self._number(tunnel))
        return self._number(tunnel)

    def revoke(self, box_id: str, port: int) -> None:
        """Take no more connections to a port of a box; those that are there stay. Idempotent."""
        tunnel = self._tunnels.get((box_id, port))
        if tunnel is not None:
            self._close(tunnel, at_once=False)

    def close_box(self, box_id: str) -> None:
        """Close all of a box's, with what is connected. Idempotent."""
        for tunnel in [one for one in self._tunnels.values() if one.box_id == box_id]:
            self._close(tunnel, at_once=True)

    @staticmethod
    def _number(tunnel: _Tunnel) -> int:
        number: int = tunnel.listener.getsockname()[1]
        return number

    async def _listener(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DIAL_S):
                found = await loop.getaddrinfo(self._host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            listener = socket.socket(family, kind, protocol)
            try:
                listener.setblocking(False)
                listener.bind(address)
                listener.listen(_BACKLOG)
            except BaseException:
                listener.close()
                raise
        except OSError as error:
            raise Unavailable(f"cannot listen on {self._host}: {error.strerror}") from error
        return listener

    def _close(self, tunnel: _Tunnel, *, at_once: bool) -> None:
        if not tunnel.is_closed:
            tunnel.is_closed = True
            asyncio.get_running_loop().remove_reader(tunnel.listener)
            tunnel.listener.close()
            if self._tunnels.get((tunnel.box_id, tunnel.port)) is tunnel:
                del self._tunnels[tunnel.box_id, tunnel.port]
        if at_once:
            for relay in list(tunnel.relays):
                relay.reset()

    def _accept(self, tunnel: _Tunnel) -> None:
        try:
            outer, _ = tunnel.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptor is left: they wait in the kernel until one is
            log.warning("tunnel.accept_failed", box_id=tunnel.box_id, error=error.strerror)
            asyncio.get_running_loop().remove_reader(tunnel.listener)
            self._tasks.background(self._listen_again(tunnel), name="tunnel")
            return
        outer.setblocking(False)
        if tunnel.connections >= MOST_CONNECTIONS:
            outer.close()
            return
        self._count(tunnel, 1)
        try:
            self._tasks.background(self._serve(tunnel, outer), name="tunnel")
        except Unavailable:  # the server ends
            outer.close()
            self._count(tunnel, -1)

    async def _listen_again(self, tunnel: _Tunnel) -> None:
        await asyncio.sleep(_PAUSE_S)
        if not tunnel.is_closed:
            asyncio.get_running_loop().add_reader(tunnel.listener, self._accept, tunnel)

    def _count(self, tunnel: _Tunnel, change: int) -> None:
        if change > 0 and not tunnel.connections:
            tunnel.held.enter_context(self._boxes.using(tunnel.box_id))
        tunnel.connections += change
        if not tunnel.connections:
            tunnel.held.close()

    async def _serve(self, tunnel: _Tunnel, outer: socket.socket) -> None:
        """Bring a connection inside, and let the bytes flow."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._count, tunnel, -1)
            undo.callback(outer.close)
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(HEAD_S):
                    said = await self._head(outer)
                if said is None:
                    return
                inner = await self._dial(tunnel)
                undo.callback(inner.close)
                async with asyncio.timeout(HEAD_S):
                    if said.startswith(_CONNECT):
                        await loop.sock_sendall(outer, _TAKEN)
                        said = said.partition(_END)[2]
                    if said:
                        await loop.sock_sendall(inner, said)
            except (OSError, TimeoutError):
                return
            except (NotFound, Conflict):
                self._close(tunnel, at_once=False)  # the sandbox has ended
                return
            except StockadeError:
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(DIAL_S):
                        await loop.sock_sendall(outer, _NOBODY)
                return
            undo.pop_all()
        for one in (outer, inner):
            set_no_delay(one)
        relay = Relay(outer, inner, buffer=self._buffer, on_end=functools.partial(self._left, tunnel))
        relay.idle_since = loop.time()
        tunnel.relays.add(relay)

    async def _head(self, outer: socket.socket) -> bytes | None:
        """What came first: all of a `CONNECT`, with what came behind it, or the beginning of anything else."""
        loop = asyncio.get_running_loop()
        said = b""
        while True:
            part = await loop.sock_recv(outer, MOST_HEAD_BYTES)
            if not part:
                return None
            said += part
            if not said.startswith(_CONNECT[: len(said)]):
                return said
            if _END in said:
                return said
            if len(said) > MOST_HEAD_BYTES:
                await loop.sock_sendall(outer, _TOO_LONG)
                return None

    async def _dial(self, tunnel: _Tunnel) -> socket.socket:
        async with asyncio.timeout(DIAL_S):
            inner = await self._dialler.dial(tunnel.sandbox_id, tunnel.port, Protocol.TCP)
        if is_its_own_peer(inner):
            inner.close()
            raise Unavailable(f"nothing listens on port {tunnel.port} (yet)")
        return inner

    def _left(self, tunnel: _Tunnel, relay: Relay) -> None:
        tunnel.relays.discard(relay)
        self._count(tunnel, -1)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = asyncio.get_running_loop().time()
            for tunnel in list(self._tunnels.values()):
                for relay in list(tunnel.relays):
                    if relay.has_moved:
                        relay.has_moved = False
                        relay.idle_since = now
                    elif now - relay.idle_since >= self._idle_s:
                        relay.reset()
                if not await self._is_alive(tunnel):
                    self._close(tunnel, at_once=True)

    async def _is_alive(self, tunnel: _Tunnel) -> bool:
        try:
            async with asyncio.timeout(DIAL_S):
                box = await self._boxes.get(tunnel.actor, tunnel.box_id)
        except NotFound:
            return False
        except (StockadeError, TimeoutError):
            return True  # nobody can tell now
        return box.sandbox_id == tunnel.sandbox_id and box.network.mode is NetworkMode.EXPOSED
