"""The records of volumes. What is written here is durable when the method returns."""

import builtins
from collections.abc import Collection
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, exc, func, insert, or_, select, update

from stockade.errors import Conflict, LimitExceeded
from stockade.model import Volume
from stockade.store.box_rows import VOLUME_COLUMNS, is_about, volume_from_row
from stockade.store.box_tables import UNIQUE_VOLUME_NAME, volumes
from stockade.store.database import Database
from stockade.store.disk_sums import check_room

__all__ = ["TooManyVolumes", "VolumeExists", "VolumeTable"]

_COLUMNS = tuple(volumes.c[name] for name in VOLUME_COLUMNS)
_LOCK = 0x766F6C


class VolumeExists(Conflict):
    """Another volume of the account has this name."""

    code = "volume.exists"


class TooManyVolumes(LimitExceeded):
    """The account has as many volumes as it may have; remove one."""

    code = "volume.too_many"


@dataclass(frozen=True, kw_only=True)
class VolumeTable:
    """The volumes that were made here. Every method raises Unavailable while the database is away.

    A hidden row is of a volume that is being made or removed: only `list_hidden`, `reveal` and `delete` know it.
    """

    database: Database
    server_id: str
    most_bytes: int | None = None
    """That the disks of an account may come to: see `disk_sums`."""

    async def insert(self, volume: Volume, *, owner: str, most: int) -> None:
        """Record a volume that is about to be made: hidden.

        Args:
            owner: see `model.owner_of`.
            most: volumes that they may have, this one included.

        Raises:
            VolumeExists: they have one of that name.
            TooManyVolumes: there would be too many.
            TooMuchDisk: their disks would be too large.
        """
        row = asdict(volume) | {"server_id": self.server_id, "owner": owner, "is_hidden": True}
        count = select(func.count()).select_from(volumes).where(volumes.c.owner == owner)

        def work(connection: Connection) -> None:
            self.database.lock(connection, _LOCK)
            if connection.execute(count).scalar_one() >= most:
                raise TooManyVolumes(f"an account may have {most} volumes; remove some")
            check_room(self.database, connection, owner=owner, new_bytes=volume.size_bytes, most=self.most_bytes)
            try:
                connection.execute(insert(volumes), row)
            except exc.IntegrityError as error:
                if is_about(error, index=str(UNIQUE_VOLUME_NAME.name), column="volumes.name"):
                    raise VolumeExists(f"there is a volume called {volume.name} already") from error
                raise Conflict(f"there is a volume {volume.id} already") from error

        await self.database.write(work)

    async def reveal(self, id: str) -> None:
        """Let a volume be seen that has been made."""
        query = update(volumes).where(volumes.c.id == id).values(is_hidden=False)
        await self.database.write(lambda connection: connection.execute(query))

    async def find(self, owner: str, id_or_name: str) -> Volume | None:
        """The volume of *owner* with that id, or name."""
        if "\0" in id_or_name:
            return None
        query = select(*_COLUMNS).where(
            volumes.c.owner == owner,
            or_(volumes.c.id == id_or_name, volumes.c.name == id_or_name),
            ~volumes.c.is_hidden,
        )
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        found = [volume_from_row(row) for row in rows]
        return next((one for one in found if one.id == id_or_name), found[0] if found else None)

    async def list(self, owner: str) -> "builtins.list[Volume]":
        """Those of *owner*, the newest first."""
        query = select(*_COLUMNS).where(volumes.c.owner == owner, ~volumes.c.is_hidden).order_by(volumes.c.id.desc())
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        return [volume_from_row(row) for row in rows]

    async def list_hidden(self) -> "builtins.list[tuple[str, str]]":
        """Id and disk of each volume of this server that is being made or removed."""
        query = select(volumes.c.id, volumes.c.disk).where(volumes.c.server_id == self.server_id, volumes.c.is_hidden)
        return await self.database.read(lambda connection: [(row.id, row.disk) for row in connection.execute(query)])

    async def hide(self, id: str) -> bool:
        """Let nobody see a volume any more, which is to be removed; its name is free. False when it is not there."""
        query = update(volumes).where(volumes.c.id == id, ~volumes.c.is_hidden).values(is_hidden=True, name=None)
        return await self.database.write(lambda connection: connection.execute(query).rowcount > 0)

    async def delete(self, ids: Collection[str]) -> None:
        """Delete the records of hidden volumes. Idempotent."""
        query = delete(volumes).where(volumes.c.id.in_(ids), volumes.c.is_hidden)
        await self.database.write(lambda connection: connection.execute(query))
