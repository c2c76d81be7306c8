"""Steady load for a long time: does anything grow, does anything get slower?

    python -m bench.soak --minutes 60

Runs at a share of what the server can do at most, and looks at everything every few seconds.
Growth is judged by a straight line and the confidence in its slope, not by a first and a last look; what is counted
must in the end, at rest, be what it was before.
"""

import argparse
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from bench import processes
from bench.context import CLIENTS
from bench.generators import closed_load, steady_load
from bench.measure import BenchError, Figure
from bench.server import Server, hello, serving
from bench.table import Results, Sheet
from bench.trend import trend

__all__ = ["Look", "Plan", "Soak", "judge", "soak"]

MIB = 1 << 20
_SETTLED = 0.2
"""Share of the samples that is left out: caches and allocators find their size."""
_REST_S = 60.0
_LEAST_RISE_MIB = 1.0
_LEAST_RISE = 0.02
_LEAST_SLOWING = 0.1
_REUSED = ("control groups", "warden descriptors")
_UNSEEN = 0.25
"""By how much the most that there were at once exceeds the most that a look has met."""
_SLABS = ("net_namespace", "mnt_cache", "pid_namespace")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how much, how often."""

    seconds: float
    share: float = 0.7
    """Of the measured saturation."""
    every_s: float = 10.0
    window_s: float = 60.0
    """Latencies are told for each."""
    saturate_s: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything at one moment."""

    at_s: float
    memory: dict[str, int]
    """Resident bytes by part that lives on."""
    counts: dict[str, int]
    kernel: dict[str, int]
    """Facts about the whole machine: bytes and objects that the kernel holds."""


