"""Routes of usage: by day, by hour, by key; as JSON for the charts, and as CSV."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stockade.errors import NotFound
from stockade.model.accounts import DailyUsage, HourlyUsage, UsageRecord
from stockade.store import UsageTable
from stockade.web.edge import Caller, Edge
from stockade.web.job_routes import to_number
from stockade.web.translate import timestamp

__all__ = ["Usage", "add_usage"]

HOURS = 48
MOST_DAYS = 366
_COLUMNS = ("date", "runs", "errors", "cpuS", "wallS", "memoryMbS", "costCents")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What was used, as the charts show it."""

    table: UsageTable
    edge: Edge

    async def of_account(self, caller: Caller, *, days: int, key_id: str | None) -> dict[str, Any]:
        """What the account used in the last days, or one of its keys.

        Raises:
            NotFound: the account has no such key.
        """
        names = {one.id: one.name for one in await self.edge.accounts.keys.list(caller.actor)}
        if key_id is not None and key_id not in names:
            raise NotFound(f"key {key_id[:100]} not found")
        return await self._figures(caller.actor.account_id, days=days, key_id=key_id, names=names)

    async def of_everybody(self, *, days: int) -> dict[str, Any]:
        """What all accounts together used."""
        names = {key.id: key.name for key, _ in await self.edge.accounts.operation.list_keys()}
        return await self._figures(None, days=days, key_id=None, names=names)

    async def _figures(
        self, account_id: str | None, *, days: int, key_id: str | None, names: Mapping[str, str]
    ) -> dict[str, Any]:
        now = datetime.now(UTC)
        daily = await self.table.daily(account_id, now=now, days=days, key_id=key_id)
        hourly = await self.table.hourly(account_id, now=now, hours=HOURS, key_id=key_id)
        outcomes = {
            one.date: one.counts for one in await self.table.outcomes(account_id, now=now, days=days, key_id=key_id)
        }
        by_key = await self.table.by_key(account_id, now=now, days=days)
        return {
            "days": _days(daily, outcomes, now=now, days=days),
            "hours": _hours(hourly, now=now),
            "keys": [
                {"id": id, "name": names.get(id, "")} | _some(figures(used), "runs", "errors", "cpuS", "costCents")
                for id, used in by_key
                if key_id is None or id == key_id
            ],
            "total": figures(_sum(daily), _total(outcomes)),
        }


def figures(used: UsageRecord, outcomes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """One sum."""
    return {
        "runs": used.executions,
        "errors": used.errors,
        "cpuS": used.cpu_ms / 1000,
        "wallS": used.duration_ms / 1000,
        "memoryMbS": used.memory_mb_seconds,
        # Not in whole cents: the sum of a day may be less than one.
        "costCents": round(used.cost_microcents / 1_000_000, 4),
        "outcomes": dict(outcomes or {}),
    }


def _days(
    daily: Sequence[DailyUsage], outcomes: Mapping[date, Mapping[str, int]], *, now: datetime, days: int
) -> list[dict[str, Any]]:
    """Each day, oldest first; those too on which there was nothing."""
    found = {one.date: one for one in daily}
    wanted = [now.date() - timedelta(days=ago) for ago in reversed(range(days))]
    return [{"date": day.isoformat()} | figures(found.get(day, UsageRecord()), outcomes.get(day)) for day in wanted]


def _hours(hourly: Sequence[HourlyUsage], *, now: datetime) -> list[dict[str, Any]]:
    found = {one.hour: one for one in hourly}
    this = now.replace(minute=0, second=0, microsecond=0)
    wanted = [this - timedelta(hours=ago) for ago in reversed(range(HOURS))]
    return [{"hour": timestamp(hour)} | figures(found.get(hour, UsageRecord())) for hour in wanted]


def _sum(daily: Sequence[DailyUsage]) -> UsageRecord:
    return UsageRecord(
        executions=sum(one.executions for one in daily),
        errors=sum(one.errors for one in daily),
        duration_ms=sum(one.duration_ms for one in daily),
        cpu_ms=sum(one.cpu_ms for one in daily),
        memory_mb_seconds=sum(one.memory_mb_seconds for one in daily),
        cost_microcents=sum(one.cost_microcents for one in daily),
    )


def _total(outcomes: Mapping[date, Mapping[str, int]]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for one in outcomes.values():
        total.update(one)
    return total


def _some(members: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: members[name] for name in names}


def as_csv(days: Sequence[Mapping[str, Any]]) -> bytes:
    """The days with a header row (RFC 4180)."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(days)
    return text.getvalue().encode()


def add_usage(router: APIRouter, usage: Usage) -> None:
    """The account's usage; an admin's look at everybody's."""
    edge = usage.edge

    async def read(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            key_id = request.query_params.get("key") or None
            return await usage.of_account(caller, days=_asked(request), key_id=key_id)

        return await edge.call(request, work)

    async def export(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            found = await usage.of_account(caller, days=_asked(request), key_id=None)
            headers = {"Content-Disposition": 'attachment; filename="stockade-usage.csv"'}
            return Response(as_csv(found["days"]), media_type="text/csv", headers=headers)

        return await edge.call(request, work)

    async def everybody(request: Request) -> Response:
        async def work(_caller: Caller) -> object:
            return await usage.of_everybody(days=_asked(request))

        return await edge.admin(request, work)

    router.add_route("/api/usage", read, methods=["GET"])
    router.add_route("/api/usage.csv", export, methods=["GET"])
    router.add_route("/api/admin/usage", everybody, methods=["GET"])


def _asked(request: Request) -> int:
    return to_number(request.query_params, "days", least=1, most=MOST_DAYS, default=30)
