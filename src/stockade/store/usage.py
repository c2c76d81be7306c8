"""What was used, summed by hour and by day for each key."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stockade.model.accounts import DailyUsage, HourlyUsage, UsageRecord
from stockade.store.database import Database
from stockade.store.job_tables import daily_outcomes, recorded_jobs
from stockade.store.quotas import check_cost, count
from stockade.store.tables import daily_usage, hourly_usage, sandboxes

__all__ = ["DailyOutcomes", "JobUsage", "UsageTable"]

_SUMS = tuple(one.name for one in fields(UsageRecord))

REMEMBERED = timedelta(days=7)
"""For so long it is known of a job that it is in the sums; nobody offers one again after more than some minutes."""


@dataclass(frozen=True, kw_only=True)
class JobUsage:
    """What an ended job used, and whose it was."""

    job_id: str
    account_id: str
    key_id: str
    ended_at: datetime
    outcome: str
    """An `Outcome`, or where nothing was run, the job's `failure`."""
    used: UsageRecord


@dataclass(frozen=True, kw_only=True)
class DailyOutcomes:
    """How the sandboxes and jobs of a UTC day ended."""

    date: date
    counts: Mapping[str, int]
    """By `Outcome`; of a sandbox that has none, by `EndedBy`; of a job that has none, by `JobFailure`."""


