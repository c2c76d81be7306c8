"""Accounts, keys and usage between the wire and our records: pure functions."""

import csv
import io
import zoneinfo
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from stockade.dialects.execbox.translate import timestamp
from stockade.dialects.execbox.wire import BadBody, LimitsBody
from stockade.model import Actor
from stockade.model.accounts import Account, AccountLimits, ApiKey, DailyUsage, HourlyUsage, QuotaRequest

__all__ = [
    "HISTORY",
    "account",
    "history",
    "history_csv",
    "hourly",
    "key",
    "limits",
    "quota_request",
    "to_limits",
    "to_moment",
    "usage",
]

UNLIMITED = -1
MIB = 1024 * 1024
HISTORY = ("date", "executions", "duration_ms", "cost_cents", "errors")


def to_moment(text: str) -> datetime:
    """The moment of an RFC 3339 text.

    Raises:
        BadBody: it is none; one without an offset from UTC could mean anything.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadBody("expires_at: must be a date and time like 2026-02-03T04:05:06Z") from None
    if moment.tzinfo is None:
        raise BadBody("expires_at: must say its offset from UTC, like 2026-02-03T04:05:06Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise BadBody("expires_at: is out of range") from None


def account(found: Account, actor: Actor, key: ApiKey) -> dict[str, Any]:
    """The account object, as the bearer of *key* sees it."""
    return _without_none(
        {
            "tier": actor.tier,
            "email": found.email or None,
            "api_key_id": key.id,
            "api_key_preview": key.preview,
            "created_at": timestamp(found.created_at),
            "tier_expires_at": found.tier_expires_at and timestamp(found.tier_expires_at),
        }
    )


def usage(actor: Actor, *, made: int, active: int) -> dict[str, Any]:
    """The usage object: what was used of today's quota, and what the key may have."""
    daily = actor.daily_limit
    return {
        "sessions_today": made,
        "active_sessions": active,
        "quota_used": made,
        "quota_remaining": UNLIMITED if daily is None else max(0, daily - made),
        "tier": actor.tier,
        "concurrent_limit": _or_unlimited(actor.concurrent_limit),
        "daily_limit": _or_unlimited(daily),
        "max_duration_seconds": UNLIMITED if actor.max_duration_s is None else int(actor.max_duration_s),
        "max_memory_mb": UNLIMITED if actor.max_memory_bytes is None else actor.max_memory_bytes // MIB,
    }


def hourly(hours: Sequence[HourlyUsage]) -> list[dict[str, Any]]:
    return [
        {
            "hour": timestamp(one.hour),
            "executions": one.executions,
            "cost_cents": one.cost_cents,
            "errors": one.errors,
        }
        for one in hours
    ]


def history(days: Sequence[DailyUsage]) -> list[dict[str, Any]]:
    return [
        {
            "date": one.date.isoformat(),
            "executions": one.executions,
            "duration_ms": one.duration_ms,
            "cost_cents": one.cost_cents,
            "errors": one.errors,
        }
        for one in days
    ]


def history_csv(days: Sequence[DailyUsage]) -> bytes:
    """The history with a header row (RFC 4180)."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, HISTORY)
    writer.writeheader()
    writer.writerows(history(days))
    return text.getvalue().encode()


def limits(found: AccountLimits, *, daily: int | None, concurrent: int | None) -> dict[str, Any]:
    """The limits object; *daily* and *concurrent* are the tier's, which count where the account sets none."""
    own_daily, own_concurrent = found.daily_requests_limit, found.concurrent_requests_limit
    return _without_none(
        {
            "daily_requests_limit": _or_unlimited(daily if own_daily is None else own_daily),
            "concurrent_requests_limit": _or_unlimited(concurrent if own_concurrent is None else own_concurrent),
            "monthly_cost_limit_cents": found.monthly_cost_limit_cents,
            "alert_threshold": found.alert_threshold,
            "billing_email": found.billing_email,
            "timezone": found.timezone,
        }
    )


def to_limits(body: LimitsBody) -> dict[str, Any]:
    """What is to be changed, by the names of `AccountLimits`; -1 takes a limit away.

    Raises:
        BadBody: nothing is to be changed, or a value is wrong.
    """
    changes = {name: value for name, value in body.model_dump().items() if value is not None}
    if not changes:
        raise BadBody("no fields to update")
    for name in ("daily_requests_limit", "concurrent_requests_limit"):
        if changes.get(name) == 0:
            raise BadBody(f"{name}: must be greater than 0, or -1 for no limit")
        if changes.get(name) == UNLIMITED:
            changes[name] = None
    if "timezone" in changes and changes["timezone"] not in zoneinfo.available_timezones():
        raise BadBody("timezone: must be a name of the IANA database, like Europe/Berlin")
    return changes


def key(found: ApiKey) -> dict[str, Any]:
    """The key object."""
    return _without_none(
        {
            "id": found.id,
            "name": found.name or None,
            "description": found.description or None,
            "key_preview": found.preview,
            "is_active": found.is_active,
            "expires_at": found.expires_at and timestamp(found.expires_at),
            "last_used_at": found.last_used_at and timestamp(found.last_used_at),
            "custom_daily_limit": found.custom_daily_limit,
            "custom_concurrent_limit": found.custom_concurrent_limit,
            "created_at": timestamp(found.created_at),
        }
    )


def quota_request(found: QuotaRequest) -> dict[str, Any]:
    """What the asker is told."""
    return {
        "id": found.id,
        "status": found.status,
        "message": "Request received.",
        "created_at": timestamp(found.created_at),
    }


def _or_unlimited(value: int | None) -> int:
    return UNLIMITED if value is None else value


def _without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
