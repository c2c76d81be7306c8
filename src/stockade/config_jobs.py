"""Settings of jobs: the queue, workers, webhooks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stockade.settings import setting

__all__ = ["JobsConfig", "WebhooksConfig"]


@dataclass(frozen=True, kw_only=True)
class WebhooksConfig:
    """Telling somebody's server that a job has ended."""

    secret: str = setting(
        "",
        secret=True,
        help="What signs messages (HMAC-SHA256) is made of it, for each account another. Not set: the first start "
        "makes one and keeps it in the data directory; `stockade jobs webhook-secret` shows it. Servers and workers "
        "that share a queue need the same.",
    )
    attempts: int = setting(8, at_least=1, at_most=50, help="Times that it is tried before it is given up.")
    timeout_s: float = setting(10.0, at_least=0.1, help="Time that the receiver has to answer.")
    first_retry_s: float = setting(2.0, at_least=0.01, help="Wait before the second attempt; doubles each time.")
    longest_retry_s: float = setting(3600.0, at_least=0.01, help="The longest wait between two attempts.")
    permit_private: tuple[str, ...] = setting(
        (),
        help="Networks, in CIDR form, whose addresses may be told although they are not public. By default a webhook "
        "reaches nothing on this machine or in private networks.",
    )


@dataclass(frozen=True, kw_only=True)
class JobsConfig:
    """Runs that are queued and remembered."""

    redis_url: str = setting(
        "",
        env=("REDIS_URL",),
        secret=True,
        help="Redis that holds the queue and the jobs: `redis://:password@host:6379/0`. Servers and workers that share "
        "it share the work. Not set: the database. Extra: `redis`.",
    )
    redis_timeout_s: float = setting(5.0, at_least=0.1, help="Longest time that Redis may take to answer.")
    places: int | None = setting(
        None,
        at_least=0,
        shown="half of queue.places",
        help="Jobs that this server runs at once; with 0 it runs none, and leaves them to `stockade worker`.",
    )
    pools: Mapping[str, str] = setting(
        factory=dict,
        help='Jobs of a language that a worker runs at once, where that is fewer than all: `python = "4"`.',
    )
    lease_s: float = setting(
        15.0,
        at_least=0.5,
        help="A job whose worker has not been heard of for so long is given to another one.",
    )
    heartbeat_s: float = setting(2.0, at_least=0.05, help="Time between two signs of life of a worker.")
    most_attempts: int = setting(
        3, at_least=1, help="Times that a job is given to a worker before it ends as lost, and is listed as dead."
    )
    retention_s: float = setting(
        86400.0, at_least=0, help="Time for which an ended job and its output are kept; 0 means for ever."
    )
    most_unended: int = setting(1_000_000, at_least=1, help="Jobs that may wait or run, all accounts together.")
    most_of_account: int = setting(
        100_000, at_least=1, help="Jobs of one account (of one address, without accounts) that may wait or run."
    )
    most_of_batch: int = setting(1000, at_least=1, help="Jobs that may be submitted with one request.")
    webhooks: WebhooksConfig = field(default_factory=WebhooksConfig)
