"""Ports of this host: taken for sandboxes, and listened on."""

import errno
import ipaddress
import random
import socket

from stockade.errors import Unavailable
from stockade.model import Port, Protocol

__all__ = ["HostPorts"]

_BACKLOG = 4096
"""Connections that wait to be accepted; the kernel cuts it to net.core.somaxconn."""


class HostPorts:
    """The ports from *first* to *last* on one address, given out in turn; and any other, where it is asked for."""

    def __init__(self, host: str, *, first: int, last: int) -> None:
        """Nothing is opened yet.

        Raises:
            ValueError: *host* is no IP address.
        """
        self.host = host
        self._family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        self._first = first
        self._count = last - first + 1
        # A server that starts again does not begin with the ports it gave out last.
        self._next = random.randrange(self._count)

    def take(self, port: Port) -> socket.socket:
        """A socket for *port*: on the host's port that it names, else on the next one of the range that is free.

        Raises:
            Unavailable: it is taken, all of the range are, or the address is not there.
        """
        if not port.host:
            return self._take_next(port.protocol)
        try:
            return self.open(port.host, port.protocol)
        except OSError as error:
            raise self._refused(port.host, error) from error

    def open(self, number: int, protocol: Protocol) -> socket.socket:
        """A non-blocking socket on this very port, which listens where it is a TCP port. Raises OSError."""
        kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
        one = socket.socket(self._family, kind)
        try:
            one.setblocking(False)
            if protocol is Protocol.TCP:
                # Connections of a server before may still be in TIME_WAIT.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((self.host, number))
            if protocol is Protocol.TCP:
                one.listen(_BACKLOG)  # at once: with SO_REUSEADDR two may bind a port, only one may listen
        except BaseException:
            one.close()
            raise
        return one

    def _take_next(self, protocol: Protocol) -> socket.socket:
        for _ in range(self._count):
            number = self._first + self._next
            self._next = (self._next + 1) % self._count
            try:
                return self.open(number, protocol)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise self._refused(number, error) from error
        last = self._first + self._count - 1
        raise Unavailable(f"all ports from {self._first} to {last} are taken; retry when a sandbox has ended")

    def _refused(self, number: int, error: OSError) -> Unavailable:
        why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        return Unavailable(f"cannot listen on {self.host} port {number}: {why}")
