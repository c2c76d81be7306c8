"""What sandboxes used and cost, counted once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from stockade.accounts import Accounts
from stockade.accounts.usage import cost_microcents, used_by
from stockade.config_accounts import AccountsConfig, PriceConfig
from stockade.model import Actor, EndedBy, Sandbox, SandboxState, Usage
from stockade.model.accounts import UsageRecord
from stockade.store import Database, QuotaExceeded, SandboxTable
from tests.store.databases import NOON, a_sandbox

pytestmark = pytest.mark.anyio
PRICES = PriceConfig()
USED = Usage(wall_s=10.0, cpu_user_s=1.5, cpu_system_s=0.5, memory_peak_bytes=512 << 20)
ANN = Actor(id="ann", account_id="ann")


@pytest.fixture
async def accounts(database: Database) -> AsyncIterator[Accounts]:
    accounts = Accounts.on(database, AccountsConfig())
    yield accounts
    await accounts.close()


@pytest.fixture
def table(database: Database) -> SandboxTable:
    return SandboxTable(database=database, server_id="s")


def ended(id: str, at: datetime, **changes: Any) -> Sandbox:
    members: dict[str, Any] = {"state": SandboxState.ENDED, "exit_code": 0, "usage": USED, "created_at": at}
    return a_sandbox(id, **(members | changes))


async def test_prices_are_the_nominal_ones() -> None:
    assert cost_microcents(PRICES, cpu_s=0, memory_gb_s=0) == 100_000
    assert cost_microcents(PRICES, cpu_s=1, memory_gb_s=0) == 105_000
    assert cost_microcents(PRICES, cpu_s=0, memory_gb_s=1) == 101_000
    assert cost_microcents(PriceConfig(sandbox_usd=0, cpu_second_usd=1), cpu_s=2, memory_gb_s=0) == 200_000_000


async def test_usage_comes_from_what_was_measured() -> None:
    assert used_by(ended("one", NOON), PRICES) == UsageRecord(
        executions=1,
        duration_ms=10_000,
        cpu_ms=2_000,
        memory_mb_seconds=5_120,
        cost_microcents=100_000 + 2 * 5_000 + 5 * 1_000,
    )


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        ({"exit_code": 0}, 0),
        ({"exit_code": 3}, 1),
        ({"exit_code": None, "ended_by": EndedBy.STOP}, 0),
        ({"exit_code": None, "ended_by": EndedBy.LOST}, 1),
    ],
)
async def test_what_does_not_exit_with_0_is_an_error(changes: dict[str, Any], errors: int) -> None:
    assert used_by(ended("one", NOON, **changes), PRICES).errors == errors


async def test_of_a_lost_sandbox_its_time_counts() -> None:
    lost = ended("one", NOON, usage=None, started_at=NOON, ended_at=NOON + timedelta(seconds=2), exit_code=None)
    assert used_by(lost, PRICES).duration_ms == 2000
    assert used_by(replace(lost, started_at=None), PRICES).duration_ms == 0


async def test_a_sandbox_is_counted_once_however_often_its_end_is_told(accounts: Accounts, table: SandboxTable) -> None:
    now = datetime.now(UTC)
    await table.insert_within_quota(ended("one", now))
    await table.insert_within_quota(a_sandbox("running", created_at=now))
    one = await table.get("one")
    running = await table.get("running")
    assert one is not None
    assert running is not None
    await asyncio.gather(*(accounts.usage.record_end(one) for _ in range(10)), accounts.usage.record_end(running))
    (today,) = await accounts.usage.daily(ANN, days=1)
    assert (today.date, today.executions, today.cpu_ms, today.cost_cents) == (now.date(), 1, 2000, 0)
    assert await table.list_unrecorded() == ()


async def test_usage_is_summed_by_hour_and_day_of_the_beginning(accounts: Accounts, table: SandboxTable) -> None:
    now = datetime.now(UTC).replace(minute=30)
    for number, (hours, code) in enumerate([(0, 0), (0, 1), (1, 0), (25, 0), (24 * 8, 0), (24 * 400, 0)]):
        sandbox = ended(f"sess_{number}", now - timedelta(hours=hours), exit_code=code)
        await table.insert_within_quota(sandbox)
        await accounts.usage.record_end(sandbox)
    bob = ended("bob", now, key_id="bob")
    await table.insert_within_quota(bob)
    await accounts.usage.record_end(bob)
    week = await accounts.usage.enhanced(ANN, days=7)
    assert [(one.hour, one.executions, one.errors) for one in week.hourly] == [
        (now.replace(minute=0, second=0, microsecond=0), 2, 1),
        ((now - timedelta(hours=1)).replace(minute=0, second=0, microsecond=0), 1, 0),
    ]
    assert sum(one.executions for one in week.daily) == 4
    assert [one.date for one in week.daily] == sorted({one.date for one in week.daily}, reverse=True)
    assert week.cost_cents == 0, "4 × 0.115 cents"
    assert sum(one.executions for one in await accounts.usage.daily(ANN, days=365)) == 5
    assert sum(one.executions for one in await accounts.usage.everybody(days=1)) >= 3
    assert {id for id, _ in await accounts.usage.by_key(days=7)} == {"ann", "bob"}


async def test_costs_are_rounded_once_at_the_end() -> None:
    assert UsageRecord(cost_microcents=499_999).cost_cents == 0
    assert UsageRecord(cost_microcents=500_000).cost_cents == 1
    assert UsageRecord(cost_microcents=20 * 100_000).cost_cents == 2


async def test_today_s_counts_are_those_of_the_key(accounts: Accounts, table: SandboxTable) -> None:
    now = datetime.now(UTC)
    await table.insert_within_quota(a_sandbox("one", created_at=now))
    await table.insert_within_quota(ended("two", now))
    await table.insert_within_quota(ended("yesterday", now - timedelta(days=1)))
    await table.insert_within_quota(a_sandbox("build", created_at=now), is_quota_free=True)
    await table.insert_within_quota(a_sandbox("bob", key_id="bob", created_at=now))
    assert await accounts.usage.counts(ANN) == (2, 1)


async def test_an_account_that_has_cost_its_month_s_limit_gets_no_more(accounts: Accounts, table: SandboxTable) -> None:
    expensive = ended(
        "one", NOON, usage=replace(USED, cpu_user_s=1000.0), account_id="acme", key_id="first"
    )  # 5.1 cents
    await table.insert_within_quota(expensive, monthly_cost_cents=5)
    await accounts.usage.record_end(expensive)
    more = a_sandbox("two", account_id="acme", key_id="second")
    with pytest.raises(QuotaExceeded, match="monthly cost limit") as refusal:
        await table.insert_within_quota(more, monthly_cost_cents=5)
    assert refusal.value.retry_after_s == (datetime(2026, 3, 1, tzinfo=UTC) - NOON).total_seconds()
    await table.insert_within_quota(more, monthly_cost_cents=6)
    next_month = a_sandbox("three", account_id="acme", created_at=datetime(2026, 3, 1, tzinfo=UTC))
    await table.insert_within_quota(next_month, monthly_cost_cents=5)


async def test_days_are_those_of_utc(accounts: Accounts, table: SandboxTable) -> None:
    zone = datetime.now(UTC).replace(hour=0, minute=10).astimezone().tzinfo
    late = datetime.combine(datetime.now(UTC).date(), datetime.min.time(), tzinfo=UTC).astimezone(zone)
    sandbox = ended("one", late)
    await table.insert_within_quota(sandbox)
    await accounts.usage.record_end(sandbox)
    (day,) = await accounts.usage.daily(ANN, days=2)
    assert day.date == late.astimezone(UTC).date()
    assert isinstance(day.date, date)
