"""The records of boxes' snapshots. What is written here is durable when the method returns."""

import builtins
from collections.abc import Collection
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, exc, func, insert, select, update

from stockade.errors import Conflict, LimitExceeded
from stockade.model import Snapshot
from stockade.store.box_rows import SNAPSHOT_COLUMNS, is_about, snapshot_from_row
from stockade.store.box_tables import UNIQUE_SNAPSHOT_NAME, boxes, snapshots
from stockade.store.database import Database
from stockade.store.disk_sums import check_room

__all__ = ["SnapshotExists", "SnapshotTable", "TooManySnapshots"]

_COLUMNS = tuple(snapshots.c[name] for name in SNAPSHOT_COLUMNS)
_LOCK = 0x736E6170


class SnapshotExists(Conflict):
    """Another snapshot of the box has this name."""

    code = "snapshot.exists"


class TooManySnapshots(LimitExceeded):
    """The box has as many snapshots as it may have; remove one."""

    code = "snapshot.too_many"


@dataclass(frozen=True, kw_only=True)
class SnapshotTable:
    """The snapshots that were taken here. Every method raises Unavailable while the database is away.

    A hidden row is of a snapshot that is being taken or removed: only `list_hidden`, `reveal` and `delete` know it.
    """

    database: Database
    server_id: str
    most_bytes: int | None = None
    """That the disks of an account may come to: see `disk_sums`. What a snapshot holds is known once it is taken, so
    that the last one may go beyond."""

    async def insert(self, snapshot: Snapshot, *, most: int) -> None:
        """Record a snapshot that is about to be taken: hidden.

        Args:
            most: snapshots that the box may have, this one included.

        Raises:
            SnapshotExists: the box has one of that name.
            TooManySnapshots: there would be too many.
            TooMuchDisk: the disks of the account hold as much as they may.
        """
        row = asdict(snapshot) | {"server_id": self.server_id, "is_hidden": True}
        count = select(func.count()).select_from(snapshots).where(snapshots.c.box_id == snapshot.box_id)

        def work(connection: Connection) -> None:
            self.database.lock(connection, _LOCK)
            if connection.execute(count).scalar_one() >= most:
                raise TooManySnapshots(f"a box may have {most} snapshots; remove some")
            if self.most_bytes is not None:
                owner = connection.execute(select(boxes.c.owner).where(boxes.c.id == snapshot.box_id)).scalar_one()
                check_room(self.database, connection, owner=owner, new_bytes=1, most=self.most_bytes)
            try:
                connection.execute(insert(snapshots), row)
            except exc.IntegrityError as error:
                if is_about(error, index=str(UNIQUE_SNAPSHOT_NAME.name), column="snapshots.name"):
                    raise SnapshotExists(
                        f"box {snapshot.box_id} has a snapshot called {snapshot.name!r} already"
                    ) from error
                raise Conflict(f"there is a snapshot {snapshot.id} already") from error

        await self.database.write(work)

    async def reveal(self, id: str, *, size_bytes: int) -> None:
        """Let a snapshot be seen that has been taken."""
        query = update(snapshots).where(snapshots.c.id == id).values(is_hidden=False, size_bytes=size_bytes)
        await self.database.write(lambda connection: connection.execute(query))

    async def get(self, box_id: str, name: str) -> Snapshot | None:
        """The snapshot of a box with that name."""
        if "\0" in name:
            return None
        query = select(*_COLUMNS).where(snapshots.c.box_id == box_id, snapshots.c.name == name, ~snapshots.c.is_hidden)
        row = await self.database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else snapshot_from_row(row)

    async def list(self, box_id: str) -> "builtins.list[Snapshot]":
        """Those of a box, the oldest first."""
        query = select(*_COLUMNS).where(snapshots.c.box_id == box_id, ~snapshots.c.is_hidden).order_by(snapshots.c.id)
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        return [snapshot_from_row(row) for row in rows]

    async def list_hidden(self, box_id: str | None = None) -> "builtins.list[tuple[str, str]]":
        """Id and disk of each snapshot of this server that is being taken or removed; or only of a box's."""
        query = select(snapshots.c.id, snapshots.c.disk).where(
            snapshots.c.server_id == self.server_id, snapshots.c.is_hidden
        )
        if box_id is not None:
            query = query.where(snapshots.c.box_id == box_id)
        return await self.database.read(lambda connection: [(row.id, row.disk) for row in connection.execute(query)])

    async def hide(self, box_id: str, id: str | None = None) -> None:
        """Let nobody see a snapshot any more, which is to be removed; without *id*, all of the box."""
        query = update(snapshots).where(snapshots.c.box_id == box_id).values(is_hidden=True, name=None)
        if id is not None:
            query = query.where(snapshots.c.id == id)
        await self.database.write(lambda connection: connection.execute(query))

    async def delete(self, ids: Collection[str]) -> None:
        """Delete the records of hidden snapshots. Idempotent."""
        query = delete(snapshots).where(snapshots.c.id.in_(ids), snapshots.c.is_hidden)
        await self.database.write(lambda connection: connection.execute(query))
