"""Many runs in a row: does anything grow?"""

from collections.abc import Callable
from dataclasses import dataclass

from bench.measure import Figure
from bench.server import Server

__all__ = ["Checkpoint", "figures", "watch"]

CHECKPOINTS = 10
SETTLED = 2
"""Checkpoints until memory is expected to have found its size: allocators keep what they once needed."""
MOST_MIB = 1.0
"""What counts as no growth of memory: about what one and the same process varies by."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The server at rest, after that many runs."""

    runs: int
    memory: dict[str, int]
    """Resident bytes by part; sandboxes come and go and are left out."""
    belongings: dict[str, int]

    def facts(self) -> dict[str, object]:
        return {"runs": self.runs, "resident_bytes": self.memory, **self.belongings}


def watch(server: Server, runs: int, do_runs: Callable[[int], object]) -> list[Checkpoint]:
    """Do *runs* runs in equal parts and look at the server before, between and after."""
    points = [_look(server, 0)]
    for number in range(1, CHECKPOINTS + 1):
        upto = runs * number // CHECKPOINTS
        do_runs(upto - points[-1].runs)
        points.append(_look(server, upto))
    return points


def _look(server: Server, runs: int) -> Checkpoint:
    belongings = server.belongings()
    memory = {part: sizes["rss"] for part, sizes in server.memory().items() if part != "sandboxes"}
    return Checkpoint(runs=runs, memory=memory, belongings=belongings)


def figures(points: list[Checkpoint]) -> list[Figure]:
    """Growth from the settled checkpoint to the last."""
    first, last = points[SETTLED], points[-1]
    span = f"from run {first.runs:,} to run {last.runs:,}"
    grown_mib = (sum(last.memory.values()) - sum(first.memory.values())) / (1 << 20)
    parts = ", ".join(f"{part} {(last.memory[part] - size) / (1 << 20):+.2f}" for part, size in first.memory.items())
    counts = {name: last.belongings[name] - count for name, count in first.belongings.items()}
    grown = [f"{name} {count:+d}" for name, count in counts.items() if count]
    return [
        Figure(name="growth of memory", value=grown_mib, unit="MiB", most=MOST_MIB, note=f"{span}: {parts}"),
        Figure(
            name="growth of mounts, control groups, descriptors, processes",
            value=max(counts.values()),
            most=0,
            note=f"{span}: {', '.join(grown) or 'none'}",
        ),
    ]
