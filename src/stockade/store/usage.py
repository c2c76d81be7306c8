"""What was used, summed by hour and by day for each key."""

from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Table, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stockade.model.accounts import DailyUsage, HourlyUsage, UsageRecord
from stockade.store.database import Database
from stockade.store.quotas import count
from stockade.store.tables import daily_usage, hourly_usage, sandboxes

__all__ = ["UsageTable"]

_SUMS = tuple(one.name for one in fields(UsageRecord))


class UsageTable:
    """Sums of usage. Every method raises Unavailable while the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record_end(self, sandbox_id: str, used: UsageRecord) -> bool:
        """Add what an ended sandbox used, once: to the hour and to the day in which it was made.

        Returns:
            False when it has been added before, has not ended, or is not there; nothing has changed then.
        """

        def record(connection: Connection) -> bool:
            marked = connection.execute(
                update(sandboxes)
                .where(
                    sandboxes.c.id == sandbox_id,
                    sandboxes.c.state == "ended",
                    sandboxes.c.usage_recorded_at.is_(None),
                )
                .values(usage_recorded_at=datetime.now(UTC))
                .returning(sandboxes.c.account_id, sandboxes.c.key_id, sandboxes.c.created_at)
            )
            row = marked.one_or_none()
            if row is None:
                return False
            hour = row.created_at.replace(minute=0, second=0, microsecond=0)
            whose = {"account_id": row.account_id, "key_id": row.key_id}
            self._add(connection, hourly_usage, whose | {"hour": hour}, used)
            self._add(connection, daily_usage, whose | {"date": hour.date()}, used)
            return True

        return await self._database.write(record)

    async def counts(self, key_id: str, *, now: datetime) -> tuple[int, int]:
        """Sandboxes that the key made since 00:00 UTC, and those that have not ended."""
        return await self._database.read(lambda connection: count(connection, key_id, now=now))

    async def hourly(self, account_id: str, *, now: datetime, hours: int = 24) -> list[HourlyUsage]:
        """The account's last hours in which there was something, newest first."""
        since = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours - 1)
        rows = await self._sums(hourly_usage, "hour", since, account_id=account_id, key_id=None)
        return [HourlyUsage(hour=row.hour, **_sums(row)) for row in rows]

    async def daily(
        self, account_id: str | None = None, *, now: datetime, days: int, key_id: str | None = None
    ) -> list[DailyUsage]:
        """The last days (today is one) in which there was something, newest first: an account's, a key's, or all."""
        since = now.date() - timedelta(days=days - 1)
        rows = await self._sums(daily_usage, "date", since, account_id=account_id, key_id=key_id)
        return [DailyUsage(date=row.date, **_sums(row)) for row in rows]

    async def by_key(self, *, now: datetime, days: int) -> list[tuple[str, UsageRecord]]:
        """What each key used in the last days, the costliest first."""
        since = now.date() - timedelta(days=days - 1)
        cost = func.sum(daily_usage.c.cost_microcents)
        query = (
            select(daily_usage.c.key_id, *(func.sum(daily_usage.c[name]).label(name) for name in _SUMS))
            .where(daily_usage.c.date >= since)
            .group_by(daily_usage.c.key_id)
            .order_by(cost.desc(), daily_usage.c.key_id)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [(row.key_id, UsageRecord(**_sums(row))) for row in rows]

    async def _sums(
        self, table: Table, period: str, since: date, *, account_id: str | None, key_id: str | None
    ) -> list[Row[Any]]:
        column = table.c[period]
        query = (
            select(column, *(func.sum(table.c[name]).label(name) for name in _SUMS))
            .where(column >= since)
            .group_by(column)
            .order_by(column.desc())
        )
        if account_id is not None:
            query = query.where(table.c.account_id == account_id)
        if key_id is not None:
            query = query.where(table.c.key_id == key_id)
        return await self._database.read(lambda connection: list(connection.execute(query)))

    def _add(self, connection: Connection, table: Table, place: dict[str, object], used: UsageRecord) -> None:
        dialect = sqlite if self._database.is_sqlite else postgresql
        values = {name: getattr(used, name) for name in _SUMS}
        query = dialect.insert(table).values(place | values)
        connection.execute(
            query.on_conflict_do_update(
                index_elements=list(table.primary_key.columns),
                set_={name: table.c[name] + query.excluded[name] for name in _SUMS},
            )
        )


def _sums(row: Row[Any]) -> dict[str, int]:
    # PostgreSQL sums bigint as numeric.
    return {name: int(getattr(row, name)) for name in _SUMS}
