"""Settings of the database, and of accounts: tiers, prices, sign-up."""

from dataclasses import dataclass, field

from stockade.settings import setting

__all__ = ["AccountsConfig", "DatabaseConfig", "PriceConfig", "TierConfig", "TiersConfig"]

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig:
    """Where accounts, keys, sandboxes and usage are recorded."""

    url: str = setting(
        "",
        env=("DATABASE_URL",),
        secret=True,
        help="PostgreSQL database: `postgres://user:password@host/name`. Several servers may share it. Not set: the "
        "SQLite file `state/stockade.db` in the data directory. Extra: `postgres`.",
    )
    timeout_s: float = setting(
        10.0,
        at_least=0.1,
        help="Longest time that a transaction may take, waiting for a connection and for others' locks included; what "
        "takes longer is answered with 503.",
    )
    connections: int = setting(8, at_least=2, at_most=1000, help="Connections held to the database at most.")


@dataclass(frozen=True, kw_only=True)
class TierConfig:
    """What the keys of a tier may do. 0 means no limit."""

    daily_sandboxes: int = setting(0, at_least=0, help="Sandboxes that a key may make in a UTC day; 0 means no limit.")
    concurrent_sandboxes: int = setting(
        0, at_least=0, help="Sandboxes of a key that have not ended, at a time; 0 means no limit."
    )
    max_duration_s: float = setting(
        0.0, at_least=0, help="The longest life of a sandbox; 0 means no limit of the tier's."
    )
    max_memory_bytes: int = setting(0, at_least=0, help="Most memory of a sandbox; 0 means no limit of the tier's.")
    rate_limit_rps: int = setting(
        10, at_least=1, help="Requests of a key per second, and as many at once; a key may have a limit of its own."
    )


def _of(
    *, daily: int = 0, concurrent: int = 0, duration_s: float = 0.0, memory_mib: int = 0, rps: int = 10
) -> TierConfig:
    return TierConfig(
        daily_sandboxes=daily,
        concurrent_sandboxes=concurrent,
        max_duration_s=duration_s,
        max_memory_bytes=memory_mib * _MIB,
        rate_limit_rps=rps,
    )


@dataclass(frozen=True, kw_only=True)
class TiersConfig:
    """The tiers that an account can have."""

    anonymous: TierConfig = field(
        default_factory=lambda: _of(daily=3, concurrent=1, duration_s=60.0, memory_mib=512),
    )
    free: TierConfig = field(
        default_factory=lambda: _of(daily=10, concurrent=5, duration_s=60.0, memory_mib=512),
    )
    """Also counts for a tier that has expired, or that this version does not know."""
    starter: TierConfig = field(
        default_factory=lambda: _of(daily=100, concurrent=10, duration_s=300.0, memory_mib=1024),
    )
    pro: TierConfig = field(
        default_factory=lambda: _of(daily=1000, concurrent=50, duration_s=600.0, memory_mib=2048),
    )
    enterprise: TierConfig = field(default_factory=lambda: _of(rps=1000))
    """The operator's own."""


@dataclass(frozen=True, kw_only=True)
class PriceConfig:
    """What usage is said to cost, in US dollars. Nobody is charged: it tells who causes the costs of a server."""

    sandbox_usd: float = setting(0.001, at_least=0, help="Price of a sandbox.")
    cpu_second_usd: float = setting(0.00005, at_least=0, help="Price of a second of CPU time.")
    memory_gb_second_usd: float = setting(
        0.00001, at_least=0, help="Price of a GiB of memory held for a second; the peak counts for the whole life."
    )


@dataclass(frozen=True, kw_only=True)
class AccountsConfig:
    """Tiers, prices, sign-up."""

    tiers: TiersConfig = field(default_factory=TiersConfig)
    prices: PriceConfig = field(default_factory=PriceConfig)
    waitlist: bool = setting(
        False,
        help="Let anybody who reaches the server sign up (`POST /v1/waitlist`): they get a key of the tier `free` at "
        "once, and may run code.",
    )
