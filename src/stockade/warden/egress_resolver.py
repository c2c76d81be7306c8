"""Asks the host's own name servers, on behalf of sandboxes."""

import asyncio
import contextlib
import os
import secrets
import socket
import struct
import time
from collections.abc import Sequence

from . import egress_dns as dns

__all__ = ["WITHIN_S", "Resolver", "name_servers"]

WITHIN_S = 5.0
"""For an answer, whatever it takes."""
_TRY_S = 2.0  # a server's time
_LOOK_AGAIN_S = 5.0
_MOST_SERVERS = 3  # as many as the C library asks
_MOST_FILE = 64 * 1024
_PORT = 53

Address = tuple[str, int] | tuple[str, int, int, int]


class Resolver:
    """Knows the host's name servers, also when they change."""

    def __init__(self, path: str = "/etc/resolv.conf", *, port: int = _PORT) -> None:
        self._path = path
        self._port = port
        self._servers: list[tuple[int, Address]] = []
        self._state: object = None
        self._look_at = 0.0

    async def ask(self, query: dns.Query) -> bytes | None:
        """The answer as the name server gave it, under whatever id; `None` when there is none within `WITHIN_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_S):
                for family, server in self._known_servers():
                    with contextlib.suppress(OSError):  # TimeoutError is one
                        async with asyncio.timeout(_TRY_S):
                            answer = await self._ask_by_datagram(query, family, server)
                        if dns.is_cut(answer):
                            async with asyncio.timeout(_TRY_S):
                                answer = await self._ask_by_stream(query, family, server)
                        return answer
        return None

    async def _ask_by_datagram(self, query: dns.Query, family: int, server: Address) -> bytes:
        # A socket for each question: what is to be guessed by a forger is its port and the id.
        loop = asyncio.get_running_loop()
        number = secrets.randbits(16)
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as channel:
            channel.connect(server)
            await loop.sock_sendall(channel, query.to_bytes(number))
            while True:
                data = await loop.sock_recv(channel, dns.LONGEST)
                if dns.is_answer_to(query, number, data):
                    return data
                await asyncio.sleep(0)

    async def _ask_by_stream(self, query: dns.Query, family: int, server: Address) -> bytes:
        loop = asyncio.get_running_loop()
        number = secrets.randbits(16)
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as channel:
            await loop.sock_connect(channel, server)
            message = query.to_bytes(number)
            await loop.sock_sendall(channel, struct.pack(">H", len(message)) + message)
            data = bytearray()
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                part = await loop.sock_recv(channel, dns.LONGEST)
                if not part:
                    raise ConnectionError("the name server hung up")
                data += part
            answer = bytes(data[2 : 2 + int.from_bytes(data[:2], "big")])
            if not dns.is_answer_to(query, number, answer):
                raise ConnectionError("the name server answered something else")
            return answer

    def _known_servers(self) -> Sequence[tuple[int, Address]]:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_AGAIN_S
            with contextlib.suppress(OSError):  # gone for a moment: what we knew still holds
                info = os.stat(self._path)
                state = (info.st_ino, info.st_mtime_ns, info.st_size)
                if state != self._state:
                    with open(self._path, encoding="utf-8", errors="replace") as file:
                        self._servers = name_servers(file.read(_MOST_FILE), self._port)
                    self._state = state
        return self._servers


def name_servers(text: str, port: int = _PORT) -> list[tuple[int, Address]]:
    """The servers that a resolv.conf(5) names, at most three; without any, one on this host."""
    servers: list[tuple[int, Address]] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        address, _, scope = words[1].partition("%")
        with contextlib.suppress(OSError):
            socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
            if ":" in address:
                servers.append((socket.AF_INET6, (address, port, 0, _scope(scope))))
            else:
                servers.append((socket.AF_INET, (address, port)))
    return servers[:_MOST_SERVERS] or [(socket.AF_INET, ("127.0.0.1", port))]


def _scope(name: str) -> int:
    """The number of the interface that a link-local address belongs to. Raises OSError when there is none."""
    if not name:
        return 0
    return int(name) if name.isdigit() else socket.if_nametoindex(name)
