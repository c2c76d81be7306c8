"""What a sandbox would serve, on this host's loopback: a dialler that leads to local sockets."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable

from stockade.errors import NotFound, Unavailable
from stockade.model import Protocol


class Inside:
    """A dialler whose ports lead to local servers; those that are not set up refuse."""

    def __init__(self) -> None:
        self.targets: dict[tuple[str, int, Protocol], int] = {}
        self.dials = 0
        self.gate: asyncio.Event | None = None
        """Dials wait for it where it is set."""
        self.gone = False

    async def dial(self, name: str, port: int, protocol: Protocol) -> socket.socket:
        self.dials += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.gone:
            raise NotFound(f"there is no sandbox {name}")
        target = self.targets.get((name, port, protocol))
        if target is None:
            raise Unavailable("nothing listens there")
        kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
        one = socket.socket(socket.AF_INET, kind)
        one.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", target))
        except OSError as error:
            one.close()
            raise Unavailable("nothing listens there") from error
        return one

    @contextlib.asynccontextmanager
    async def serving(
        self,
        handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object],
        *,
        name: str = "box",
        port: int = 8080,
    ) -> AsyncIterator[None]:
        """Serve *handler* as a TCP port of a sandbox."""
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        async with server:
            self.targets[name, port, Protocol.TCP] = server.sockets[0].getsockname()[1]
            try:
                yield
            finally:
                self.targets.pop((name, port, Protocol.TCP), None)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be in time"
        await asyncio.sleep(0.01)
