"""How much may be under way at once."""

import contextlib

import pytest

from stockade.dialects.executor.bounds import Bounds, NoPlace


def test_requests_are_counted_for_each_sandbox_and_for_as_long_as_they_take() -> None:
    bounds = Bounds(requests_per_sandbox=2, bodies_bytes=0)
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(bounds.request("one"))
        with pytest.raises(NoPlace), bounds.request("one"):
            pass
        with bounds.request("another"):
            pass
    with bounds.request("one"):
        pass


def test_large_bodies_are_counted_together_and_small_ones_are_not() -> None:
    bounds = Bounds(requests_per_sandbox=1, bodies_bytes=200_000)
    with bounds.body(150_000):
        with pytest.raises(NoPlace), bounds.body(100_000):
            pass
        with bounds.body(60_000):
            pass
    with bounds.body(200_000):
        pass
