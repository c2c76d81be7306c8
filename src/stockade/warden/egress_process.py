"""The egress process itself; see `egress`. Imported in that process only: the warden has no use for an event loop."""

import asyncio
import mmap
import os
import resource
import signal
import socket
import sys
import traceback
from collections import deque
from functools import partial
from typing import Any, NoReturn

from . import kernel, protocol
from .egress import COUNTERS, SLOTS
from .egress_gateway import Budget, Gateway
from .egress_policy import Policy
from .egress_resolver import Resolver

__all__ = ["work"]

_NOBODY = 65534
_SPARE_DESCRIPTORS = 256  # beside connections: name servers, the sandboxes' own sockets
_MOST_CONNECTIONS = 16384


def work(channel: socket.socket, counters: int, parent: int) -> NoReturn:
    """Give up everything, then serve the warden until it is gone. Never returns."""
    _give_up(parent)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    connections = min(max(16, (limit - _SPARE_DESCRIPTORS) // 2), _MOST_CONNECTIONS)
    try:
        asyncio.run(_serve(channel, counters, Budget(connections)))
    finally:
        os._exit(0)


def _give_up(parent: int) -> None:
    """From here on we can do no more than anybody on this host."""
    if os.geteuid() == 0:
        kernel.drop_bounding_set()
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    kernel.drop_capabilities()
    kernel.set_no_new_privileges()
    kernel.set_dumpable(dumpable=False)
    kernel.set_parent_death_signal(signal.SIGKILL)  # after the ids: changing them clears it
    if os.getppid() != parent:
        os._exit(0)


async def _serve(channel: socket.socket, counters: int, budget: Budget) -> None:
    with mmap.mmap(counters, SLOTS * COUNTERS.size) as memory:
        os.close(counters)
        egress = _Egress(channel, memory, budget)
        await egress.over.wait()
        egress.close()


class _Egress:
    """Does what the warden says."""

    def __init__(self, channel: socket.socket, memory: mmap.mmap, budget: Budget) -> None:
        self.over = asyncio.Event()
        self._channel, self._memory, self._budget = channel, memory, budget
        self._gateways: dict[str, Gateway] = {}
        self._resolver = Resolver()
        self._outbox: deque[dict[str, Any]] = deque()
        self._loop = asyncio.get_running_loop()
        channel.setblocking(False)
        self._loop.add_reader(channel, self._hear)

    def close(self) -> None:
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        for gateway in self._gateways.values():
            gateway.close()

    def _hear(self) -> None:
        try:
            received = protocol.receive(self._channel)
        except BlockingIOError:
            return
        except (OSError, protocol.ProtocolError):
            received = None
        if received is None:
            self.over.set()
            return
        message, descriptors = received
        try:
            self._obey(message, descriptors)
        except Exception:  # ours to mend, and yet no reason to end what others have open
            traceback.print_exc(file=sys.stderr)

    def _obey(self, message: dict[str, Any], descriptors: list[int]) -> None:
        operation, name = message["op"], message["sandbox"]
        if operation == "open":
            error = self._open(name, message["slot"], message["policy"], descriptors)
            self._tell({"opened": name} | ({"error": error} if error else {}))
        elif operation == "close":
            gateway = self._gateways.pop(name, None)
            if gateway is not None:
                gateway.close()
            self._tell({"closed": name, "slot": message["slot"]})

    def _open(self, name: str, slot: int, policy: dict[str, Any], descriptors: list[int]) -> str | None:
        """Begin to serve a sandbox; what was wrong, if anything."""
        place = slot * COUNTERS.size
        COUNTERS.pack_into(self._memory, place, 0, 0)
        try:
            parsed = Policy.parse(policy)
        except ValueError as error:
            for fd in descriptors:
                os.close(fd)
            return str(error)
        try:
            self._gateways[name] = Gateway(
                parsed,
                descriptors,
                resolver=self._resolver,
                budget=self._budget,
                count=partial(self._count, place, [0, 0]),
            )
        except (OSError, ValueError) as error:
            return str(error)
        return None

    def _count(self, place: int, sums: list[int], received: int, sent: int) -> None:
        sums[0] += received
        sums[1] += sent
        COUNTERS.pack_into(self._memory, place, sums[0], sums[1])

    def _tell(self, message: dict[str, Any]) -> None:
        self._outbox.append(message)
        self._flush()

    def _flush(self) -> None:
        while self._outbox:
            try:
                protocol.send(self._channel, self._outbox[0])
            except BlockingIOError:
                self._loop.add_writer(self._channel, self._flush)
                return
            except OSError:
                self.over.set()
                return
            self._outbox.popleft()
        self._loop.remove_writer(self._channel)
