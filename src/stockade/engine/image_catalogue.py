"""The records of images in memory, by whose they are and by the names that lead to them; a table has them, too.

Only one server uses the layers of its host, so only it changes these records.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from stockade.engine.image_references import InvalidReference, Reference, is_digest
from stockade.engine.lives import moment
from stockade.engine.tasks import Tasks
from stockade.errors import LimitExceeded, StockadeError
from stockade.model.images import ImageLayer, ImageRecord
from stockade.store.images import ImageName

__all__ = ["ImageCatalogue", "ImageTable", "Key", "key_of"]

MOST_NAMES = 1000
"""Of one account: aliases, and tags of its own images."""
MOST_NAMES_OF_ALL = 20_000
"""Of everybody's images."""
TABLE_S = 20.0
"""Within which the table has to have done something."""

Key = tuple[str, str]
"""Account and digest of an image, or account and name."""


class ImageTable(Protocol):
    """The records of this server's images: see `store.images`. Raises Unavailable while the database is away."""

    async def all(self) -> list[ImageRecord]: ...

    async def names(self) -> list[ImageName]: ...

    async def put(self, record: ImageRecord, names: Sequence[ImageName] = ()) -> None: ...

    async def name(self, name: ImageName) -> None: ...

    async def unname(self, account_id: str, name: str) -> bool: ...

    async def remove(self, account_id: str, digest: str) -> bool: ...

    async def touch(self, account_id: str, digest: str, *, at: datetime) -> None: ...


def key_of(record: ImageRecord) -> Key:
    """By which it is known."""
    return record.account_id, record.digest