class UsageTable:
    """Sums of usage. Every method raises Unavailable while the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check_cost(self, account_id: str, *, now: datetime, monthly_cost_cents: int) -> None:
        """Make sure that the account has not cost as much as that in this month, as far as it is summed up.

        Raises:
            QuotaExceeded: it has.
        """
        await self._database.read(
            lambda connection: check_cost(
                connection, account_id=account_id, now=now, monthly_cost_cents=monthly_cost_cents
            )
        )

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
                .returning(
                    sandboxes.c.account_id,
                    sandboxes.c.key_id,
                    sandboxes.c.created_at,
                    sandboxes.c.outcome,
                    sandboxes.c.ended_by,
                )
            )
            row = marked.one_or_none()
            if row is None:
                return False
            hour = row.created_at.replace(minute=0, second=0, microsecond=0)
            whose = {"account_id": row.account_id, "key_id": row.key_id}
            self._add(connection, hourly_usage, whose | {"hour": hour}, used)
            self._add(connection, daily_usage, whose | {"date": hour.date()}, used)
            outcome = row.outcome or row.ended_by
            if outcome is not None:
                self._count(connection, whose | {"date": hour.date(), "outcome": outcome}, 1)
            return True

        return await self._database.write(record)

    async def record_job(
        self, job_id: str, account_id: str, key_id: str, ended_at: datetime, outcome: str, used: UsageRecord
    ) -> bool:
        """Add what an ended job used, once; see `record_jobs`.

        Returns:
            False when it has been added before.
        """
        one = JobUsage(
            job_id=job_id, account_id=account_id, key_id=key_id, ended_at=ended_at, outcome=outcome, used=used
        )
        return await self.record_jobs([one]) == 1

    async def record_jobs(self, given: Sequence[JobUsage]) -> int:
        """Add what ended jobs used, each once however often it is offered: to the hour and to the day of their end.

        Returns:
            How many had not been added before.
        """
        by_id = {one.job_id: one for one in given}
        if not by_id:
            return 0
        now = datetime.now(UTC)
        dialect = sqlite if self._database.is_sqlite else postgresql
        note = dialect.insert(recorded_jobs).on_conflict_do_nothing().returning(recorded_jobs.c.job_id)

        def record(connection: Connection) -> int:
            # In order, here and below: of two who add the same at once, none waits for the other in a circle.
            noted = connection.execute(note, [{"job_id": job_id, "at": now} for job_id in sorted(by_id)])
            fresh = [by_id[job_id] for job_id in noted.scalars()]
            hours: dict[tuple[str, str, datetime], UsageRecord] = {}
            days: dict[tuple[str, str, date], UsageRecord] = {}
            outcomes: Counter[tuple[str, str, date, str]] = Counter()
            for one in fresh:
                hour = one.ended_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
                whose = (one.account_id, one.key_id)
                hours[*whose, hour] = _plus(hours.get((*whose, hour)), one.used)
                days[*whose, hour.date()] = _plus(days.get((*whose, hour.date())), one.used)
                outcomes[*whose, hour.date(), one.outcome] += 1
            for (account_id, key_id, hour), used in sorted(hours.items(), key=lambda one: one[0]):
                place = {"account_id": account_id, "key_id": key_id, "hour": hour}
                self._add(connection, hourly_usage, place, used)
            for (account_id, key_id, day), used in sorted(days.items(), key=lambda one: one[0]):
                self._add(connection, daily_usage, {"account_id": account_id, "key_id": key_id, "date": day}, used)
            for (account_id, key_id, day, outcome), number in sorted(outcomes.items()):
                place = {"account_id": account_id, "key_id": key_id, "date": day, "outcome": outcome}
                self._count(connection, place, number)
            connection.execute(delete(recorded_jobs).where(recorded_jobs.c.at < now - REMEMBERED))
            return len(fresh)

        return await self._database.write(record)

    async def outcomes(
        self, account_id: str | None = None, *, now: datetime, days: int, key_id: str | None = None
    ) -> list[DailyOutcomes]:
        """How what ran in the last days (today is one) has ended, newest first: an account's, a key's, or all."""
        since = now.date() - timedelta(days=days - 1)
        query = (
            select(daily_outcomes.c.date, daily_outcomes.c.outcome, func.sum(daily_outcomes.c["count"]).label("number"))
            .where(daily_outcomes.c.date >= since)
            .group_by(daily_outcomes.c.date, daily_outcomes.c.outcome)
            .order_by(daily_outcomes.c.date.desc(), daily_outcomes.c.outcome)
        )
        if account_id is not None:
            query = query.where(daily_outcomes.c.account_id == account_id)
        if key_id is not None:
            query = query.where(daily_outcomes.c.key_id == key_id)
        found: dict[date, dict[str, int]] = {}
        for row in await self._database.read(lambda connection: list(connection.execute(query))):
            found.setdefault(row.date, {})[row.outcome] = int(row.number)
        return [DailyOutcomes(date=day, counts=counts) for day, counts in found.items()]

    async def counts(self, key_id: str, *, now: datetime) -> tuple[int, int]:
        """Sandboxes that the key made since 00:00 UTC, and those that have not ended."""
        return await self._database.read(lambda connection: count(connection, key_id, now=now))

    async def hourly(
        self, account_id: str | None = None, *, now: datetime, hours: int = 24, key_id: str | None = None
    ) -> list[HourlyUsage]:
        """The last hours in which there was something, newest first: an account's, a key's, or all."""
        since = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours - 1)
        rows = await self._sums(hourly_usage, "hour", since, account_id=account_id, key_id=key_id)
        return [HourlyUsage(hour=row.hour, **_sums(row)) for row in rows]

    async def daily(
        self, account_id: str | None = None, *, now: datetime, days: int, key_id: str | None = None
    ) -> list[DailyUsage]:
        """The last days (today is one) in which there was something, newest first: an account's, a key's, or all."""
        since = now.date() - timedelta(days=days - 1)
        rows = await self._sums(daily_usage, "date", since, account_id=account_id, key_id=key_id)
        return [DailyUsage(date=row.date, **_sums(row)) for row in rows]

    async def by_key(self, account_id: str | None = None, *, now: datetime, days: int) -> list[tuple[str, UsageRecord]]:
        """What each key of an account, or of all, used in the last days, the costliest first."""
        since = now.date() - timedelta(days=days - 1)
        cost = func.sum(daily_usage.c.cost_microcents)
        query = (
            select(daily_usage.c.key_id, *(func.sum(daily_usage.c[name]).label(name) for name in _SUMS))
            .where(daily_usage.c.date >= since)
            .group_by(daily_usage.c.key_id)
            .order_by(cost.desc(), daily_usage.c.key_id)
        )
        if account_id is not None:
            query = query.where(daily_usage.c.account_id == account_id)
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

    def _count(self, connection: Connection, place: dict[str, object], number: int) -> None:
        dialect = sqlite if self._database.is_sqlite else postgresql
        query = dialect.insert(daily_outcomes).values(place | {"count": number})
        connection.execute(
            query.on_conflict_do_update(
                index_elements=list(daily_outcomes.primary_key.columns),
                set_={"count": daily_outcomes.c["count"] + query.excluded["count"]},
            )
        )


def _plus(one: UsageRecord | None, other: UsageRecord) -> UsageRecord:
    if one is None:
        return other
    return UsageRecord(**{name: getattr(one, name) + getattr(other, name) for name in _SUMS})


def _sums(row: Row[Any]) -> dict[str, int]:
    # PostgreSQL sums bigint as numeric.
    return {name: int(getattr(row, name)) for name in _SUMS}
