"""The records of boxes. What is written here is durable when the method returns."""

import builtins
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, exc, func, insert, or_, select, update

from stockade.errors import Conflict, Invalid, LimitExceeded
from stockade.model import Box, BoxState, owner_of
from stockade.store.box_rows import BOX_COLUMNS, box_from_row, box_to_row, is_about
from stockade.store.box_tables import UNIQUE_BOX_NAME, boxes
from stockade.store.database import Database
from stockade.store.disk_sums import check_room
from stockade.store.seals import Seal

__all__ = ["BoxExists", "BoxPage", "BoxTable", "TooManyBoxes"]

_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_COLUMNS = tuple(boxes.c[name] for name in BOX_COLUMNS)
# Made once: putting statements of so many columns together takes longer than running them.
_INSERT = insert(boxes)
_FIND = select(*_COLUMNS).where(
    boxes.c.owner == bindparam("of"),
    or_(boxes.c.id == bindparam("wanted"), boxes.c.name == bindparam("wanted")),
    ~boxes.c.is_hidden,
)
_GET = select(*_COLUMNS, boxes.c.server_id).where(boxes.c.id == bindparam("wanted"), ~boxes.c.is_hidden)
_MOVE = (
    update(boxes)
    .where(
        boxes.c.id == bindparam("wanted"),
        boxes.c.state.in_(bindparam("from_states", expanding=True)),
        ~boxes.c.is_hidden,
    )
    .returning(*_COLUMNS)
)
_TOUCH = update(boxes).where(boxes.c.id == bindparam("wanted")).values(last_used_at=bindparam("at"))
_COUNT = select(func.count()).select_from(boxes).where(boxes.c.owner == bindparam("of"))
_LOCK = 0x626F786573
"""Where the boxes of an account are counted, and another is put beside them."""


class BoxExists(Conflict):
    """Another box of the account has this name."""

    code = "box.exists"


class TooManyBoxes(LimitExceeded):
    """The account has as many boxes as it may have; remove one."""

    code = "box.too_many"


@dataclass(frozen=True, kw_only=True)
class BoxPage:
    """Some of a list."""

    items: tuple[Box, ...]
    cursor: str | None
    """Where the rest begins; `None` at the end."""


