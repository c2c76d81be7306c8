"""The records of sandboxes. What is written here is durable when the method returns."""

import base64
import builtins
import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, exc, insert, or_, select, text, update

from stockade.errors import Conflict, Invalid
from stockade.model import EndedBy, Sandbox, SandboxState
from stockade.store import quotas
from stockade.store.database import Database
from stockade.store.rows import SANDBOX_COLUMNS, sandbox_from_row, sandbox_to_row
from stockade.store.tables import IS_UNENDED, UNIQUE_SECRET, sandboxes

__all__ = ["Page", "SandboxTable"]

_COLUMNS = tuple(sandboxes.c[name] for name in SANDBOX_COLUMNS)
# Made once: putting statements of so many columns together takes longer than running them.
_INSERT = insert(sandboxes)
_MOVE = (
    update(sandboxes)
    .where(sandboxes.c.id == bindparam("wanted"), sandboxes.c.state.in_(bindparam("from_states", expanding=True)))
    .returning(*_COLUMNS)
)
_GET = select(*_COLUMNS).where(sandboxes.c.id == bindparam("wanted"))
_BIND = (
    update(sandboxes)
    .where(sandboxes.c.id == bindparam("wanted"), sandboxes.c.state == "running", sandboxes.c.bound_port.is_(None))
    .values(bound_port=bindparam("port"))
    .returning(*_COLUMNS)
)
_OF_SECRET = select(*_COLUMNS).where(sandboxes.c.secret_digest == bindparam("digest"))
_OPENED = _OF_SECRET.where(IS_UNENDED)
# Each condition as the index has it, or the database would not know that the index covers it.
_OPENED_LAST = _OF_SECRET.where(text("state = 'ended'")).order_by(sandboxes.c.ended_at.desc()).limit(1)


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some of a list."""

    items: list[Sandbox]
    cursor: str | None
    """Where the rest begins; `None` at the end."""


@dataclass(frozen=True, kw_only=True)
class SandboxTable:
    """The sandboxes that were made here, and their end. Every method raises Unavailable while the database is away."""

    database: Database
    server_id: str
    """Whose sandboxes new ones are; see `identity.server_id`."""

    async def insert_within_quota(
        self,
        sandbox: Sandbox,
        *,
        daily: int | None = None,
        concurrent: int | None = None,
        monthly_cost_cents: int | None = None,
        is_quota_free: bool = False,
    ) -> None:
        """Record a new sandbox, if its key may have another one. However many ask at once, no limit is exceeded.

        Args:
            daily: sandboxes of the key since 00:00 UTC, this one included; `None` for no limit.
            concurrent: sandboxes of the key that have not ended, this one included.
            monthly_cost_cents: no more when the account has cost that much this month.
            is_quota_free: neither refused nor counted.

        Raises:
            QuotaExceeded: a limit is reached; nothing was recorded.
            Conflict: there is a sandbox of that id, or its secret is that of another one that has not ended.
        """
        row = sandbox_to_row(sandbox) | {"server_id": self.server_id, "is_quota_free": is_quota_free}

        def work(connection: Connection) -> None:
            if not is_quota_free:
                quotas.check(
                    self.database,
                    connection,
                    key_id=sandbox.key_id,
                    account_id=sandbox.account_id,
                    now=sandbox.created_at.astimezone(UTC),
                    daily=daily,
                    concurrent=concurrent,
                    monthly_cost_cents=monthly_cost_cents,
                )
            try:
                connection.execute(_INSERT, row)
            except exc.IntegrityError as error:
                if _is_about_secret(error):
                    # Without the values that the database's own message has.
                    raise Conflict("this secret is another sandbox's: choose another") from None
                raise Conflict(f"there is a sandbox {sandbox.id} already") from error

        await self.database.write(work)

    async def get(self, id: str) -> Sandbox | None:
        """The sandbox of that id, whosever it is."""
        return await self.database.read(
            lambda connection: _one(connection.execute(_GET, {"wanted": id}).one_or_none()),
        )

    async def find_by_secret(self, digest: str) -> Sandbox | None:
        """The sandbox that has not ended and whose secret has *digest*; else the one of these that ended last."""

        def find(connection: Connection) -> Sandbox | None:
            wanted = {"digest": digest}
            row = connection.execute(_OPENED, wanted).one_or_none()
            return _one(row or connection.execute(_OPENED_LAST, wanted).one_or_none())

        return await self.database.read(find)

    async def list(
        self,
        key_id: str | None = None,
        *,
        account_id: str | None = None,
        states: Collection[SandboxState] | None = None,
        ended_by: Collection[EndedBy] | None = None,
        is_deleted: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """Sandboxes, newest first; of every server that records here.

        Args:
            key_id, account_id: only theirs.
            states, ended_by, is_deleted: only such.
            limit: at most so many; `None` for all.
            cursor: `Page.cursor` of the page before.

        Raises:
            Invalid: *cursor* is none of ours.
        """
        query = select(*_COLUMNS).order_by(sandboxes.c.created_at.desc(), sandboxes.c.id.desc())
        if key_id is not None:
            query = query.where(sandboxes.c.key_id == key_id)
        if account_id is not None:
            query = query.where(sandboxes.c.account_id == account_id)
        if states is not None:
            query = query.where(sandboxes.c.state.in_([one.value for one in states]))
        if ended_by is not None:
            query = query.where(sandboxes.c.ended_by.in_([one.value for one in ended_by]))
        if is_deleted is not None:
            query = query.where(sandboxes.c.is_deleted == is_deleted)
        if cursor is not None:
            at, id = _read_cursor(cursor)
            older = or_(sandboxes.c.created_at < at, (sandboxes.c.created_at == at) & (sandboxes.c.id < id))
            query = query.where(older)
        if limit is not None:
            query = query.limit(limit + 1)
        found = await self._all(query)
        if limit is None or len(found) <= limit:
            return Page(items=found, cursor=None)
        return Page(items=found[:limit], cursor=_write_cursor(found[limit - 1]) if limit else None)

    async def list_unended(self, server_id: str | None = None) -> tuple[Sandbox, ...]:
        """Sandboxes of a server (this one) that have not ended, oldest first."""
        query = (
            select(*_COLUMNS)
            .where(sandboxes.c.server_id == (server_id or self.server_id), IS_UNENDED)
            .order_by(sandboxes.c.created_at, sandboxes.c.id)
        )
        return tuple(await self._all(query))

    async def list_unrecorded(self, server_id: str | None = None) -> tuple[Sandbox, ...]:
        """Sandboxes of a server (this one) that have ended and are in no sum of usage yet."""
        query = select(*_COLUMNS).where(
            sandboxes.c.server_id == (server_id or self.server_id),
            sandboxes.c.state == "ended",
            sandboxes.c.usage_recorded_at.is_(None),
        )
        return tuple(await self._all(query))

    async def move(self, id: str, from_states: Collection[SandboxState], /, **changes: Any) -> Sandbox | None:
        """Change a sandbox, if it is in one of *from_states*. It is one statement: of two who ask at once, one does it.

        Args:
            changes: members of `Sandbox`, by name.

        Returns:
            The sandbox as it is now; `None` when it is in another state, or not there.
        """
        values = sandbox_to_row(changes) | {"wanted": id, "from_states": [one.value for one in from_states]}
        return await self.database.write(lambda connection: _one(connection.execute(_MOVE, values).one_or_none()))

    async def bind(self, id: str, port: int) -> Sandbox | None:
        """Note that connections to a sandbox's `Port.BOUND` lead to *port* from now on, if it runs and none is bound.

        Returns:
            The sandbox as it is now; `None` when a port is bound, or it does not run. Of two who ask at once, one does
            it.
        """
        values = {"wanted": id, "port": port}
        return await self.database.write(lambda connection: _one(connection.execute(_BIND, values).one_or_none()))

    async def mark_deleted(self, id: str) -> Sandbox | None:
        """Note that what an ended sandbox left is gone. Idempotent; `None` when it has not ended, or is not there."""
        return await self.move(id, (SandboxState.ENDED,), is_deleted=True)

    async def _all(self, query: Select[Any]) -> "builtins.list[Sandbox]":
        return await self.database.read(
            lambda connection: [sandbox_from_row(row) for row in connection.execute(query)],
        )


def _one(row: Row[Any] | None) -> Sandbox | None:
    return sandbox_from_row(row) if row is not None else None


def _is_about_secret(error: exc.IntegrityError) -> bool:
    """Whether it is the secret that another sandbox has, and not the id."""
    name = getattr(getattr(error.orig, "__cause__", None), "constraint_name", None)  # asyncpg says which index
    if name is not None:
        return bool(name == UNIQUE_SECRET.name)
    return f"{sandboxes.name}.{sandboxes.c.secret_digest.name}" in str(error.orig)  # SQLite says which column


def _write_cursor(last: Sandbox) -> str:
    place = json.dumps([last.created_at.isoformat(), last.id])
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        at, id = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None or not isinstance(id, str) or "\0" in id:
            raise ValueError
        moment, _ = moment.astimezone(UTC), id.encode()  # what no database can be asked for
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # JSON may be deeper than the stack
        raise Invalid("cursor: is none that a list of ours returned") from error
    return moment, id
