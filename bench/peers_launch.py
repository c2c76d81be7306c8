"""Starts a program of others in an enclosure and stays in charge: bounded output, a deadline, input that none reads."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, cast

from bench.enclosure import Enclosure
from bench.peers import Launched, output_limit

__all__ = ["launch"]

_AFTER_END_S: Final = 1.0
_KILL_S: Final = 10.0


class _Watched(asyncio.SubprocessProtocol):
    """Keeps the beginning of what is printed; `over` is set when the process has ended or has printed too much."""

    def __init__(self) -> None:
        self.kept = {1: bytearray(), 2: bytearray()}
        self.flooded = False
        self.over, self.ended, self.closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._open = {1, 2}
        self._most = output_limit()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self.kept[fd]
        kept += data[: max(0, self._most - len(kept))]
        if len(kept) >= self._most:
            self.flooded = True
            self.over.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.closed.set()

    def process_exited(self) -> None:
        self.ended.set()
        self.over.set()


async def launch(
    command: tuple[str, ...],
    stdin: bytes,
    *,
    deadline_s: float,
    enclosure: Enclosure | None = None,
    environment: Mapping[str, str] | None = None,
    end: Callable[[], Awaitable[None]] | None = None,
) -> Launched:
    """Run *command* until it ends, prints more than a run may, or its time is over.

    Args:
        enclosure: where to; none where what runs the tenant's program is somebody else's process.
        environment: of the program that is started; ours when none is given, as with any program that starts another.
        end: how what it began is ended; the process itself is killed in any case.
    """
    transport, watched = await asyncio.get_running_loop().subprocess_exec(
        _Watched,
        *(enclosure.entering(command) if enclosure is not None else command),
        env=environment,
        start_new_session=True,
    )
    try:
        feed = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
        feed.write(stdin)
        feed.write_eof()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watched.over.wait(), deadline_s)
        code = transport.get_returncode()
        if code is None:
            if end is not None:
                await end()
            with contextlib.suppress(ProcessLookupError):
                transport.kill()
            await asyncio.wait_for(watched.ended.wait(), _KILL_S)
        with contextlib.suppress(TimeoutError):  # whoever holds the output open holds up nobody
            await asyncio.wait_for(watched.closed.wait(), _AFTER_END_S)
        return Launched(
            code=code,
            stdout=bytes(watched.kept[1]),
            stderr=bytes(watched.kept[2]),
            late=code is None and not watched.flooded,
            flooded=watched.flooded,
        )
    finally:
        transport.close()
