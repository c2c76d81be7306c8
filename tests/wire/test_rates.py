"""Token buckets and concurrency."""

from dataclasses import dataclass

import pytest

from stockade.errors import LimitExceeded
from stockade.model import Actor
from stockade.wire.rates import Concurrency, RateLimiter

ANN, BOB = Actor(id="ann"), Actor(id="bob")


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_full_bucket_allows_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    rates = RateLimiter(per_minute=60, burst=3, clock=clock)
    assert [rates.take(ANN).allowed for _ in range(4)] == [True, True, True, False]
    clock.now += 0.9
    assert not rates.take(ANN).allowed
    clock.now += 0.2
    assert rates.take(ANN).allowed


def test_actors_have_buckets_of_their_own() -> None:
    rates = RateLimiter(per_minute=1, burst=1, clock=Clock())
    assert rates.take(ANN).allowed
    assert rates.take(BOB).allowed
    assert not rates.take(ANN).allowed


def test_the_headers_say_how_long_to_wait() -> None:
    clock = Clock()
    rates = RateLimiter(per_minute=2, burst=2, clock=clock)
    first = rates.take(ANN)
    for prefix in ("X-", ""):
        assert first.headers()[f"{prefix}RateLimit-Limit"] == "2"
        assert first.headers()[f"{prefix}RateLimit-Remaining"] == "1"
        assert first.headers()[f"{prefix}RateLimit-Reset"] == "30"
    assert "Retry-After" not in first.headers()
    rates.take(ANN)
    assert rates.take(ANN).headers()["Retry-After"] == "30"
    clock.now += 29.99
    assert rates.take(ANN).headers()["Retry-After"] == "1"


def test_without_a_rate_of_its_own_a_limiter_goes_by_the_actor_s() -> None:
    clock = Clock()
    rates = RateLimiter(clock=clock)
    fast, slow = Actor(id="fast", rate_limit_rps=50), Actor(id="slow", rate_limit_rps=1)
    allowed = {one.id: [rates.take(one).allowed for _ in range(60)].count(True) for one in (fast, slow, ANN)}
    assert allowed == {"fast": 50, "slow": 1, "ann": 10}
    clock.now += 1
    assert rates.take(slow).allowed
    assert rates.take(slow).headers()["Retry-After"] == "1"


def test_a_limit_that_was_lowered_counts_at_once() -> None:
    rates = RateLimiter(clock=Clock())
    rates.take(Actor(id="ann", rate_limit_rps=100))
    assert [rates.take(Actor(id="ann", rate_limit_rps=2)).allowed for _ in range(3)] == [True, True, False]


def test_the_number_of_buckets_is_bounded() -> None:
    rates = RateLimiter(per_minute=1, burst=1, actors=100, clock=Clock())
    for number in range(1000):
        rates.take(Actor(id=str(number)))
    assert len(rates._buckets) == 100


def test_requests_at_a_time_are_limited_for_each_actor() -> None:
    concurrency = Concurrency(per_actor=1)
    with concurrency.hold(ANN), concurrency.hold(BOB), pytest.raises(LimitExceeded), concurrency.hold(ANN):
        pass
    with concurrency.hold(ANN):
        pass
