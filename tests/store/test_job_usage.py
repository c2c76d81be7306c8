"""What jobs used, in the sums of accounts: each once."""

import asyncio
from datetime import date, datetime, timedelta, timezone

import pytest

from stockade.model import Outcome, SandboxState
from stockade.model.accounts import UsageRecord
from stockade.store import Database, SandboxTable, UsageTable
from stockade.store.usage import JobUsage
from tests.store.databases import NOON, a_sandbox

pytestmark = pytest.mark.anyio

DAY = NOON.date()


def a_usage(
    job_id: str, *, key_id: str = "key", hours: float = 0, outcome: str = "exited", cpu_ms: int = 5
) -> JobUsage:
    return JobUsage(
        job_id=job_id,
        account_id="ann",
        key_id=key_id,
        ended_at=NOON + timedelta(hours=hours),
        outcome=outcome,
        used=UsageRecord(executions=1, errors=int(outcome != "exited"), cpu_ms=cpu_ms, cost_microcents=7),
    )


async def test_a_job_is_added_once_to_its_hour_and_day(database: Database) -> None:
    table = UsageTable(database)
    one = a_usage("1")
    for expected in (True, False):
        added = await table.record_job(one.job_id, one.account_id, one.key_id, one.ended_at, one.outcome, one.used)
        assert added == expected
    [day] = await table.daily("ann", now=NOON, days=1)
    [hour] = await table.hourly("ann", now=NOON)
    assert (day.date, day.executions, day.cpu_ms, day.cost_microcents) == (DAY, 1, 5, 7)
    assert (hour.hour, hour.executions) == (NOON, 1)
    [outcomes] = await table.outcomes("ann", now=NOON, days=1)
    assert (outcomes.date, outcomes.counts) == (DAY, {"exited": 1})


async def test_many_are_added_together_however_often_they_are_offered(database: Database) -> None:
    table = UsageTable(database)
    given = [
        a_usage(f"{n}", key_id=f"key {n % 2}", hours=-24 * (n % 3), outcome="memory" if n % 5 == 0 else "exited")
        for n in range(30)
    ]
    added = await asyncio.gather(
        table.record_jobs(given[:20]), table.record_jobs(given[10:]), table.record_jobs(given[::-1])
    )
    assert sum(added) == 30
    assert await table.record_jobs([]) == 0
    days = await table.daily("ann", now=NOON, days=3)
    assert [(one.date, one.executions, one.errors) for one in days] == [
        (DAY - timedelta(days=n), 10, sum(k % 3 == n and k % 5 == 0 for k in range(30))) for n in range(3)
    ]
    outcomes = await table.outcomes("ann", now=NOON, days=3)
    assert [one.counts for one in outcomes] == [
        {"exited": one.executions - one.errors, "memory": one.errors} for one in days
    ]
    [of_key] = await table.outcomes(now=NOON, days=1, key_id="key 0")
    assert sum(of_key.counts.values()) == 5
    assert await table.outcomes("bob", now=NOON, days=3) == []


async def test_ended_sandboxes_are_counted_by_outcome_too(database: Database) -> None:
    table = UsageTable(database)
    rows = SandboxTable(database=database, server_id="s")
    for number, changes in enumerate(({"outcome": Outcome.MEMORY}, {"outcome": Outcome.EXITED, "exit_code": 0})):
        sandbox = a_sandbox(f"{number}", state=SandboxState.ENDED, **changes)
        await rows.insert_within_quota(sandbox)
        assert await table.record_end(sandbox.id, UsageRecord(executions=1))
        assert not await table.record_end(sandbox.id, UsageRecord(executions=1))
    [outcomes] = await table.outcomes("ann", now=NOON, days=1)
    assert outcomes.counts == {"memory": 1, "exited": 1}


async def test_what_was_recorded_long_ago_is_not_remembered(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = UsageTable(database)
    assert await table.record_jobs([a_usage("1")]) == 1
    monkeypatch.setattr("stockade.store.usage.REMEMBERED", timedelta(0))
    assert await table.record_jobs([a_usage("2")]) == 1
    count = await database.read(
        lambda connection: connection.exec_driver_sql("SELECT count(*) FROM recorded_jobs WHERE job_id = '1'").scalar()
    )
    assert count == 0


async def test_hours_and_days_are_those_of_utc(database: Database) -> None:
    table = UsageTable(database)
    late = datetime(2026, 2, 3, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    await table.record_job("1", "ann", "key", late, "exited", UsageRecord(executions=1))
    [day] = await table.daily("ann", now=NOON, days=9)
    assert day.date == date(2026, 2, 2)
