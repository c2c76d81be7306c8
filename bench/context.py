"""What every section of the benchmark gets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Timing
from bench.server import Server
from bench.table import Results

__all__ = ["CLIENTS", "Bench", "Options", "Section", "ratio"]

CLIENTS = 16
"""As many as saturate two cores, by far."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How long to look."""

    rounds: int = 250
    docker_rounds: int = 12
    windows: int = 5
    window_s: float = 3.0
    runs: int = 1000


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A server that answers, a directory for what a section needs, and where its findings go."""

    server: Server
    directory: Path
    options: Options
    results: Results


Section = Callable[[Bench], None]
"""Measures some figures and adds them to the results; says in `skipped` what it could not measure."""


def ratio(times: dict[str, Timing], one: str, other: str) -> float:
    """Of two medians."""
    return times[one].median / times[other].median
