"""Does a series of samples grow, or is it noise? A straight line through them, and how sure one can be of its slope."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FEWEST", "Trend", "trend"]

FEWEST = 8
"""Samples; of fewer nothing is said."""
_SURE = statistics.NormalDist().inv_cdf(0.995)


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A fitted line, told by what it rises by from the first sample to the last."""

    level: float
    """Median of the samples."""
    rise: float
    uncertainty: float
    """The true rise is within `rise ± uncertainty` with 99 % confidence."""

    def grows_by_more_than(self, tolerance: float) -> bool:
        """Whether it rises by more than *tolerance*, and that cannot be noise."""
        return self.rise > tolerance and self.rise - self.uncertainty > 0


def trend(points: Sequence[tuple[float, float]]) -> Trend | None:
    """The line through (time, value) pairs in order of time; `None` where there are too few.

    Samples that follow each other are alike (memory stays where it was), so each tells less than one drawn at random:
    their number is reduced by the autocorrelation of what the line leaves over.
    """
    if len(points) < FEWEST:
        return None
    times, values = zip(*points, strict=True)
    line = statistics.linear_regression(times, values)
    residuals = [value - line.intercept - line.slope * at for at, value in points]
    span = times[-1] - times[0]
    squares = sum(left * left for left in residuals)
    likeness = _likeness(residuals, squares)
    independent = max(3.0, len(points) * (1 - likeness) / (1 + likeness))
    variance = squares / (independent - 2)
    spread = statistics.pvariance(times) * independent
    error = math.sqrt(variance / spread)
    return Trend(level=statistics.median(values), rise=line.slope * span, uncertainty=_SURE * error * span)


def _likeness(residuals: Sequence[float], squares: float) -> float:
    """Of each to the next, from 0 (none) to nearly 1."""
    if squares == 0:
        return 0.0
    together = sum(one * other for one, other in itertools.pairwise(residuals))
    return min(0.95, max(0.0, together / squares))