@dataclass(kw_only=True)
class Soak:
    """What was seen."""

    plan: Plan
    saturation: float
    """Runs a second."""
    before: dict[str, int]
    """Counts at rest."""
    after: dict[str, int] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    latencies: list[dict[str, float]] = field(default_factory=list)
    """By window: the members of `generators.Load`."""

    @property
    def left_behind(self) -> dict[str, int]:
        """By how much there is more in the end than there may be. Less is no fault: cells made ahead are given up.

        Control groups, and the descriptors by which the warden holds them, are kept to be used again: as many as there
        ever were at once, up to a bound. Of those there may be a little more than was seen in the first half.
        """
        allowed = dict(self.before)
        for name in _REUSED:
            seen = [look.counts[name] for look in self.looks[: len(self.looks) // 2]]
            allowed[name] = int(max([allowed[name], *seen]) * (1 + _UNSEEN))
        return {name: self.after[name] - count for name, count in allowed.items() if self.after[name] > count}


def soak(server: Server, plan: Plan, tell: Callable[[str], None] = lambda text: None) -> Soak:
    """Load the server and watch it; returns when it is at rest again, or does not come to rest.

    Raises:
        BenchError: an answer was wrong, or none came.
    """
    hello(server)()
    saturation = closed_load(server.url, clients=CLIENTS, seconds=plan.saturate_s).rate
    found = Soak(plan=plan, saturation=saturation, before=server.belongings())
    with steady_load(
        server.url, rate=plan.share * saturation, seconds=plan.seconds, every_s=plan.window_s
    ) as generator:
        _watch(server, generator, found, tell)
    deadline = time.monotonic() + _REST_S
    while True:
        found.after = server.belongings()
        if not found.left_behind or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _watch(server: Server, generator: "subprocess.Popen[bytes]", found: Soak, tell: Callable[[str], None]) -> None:
    """Look now and then until the generator has ended."""
    assert generator.stdout is not None
    assert generator.stderr is not None
    began = time.monotonic()
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(generator.stdout, selectors.EVENT_READ)
        while True:
            due = began + len(found.looks) * found.plan.every_s
            if selector.select(max(0.0, due - time.monotonic())):
                chunk = os.read(generator.stdout.fileno(), 65536)
                if not chunk:
                    break
                *lines, said = (said + chunk).split(b"\n")
                found.latencies += [told for told in map(json.loads, lines) if told]
            if time.monotonic() >= due:
                found.looks.append(_look(server, time.monotonic() - began))
                tell(f"{found.looks[-1].at_s:,.0f} of {found.plan.seconds:,.0f} s")
    if generator.wait():
        raise BenchError(f"load generator: {generator.stderr.read().decode(errors='replace')[-500:]}")


def _look(server: Server, at_s: float) -> Look:
    parts = server.processes()
    return Look(
        at_s=at_s,
        memory={part: processes.resident(pids) for part, pids in parts.items() if pids and part != "sandboxes"},
        counts=processes.belongings(parts),
        kernel=_kernel(),
    )


def _kernel() -> dict[str, int]:
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("SUnreclaim", "Percpu", "PageTables", "KernelStack"):
            found[f"{name}, bytes"] = int(value.split()[0]) * 1024
    try:
        slabs = Path("/proc/slabinfo").read_text().splitlines()
    except OSError:  # root's
        slabs = []
    for line in slabs:
        name, *values = line.split()
        if name in _SLABS:
            found[f"{name}, objects"] = int(values[0])
    for line in Path("/proc/cgroups").read_text().splitlines()[1:]:
        found["control groups, dying ones included"] = found.get("control groups, dying ones included", 0) + int(
            line.split()[2]
        )
    return found


def judge(found: Soak) -> tuple[Sheet, list[Figure]]:
    """What grew, what slowed down, and what was left behind."""
    kept = found.looks[int(len(found.looks) * _SETTLED) :]
    rows: list[tuple[str, ...]] = []
    grown: dict[str, list[str]] = {"memory": [], "counts": [], "latency": [], "kernel": []}

    def line(kind: str, name: str, points: list[tuple[float, float]], *, scale: float, tolerance: float) -> None:
        seen = trend(points)
        if seen is None:
            rows.append((name, "", "", "", "too few samples"))
            return
        grows = seen.grows_by_more_than(max(tolerance, (_LEAST_SLOWING if kind == "latency" else 0) * seen.level))
        if grows:
            grown[kind].append(f"{name} {seen.rise / scale:+.2f}")
        values = (f"{value / scale:.2f}" for value in (seen.level, seen.rise, seen.uncertainty))
        rows.append((name, *values, "GROWS" if grows else ""))

    for part in kept[0].memory if kept else ():
        points = [(look.at_s, float(look.memory.get(part, 0))) for look in kept]
        level = sum(value for _, value in points) / len(points)
        tolerance = max(_LEAST_RISE_MIB * MIB, _LEAST_RISE * level)
        line("memory", f"{part}, resident MiB", points, scale=MIB, tolerance=tolerance)
    for name in kept[0].counts if kept else ():
        line("counts", name, [(look.at_s, float(look.counts[name])) for look in kept], scale=1, tolerance=1)
    windows = found.latencies[int(len(found.latencies) * _SETTLED) :]
    for quantile in ("p50_s", "p99_s"):
        points = [(number * found.plan.window_s, told[quantile]) for number, told in enumerate(windows)]
        line("latency", f"latency {quantile[:3]}, ms", points, scale=1e-3, tolerance=0)
    for name in kept[0].kernel if kept else ():
        points = [(look.at_s, float(look.kernel[name])) for look in kept]
        in_bytes = name.endswith("bytes")
        level = sum(value for _, value in points) / len(points)
        label = name.replace("bytes", "MiB") if in_bytes else name
        line("kernel", f"kernel: {label}", points, scale=MIB if in_bytes else 1, tolerance=max(2.0, 0.05 * level))
    return _sheet(found, rows), _figures(found, grown)


def _sheet(found: Soak, rows: list[tuple[str, ...]]) -> Sheet:
    plan = found.plan
    runs = sum(told["runs"] for told in found.latencies)
    refused = sum(told["refused"] for told in found.latencies)
    return Sheet(
        title=f"Soak, {plan.seconds / 60:g} minutes at {plan.share:.0%} of {found.saturation:.0f} runs a second",
        columns=("", "Median", "Rise over the time", "±", "Verdict"),
        rows=tuple(rows),
        notes=(
            f"{runs:,.0f} runs, {refused:,.0f} refused; {len(found.looks)} samples, the first {_SETTLED:.0%} left out",
            "a rise counts when it is certain (99 %) and more than 1 MiB and 2 % (memory), 1 (counts), 10 % (latency)",
            "what the kernel holds is the whole machine's, others' doings included",
        ),
    )


def _figures(found: Soak, grown: dict[str, list[str]]) -> list[Figure]:
    left = found.left_behind
    titles = {
        "memory": "parts whose memory grows",
        "counts": "counts that grow (mounts, control groups, network namespaces, descriptors, processes)",
        "latency": "latency that drifts",
    }
    figures = [
        Figure(name=f"soak: {title}", value=len(grown[kind]), most=0, note=", ".join(grown[kind]) or "none")
        for kind, title in titles.items()
    ]
    figures.append(
        Figure(
            name="soak: left behind at rest",
            value=len(left),
            most=0,
            note=", ".join(f"{name} {count:+d}" for name, count in left.items()) or "nothing",
        )
    )
    return figures


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 also where something grows, 1 when it could not be seen."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (%(default)s)")
    parser.add_argument("--share", type=float, default=0.7, help="of the measured saturation (%(default)s)")
    parser.add_argument("--every-s", type=float, default=10.0, help="seconds between samples (%(default)s)")
    parser.add_argument("--samples", type=Path, help="a file for all samples, as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/performance.md")
    options = parser.parse_args(arguments)
    seconds = options.minutes * 60
    # A short one has windows enough for a trend, too.
    plan = Plan(
        seconds=seconds, share=options.share, every_s=options.every_s, window_s=min(60.0, max(2.0, seconds / 20))
    )
    console = Console(stderr=True)
    results = Results()
    began = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="stockade-soak-", dir="/var/tmp") as name,
            console.status("saturation …") as status,
            serving(Path(name)) as server,
        ):
            found = soak(server, plan, lambda text: status.update(f"{text} …"))
    except BenchError as error:
        console.print(f"soak: {error}", style="red", markup=False, highlight=False)
        return 1
    sheet, results.figures = judge(found)
    results.sheets.append(sheet)
    results.took_s = time.monotonic() - began
    if options.samples is not None:
        options.samples.write_text(json.dumps(asdict(found), indent=1))
    if options.markdown:
        print(results.to_markdown(), end="")
    else:
        results.show(Console(width=max(120, console.width)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