@dataclass(frozen=True, kw_only=True)
class BoxTable:
    """The boxes that were made here. Every method raises Unavailable while the database is away.

    An *owner* is an account, or the key of whoever has none: see `model.owner_of`. A hidden row is of a box that is
    being made or removed: only `list_hidden`, `reveal` and `delete` know it.
    """

    database: Database
    server_id: str
    """Whose boxes new ones are; see `identity.server_id`."""
    seal: Seal
    most_bytes: int | None = None
    """That the disks of an account may come to: see `disk_sums`."""

    async def insert(self, new: Sequence[Box], *, most: int, is_hidden: bool = False) -> None:
        """Record new boxes of one owner, all or none.

        Args:
            most: boxes that their owner may have, these included.

        Raises:
            BoxExists: there is one of that name.
            TooManyBoxes: there would be too many.
            TooMuchDisk: their disks would be too large.
        """
        rows = [
            box_to_row(box, box_id=box.id, seal=self.seal)
            | {
                "server_id": self.server_id,
                "owner": owner_of(box.account_id, box.key_id),
                "is_hidden": is_hidden,
            }
            for box in new
        ]

        def work(connection: Connection) -> None:
            self.database.lock(connection, _LOCK)
            there = connection.execute(_COUNT, {"of": rows[0]["owner"]}).scalar_one()
            if there + len(rows) > most:
                raise TooManyBoxes(f"an account may have {most} boxes, and this one has {there}; remove some")
            added = sum(box.limits.disk_bytes for box in new)
            check_room(self.database, connection, owner=rows[0]["owner"], new_bytes=added, most=self.most_bytes)
            try:
                connection.execute(_INSERT, rows)
            except exc.IntegrityError as error:
                if is_about(error, index=str(UNIQUE_BOX_NAME.name), column="boxes.name"):
                    raise BoxExists(f"there is a box called {new[0].name} already") from error
                raise Conflict(f"there is a box {new[0].id} already") from error

        await self.database.write(work)

    async def reveal(self, ids: Collection[str]) -> None:
        """Let boxes be seen that have been made."""
        query = update(boxes).where(boxes.c.id.in_(ids)).values(is_hidden=False)
        await self.database.write(lambda connection: connection.execute(query))

    async def find(self, owner: str, id_or_name: str) -> Box | None:
        """The box of *owner* with that id, or name."""
        if "\0" in id_or_name:
            return None
        rows = await self.database.read(
            lambda connection: connection.execute(_FIND, {"of": owner, "wanted": id_or_name}).all()
        )
        found = [box_from_row(row, self.seal) for row in rows]
        return next((box for box in found if box.id == id_or_name), found[0] if found else None)

    async def get(self, id: str) -> tuple[Box, bool] | None:
        """The box of that id, whosever it is, and whether it is this server's."""
        row = await self.database.read(lambda connection: connection.execute(_GET, {"wanted": id}).one_or_none())
        return None if row is None else (box_from_row(row, self.seal), row.server_id == self.server_id)

    async def list(
        self,
        owner: str | None = None,
        *,
        states: Collection[BoxState] | None = None,
        is_here: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BoxPage:
        """Boxes, newest first.

        Args:
            owner: only theirs.
            states: only such.
            is_here: only this server's.
            limit: at most so many; `None` for all.
            cursor: `BoxPage.cursor` of the page before.

        Raises:
            Invalid: *cursor* is none of ours.
        """
        query = select(*_COLUMNS).where(~boxes.c.is_hidden).order_by(boxes.c.id.desc())
        if owner is not None:
            query = query.where(boxes.c.owner == owner)
        if states is not None:
            query = query.where(boxes.c.state.in_([one.value for one in states]))
        if is_here:
            query = query.where(boxes.c.server_id == self.server_id)
        if cursor is not None:
            if not _ID.fullmatch(cursor):
                raise Invalid("cursor: is none that a list of ours returned")
            query = query.where(boxes.c.id < cursor)
        if limit is not None:
            query = query.limit(limit + 1)
        found = await self._all(query)
        if limit is None or len(found) <= limit:
            return BoxPage(items=tuple(found), cursor=None)
        return BoxPage(items=tuple(found[:limit]), cursor=found[limit - 1].id if limit else None)

    async def list_timed(self) -> tuple[Box, ...]:
        """Boxes of this server that are stopped or removed by themselves some time, or have not ended stopping."""
        running, over = [BoxState.RUNNING.value], [BoxState.STOPPED.value, BoxState.FAILED.value]
        query = select(*_COLUMNS).where(
            boxes.c.server_id == self.server_id,
            ~boxes.c.is_hidden,
            or_(
                boxes.c.state.in_(running) & boxes.c.auto_stop_s.is_not(None),
                boxes.c.state.in_(over) & boxes.c.auto_delete_s.is_not(None),
                boxes.c.state == BoxState.STOPPING.value,
            ),
        )
        return tuple(await self._all(query))

    async def list_hidden(self) -> "builtins.list[tuple[str, str]]":
        """Id and disk of each box of this server that is being made or removed."""
        query = select(boxes.c.id, boxes.c.disk).where(boxes.c.server_id == self.server_id, boxes.c.is_hidden)
        return await self.database.read(
            lambda connection: [(row.id, row.disk) for row in connection.execute(query)],
        )

    async def move(self, id: str, from_states: Collection[BoxState], /, **changes: Any) -> Box | None:
        """Change a box, if it is in one of *from_states*. It is one statement: of two who ask at once, one does it.

        Args:
            changes: members of `Box`, by name.

        Returns:
            The box as it is now; `None` when it is in another state, or not there.
        """
        values = box_to_row(changes, box_id=id, seal=self.seal)
        values |= {"wanted": id, "from_states": [one.value for one in from_states]}
        row = await self.database.write(lambda connection: connection.execute(_MOVE, values).one_or_none())
        return self._one(row)

    async def touch(self, used: Mapping[str, datetime]) -> None:
        """Note when boxes, by id, were used last."""
        rows = [{"wanted": id, "at": at} for id, at in used.items()]
        if rows:
            await self.database.write(lambda connection: connection.execute(_TOUCH, rows))

    async def hide(self, id: str) -> bool:
        """Let nobody see a box any more, which is to be removed; its name is free. False when it is not there."""
        query = update(boxes).where(boxes.c.id == id, ~boxes.c.is_hidden).values(is_hidden=True, name=None)
        return await self.database.write(lambda connection: connection.execute(query).rowcount > 0)

    async def delete(self, ids: Collection[str]) -> None:
        """Delete the records of hidden boxes. Idempotent."""
        query = delete(boxes).where(boxes.c.id.in_(ids), boxes.c.is_hidden)
        await self.database.write(lambda connection: connection.execute(query))

    async def uses_image(self, digest: str) -> bool:
        """Whether a box of this server stands on an image, whatever state it is in."""
        query = select(boxes.c.id).where(boxes.c.server_id == self.server_id, boxes.c.image_digest == digest).limit(1)
        return await self.database.read(lambda connection: connection.execute(query).first() is not None)

    async def _all(self, query: Select[Any]) -> "builtins.list[Box]":
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        return [box_from_row(row, self.seal) for row in rows]

    def _one(self, row: Row[Any] | None) -> Box | None:
        return box_from_row(row, self.seal) if row is not None else None
