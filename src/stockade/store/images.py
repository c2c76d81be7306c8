"""The records of images that were brought here, and the names that lead to them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stockade.model.images import ImageConfig, ImageLayer, ImageRecord, ImageUser
from stockade.store.database import Database
from stockade.store.image_tables import image_names, images

__all__ = ["ImageName", "ImageTable"]

_KEY = ("server_id", "account_id", "digest")
_PLAIN = ("account_id", "digest", "reference", "size_bytes", "source", "brought_by", "created_at", "used_at")


@dataclass(frozen=True, kw_only=True)
class ImageName:
    """A name that leads to an image."""

    account_id: str
    """For whom it does; empty for everybody."""
    name: str
    image_account_id: str
    """With `digest`, which image."""
    digest: str


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """The images whose layers lie on this server's host. Every method raises Unavailable while the database is away."""

    database: Database
    server_id: str

    async def all(self) -> list[ImageRecord]:
        """All of them, the one that was brought here first first; without `names`, which `names` has."""
        query = select(images).where(images.c.server_id == self.server_id)
        query = query.order_by(images.c.created_at, images.c.digest, images.c.account_id)
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        return [_record(row._mapping) for row in rows]

    async def names(self) -> list[ImageName]:
        """All names of them."""
        columns = [image_names.c[name] for name in ("account_id", "name", "image_account_id", "digest")]
        query = select(*columns).where(image_names.c.server_id == self.server_id).order_by(*columns)
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        return [ImageName(**row._mapping) for row in rows]

    async def put(self, record: ImageRecord, names: Sequence[ImageName] = ()) -> None:
        """Record an image with names that lead to it; what had the same key, or these names, is replaced."""
        values = {name: getattr(record, name) for name in _PLAIN} | {
            "server_id": self.server_id,
            "config": _config_values(record.config),
            "layers": [asdict(layer) for layer in record.layers],
        }

        def work(connection: Connection) -> None:
            query = self._insert(images).values(values)
            changed = {name: query.excluded[name] for name in values if name not in _KEY}
            connection.execute(query.on_conflict_do_update(index_elements=[images.c[k] for k in _KEY], set_=changed))
            for name in names:
                connection.execute(self._naming(name))

        await self.database.write(work)

    async def name(self, name: ImageName) -> None:
        """Have a name lead to an image, wherever it led before."""
        await self.database.write(lambda connection: connection.execute(self._naming(name)))

    async def unname(self, account_id: str, name: str) -> bool:
        """Remove a name; whether there was one."""
        query = delete(image_names).where(
            image_names.c.server_id == self.server_id,
            image_names.c.account_id == account_id,
            image_names.c.name == name,
        )
        return await self.database.write(lambda connection: connection.execute(query).rowcount > 0)

    async def remove(self, account_id: str, digest: str) -> bool:
        """Remove an image's record and all names of it; whether there was one."""
        names = delete(image_names).where(
            image_names.c.server_id == self.server_id,
            image_names.c.image_account_id == account_id,
            image_names.c.digest == digest,
        )

        def work(connection: Connection) -> bool:
            connection.execute(names)
            return connection.execute(delete(images).where(*self._is(account_id, digest))).rowcount > 0

        return await self.database.write(work)

    async def touch(self, account_id: str, digest: str, *, at: datetime) -> None:
        """Note that an image was used then."""
        query = update(images).where(*self._is(account_id, digest)).values(used_at=at)
        await self.database.write(lambda connection: connection.execute(query))

    def _is(self, account_id: str, digest: str) -> tuple[Any, ...]:
        return images.c.server_id == self.server_id, images.c.account_id == account_id, images.c.digest == digest

    def _insert(self, table: Any) -> Any:
        return (sqlite if self.database.is_sqlite else postgresql).insert(table)

    def _naming(self, name: ImageName) -> Any:
        query = self._insert(image_names).values(asdict(name) | {"server_id": self.server_id})
        return query.on_conflict_do_update(
            index_elements=[image_names.c[key] for key in ("server_id", "account_id", "name")],
            set_={key: query.excluded[key] for key in ("image_account_id", "digest")},
        )


def _config_values(config: ImageConfig) -> dict[str, Any]:
    return asdict(config)


def _record(row: Mapping[Any, Any]) -> ImageRecord:
    config = dict(row["config"])
    for name in ("entrypoint", "command", "exposed_ports"):
        config[name] = tuple(config[name])
    config["users"] = {name: ImageUser(**user) for name, user in config["users"].items()}
    return ImageRecord(
        **{name: row[name] for name in _PLAIN},
        config=ImageConfig(**config),
        layers=tuple(ImageLayer(**layer) for layer in row["layers"]),
    )
