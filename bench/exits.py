"""Every process that ends while we listen, with its exact CPU time: the kernel's accounting (taskstats over netlink).

Sandboxes live for milliseconds: whoever looks at /proc now and then does not see them. The kernel tells those who ask
about each task that ends, whoever's child it was. The words stay in the socket's buffer until the end, so that
listening takes no time from what is measured. A task is told of before it gives its memory back: what that
costs is seen only by the parent that reaps it.

https://docs.kernel.org/accounting/taskstats.html
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bench.measure import BenchError
from bench.processes import Usage

__all__ = ["Ended", "Exits", "listening"]

_NETLINK_GENERIC = 16
_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_TASKSTATS_CMD_GET = 1
_REGISTER_CPUMASK, _DEREGISTER_CPUMASK = 3, 4
_TYPE_STATS, _TYPE_AGGR_PID = 3, 4
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBxx")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER_BYTES = 512 << 20
"""About two kilobytes a word, as the kernel counts; only what is used is allocated."""

_RUN_VIRTUAL_NS = 72
"""Offsets in struct taskstats, which the kernel only ever extends."""
_IDS = 128
_TIMES_US = 152
_SWITCHES = 272
_LENGTH = 288


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One task that has ended: a process, or a thread of one."""

    pid: int
    parent: int
    usage: Usage


class Exits:
    """What has ended since `listening` began."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.missed = False
        """Whether the kernel had more to tell than the buffer held."""

    def collect(self) -> list[Ended]:
        """Take what has come, in the order in which it happened on each processor."""
        found: list[Ended] = []
        while True:
            try:
                received = self._channel.recv(65536)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS
                self.missed = True
                continue
            found += _ended(received)


@contextlib.contextmanager
def listening() -> Iterator[Exits]:
    """Have the kernel tell us of every task that ends.

    Raises:
        BenchError: it does not: we are not root, or it is built without.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as channel:
        try:
            channel.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), _BUFFER_BYTES)
            channel.bind((0, 0))
            channel.settimeout(5.0)
            family = _family(channel)
            processors = f"0-{(os.cpu_count() or 1) - 1}".encode() + b"\0"
            _ask(channel, family, _TASKSTATS_CMD_GET, _attribute(_REGISTER_CPUMASK, processors))
            channel.setblocking(False)
        except OSError as error:
            raise BenchError(f"the kernel's accounting of ended processes cannot be had: {error}") from error
        try:
            yield Exits(channel)
        finally:
            with contextlib.suppress(OSError):
                message = _attribute(_DEREGISTER_CPUMASK, processors)
                channel.send(_message(family, _TASKSTATS_CMD_GET, message))


def _family(channel: socket.socket) -> int:
    channel.send(_message(_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _attribute(_CTRL_ATTR_FAMILY_NAME, b"TASKSTATS\0")))
    received = channel.recv(65536)
    if _HEADER.unpack_from(received)[1] == _NLMSG_ERROR:
        raise OSError("this kernel is built without taskstats")
    attributes = dict(_attributes(received[_HEADER.size + _GENERIC.size :]))
    return int.from_bytes(attributes[_CTRL_ATTR_FAMILY_ID], "little")


def _ask(channel: socket.socket, family: int, command: int, attributes: bytes) -> None:
    """Send, and wait for the kernel's word that it was understood."""
    channel.send(_message(family, command, attributes, acknowledge=True))
    received = channel.recv(65536)
    number = -int.from_bytes(received[_HEADER.size : _HEADER.size + 4], "little", signed=True)
    if number:
        raise OSError(number, os.strerror(number))


def _message(family: int, command: int, attributes: bytes, *, acknowledge: bool = False) -> bytes:
    body = _GENERIC.pack(command, 1) + attributes
    flags = _NLM_F_REQUEST | (4 if acknowledge else 0)
    return _HEADER.pack(_HEADER.size + len(body), family, flags, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4


def _ended(received: bytes) -> Iterator[Ended]:
    """The tasks of one datagram. A process with threads is told once more as a whole, which is left out."""
    if _HEADER.unpack_from(received)[1] == _NLMSG_ERROR:
        return
    for kind, nested in _attributes(received[_HEADER.size + _GENERIC.size :]):
        if kind == _TYPE_AGGR_PID:
            for inner, value in _attributes(nested):
                if inner == _TYPE_STATS and len(value) >= _LENGTH:
                    yield _of(value)


def _of(stats: bytes) -> Ended:
    (precise_ns,) = struct.unpack_from("=Q", stats, _RUN_VIRTUAL_NS)
    pid, parent = struct.unpack_from("=II", stats, _IDS)
    user_us, system_us, faults = struct.unpack_from("=QQQ", stats, _TIMES_US)
    switches = sum(struct.unpack_from("=QQ", stats, _SWITCHES))
    # The split is sampled by the clock's tick and says little about a single task; the sum is exact.
    total_s = precise_ns / 1e9 or (user_us + system_us) / 1e6
    share = user_us / (user_us + system_us) if user_us + system_us else 0.5
    usage = Usage(user_s=total_s * share, system_s=total_s * (1 - share), switches=switches, faults=faults)
    return Ended(pid=pid, parent=parent, usage=usage)
