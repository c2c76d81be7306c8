"""Tasks that outlive the call that began them, and who waits for them."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

from stockade.errors import Unavailable

__all__ = ["Tasks"]

T = TypeVar("T")

log = structlog.get_logger()


class Tasks:
    """Owns tasks: each is waited for, at the latest when the `running` block ends.

    Made for one event loop.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_open = False

    def __len__(self) -> int:
        return len(self._tasks)

    @asynccontextmanager
    async def running(self, *, finish_s: float = 5.0) -> AsyncIterator[None]:
        """Take tasks during the block; at its end cancel them, and wait until they have cleaned up.

        Args:
            finish_s: seconds that tasks have at the end to come to their end by themselves after the first
                cancellation; what is left then is cancelled again until it goes.
        """
        self._is_open = True
        try:
            yield
        finally:
            while self._tasks:  # cleaning up, a task may begin others
                for task in tuple(self._tasks):
                    task.cancel()
                await asyncio.wait(tuple(self._tasks), timeout=finish_s)
            self._is_open = False

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Begin *work*, whose result and errors somebody awaits.

        Raises:
            Unavailable: the block has ended: the server is going down.
        """
        if not self._is_open:
            work.close()
            raise Unavailable("the server is ending; ask again in a moment")
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def background(self, work: Coroutine[Any, Any, object], *, name: str) -> None:
        """Begin *work* that nobody waits for; what it fails with is logged.

        Raises:
            Unavailable: as `start`.
        """
        self.start(work, name=name).add_done_callback(_report)

    async def settle(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """Await *work* to its end: when the caller is cancelled meanwhile, it is still done before that goes on.

        For steps that must not be left half-done, since nobody could tell then whether they have been. *work* has a
        deadline of its own.
        """
        task = self.start(work, name=name)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever waited may have gone away meanwhile


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task.failed", task=task.get_name(), exc_info=error)
