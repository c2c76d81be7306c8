"""How much a key may ask for: the smallest of what tier, account and key allow."""

from datetime import datetime

from stockade.config_accounts import AccountsConfig, TierConfig
from stockade.model import Actor
from stockade.model.accounts import Account, AccountLimits, ApiKey

__all__ = ["ADMIN", "DEFAULT", "actor_of", "smallest", "tier_name", "tier_of"]

ADMIN = "enterprise"
DEFAULT = "free"


def tier_name(account: Account, config: AccountsConfig, *, now: datetime) -> str:
    """The tier that counts now."""
    is_over = account.tier_expires_at is not None and account.tier_expires_at <= now
    return DEFAULT if is_over or not hasattr(config.tiers, account.tier) else account.tier


def tier_of(name: str, config: AccountsConfig) -> TierConfig:
    """The tier called *name*; `free` for one that this version does not know."""
    found: TierConfig = getattr(config.tiers, name, config.tiers.free)
    return found


def actor_of(key: ApiKey, account: Account, limits: AccountLimits, config: AccountsConfig, *, now: datetime) -> Actor:
    """The bearer of *key*."""
    name = tier_name(account, config, now=now)
    tier = tier_of(name, config)
    return Actor(
        id=key.id,
        templates=key.templates,
        backend=key.backend,
        account_id=account.id,
        tier=name,
        is_admin=account.is_admin,
        rate_limit_rps=key.rate_limit_rps or tier.rate_limit_rps,
        daily_limit=smallest(tier.daily_sandboxes, limits.daily_requests_limit, key.custom_daily_limit),
        concurrent_limit=smallest(
            tier.concurrent_sandboxes, limits.concurrent_requests_limit, key.custom_concurrent_limit
        ),
        max_duration_s=tier.max_duration_s or None,
        max_memory_bytes=tier.max_memory_bytes or None,
        monthly_cost_limit_cents=limits.monthly_cost_limit_cents,
    )


def smallest(*limits: int | None) -> int | None:
    """The smallest of several limits, of which those that are 0 or `None` are none."""
    return min((one for one in limits if one), default=None)
