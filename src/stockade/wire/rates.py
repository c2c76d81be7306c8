"""How much one actor may ask for: a token bucket, and a number of requests at a time."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stockade.errors import LimitExceeded
from stockade.model import Actor

__all__ = ["Concurrency", "Rate", "RateLimiter"]

DEFAULT_RPS = 10
"""Requests per second of who has no limit of its own."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What became of one request's try to take a token."""

    allowed: bool
    limit: int
    """Requests that a full bucket allows at once."""
    remaining: int
    reset_s: float
    """Seconds until the bucket is full again."""
    retry_after_s: float
    """Seconds until there is a token again; 0 when there is one."""

    def headers(self) -> dict[str, str]:
        """The rate as response headers, in whole seconds rounded up.

        By the names that clients have known for long, and by those of the IETF's draft
        (datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers), which differ in the prefix only.
        """
        values = {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(math.ceil(self.reset_s)),
        }
        headers = {f"{prefix}{name}": value for prefix in ("X-", "") for name, value in values.items()}
        if not self.allowed:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers


@dataclass(kw_only=True)
class _Bucket:
    tokens: float
    at: float


class RateLimiter:
    """A token bucket for each actor: `burst` tokens at most, refilled at `per_minute`; or, without these, as the
    actor's own `rate_limit_rps` says: as many at once as in a second.

    Knows at most `actors` buckets. Past that, the one unused for longest is forgotten, which gives its owner a full
    bucket back: memory stays bounded whatever number of addresses ask.
    """

    def __init__(
        self,
        *,
        per_minute: int | None = None,
        burst: int | None = None,
        actors: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_s = None if per_minute is None else per_minute / 60
        self._burst = burst
        self._actors = actors
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, actor: Actor) -> Rate:
        """Take a token of *actor*'s, if there is one."""
        own = actor.rate_limit_rps or DEFAULT_RPS
        per_s = self._per_s or float(own)
        burst = self._burst or own
        now = self._clock()
        bucket = self._buckets.pop(actor.id, None) or _Bucket(tokens=burst, at=now)
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.at) * per_s)
        bucket.at = now
        allowed = bucket.tokens >= 1
        if allowed:
            bucket.tokens -= 1
        self._buckets[actor.id] = bucket
        if len(self._buckets) > self._actors:
            self._buckets.popitem(last=False)
        return Rate(
            allowed=allowed,
            limit=burst,
            remaining=int(bucket.tokens),
            reset_s=(burst - bucket.tokens) / per_s,
            retry_after_s=0.0 if bucket.tokens >= 1 else (1 - bucket.tokens) / per_s,
        )


@dataclass(frozen=True, kw_only=True)
class Concurrency:
    """At most `per_actor` requests of one actor at a time; 0 means no limit of ours."""

    per_actor: int
    _held: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def hold(self, actor: Actor) -> Iterator[None]:
        """Count a request of *actor*'s until the block ends.

        Raises:
            LimitExceeded: as many are under way already.
        """
        held = self._held.get(actor.id, 0)
        if self.per_actor and held >= self.per_actor:
            raise LimitExceeded(f"{held} of your requests are under way already; wait for one of them")
        self._held[actor.id] = held + 1
        try:
            yield
        finally:
            if self._held[actor.id] == 1:
                del self._held[actor.id]
            else:
                self._held[actor.id] -= 1
