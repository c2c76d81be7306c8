"""Containers whose guest waits for an errand: one for each run, some of them made ahead.

Making one takes the engine a few tenths of a second, most of what a short run would wait for. So whoever comes with
limits that have been asked for before has one made for the next. A container is used once, whoever it was made for.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from stockade.backends.docker.launch import GateProcess
from stockade.backends.native.connection import error_of
from stockade.errors import BackendLost, StockadeError, Unavailable
from stockade.model import Limits

__all__ = ["ANSWER_WITHIN_S", "Container", "Containers", "hello"]

ANSWER_WITHIN_S: Final = 120.0
"""Time for a container to be made, when many are, and to end, beyond what the program itself is to take."""
_HELLO_S: Final = 330.0  # the image may have to be made
_DEAD_WITHIN_S: Final = 30.0
_MOST_LINE: Final = 64 << 10
_SPARE_S: Final = 60.0
"""How long one is kept for a run that does not come."""
_MOST_SEEN: Final = 64
_SHAPE: Final = (
    "wall_s", "cpus", "memory_bytes", "processes", "disk_bytes", "disk_inodes", "stack_bytes", "open_files",
)  # fmt: skip
"""The limits that are the container's; the guest is told the others."""
_Shape = tuple[float, ...]


@dataclass(kw_only=True)
class Container:
    """One that is ours: its guest waits for an errand, or does it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    uid: int
    is_done: bool = False
    """Whether the guest has said how it went: then it has ended all the others before, and ends itself."""

    async def end(self) -> None:
        """Have it ended; returns when nothing of a tenant's lives in it, as the guest has said or the gate hangs up."""
        if self.is_done:
            self.writer.close()
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_DEAD_WITHIN_S):
                self.writer.write_eof()
                while await self.reader.read(_MOST_LINE):
                    pass
        self.writer.close()


class Containers:
    """Makes them, and keeps spare ones: one at most for each set of limits."""

    def __init__(self, *, spares: int) -> None:
        """Keep *spares* at most, those that are being made among them."""
        self._most = spares
        self._spares: dict[_Shape, Container] = {}
        self._keepers: dict[_Shape, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._seen: dict[_Shape, None] = {}
        self._closed = False

    @contextlib.asynccontextmanager
    async def one(self, gate: GateProcess, limits: Limits) -> AsyncIterator[Container]:
        """A container whose guest waits for its errand; nothing in it lives when the block has been left.

        Raises:
            StockadeError: the gate made none.
        """
        shape: _Shape = tuple(getattr(limits, name) for name in _SHAPE)
        container = await self._take(shape) or await _make(gate, shape)
        try:
            self._have_spare(gate, shape)
            yield container
        finally:
            await asyncio.shield(asyncio.ensure_future(container.end()))

    async def forget(self) -> None:
        """End the spare ones."""
        tasks = [*self._keepers.values(), *self._leaving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End the spare ones, and make no more. Idempotent."""
        self._closed = True
        await self.forget()

    async def _take(self, shape: _Shape) -> Container | None:
        spare = self._spares.pop(shape, None)
        if spare is None:
            return None
        keeper = self._let_go(shape)
        try:
            await asyncio.wait([keeper])  # it reads there, too
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(spare.end()))
            raise
        return spare

    def _have_spare(self, gate: GateProcess, shape: _Shape) -> None:
        was_seen = shape in self._seen
        self._seen.pop(shape, None)
        self._seen[shape] = None  # the last one
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        if self._closed or not was_seen or not self._most or shape in self._keepers:
            return
        if len(self._keepers) >= self._most:
            oldest = next(iter(self._keepers))
            self._let_go(oldest)
        self._keepers[shape] = asyncio.create_task(self._keep(gate, shape))

    def _let_go(self, shape: _Shape) -> "asyncio.Task[None]":
        """Have a keeper end: its spare has been taken, or is not wanted any more, and then ends with it."""
        keeper = self._keepers.pop(shape)
        self._leaving.add(keeper)
        keeper.add_done_callback(self._leaving.discard)
        keeper.cancel()
        return keeper

    async def _keep(self, gate: GateProcess, shape: _Shape) -> None:
        """Make a spare one, and end it when nobody takes it within its time."""
        container: Container | None = None
        try:
            container = self._spares[shape] = await _make(gate, shape)
            async with asyncio.timeout(_SPARE_S):
                await container.reader.read(1)  # a guest that waits says nothing: it has died
        except (StockadeError, OSError, TimeoutError):
            pass  # the run that would have had it makes its own, and hears what is wrong
        finally:
            if self._keepers.get(shape) is asyncio.current_task():
                del self._keepers[shape]
            if container is not None and self._spares.get(shape) is container:  # else it has been taken
                del self._spares[shape]
                await asyncio.shield(asyncio.ensure_future(container.end()))


async def hello(gate: GateProcess) -> dict[str, Any]:
    """What the gate says of itself and of the engine.

    Raises:
        StockadeError: it refused.
        BackendLost: it went away.
    """
    reader, writer = await _connect(gate)
    try:
        return await _asked(reader, writer, {"op": "hello"}, _HELLO_S)
    finally:
        writer.close()


async def _make(gate: GateProcess, shape: _Shape) -> Container:
    reader, writer = await _connect(gate)
    try:
        order = {"op": "run", "limits": dict(zip(_SHAPE, shape, strict=True))}
        answer = await _asked(reader, writer, order, ANSWER_WITHIN_S)
        return Container(reader=reader, writer=writer, uid=int(answer["uid"]))
    except BaseException:
        # Cancelled, it may be there already, or be about to be.
        await asyncio.shield(asyncio.ensure_future(Container(reader=reader, writer=writer, uid=0).end()))
        raise


async def _connect(gate: GateProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(sock=gate.connect(), limit=_MOST_LINE)


async def _asked(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: Mapping[str, Any], within_s: float
) -> dict[str, Any]:
    try:
        async with asyncio.timeout(within_s):
            writer.write(json.dumps(message).encode() + b"\n")
            await writer.drain()
            line = await reader.readline()
            answer = json.loads(line) if line else None
    except TimeoutError:
        raise Unavailable(f"the gate to Docker did not answer within {within_s:g} s") from None
    except (OSError, ValueError) as error:
        raise BackendLost(f"the gate to Docker: {error}") from error
    if not isinstance(answer, dict):
        raise BackendLost("the gate to Docker hung up; `stockade doctor` says what is wrong with it")
    if "error" in answer:
        raise error_of(answer["error"])
    found: dict[str, Any] = answer["ok"]
    return found
