"""Many sandboxes that live at once: does the last cost more than the first, and do they disturb each other?"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.context import Bench
from bench.measure import BenchError, Figure, Timing
from bench.programs import TRUE
from bench.server import Server
from bench.sessions_client import Client

__all__ = ["Memory", "crowd", "memory", "pause", "shares"]

CROWD = 1000
ENDS = 50
"""So many of the first are compared with as many of the last."""
LIVE = 200
EXECS = 500
KIB = 1024
SETTLE_S = 20.0
_STILL_KIB = 2048
"""Two looks at the free memory that differ by less show a machine at rest, ..."""
_STILL_EVERY_S = 0.5
"""... this long apart."""
_BODY = {"command": ["/usr/bin/sleep", "290"], "network": "none"}
_WHERE = {"AnonPages": "anonymous", "Slab": "slab", "PageTables": "page tables", "KernelStack": "stacks",
          "Percpu": "per processor", "Shmem": "shared"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the kernel says of the machine's memory, in KiB by its own names."""

    kib: Mapping[str, int]

    def __getitem__(self, name: str) -> int:
        return self.kib.get(name, 0)


def memory(text: str) -> Memory:
    """Out of proc_meminfo(5)."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if value.strip():
            found[name] = int(value.split()[0])
    return Memory(kib=found)


def shares(before: Memory, after: Memory, count: int) -> tuple[float, dict[str, float]]:
    """KiB that each of *count* takes of what is available, and where the kernel says that they went."""
    each = (before["MemAvailable"] - after["MemAvailable"]) / count
    return each, {word: (after[name] - before[name]) / count for name, word in _WHERE.items()}


def crowd(bench: Bench, server: Server, client: Client) -> None:
    """A thousand sandboxes, each with a `sleep` in it; nobody talks to them."""
    results = bench.results
    before = _at_rest()
    held = processes.memory([*server.processes()["server"], *server.processes()["warden"]])
    with _living(client, CROWD) as taken:
        after = _at_rest()
        parts = server.processes()
        now = processes.memory([*parts["server"], *parts["warden"]])
        if len(parts["sandboxes"]) < 2 * CROWD:
            raise BenchError(f"of {CROWD} sandboxes and their programs, {len(parts['sandboxes'])} processes live")
    first, last = (Timing(name=name, seconds=taken[at]) for name, at in _ENDS.items())
    results.add({first.name: first, last.name: last})
    each, where = shares(before, after, CROWD)
    note = ", ".join(f"{word} {kib:.0f}" for word, kib in where.items() if abs(kib) >= 1)
    results.figures += [
        Figure(
            name=f"{CROWD:,} sandboxes, create: the last {ENDS} ÷ the first {ENDS}",
            value=last.median / first.median,
            most=1.5,
            note=f"{last.median * 1e3:.2f} ms ÷ {first.median * 1e3:.2f} ms; each runs `sleep`",
        ),
        Figure(
            name="memory of an idle sandbox, all told",
            value=each / KIB,
            unit="MiB",
            most=1.5e6 / (1 << 20),
            note=f"1.5 MB; in KiB: {note}; of that server and warden {(now['rss'] - held['rss']) / CROWD / KIB:.0f}",
        ),
    ]


_ENDS = {
    f"create, the first {ENDS} of {CROWD:,}": slice(0, ENDS),
    f"create, the last {ENDS} of {CROWD:,}": slice(-ENDS, None),
}


def pause(bench: Bench, client: Client) -> None:
    """`true` in one of many sandboxes against `true` in the only one: do others that live make it wait?"""
    alone, among = "exec true, one sandbox", f"exec true, {LIVE} live sandboxes"
    times: dict[str, list[float]] = {alone: [], among: []}
    halves = EXECS // 2
    for _ in range(2):  # what the machine does meanwhile hits both
        for name, count in ((alone, 1), (among, LIVE)):
            with _living(client, count) as living:
                times[name] += [client.exec(living.names[n % count], TRUE)[0] for n in range(halves)]
    bench.results.add({name: Timing(name=name, seconds=tuple(seconds)) for name, seconds in times.items()})
    one, many = (bench.results.timings[name].quantile(0.99) for name in (alone, among))
    bench.results.figures.append(
        Figure(
            name=f"exec true, p99 with {LIVE} live sandboxes ÷ with one",
            value=many / one,
            most=3,
            note=f"{many * 1e3:.2f} ms ÷ {one * 1e3:.2f} ms, of {2 * halves} each; in a row, in turn in all of them",
        )
    )


@dataclass(frozen=True, kw_only=True)
class _Living:
    """Sandboxes, and how long each took to make."""

    names: tuple[str, ...]
    seconds: tuple[float, ...]

    def __getitem__(self, part: slice) -> tuple[float, ...]:
        return self.seconds[part]


@contextmanager
def _living(client: Client, count: int) -> Iterator[_Living]:
    """So many sandboxes, made one after the other and killed with the block."""
    names: list[str] = []
    seconds: list[float] = []
    try:
        for _ in range(count):
            began = time.perf_counter()
            names.append(client.create(**_BODY))
            seconds.append(time.perf_counter() - began)
        yield _Living(names=tuple(names), seconds=tuple(seconds))
    finally:
        for name in names:
            client.kill(name)


def _at_rest() -> Memory:
    """The machine's memory once it no longer changes; as it is after a while where it never does."""
    deadline = time.monotonic() + SETTLE_S
    before = memory(Path("/proc/meminfo").read_text())
    while True:
        time.sleep(_STILL_EVERY_S)
        now = memory(Path("/proc/meminfo").read_text())
        if abs(now["MemAvailable"] - before["MemAvailable"]) < _STILL_KIB or time.monotonic() > deadline:
            return now
        before = now
