"""A command that is there beside an executor: inside its sandbox, with our own standard streams.

It is the sandbox's main process: `/run` sees its files, a bound port leads to what it serves, and it is as isolated as
any command. What it prints and what is typed are relayed, so that it looks as if it had our streams itself.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

import structlog

from stockade.backends.sandboxing import ProcessEnd, Streams, in_order
from stockade.model import TerminalSize

__all__ = ["Console", "relay"]

log = structlog.get_logger()


class Console(Protocol):
    """Our own standard streams."""

    @property
    def terminal(self) -> TerminalSize | None:
        """Set where they are a terminal; the companion gets one of that size then."""
        ...

    def attached(self) -> AbstractContextManager[object]:
        """What they need to be like while they are relayed, and to be put in order afterwards."""
        ...

    def input(self) -> AsyncIterator[bytes]:
        """What comes in, to its end."""
        ...

    def sizes(self) -> AsyncIterator[TerminalSize]:
        """The terminal's size, now and whenever it changes; nothing where there is none."""
        ...

    async def write(self, data: bytes, *, is_stderr: bool) -> None:
        """Write all of *data*, waiting while nobody reads it. Raises OSError: nobody ever will."""
        ...


async def relay(streams: Streams, console: Console) -> ProcessEnd:
    """Relay a process's streams until it has ended and all that it printed is written; how it ended.

    Whoever reads slowly slows the process down, both ways. Where nobody reads an output any more, the rest of it is
    dropped: the process goes on.

    Raises:
        NotFound: its output is not kept any longer.
        BackendLost: the warden died.
    """
    with console.attached():
        others = [
            asyncio.create_task(_type(streams, console), name="companion's input"),
            asyncio.create_task(_follow_size(streams, console), name="companion's terminal"),
        ]
        try:
            return await _listen(streams, console)
        finally:
            for task in others:
                task.cancel()
            for failed in await asyncio.gather(*others, return_exceptions=True):
                if isinstance(failed, Exception):  # the process, or the warden, is gone, which is told below
                    log.debug("companion.not_relayed", reason=str(failed))


async def _listen(streams: Streams, console: Console) -> ProcessEnd:
    at = [0, 0]
    is_read = [True, True]
    while True:
        output = await streams.read(*at)
        for number, part in enumerate((output.stdout, output.stderr)):
            if part.dropped:
                log.warning("companion.output_dropped", stream=("stdout", "stderr")[number], bytes=part.dropped)
            at[number] = part.end
        for is_stderr, data in in_order(output):
            if is_read[is_stderr]:
                try:
                    await console.write(data, is_stderr=is_stderr)
                except OSError as error:
                    is_read[is_stderr] = False
                    log.warning("companion.output_not_read", stream=("stdout", "stderr")[is_stderr], reason=str(error))
        if output.end is not None:
            return output.end


async def _type(streams: Streams, console: Console) -> None:
    async for data in console.input():
        if not await streams.write(data):
            return
    await streams.close_stdin()


async def _follow_size(streams: Streams, console: Console) -> None:
    async for size in console.sizes():
        await streams.resize(size)