@dataclass(kw_only=True)
class ImageCatalogue:
    """All images and their names. What changes is in the table first."""

    table: ImageTable
    tasks: Tasks
    default_registry: str
    clock: Callable[[], float]
    records: dict[Key, ImageRecord] = field(default_factory=dict)
    names: dict[Key, Key] = field(default_factory=dict)
    """Which image a name leads to, by account and name in full."""
    _used: dict[Key, float] = field(default_factory=dict)
    """When those were used last of which the table does not know it yet."""

    async def load(self) -> None:
        """Know what a server before has recorded. Raises Unavailable."""
        async with asyncio.timeout(TABLE_S):
            records, names = await self.table.all(), await self.table.names()
        self.records |= {key_of(record): record for record in records}
        self.names |= {(one.account_id, one.name): (one.image_account_id, one.digest) for one in names}

    def parsed(self, reference: str) -> Reference:
        """See `Reference.parse`; the registry that is meant where none is named is the configured one."""
        return Reference.parse(reference, default_registry=self.default_registry)

    def lookup(self, owner: str, name: str) -> Key | None:
        """The image of that reference, alias or digest that *owner* may use: their own before everybody's."""
        scopes = (owner, "") if owner else ("",)
        if is_digest(name):
            return next(((scope, name) for scope in scopes if (scope, name) in self.records), None)
        try:
            wanted = self.parsed(name)
        except InvalidReference:
            return None
        for scope in scopes:
            key = self.names.get((scope, str(wanted)))
            if key is not None and key in self.records:
                return key
            if wanted.digest is not None and self._is_of(scope, wanted, wanted.digest):
                return scope, wanted.digest
        return None

    def named(self, record: ImageRecord, owner: str) -> ImageRecord:
        """*record* with all names that lead to it for *owner*, and when it was used last."""
        key = key_of(record)
        names = {name for (scope, name), leads in self.names.items() if scope in (owner, "") and leads == key}
        used = self._used.get(key)
        return replace(
            record,
            names=tuple(sorted(names - {record.reference})),
            used_at=record.used_at if used is None else moment(used),
        )

    def visible(self, owner: str) -> list[ImageRecord]:
        """What *owner* may use, the oldest first."""
        found = (record for (account_id, _), record in self.records.items() if account_id in (owner, ""))
        return sorted((self.named(record, owner) for record in found), key=lambda one: (one.created_at, one.digest))

    def familiar(self, owner: str) -> list[str]:
        """Names that *owner* could use, for an error."""
        names = sorted(name for scope, name in self.names if scope in (owner, ""))
        return [Reference.parse(name).familiar for name in names[:20]]

    def diff_ids(self, account_id: str) -> set[str]:
        """Layers of the images that an account may use: it has shown that it can fetch them, or need not."""
        visible = (record for (scope, _), record in self.records.items() if scope in (account_id, ""))
        return {layer.diff_id for record in visible for layer in record.layers}

    def layers(self) -> dict[str, ImageLayer]:
        """All layers that an image has, by disk."""
        return {layer.disk: layer for record in self.records.values() for layer in record.layers}

    def brought_by(self, owner: str) -> list[ImageRecord]:
        """What counts for *owner*."""
        return [record for record in self.records.values() if record.brought_by == owner]

    def unused(self, unused_s: float) -> list[ImageRecord]:
        """What nobody has used for so long."""
        last = self.clock() - unused_s
        return [
            record
            for key, record in self.records.items()
            if max(self._used.get(key, 0.0), record.used_at.timestamp()) < last
        ]

    def use(self, key: Key) -> ImageRecord:
        """The image of *key*, which is used now."""
        self._used[key] = self.clock()
        return self.records[key]

    async def note_uses(self) -> None:
        """Tell the table when images were used."""
        used, self._used = self._used, {}
        for key, at in used.items():
            record = self.records.get(key)
            if record is not None:
                self.records[key] = replace(record, used_at=moment(at))
                with contextlib.suppress(StockadeError, TimeoutError):  # it goes a little early then, or not at all
                    async with asyncio.timeout(TABLE_S):
                        await self.table.touch(*key, at=moment(at))

    async def put(self, record: ImageRecord) -> None:
        """Record an image; its reference leads to it from now on, for whom it is. Raises Unavailable."""
        await self._settled(self.table.put(record, [_name(record.account_id, record.reference, record)]))
        self.records[key_of(record)] = record
        self.names[record.account_id, record.reference] = key_of(record)

    async def name(self, scope: str, name: Reference, record: ImageRecord) -> None:
        """Have a name lead to an image for *scope*.

        Raises:
            LimitExceeded: there are too many names already.
            Unavailable: the database is away.
        """
        if (scope, str(name)) not in self.names:
            most = MOST_NAMES_OF_ALL if not scope else MOST_NAMES
            if sum(own == scope for own, _ in self.names) >= most:
                raise LimitExceeded(f"there are {most} names of images already, and that is the most: remove some")
        if self.names.get((scope, str(name))) != key_of(record):
            await self._settled(self.table.name(_name(scope, str(name), record)))
            self.names[scope, str(name)] = key_of(record)

    async def unname(self, scope: str, name: str) -> None:
        """Have a name lead nowhere. Raises Unavailable."""
        await self._settled(self.table.unname(scope, name))
        self.names.pop((scope, name), None)

    async def remove(self, key: Key) -> None:
        """Forget an image, and all names of it. Raises Unavailable."""
        await self._settled(self.table.remove(*key))
        self.records.pop(key, None)
        self._used.pop(key, None)
        self.names = {name: leads for name, leads in self.names.items() if leads != key}

    def _is_of(self, scope: str, wanted: Reference, digest: str) -> bool:
        """Whether the image of *digest* is known to be of the repository of *wanted*."""
        key = (scope, digest)
        own: Iterable[str] = (name for (_, name), leads in self.names.items() if leads == key)
        return key in self.records and any(name.startswith((f"{wanted.name}:", f"{wanted.name}@")) for name in own)

    async def _settled(self, work: Awaitable[object]) -> None:
        async def within() -> None:
            async with asyncio.timeout(TABLE_S):
                await work

        await self.tasks.settle(within(), name="record an image")


def _name(scope: str, name: str, record: ImageRecord) -> ImageName:
    return ImageName(account_id=scope, name=name, image_account_id=record.account_id, digest=record.digest)
