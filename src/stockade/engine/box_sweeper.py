"""What happens to boxes by itself: stopped when nobody has used them for a while, removed a while after that."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from stockade.engine.box_disks import BoxDisks
from stockade.engine.box_needs import BoxOptions, BoxTable
from stockade.engine.box_records import AT_REST, BoxRecords
from stockade.engine.box_runs import BoxRuns
from stockade.engine.volumes import Volumes
from stockade.errors import NotFound, StockadeError
from stockade.model import Box, BoxState

__all__ = ["BoxSweeper"]

log = structlog.get_logger()


class BoxSweeper:
    """Looks through the boxes that have a time, again and again."""

    def __init__(
        self,
        *,
        table: BoxTable,
        records: BoxRecords,
        runs: BoxRuns,
        disks: BoxDisks,
        volumes: Volumes,
        options: BoxOptions,
        stop: Callable[[Box, float], Awaitable[Box]],
        remove: Callable[[Box], Awaitable[None]],
    ) -> None:
        """Take what it needs; *stop* and *remove* are called with the box's lock held."""
        self._table = table
        self._records = records
        self._runs = runs
        self._disks = disks
        self._volumes = volumes
        self._options = options
        self._stop = stop
        self._remove = remove

    async def run(self) -> None:
        """Sweep until it is cancelled; what fails is tried again."""
        while True:
            await asyncio.sleep(self._options.sweep_s)
            try:
                await self.sweep()
            except (StockadeError, TimeoutError) as error:
                log.warning("box.sweep_failed", reason=str(error) or repr(error))
            except Exception as error:  # whatever it is: boxes are not to run on forever for it
                log.error("box.sweep_failed", exc_info=error)

    async def sweep(self) -> None:
        """Do all that is due now.

        Raises:
            Unavailable: the database is away.
        """
        await self._records.record_uses()
        due = filter(self._is_due, await self._table.list_timed())
        places = asyncio.Semaphore(self._options.at_once)
        await asyncio.gather(*(self._try_to_see_to(box.id, places) for box in due))
        await self._disks.clear_left()
        await self._volumes.clear_left()

    async def _try_to_see_to(self, box_id: str, places: asyncio.Semaphore) -> None:
        async with places:
            try:
                await self._see_to(box_id)
            except NotFound:
                pass  # it is gone
            except (StockadeError, TimeoutError) as error:
                log.warning("box.not_swept", box_id=box_id, reason=str(error) or repr(error))

    async def _see_to(self, box_id: str) -> None:
        lock = self._records.lock(box_id)
        if lock.locked():  # somebody is at it
            return
        async with lock:
            box = await self._runs.settle(await self._records.here(box_id))
            if not self._is_due(box):
                return
            if box.state in AT_REST:
                await self._remove(box)
            elif box.state is BoxState.RUNNING and await self._runs.is_busy(box):
                self._records.touch(box_id)
            elif self._is_due(box):  # still: that took a moment
                log.info("box.idle", box_id=box_id)
                await self._stop(box, self._options.stop_grace_s)

    def _is_due(self, box: Box) -> bool:
        if box.state is BoxState.RUNNING:
            return box.auto_stop_s is not None and self._records.idle_s(box) >= box.auto_stop_s
        if box.state in AT_REST and box.auto_delete_s is not None and box.stopped_at is not None:
            return self._records.clock() - box.stopped_at.timestamp() >= box.auto_delete_s
        return box.state is BoxState.STOPPING
