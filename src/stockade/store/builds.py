"""The records of built layers."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stockade.model.accounts import ImageBuild
from stockade.store.database import Database
from stockade.store.tables import image_builds

__all__ = ["BuildTable"]

_MEMBERS = ("digest", "base_image", "size_bytes", "duration_s", "created_at", "last_used_at")
_COLUMNS = tuple(image_builds.c[name] for name in _MEMBERS)


@dataclass(frozen=True, kw_only=True)
class BuildTable:
    """The layers in this server's data directory. Every method raises Unavailable while the database is away."""

    database: Database
    server_id: str

    async def record(self, build: ImageBuild) -> None:
        """Record a build; one of the same digest is replaced."""
        dialect = sqlite if self.database.is_sqlite else postgresql
        values: dict[str, Any] = {name: getattr(build, name) for name in _MEMBERS}
        query = dialect.insert(image_builds).values(values | {"server_id": self.server_id})
        query = query.on_conflict_do_update(
            index_elements=[image_builds.c.server_id, image_builds.c.digest],
            set_={name: query.excluded[name] for name in _MEMBERS[1:]},
        )
        await self.database.write(lambda connection: connection.execute(query))

    async def get(self, digest: str) -> ImageBuild | None:
        query = select(*_COLUMNS).where(image_builds.c.server_id == self.server_id, image_builds.c.digest == digest)
        row = await self.database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else ImageBuild(**row._mapping)

    async def touch(self, digest: str, *, at: datetime | None = None) -> bool:
        """Note that a build was used; False when there is none."""
        query = (
            update(image_builds)
            .where(image_builds.c.server_id == self.server_id, image_builds.c.digest == digest)
            .values(last_used_at=at or datetime.now(UTC))
            .returning(image_builds.c.digest)
        )
        return await self.database.write(lambda connection: connection.execute(query).one_or_none() is not None)

    async def all(self) -> list[ImageBuild]:
        """Every build, the one used last first."""
        return await self._list()

    async def unused_since(self, moment: datetime) -> list[ImageBuild]:
        """Builds that nobody has used since *moment*."""
        return await self._list(image_builds.c.last_used_at < moment)

    async def forget(self, digest: str, *, unused_since: datetime | None = None) -> bool:
        """Delete a record; with *unused_since* only when nobody has used it since. False when nothing was deleted."""
        query = delete(image_builds).where(image_builds.c.server_id == self.server_id, image_builds.c.digest == digest)
        if unused_since is not None:
            query = query.where(image_builds.c.last_used_at < unused_since)
        gone = query.returning(image_builds.c.digest)
        return await self.database.write(lambda connection: connection.execute(gone).one_or_none() is not None)

    async def _list(self, *conditions: Any) -> list[ImageBuild]:
        query = (
            select(*_COLUMNS)
            .where(image_builds.c.server_id == self.server_id, *conditions)
            .order_by(image_builds.c.last_used_at.desc(), image_builds.c.digest)
        )
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        return [ImageBuild(**row._mapping) for row in rows]
