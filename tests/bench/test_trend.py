"""What the soak calls growth, and what it calls noise."""

import random

import pytest
from bench.trend import FEWEST, trend


def noise(seed: int, count: int = 360) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(0.0, 1.0) for _ in range(count)]


@pytest.mark.parametrize("seed", range(8))
def test_noise_alone_is_no_growth(seed: int) -> None:
    """An hour of samples around one value, each ten seconds."""
    found = trend([(10.0 * number, 100 + error) for number, error in enumerate(noise(seed))])
    assert found is not None
    assert not found.grows_by_more_than(0.5)


@pytest.mark.parametrize("seed", range(8))
def test_a_slow_leak_below_the_noise_is_found(seed: int) -> None:
    """A rise of two over an hour, where single samples vary by as much: first and last alone would not show it."""
    points = [(10.0 * number, 100 + 2 * number / 360 + error) for number, error in enumerate(noise(seed))]
    found = trend(points)
    assert found is not None
    assert found.grows_by_more_than(0.5)
    assert abs(found.rise - 2) < found.uncertainty


@pytest.mark.parametrize("seed", range(8))
def test_a_value_that_wanders_is_not_taken_for_a_leak(seed: int) -> None:
    """Neighbouring samples are alike; counted as independent ones, they would make each wandering look certain."""
    value, points = 0.0, []
    for number, error in enumerate(noise(seed)):
        value = 0.9 * value + error
        points.append((10.0 * number, value))
    found = trend(points)
    assert found is not None
    assert not found.grows_by_more_than(0.5)


def test_what_does_not_change_has_no_trend() -> None:
    """Counts mostly do not."""
    found = trend([(float(number), 5.0) for number in range(FEWEST)])
    assert found is not None
    assert (found.rise, found.uncertainty) == (0.0, 0.0)
    assert not found.grows_by_more_than(0.0)


def test_a_stair_upwards_is_growth() -> None:
    """One more each time: a leaked descriptor."""
    found = trend([(float(number), float(number)) for number in range(50)])
    assert found is not None
    assert found.rise == pytest.approx(49)
    assert found.grows_by_more_than(1)


def test_too_few_samples_say_nothing() -> None:
    """Rather than something that is not so."""
    assert trend([(float(number), float(number)) for number in range(FEWEST - 1)]) is None
