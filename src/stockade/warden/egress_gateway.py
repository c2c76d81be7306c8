"""One sandbox's way out, seen from the host: accepts what its programs connect to, decides, connects, relays.

A connection is decided on twice the same way: its numeric destination, as the kernel tells it, is looked at just
before we connect to just that. A name is never resolved by us to connect to it, so there is nothing between the
decision and the connection that a name server could change.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from . import egress_divert
from . import egress_dns as dns
from .egress_divert import Named
from .egress_policy import Policy, number_of
from .egress_relay import Relay, break_off, prepare
from .egress_resolver import Resolver
from .outgoing import INTERNAL

__all__ = ["CONNECTIONS", "IDLE_S", "Budget", "Gateway", "Learned"]

CONNECTIONS = 256
"""A sandbox's at once, those under way included. One more takes the place of one whose program has said all, or is
reset."""
CONNECT_S = 10.0
IDLE_S = 3600.0
"""After so long without a byte a connection is reset."""
_SWEEP_S = 60.0
_QUESTIONS = 64  # a sandbox's DNS queries under way
_STREAMS = 16  # a sandbox's DNS connections
_STREAM_IDLE_S = 10.0
_MOST_QUERY = 4096
_AT_ONCE = 32  # accepted or received in a turn of the loop: the other sandboxes have theirs
_PAUSE_S = 0.1  # when there are no descriptors
_BUFFERS = 32 << 20  # what a sandbox's connections share of the kernel's memory, in each direction
_LEAST_BUFFER, _MOST_BUFFER = 64 << 10, 2 << 20

Result = TypeVar("Result")


@dataclass
class Budget:
    """What all sandboxes share."""

    connections: int
    """That may still be made."""


class Learned:
    """Addresses that answers to allowed names gave lately."""

    _MOST = 4096
    _LEAST_S, _MOST_S = 60, 86400

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def add(self, address: int, lifetime_s: int, now: float) -> None:
        """For as long as the answer holds, at least a minute: programs keep what they looked up for a while."""
        until = max(self._until.pop(address, 0.0), now + min(max(lifetime_s, self._LEAST_S), self._MOST_S))
        self._until[address] = until
        if len(self._until) > self._MOST:
            del self._until[next(iter(self._until))]  # the one that was not named for the longest time

    def knows(self, address: int, now: float) -> bool:
        return self._until.get(address, 0.0) > now

    def __len__(self) -> int:
        return len(self._until)


class Gateway:
    """Owns the descriptors that the sandbox handed out, and every connection of its."""

    def __init__(
        self,
        policy: Policy,
        descriptors: list[int],
        *,
        resolver: Resolver,
        budget: Budget,
        count: Callable[[int, int], None],
    ) -> None:
        """Take over the descriptors (see `outgoing.open_outgoing`) and begin.

        Raises:
            OSError, ValueError: they are something else; they have been closed.
        """
        self._policy, self._resolver, self._budget, self._count = policy, resolver, budget, count
        self._loop = asyncio.get_running_loop()
        self._learned = Learned()
        self._named = Named()
        self._relays: set[Relay] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connecting = self._questions = self._streams = 0
        self._is_open = True
        self._sockets: list[socket.socket] = []
        left = list(descriptors)
        try:
            while left:
                self._sockets.append(socket.socket(fileno=left[0]))
                del left[0]
            self._listener, self._datagrams, self._streamed = self._sockets
            _check(self._listener, socket.SOCK_STREAM, listens=True)
            _check(self._datagrams, socket.SOCK_DGRAM, listens=False)
            _check(self._streamed, socket.SOCK_STREAM, listens=True)
        except BaseException:
            for one in self._sockets:
                one.close()
            for fd in left:
                os.close(fd)
            raise
        for one in self._sockets:
            one.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        self._loop.add_reader(self._datagrams, self._hear)
        self._loop.add_reader(self._streamed, self._accept_stream)
        self._sweep = self._loop.call_later(_SWEEP_S, self._sweep_out)

    @property
    def connections(self) -> int:
        return self._connecting + len(self._relays)

    def close(self) -> None:
        """Break off every connection and let go of the sandbox's network namespace."""
        self._is_open = False
        self._sweep.cancel()
        for one in self._sockets:
            self._loop.remove_reader(one)
            one.close()
        for task in self._tasks:
            task.cancel()
        for relay in list(self._relays):
            relay.abort()

    def _begin(self, work: Coroutine[Any, Any, Result], ended: Callable[[Result | None], None]) -> None:
        """Run *work*, and call *ended* with what it came to: `None` when it was cancelled (maybe before it began)."""
        task = self._loop.create_task(work)
        self._tasks.add(task)

        def end(task: asyncio.Task[Result]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            ended(None if task.cancelled() or error is not None else task.result())
            if error is not None:  # a fault of ours: told on standard error
                self._loop.call_exception_handler({"message": "egress", "exception": error})

        task.add_done_callback(end)

    # ── connections ─────────────────────────────────────────────────────────────────────────────────────────────

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            inner = self._take(self._listener, self._accept)
            if inner is None:
                return
            if self.connections >= CONNECTIONS:
                self._make_room()
            if self.connections >= CONNECTIONS or self._budget.connections <= 0:
                break_off(inner)
                continue
            self._connecting += 1
            self._budget.connections -= 1
            self._begin(self._connect(inner), partial(self._connected, inner))

    def _make_room(self) -> None:
        """Break off the connection that has waited longest for its end since the program ended its half.

        It may be that the program has closed it for good: the two look alike until we have something for it.
        """
        waiting = [relay for relay in self._relays if relay.awaits_the_other]
        if waiting:
            min(waiting, key=lambda relay: relay.touched).abort()

    def _take(self, listener: socket.socket, handler: Callable[[], None]) -> socket.socket | None:
        """A connection that waits; `None` when there is none, or no descriptor for it."""
        try:
            connection = listener.accept()[0]
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        except OSError:  # out of descriptors: look again when some may have come free
            self._loop.remove_reader(listener)
            self._loop.call_later(_PAUSE_S, self._resume, listener, handler)
            return None
        connection.setblocking(False)
        return connection

    def _resume(self, listener: socket.socket, handler: Callable[[], None]) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, handler)

    async def _connect(self, inner: socket.socket) -> socket.socket | None:
        """A connection to where the program wanted to go; `None` when that is refused or there is none to be had."""
        try:
            host, port = inner.getsockname()[:2]
            if self._refusal(host) is not None:
                return None
            target, first = self._target(host, port)
            outer = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            return None
        try:
            size = min(max(_BUFFERS // self.connections, _LEAST_BUFFER), _MOST_BUFFER)
            prepare(outer, size)
            prepare(inner, size)
            async with asyncio.timeout(CONNECT_S):
                await self._loop.sock_connect(outer, target)
                if first:
                    if outer.getsockname() == outer.getpeername():  # nobody listens, and the kernel met itself
                        raise ConnectionRefusedError
                    await self._loop.sock_sendall(outer, first)
        except BaseException as error:
            outer.close()
            if isinstance(error, OSError):  # TimeoutError is one
                return None
            raise
        return outer

    def _connected(self, inner: socket.socket, outer: socket.socket | None) -> None:
        self._connecting -= 1
        if outer is not None and self._is_open:
            self._relays.add(Relay(inner, outer, count=self._count, ended=self._forget))
            return
        self._budget.connections += 1
        break_off(inner)
        if outer is not None:
            break_off(outer)

    def _forget(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self._budget.connections += 1

    def _refusal(self, host: str) -> str | None:
        if host in INTERNAL:  # a program called our listener by its own address
            return "an address of the sandbox's own"
        address = number_of(host)
        is_resolved = self._learned.knows(address, time.monotonic())
        return self._policy.refusal(address, is_own=_is_own(host), is_resolved=is_resolved)

    def _target(self, host: str, port: int) -> tuple[tuple[str, int], bytes]:
        """Where a connection that is not refused leads, and what is sent there before what the program sends."""
        divert = self._policy.divert
        if divert is None or port not in divert.ports:
            return (host, port), b""
        address = number_of(host)
        if not (divert.wants(host) or self._named.knows(address)):
            return (host, port), b""
        names = self._named.of(address, time.monotonic())
        return (egress_divert.HOST, divert.port), divert.line(host, port, names)

    def _sweep_out(self) -> None:
        self._sweep = self._loop.call_later(_SWEEP_S, self._sweep_out)
        since = self._loop.time() - IDLE_S
        for relay in [relay for relay in self._relays if relay.touched < since or relay.is_dead]:
            relay.abort()

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _hear(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, asker = self._datagrams.recvfrom(_MOST_QUERY)
            except OSError:  # nothing more; or an answer of ours that nobody wanted
                return
            if self._questions < _QUESTIONS:  # else it is lost, as datagrams are
                self._questions += 1
                self._begin(self._answer_datagram(data, asker), self._answered)

    async def _answer_datagram(self, data: bytes, asker: tuple[str, int]) -> None:
        try:
            query = dns.Query.parse(data)
            answer = dns.cut(query, await self._answer(query), most=query.size)
            self._count(len(answer), len(data))
            self._datagrams.sendto(answer, asker)
        except (dns.Malformed, OSError):  # who asks so, or has gone, gets no answer
            pass

    def _answered(self, _: None) -> None:
        self._questions -= 1

    def _accept_stream(self) -> None:
        for _ in range(_AT_ONCE):
            connection = self._take(self._streamed, self._accept_stream)
            if connection is None:
                return
            if self._streams >= _STREAMS:
                break_off(connection)
                continue
            self._streams += 1
            self._begin(self._answer_stream(connection), partial(self._stream_ended, connection))

    async def _answer_stream(self, connection: socket.socket) -> None:
        """Questions and answers, each with its length before it, one at a time."""
        with contextlib.suppress(dns.Malformed, OSError):
            while True:
                async with asyncio.timeout(_STREAM_IDLE_S):
                    length = int.from_bytes(await self._exactly(connection, 2), "big")
                    if length > _MOST_QUERY:
                        return
                    query = dns.Query.parse(await self._exactly(connection, length))
                answer = dns.cut(query, await self._answer(query), most=dns.LONGEST)
                self._count(len(answer), length)
                async with asyncio.timeout(_STREAM_IDLE_S):
                    await self._loop.sock_sendall(connection, len(answer).to_bytes(2, "big") + answer)

    def _stream_ended(self, connection: socket.socket, _: None) -> None:
        self._streams -= 1
        connection.close()

    async def _exactly(self, connection: socket.socket, count: int) -> bytes:
        """Raises ConnectionError at the end."""
        data = bytearray()
        while len(data) < count:
            part = await self._loop.sock_recv(connection, count - len(data))
            if not part:
                raise ConnectionError("hung up")
            data += part
        return bytes(data)

    async def _answer(self, query: dns.Query) -> bytes:
        """The name server's answer, or one of our own where we refuse or know better."""
        if not query.is_of_a_kind_to_pass_on:
            return query.answer(dns.NOT_IMPLEMENTED)
        if not self._policy.allows_name(query.name):
            return query.answer(dns.REFUSED)
        divert = self._policy.divert
        is_diverted = divert is not None and divert.wants(query.name)
        if query.type == dns.TYPE_AAAA or (is_diverted and query.type in dns.TYPES_OF_SERVICE):
            return query.answer()  # the name may be there; there is no way to such an address, or we must see the name
        answer = await self._resolver.ask(query)
        if answer is None:
            return query.answer(dns.SERVER_FAILURE)
        if self._policy.domains is not None or is_diverted:
            try:
                found = dns.addresses(query, answer)
            except dns.Malformed:
                return query.answer(dns.SERVER_FAILURE)
            now = time.monotonic()
            for address, lifetime_s in found:
                if self._policy.domains is not None:
                    self._learned.add(address, lifetime_s, now)
                if is_diverted:
                    self._named.add(address, query.name, lifetime_s, now)
        return answer


def _check(one: socket.socket, kind: int, *, listens: bool) -> None:
    """Raises ValueError: it is no IPv4 socket of that kind, and would only ever be ready for what we cannot do."""
    is_listening = bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if one.family != socket.AF_INET or one.type != kind or is_listening != listens:
        raise ValueError("not the sockets of a sandbox's way out")


def _is_own(host: str) -> bool:
    """Whether an address is this host's: then it is also where we would call it from.

    Raises:
        OSError: there is no way there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        probe.connect((host, 9))
        own: str = probe.getsockname()[0]
        return own == host
