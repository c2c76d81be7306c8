"""The disks of boxes and of their snapshots: made, copied and deleted, each with its record.

What takes long is recorded hidden first, and shown when it is done; what is removed is hidden first, and its record
goes when its disk has gone. So whenever the server is killed, a hidden record tells the next one what to clear away.
A disk that nobody knows is left alone unless there is nothing on it: it may be that the database is yesterday's.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import structlog

from stockade.backends.disks import DiskInfo, Disks
from stockade.engine.box_needs import BoxOptions, BoxTable, SnapshotTable
from stockade.engine.box_records import BoxRecords
from stockade.engine.tasks import Tasks
from stockade.engine.ulids import new_ulid
from stockade.errors import NoAnswer, StockadeError, Unsupported
from stockade.model import Box, BoxState, Snapshot

__all__ = ["BoxDisks"]

T = TypeVar("T")
log = structlog.get_logger()

ANSWER_S = 120.0
"""Seconds that anything but a copy may take: the first of all has a file system made."""
_BOX = re.compile(r"b[0-9a-hjkmnp-tv-z]{26}")
_EMPTY_BYTES = 16 << 10
"""What a file system may count of a disk on which nothing was ever written."""
_PASSING = re.compile(r"t[0-9a-hjkmnp-tv-z]{26}")
"""Copies that are only made to be read."""


class BoxDisks:
    """Knows what is to be deleted, and when."""

    def __init__(
        self,
        *,
        disks: Disks,
        table: BoxTable,
        snapshots: SnapshotTable,
        records: BoxRecords,
        tasks: Tasks,
        options: BoxOptions,
    ) -> None:
        """Take what it needs; nothing is looked at yet."""
        self._disks = disks
        self._tasks = tasks
        self._table = table
        self._snapshots = snapshots
        self._records = records
        self._options = options
        self._left: dict[str, str] = {}
        """Disks of boxes that are gone, and could not be deleted yet, by the box."""
        self._left_snapshots: dict[str, str] = {}
        """As `_left`, of single snapshots."""

    async def make(self, box: Box) -> None:
        """Make the empty disk of a box."""
        await self._in_time(self._disks.make(box.disk, size_bytes=box.limits.disk_bytes), ANSWER_S)

    async def copy(self, of: str, name: str, *, sandbox: str | None = None) -> DiskInfo:
        """Copy a disk; *sandbox* is the one that writes to it now, if one does."""
        return await self._in_time(self._disks.copy(of, name, sandbox=sandbox), self._options.disk_s)

    async def replace(self, name: str, by: str) -> None:
        """Have one disk hold what another one holds."""
        await self._in_time(self._disks.replace(name, by), self._options.disk_s)

    def passing_name(self) -> str:
        """The name of a copy that is only made to be read."""
        return f"t{new_ulid().lower()}"

    async def delete_passing(self, name: str) -> None:
        """Delete such a copy, if it is there."""
        with contextlib.suppress(StockadeError):  # the next start deletes it
            await self._in_time(self._disks.delete(name), ANSWER_S)

    async def clear(self, boxes: Sequence[Box]) -> list[Box]:
        """At a start: clear away what was being made or removed; those of *boxes* whose disk is there.

        A box that has no disk was never acknowledged, or has lost it: the former is removed, the latter FAILED.

        Raises:
            Unavailable: the database or the backend does not answer.
        """
        self._left.update(await self._table.list_hidden())
        self._left_snapshots.update(await self._snapshots.list_hidden())
        await self.clear_left()
        try:
            there = {one.name: one for one in await self._in_time(self._disks.list(), ANSWER_S)}
        except Unsupported as error:
            if boxes:
                log.error("box.no_disks", reason=str(error))
            return list(boxes)
        known = {box.disk for box in boxes}
        for name, info in there.items():
            is_empty_box = _BOX.fullmatch(name) and name not in known and info.used_bytes <= _EMPTY_BYTES
            if is_empty_box or _PASSING.fullmatch(name):
                await self.delete_passing(name)
        kept = []
        for box in boxes:
            if box.disk in there:
                kept.append(box)
            elif box.state is BoxState.CONFIGURED and not box.starts:
                await self.remove(box)
            else:
                log.error("box.disk_missing", box_id=box.id, disk=box.disk)
                message = f"its disk {box.disk} is gone from this host; restore the data directory, or remove the box"
                await self._records.move(box.id, set(BoxState), state=BoxState.FAILED, message=message)
        return kept

    async def remove(self, box: Box) -> bool:
        """Let nobody see a box any more, and delete its disk and its snapshots; False where it was gone already.

        What cannot be deleted now is deleted later.

        Raises:
            Unavailable: the database is away; it is not known whether it has been removed.
        """
        try:
            was_there = await self._table.hide(box.id)
        finally:
            self._records.forget(box.id)
        await self.dispose(box.id, box.disk)
        return was_there

    async def dispose(self, box_id: str, disk: str) -> None:
        """Delete disk and snapshots of a hidden box, then its record; what cannot be deleted now is left for later."""
        try:
            if await self._snapshots.list(box_id):
                await self._snapshots.hide(box_id)
            for snapshot_id, snapshot_disk in await self._snapshots.list_hidden(box_id):
                await self._dispose_snapshot(snapshot_id, snapshot_disk)
            await self._in_time(self._disks.delete(disk), ANSWER_S)
            await self._table.delete([box_id])
            self._left.pop(box_id, None)
        except StockadeError as error:
            self._left[box_id] = disk
            log.warning("box.left", box_id=box_id, reason=str(error) or repr(error))

    async def dispose_snapshot(self, snapshot: Snapshot) -> None:
        """As `dispose`, of one hidden snapshot."""
        try:
            await self._dispose_snapshot(snapshot.id, snapshot.disk)
        except StockadeError as error:
            self._left_snapshots[snapshot.id] = snapshot.disk
            log.warning("snapshot.left", snapshot_id=snapshot.id, reason=str(error) or repr(error))

    async def clear_left(self) -> None:
        """Delete what could not be deleted before."""
        for snapshot_id, disk in tuple(self._left_snapshots.items()):
            with contextlib.suppress(StockadeError):
                await self._dispose_snapshot(snapshot_id, disk)
        for box_id, disk in tuple(self._left.items()):
            await self.dispose(box_id, disk)

    async def _dispose_snapshot(self, snapshot_id: str, disk: str) -> None:
        await self._in_time(self._disks.delete(disk), ANSWER_S)
        await self._snapshots.delete([snapshot_id])
        self._left_snapshots.pop(snapshot_id, None)

    async def _in_time(self, work: Awaitable[T], within_s: float) -> T:
        async def answered() -> T:
            try:
                async with asyncio.timeout(within_s):
                    return await work
            except TimeoutError:
                raise NoAnswer(f"no answer about a disk within {within_s:g} s") from None

        # To its end: what is cancelled might still take effect, after somebody has cleaned up behind it.
        return await self._tasks.settle(answered(), name="disk")
