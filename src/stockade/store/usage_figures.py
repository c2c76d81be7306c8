"""What was used, as charts show it: of an account, of one of its keys, or of everybody."""

from dataclasses import fields
from datetime import datetime, timedelta

from sqlalchemy import func, select

from stockade.model.accounts import HourlyUsage, UsageRecord
from stockade.store.database import Database
from stockade.store.tables import daily_usage, hourly_usage
from stockade.store.usage import UsageTable

__all__ = ["UsageFigures"]

_SUMS = tuple(one.name for one in fields(UsageRecord))


class UsageFigures(UsageTable):
    """Sums of usage, whosever. Every method raises Unavailable while the database is away."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._reads = database

    async def hours(
        self, account_id: str | None, *, now: datetime, hours: int, key_id: str | None = None
    ) -> list[HourlyUsage]:
        """The last hours in which there was something, newest first: an account's, a key's, or all."""
        since = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours - 1)
        rows = await self._sums(hourly_usage, "hour", since, account_id=account_id, key_id=key_id)
        return [HourlyUsage(hour=row.hour, **{name: int(getattr(row, name)) for name in _SUMS}) for row in rows]

    async def keys(self, account_id: str | None, *, now: datetime, days: int) -> list[tuple[str, UsageRecord]]:
        """What each key of an account, or of all, used in the last days, the costliest first."""
        since = now.date() - timedelta(days=days - 1)
        query = (
            select(daily_usage.c.key_id, *(func.sum(daily_usage.c[name]).label(name) for name in _SUMS))
            .where(daily_usage.c.date >= since)
            .group_by(daily_usage.c.key_id)
            .order_by(func.sum(daily_usage.c.cost_microcents).desc(), daily_usage.c.key_id)
        )
        if account_id is not None:
            query = query.where(daily_usage.c.account_id == account_id)
        rows = await self._reads.read(lambda connection: connection.execute(query).all())
        # PostgreSQL sums bigint as numeric.
        return [(row.key_id, UsageRecord(**{name: int(getattr(row, name)) for name in _SUMS})) for row in rows]
