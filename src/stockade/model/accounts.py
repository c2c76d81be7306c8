"""Accounts, their API keys, their limits and what they used."""

from dataclasses import dataclass, field
from datetime import date, datetime

__all__ = [
    "Account",
    "AccountLimits",
    "ApiKey",
    "DailyUsage",
    "HourlyUsage",
    "ImageBuild",
    "QuotaRequest",
    "UsageRecord",
]


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who owns keys and sandboxes, and is told what they cost."""

    id: str
    """A UUID; also the id of the account's first key, its primary one."""
    tier: str
    email: str = ""
    tier_expires_at: datetime | None = None
    """From then on the account has the tier `free`."""
    is_admin: bool = False
    """The operator's own account; there is one."""
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is kept of an API key: never the key itself."""

    id: str
    """A UUID."""
    account_id: str
    hash: str | None = field(repr=False)
    """SHA-256 in hexadecimal; `None` for the key that the operator presets: that one is compared in memory only."""
    preview: str
    """Its beginning and end, to recognise it by."""
    name: str = ""
    description: str = ""
    is_active: bool = True
    expires_at: datetime | None = None
    parent_key_id: str | None = None
    """The key that made it."""
    custom_daily_limit: int | None = None
    custom_concurrent_limit: int | None = None
    rate_limit_rps: int | None = None
    """`None` for its tier's."""
    templates: bool = True
    """See `Actor.templates`."""
    backend: str = ""
    """See `Actor.backend`."""
    created_at: datetime
    last_used_at: datetime | None = None
    """True to a minute."""

    @property
    def is_primary(self) -> bool:
        """Whether it is its account's first key."""
        return self.id == self.account_id


@dataclass(frozen=True, kw_only=True)
class AccountLimits:
    """What the owner of an account has set. `None`: nothing; the tier's figure counts."""

    daily_requests_limit: int | None = None
    concurrent_requests_limit: int | None = None
    monthly_cost_limit_cents: int | None = None
    alert_threshold: int = 80
    """Percent of the monthly limit."""
    billing_email: str | None = None
    timezone: str = "UTC"


@dataclass(frozen=True, kw_only=True)
class UsageRecord:
    """What one sandbox, or many together, used."""

    executions: int = 0
    errors: int = 0
    """Those of them that did not end with exit code 0."""
    duration_ms: int = 0
    cpu_ms: int = 0
    memory_mb_seconds: int = 0
    """Peak memory in MiB times seconds of life."""
    bytes_in: int = 0
    bytes_out: int = 0
    cost_microcents: int = 0
    """Millionths of a US cent, at the prices of the time."""

    @property
    def cost_cents(self) -> int:
        """The cost, rounded to whole cents."""
        return (self.cost_microcents + 500_000) // 1_000_000


@dataclass(frozen=True, kw_only=True)
class HourlyUsage(UsageRecord):
    """Of sandboxes that were made in an hour."""

    hour: datetime


@dataclass(frozen=True, kw_only=True)
class DailyUsage(UsageRecord):
    """Of sandboxes that were made on a UTC day."""

    date: date


@dataclass(frozen=True, kw_only=True)
class QuotaRequest:
    """Somebody asks for more than their tier gives."""

    id: int
    email: str
    name: str = ""
    company: str = ""
    use_case: str = ""
    requested_limits: str = ""
    budget: str = ""
    key_id: str | None = None
    current_tier: str | None = None
    status: str = "pending"
    """`pending`, `contacted`, `converted` or `declined`."""
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class ImageBuild:
    """A layer that was built over an image, and lies in the data directory of one server."""

    digest: str
    base_image: str
    size_bytes: int
    duration_s: float
    created_at: datetime
    last_used_at: datetime
