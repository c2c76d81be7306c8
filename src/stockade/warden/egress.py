"""The way out of sandboxes, from the outside: a process of its own, and the warden's hold on it.

Forked before the warden gives up its privileges and leaves the host's root: it lives in the host's network and reads
the host's `/etc/resolv.conf`. Before a first byte from a sandbox reaches it, it has given up all privileges (root's
becomes `nobody`); it cannot look into anybody and nobody into it, and it dies with the warden. All that tenants send
outside goes through it and nothing else does: of the warden's processes it is the one that reads what tenants wrote.

Over a packet socket (`protocol`):

    → {"op": "open", "sandbox": name, "slot": 5, "policy": {…}}   with the descriptors of `outgoing.open_outgoing`
    → {"op": "close", "sandbox": name, "slot": 5}
                               ← {"opened": name}, {"opened": name, "error": …}, {"closed": name, "slot": 5}

What a sandbox has moved stands in memory that both share, so that nobody has to ask for it.
"""

import os
import select
import signal
import socket
import struct
from collections.abc import Mapping
from typing import Any

from . import kernel, protocol
from .egress_policy import Policy
from .fields import Refused, said
from .journal import say_traceback
from .outbox import Outbox, close_all

__all__ = ["COUNTERS", "SLOTS", "Egress", "start"]

COUNTERS = struct.Struct("=QQ")
"""Bytes in and bytes out of one sandbox, in its slot of the shared memory."""
SLOTS = 16384
"""Sandboxes that can be open at once."""
_HIGHEST_STANDARD = 2
_MOST_NEWS = 64  # messages in a turn of the warden's loop


class Egress:
    """The warden's side; nothing here waits."""

    def __init__(self, pid: int, channel: socket.socket, counters: int) -> None:
        self.pid = pid
        self.channel = channel
        """To be watched for reading; then call `hear`."""
        self._counters = counters
        self._slots: dict[str, int] = {}
        self._free = list(range(SLOTS - 1, -1, -1))
        self._closing: set[int] = set()
        self._outbox = Outbox(channel)
        self._is_lost = False

    @property
    def is_lost(self) -> bool:
        """The process is dead: no sandbox has a way out any more, and none can be given one."""
        return self._is_lost

    def open(self, name: str, policy: Mapping[str, Any], descriptors: tuple[int, ...]) -> None:
        """Serve a sandbox from now on. The descriptors are ours from here, also when it is refused: they get closed.

        Args:
            name: of a sandbox that is not open.
            policy: as `Policy.parse` reads it.

        Raises:
            Refused: the policy cannot be meant (`invalid`); the process is dead or has no room (`unavailable`).
        """
        try:
            Policy.parse(policy)
            if self._is_lost or not self._free or name in self._slots:
                raise Refused("unavailable", "no way out of the sandbox can be had: restart the warden")
        except (Refused, ValueError) as error:
            close_all(descriptors)
            raise error if isinstance(error, Refused) else Refused("invalid", f"network: {error}") from error
        slot = self._free.pop()
        os.pwrite(self._counters, bytes(COUNTERS.size), slot * COUNTERS.size)
        self._slots[name] = slot
        self._send({"op": "open", "sandbox": name, "slot": slot, "policy": dict(policy)}, descriptors)

    def close(self, name: str) -> tuple[int, int]:
        """Break off all of a sandbox's connections and forget it; its `usage` until now. Idempotent."""
        usage = self.usage(name)
        slot = self._slots.pop(name, None)
        if slot is not None:
            self._closing.add(slot)
            self._send({"op": "close", "sandbox": name, "slot": slot})
        return usage

    def usage(self, name: str) -> tuple[int, int]:
        """Bytes that came in and bytes that went out so far; zeros for a sandbox that is not open."""
        slot = self._slots.get(name)
        if slot is None:
            return 0, 0
        received, sent = COUNTERS.unpack(os.pread(self._counters, COUNTERS.size, slot * COUNTERS.size))
        return received, sent

    def hear(self) -> list[tuple[str, str]]:
        """Take what the process has said: (name, reason) of each sandbox that it could not serve.

        It reads what tenants write, so what it says need not make sense. There may be more; the channel is ready then.
        When it is gone, `is_lost` is set, and the channel must not be watched any longer.
        """
        failed = []
        for _ in range(_MOST_NEWS):
            if self._is_lost:
                break
            try:
                received = protocol.receive(self.channel)
            except BlockingIOError:
                break
            except (OSError, protocol.ProtocolError):
                received = None
            if received is None:
                self._lose()
                break
            message, descriptors = received
            for fd in descriptors:
                os.close(fd)
            slot = message.get("slot")
            if "closed" in message and type(slot) is int and slot in self._closing:
                self._closing.discard(slot)
                self._free.append(slot)
            if "error" in message:
                failed.append((said(message.get("opened"), 64), said(message["error"], 500)))
        if not self._is_lost and not self._outbox.flush():  # what it has answered, it has taken: there is room again
            self._lose()
        return failed

    def shut(self) -> None:
        """Let go of it; it ends by itself then."""
        self._lose()
        self.channel.close()
        os.close(self._counters)

    def _send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        if not self._outbox.put(message, descriptors):
            self._lose()

    def _lose(self) -> None:
        self._is_lost = True
        self._outbox.clear()


def start(title: tuple[int, int, int, int] | None = None) -> Egress:
    """Start the process. To be called while we are in the host's root, and single-threaded.

    Until the first sandbox wants out it sleeps, has loaded nothing and costs nothing.

    Args:
        title: `kernel.find_process_title()`; with it the process goes by a name of its own.

    Raises:
        OSError: it cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    counters = protocol.memory_file("counters")
    os.ftruncate(counters, SLOTS * COUNTERS.size)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _sleep(theirs, counters, title, parent)
            from .egress_process import work  # here: while our files can be read, and in this process only

            work(theirs, counters, parent)
        except BaseException:
            say_traceback()
        finally:
            os._exit(1)
    theirs.close()
    ours.setblocking(False)
    return Egress(pid, ours, counters)


def _sleep(channel: socket.socket, counters: int, title: tuple[int, int, int, int] | None, parent: int) -> None:
    """Hold nothing of the warden's, and wait until it says something."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the warden ends us when it has ended
    last = _HIGHEST_STANDARD
    for fd in sorted({channel.fileno(), counters}):
        kernel.close_range(last + 1, fd - 1)
        last = fd
    kernel.close_range(last + 1)
    if title is not None:
        kernel.seal_process_title("stockade-egress", title)
    kernel.set_dumpable(dumpable=False)
    kernel.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    select.select([channel], [], [])
