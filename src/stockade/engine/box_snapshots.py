"""Snapshots of boxes, and boxes that begin as copies of others. Who calls what is here holds the box's lock."""

import asyncio
import builtins
from collections.abc import Sequence
from dataclasses import replace

import structlog

from stockade.engine.box_disks import BoxDisks
from stockade.engine.box_errors import BoxStateConflict
from stockade.engine.box_needs import BoxOptions, BoxTable, SnapshotTable
from stockade.engine.box_records import AT_REST, BoxRecords
from stockade.engine.box_requests import checked_box_name, checked_snapshot_name, clone_of
from stockade.engine.box_runs import BoxRuns
from stockade.engine.ulids import new_ulid
from stockade.errors import NotFound, Unavailable
from stockade.model import Box, Snapshot

__all__ = ["BoxSnapshots"]

log = structlog.get_logger()


class BoxSnapshots:
    """Takes, finds, restores and removes them, and makes clones."""

    def __init__(
        self,
        *,
        table: SnapshotTable,
        boxes: BoxTable,
        records: BoxRecords,
        disks: BoxDisks,
        runs: BoxRuns,
        options: BoxOptions,
    ) -> None:
        self._table = table
        self._boxes = boxes
        self._records = records
        self._disks = disks
        self._runs = runs
        self._options = options

    async def take(self, box: Box, name: str) -> Snapshot:
        """Keep the disk of a box as it is now."""
        now = self._records.now
        id = new_ulid(now=now.timestamp())
        sandbox = self._writer(box)
        snapshot = Snapshot(
            id=id,
            box_id=box.id,
            account_id=box.account_id,
            name=checked_snapshot_name(name),
            disk=f"s{id.lower()}",
            size_bytes=0,
            created_at=now,
            parent_id=box.parent_snapshot_id,
            was_running=sandbox is not None,
        )
        await self._table.insert(snapshot, most=self._options.most_snapshots)
        try:
            info = await self._disks.copy(box.disk, snapshot.disk, sandbox=sandbox)
            await self._table.reveal(id, size_bytes=info.used_bytes)
        except BaseException:
            await self._table.hide(box.id, id)
            await self._disks.dispose_snapshot(snapshot)
            raise
        return replace(snapshot, size_bytes=info.used_bytes)

    async def list(self, box: Box) -> Sequence[Snapshot]:
        """Those of a box, the oldest first."""
        return await self._table.list(box.id)

    async def get(self, box: Box, name: str) -> Snapshot:
        """Raises NotFound: the box has no such snapshot."""
        snapshot = await self._table.get(box.id, name)
        if snapshot is None:
            raise NotFound(f"snapshot {name[:200]!r} of box {box.id} not found")
        return snapshot

    async def remove(self, box: Box, name: str) -> None:
        """Remove a snapshot. Boxes that began as it stay as they are."""
        snapshot = await self.get(box, name)
        await self._table.hide(box.id, snapshot.id)
        await self._disks.dispose_snapshot(snapshot)

    async def restore(self, box: Box, name: str) -> Box:
        """Let a box at rest go on from a snapshot; what its disk held is gone.

        Raises:
            BoxStateConflict: it runs.
        """
        snapshot = await self.get(box, name)
        if box.state not in AT_REST:
            raise BoxStateConflict(box.id, state=box.state, operation="restore", remedy="stop it first")
        await self._disks.replace(box.disk, snapshot.disk)
        now = self._records.now
        moved = await self._records.move(box.id, AT_REST, parent_snapshot_id=snapshot.id, updated_at=now)
        if moved is None:
            raise Unavailable(f"box {box.id} has just been changed by somebody else; ask again")
        return moved

    async def clone(self, box: Box, count: int, *, name: str | None, snapshot: str | None) -> "builtins.list[Box]":
        """Make boxes whose disks hold what that of *box* holds now, all as of one moment, or what a snapshot holds.

        All of them, or none: what fails takes the others with it.
        """
        source, sandbox, parent = box.disk, self._writer(box), box.parent_snapshot_id
        if snapshot is not None:
            found = await self.get(box, snapshot)
            source, sandbox, parent = found.disk, None, found.id
        if name is not None:
            checked_box_name(name)
        now = self._records.now
        clones = [clone_of(box, name=name, parent_snapshot_id=parent, now=now) for _ in range(count)]
        await self._boxes.insert(clones, most=self._options.most_of_account, is_hidden=True)
        try:
            first, *others = clones
            await self._disks.copy(source, first.disk, sandbox=sandbox)
            # From one that nobody writes to: whatever runs on the source stands still once.
            await self._copy_each(first.disk if sandbox is not None else source, others)
            before = self._records.changes
            await self._boxes.reveal([one.id for one in clones])
        except BaseException:
            await asyncio.gather(*(self._disks.remove(one) for one in clones))
            raise
        for one in clones:
            self._records.note_unless_changed(one, since=before)
            self._runs.note_made(one)
        return clones

    async def _copy_each(self, source: str, clones: Sequence[Box]) -> None:
        places = asyncio.Semaphore(self._options.at_once)

        async def copy(one: Box) -> None:
            async with places:
                await self._disks.copy(source, one.disk)

        for failed in await asyncio.gather(*map(copy, clones), return_exceptions=True):
            if isinstance(failed, BaseException):
                raise failed

    def _writer(self, box: Box) -> str | None:
        """The sandbox that writes to the disk of a box now."""
        return box.sandbox_id if self._runs.is_alive(box) else None
