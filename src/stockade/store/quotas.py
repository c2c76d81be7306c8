"""Whether a key may have another sandbox: counted and inserted as one, so that no two at once take the last place."""

import hashlib
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, func, select

from stockade.errors import LimitExceeded
from stockade.store.database import Database
from stockade.store.tables import IS_UNENDED, daily_usage, sandboxes

__all__ = ["QuotaExceeded", "check", "check_cost", "count"]

CONCURRENT_RETRY_S = 1.0


class QuotaExceeded(LimitExceeded):
    """The key has as many sandboxes as it may have; stop one, or come back tomorrow."""

    code = "quota.exceeded"


def midnight(now: datetime) -> datetime:
    """The beginning of the day of *now*, which is UTC."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


_OF_KEY = (sandboxes.c.key_id == bindparam("key_id"), ~sandboxes.c.is_quota_free)
_MADE = select(func.count()).select_from(sandboxes).where(*_OF_KEY, sandboxes.c.created_at >= bindparam("since"))
_UNENDED = select(func.count()).select_from(sandboxes).where(*_OF_KEY, IS_UNENDED)
# Made once: putting it together takes longer than running it.
_COUNTS = select(_MADE.scalar_subquery(), _UNENDED.scalar_subquery())


def count(connection: Connection, key_id: str, *, now: datetime) -> tuple[int, int]:
    """Sandboxes that the key made since 00:00 UTC, whatever became of them, and those that have not ended."""
    made, unended = connection.execute(_COUNTS, {"key_id": key_id, "since": midnight(now)}).one()
    return int(made), int(unended)


def check(
    database: Database,
    connection: Connection,
    *,
    key_id: str,
    account_id: str,
    now: datetime,
    daily: int | None,
    concurrent: int | None,
    monthly_cost_cents: int | None,
) -> None:
    """Make sure that the key may have another sandbox, and keep it so until the transaction ends.

    Raises:
        QuotaExceeded: it may not; the message says which limit.
    """
    if daily is None and concurrent is None and monthly_cost_cents is None:
        return
    database.lock(connection, _lock_number(key_id))
    today = midnight(now)
    made, unended = count(connection, key_id, now=now)
    if concurrent is not None and unended >= concurrent:
        raise QuotaExceeded(
            f"concurrent session limit reached ({unended}/{concurrent})", retry_after_s=CONCURRENT_RETRY_S
        )
    if daily is not None and made >= daily:
        left_s = (today + timedelta(days=1) - now).total_seconds()
        raise QuotaExceeded(f"daily session limit reached ({made}/{daily})", retry_after_s=left_s)
    if monthly_cost_cents is not None:
        check_cost(connection, account_id=account_id, now=now, monthly_cost_cents=monthly_cost_cents)


def check_cost(connection: Connection, *, account_id: str, now: datetime, monthly_cost_cents: int) -> None:
    """Make sure that the account has not cost as much as that in the month of *now*, which is UTC.

    Raises:
        QuotaExceeded: it has.
    """
    first = midnight(now).replace(day=1)
    spent = connection.scalar(
        select(func.coalesce(func.sum(daily_usage.c.cost_microcents), 0)).where(
            daily_usage.c.account_id == account_id, daily_usage.c.date >= first.date()
        )
    )
    if int(spent or 0) >= monthly_cost_cents * 1_000_000:
        raise QuotaExceeded(
            f"monthly cost limit reached ({monthly_cost_cents} cents)",
            retry_after_s=((first + timedelta(days=32)).replace(day=1) - now).total_seconds(),
        )


def _lock_number(key_id: str) -> int:
    """What is locked while a key's sandboxes are counted: not the key's row, since not every actor has one."""
    digest = hashlib.sha256(b"stockade.quota\0" + key_id.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
