"""What sandboxes used and cost: added up when they end, and told to whoever made them."""

from dataclasses import dataclass
from datetime import UTC, datetime

from stockade.config_accounts import PriceConfig
from stockade.model import Actor, EndedBy, Sandbox
from stockade.model.accounts import AccountLimits, DailyUsage, HourlyUsage, UsageRecord
from stockade.store import Database, UsageTable
from stockade.store import accounts as rows

__all__ = ["EnhancedUsage", "UsageAccounting", "cost_microcents", "used_by"]

MIB = 1024 * 1024
MICROCENTS = 100 * 1_000_000
"""In a dollar."""


@dataclass(frozen=True, kw_only=True)
class EnhancedUsage:
    """What an account used lately."""

    made_today: int
    """By the key that asks."""
    unended: int
    hourly: tuple[HourlyUsage, ...]
    """Of the last 24 hours those in which there was something, newest first."""
    daily: tuple[DailyUsage, ...]
    """Of the days asked for likewise."""
    cost_cents: int
    """Of these days."""
    limits: AccountLimits


class UsageAccounting:
    """Adds up usage, and tells it."""

    def __init__(self, database: Database, prices: PriceConfig) -> None:
        self._database = database
        self._table = UsageTable(database)
        self._prices = prices

    async def record_end(self, sandbox: Sandbox) -> None:
        """Add an ended sandbox to the sums of its hour and day, once, however often this is called.

        Raises:
            Unavailable: the database is away; nothing was added, call again.
        """
        await self._table.record_end(sandbox.id, used_by(sandbox, self._prices))

    async def counts(self, actor: Actor) -> tuple[int, int]:
        """Sandboxes that the key made since 00:00 UTC, and those of it that have not ended."""
        return await self._table.counts(actor.id, now=datetime.now(UTC))

    async def daily(self, actor: Actor, *, days: int) -> tuple[DailyUsage, ...]:
        """Days of the account in which there was something, newest first."""
        return tuple(await self._table.daily(actor.account_id, now=datetime.now(UTC), days=days))

    async def enhanced(self, actor: Actor, *, days: int) -> EnhancedUsage:
        """All of it at once."""
        now = datetime.now(UTC)
        made, unended = await self._table.counts(actor.id, now=now)
        daily = await self._table.daily(actor.account_id, now=now, days=days)
        hourly = await self._table.hourly(actor.account_id, now=now)
        limits = await self._database.read(lambda connection: rows.find_limits(connection, actor.account_id))
        # Rounded once, at the end: many small sums would vanish.
        cost = UsageRecord(cost_microcents=sum(one.cost_microcents for one in daily))
        return EnhancedUsage(
            made_today=made,
            unended=unended,
            hourly=tuple(hourly),
            daily=tuple(daily),
            cost_cents=cost.cost_cents,
            limits=limits,
        )

    async def everybody(self, *, days: int) -> tuple[DailyUsage, ...]:
        """Days of all accounts together, newest first."""
        return tuple(await self._table.daily(now=datetime.now(UTC), days=days))

    async def by_key(self, *, days: int) -> tuple[tuple[str, UsageRecord], ...]:
        """Each key's id and what it used, the costliest first."""
        return tuple(await self._table.by_key(now=datetime.now(UTC), days=days))


def used_by(sandbox: Sandbox, prices: PriceConfig) -> UsageRecord:
    """What an ended sandbox used. Of one that was lost only its time is known."""
    usage = sandbox.usage
    if usage is not None:
        wall_s, cpu_s, memory_bytes = usage.wall_s, usage.cpu_s, usage.memory_peak_bytes
    else:
        began, ended = sandbox.started_at, sandbox.ended_at
        wall_s = max(0.0, (ended - began).total_seconds()) if began is not None and ended is not None else 0.0
        cpu_s, memory_bytes = 0.0, 0
    return UsageRecord(
        executions=1,
        errors=1 if _is_error(sandbox) else 0,
        duration_ms=round(1000 * wall_s),
        cpu_ms=round(1000 * cpu_s),
        memory_mb_seconds=round(memory_bytes / MIB * wall_s),
        bytes_in=usage.bytes_in if usage else 0,
        bytes_out=usage.bytes_out if usage else 0,
        cost_microcents=cost_microcents(prices, cpu_s=cpu_s, memory_gb_s=memory_bytes / (1024 * MIB) * wall_s),
    )


def _is_error(sandbox: Sandbox) -> bool:
    if sandbox.exit_code is None:  # without a main process there is none to go by
        return sandbox.ended_by in (EndedBy.FAILURE, EndedBy.LOST)
    return sandbox.exit_code != 0


def cost_microcents(prices: PriceConfig, *, cpu_s: float, memory_gb_s: float) -> int:
    """What one sandbox costs, in millionths of a cent."""
    dollars = prices.sandbox_usd + prices.cpu_second_usd * cpu_s + prices.memory_gb_second_usd * memory_gb_s
    return round(dollars * MICROCENTS)
