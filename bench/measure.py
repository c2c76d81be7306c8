"""Samples, what is told about them, and the order in which they are taken."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["BenchError", "Figure", "Timing", "interleaved"]

Sample = Callable[[], float]
"""Does the thing once and returns the seconds that it took; raises BenchError when it went wrong."""


class BenchError(Exception):
    """What was to be measured did not do what it should; the message says what it did."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one thing took, several times."""

    name: str
    seconds: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """Seconds that *share* of the samples did not exceed (nearest rank)."""
        ordered = sorted(self.seconds)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def facts(self) -> dict[str, float | int]:
        """For `--json`: milliseconds."""
        return {
            "samples": len(self.seconds),
            "min_ms": round(min(self.seconds) * 1e3, 3),
            "p50_ms": round(self.median * 1e3, 3),
            "p95_ms": round(self.quantile(0.95) * 1e3, 3),
            "p99_ms": round(self.quantile(0.99) * 1e3, 3),
            "max_ms": round(max(self.seconds) * 1e3, 3),
        }


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number with a bar, or without one where it only explains."""

    name: str
    value: float
    unit: str = ""
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; `None` where there is none."""
        if self.most is None and self.least is None:
            return None
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    @property
    def bar(self) -> str:
        if self.most is not None:
            return f"≤ {self.most:g}"
        return f"≥ {self.least:g}" if self.least is not None else ""

    def facts(self) -> dict[str, object]:
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "bar": self.bar,
            "met": self.met,
            "note": self.note,
        }


def interleaved(contestants: Mapping[str, Sample], *, rounds: int, warm_up: int = 2) -> dict[str, Timing]:
    """Let everyone have a turn in each round (A B C A B C …), so that the machine's drift hits all alike.

    The first *warm_up* rounds fill caches and are not counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-warm_up, rounds):
        for name, sample in contestants.items():
            seconds = sample()
            if number >= 0:
                taken[name].append(seconds)
    return {name: Timing(name=name, seconds=tuple(seconds)) for name, seconds in taken.items()}
