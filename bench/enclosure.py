"""A control group of our own around what we try on others, so that the machine survives what they let through.

Its bounds are many times what the program was to be held to by those who are tried: whoever comes as far has escaped,
and is ended here.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.measure import BenchError

__all__ = ["BOUNDS", "Bounds", "Enclosure"]

_numbers = itertools.count(1)
_CONTROLLERS: Final = ("memory", "pids", "cpu")
_PERIOD_US: Final = 100_000
_POLL_S: Final = 0.02
_END_S: Final = 10.0
_JOIN: Final = 'for group in $1; do echo $$ > "$group/cgroup.procs" || exit 125; done; shift; exec "$@"'


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What nothing in an enclosure gets more of."""

    memory_bytes: int = 1 << 30
    processes: int = 1024
    cpus: float = 1.0


BOUNDS: Final = Bounds()


@dataclass(frozen=True, kw_only=True)
class _Tree:
    version: int
    top: Path


def _mounts() -> set[Path]:
    """Every hierarchy that is mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {Path(line.split()[4]) for line in lines if line.partition(" - ")[2].startswith("cgroup")}


def _trees() -> Mapping[str, _Tree]:
    """The hierarchy of each controller, and the v2 tree for its own sake as `unified`."""
    found: dict[str, _Tree] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, kind = line.split()[4], line.partition(" - ")[2].split()
        if kind[0] == "cgroup":
            for name in kind[2].split(","):
                if name in _CONTROLLERS:
                    found.setdefault(name, _Tree(version=1, top=Path(place)))
        elif kind[0] == "cgroup2":
            unified = _Tree(version=2, top=Path(place))
            found["unified"] = unified
            for name in (unified.top / "cgroup.controllers").read_text().split():
                if name in _CONTROLLERS:
                    found.setdefault(name, unified)
    missing = set(_CONTROLLERS) - set(found)
    if missing:
        raise BenchError(f"no control groups for {', '.join(sorted(missing))}: nothing would hold what others let go")
    return found


@dataclass(kw_only=True)
class Enclosure:
    """One group in every hierarchy. Use as a context manager: whatever runs in it is killed when the block ends.

    Raises:
        BenchError: no such group can be made here; this needs root.
    """

    bounds: Bounds = BOUNDS
    name: str = field(default_factory=lambda: f"stockade-peer-{os.getpid()}-{next(_numbers)}")
    _trees: Mapping[str, _Tree] = field(default_factory=_trees)

    def __enter__(self) -> Self:
        try:
            for top in self._tops():
                (top / self.name).mkdir()
            self._bound()
        except OSError as error:
            self._remove()
            raise BenchError(f"no control group to try others in: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._remove()

    def entering(self, command: tuple[str, ...]) -> tuple[str, ...]:
        """The command that runs *command* inside, in the place of the process that it is started as."""
        groups = " ".join(str(top / self.name) for top in sorted(self._tops()))
        return ("/bin/sh", "-c", _JOIN, "sh", groups, *command)

    def processes(self) -> set[int]:
        """Whatever is inside, groups below included."""
        found: set[int] = set()
        for top in self._tops():
            for folder, _, _ in os.walk(top / self.name):
                with contextlib.suppress(OSError):
                    found.update(map(int, Path(folder, "cgroup.procs").read_text().split()))
        return found

    async def left(self, *, within_s: float) -> list[str]:
        """What still runs after that time, or nothing as soon as nothing does."""
        deadline = time.monotonic() + within_s
        while (pids := self.processes()) and time.monotonic() < deadline:  # noqa: ASYNC110  # v1 groups send no events
            await asyncio.sleep(_POLL_S)
        return [_command(pid) for pid in sorted(pids)]

    def reached(self) -> list[str]:
        """Which of the bounds were hit, in words."""
        found = []
        if any(_event(folder, self._trees["memory"].version) for folder in self._folders("memory")):
            found.append(f"{self.bounds.memory_bytes >> 20} MiB of memory")
        if self._most_processes() >= self.bounds.processes:
            found.append(f"{self.bounds.processes} processes")
        return found

    def end(self) -> None:
        """Kill all that is inside.

        Raises:
            BenchError: something in it does not die.
        """
        deadline = time.monotonic() + _END_S
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise BenchError(f"{len(pids)} processes in control group {self.name} do not die: {sorted(pids)[:5]}")
            time.sleep(_POLL_S)

    def _tops(self) -> set[Path]:
        return {tree.top for tree in self._trees.values()}

    def _folders(self, controller: str) -> Iterator[Path]:
        for folder, _, _ in os.walk(self._trees[controller].top / self.name):
            yield Path(folder)

    def _bound(self) -> None:
        bounds = self.bounds
        for name, tree in self._trees.items():
            if tree.version == 2 and name != "unified":
                with contextlib.suppress(OSError):  # it was, or the first value says that it is not
                    (tree.top / "cgroup.subtree_control").write_text(f"+{name}")
        quota = round(bounds.cpus * _PERIOD_US)
        values = {
            "memory": (
                ("memory.limit_in_bytes", bounds.memory_bytes),
                ("memory.memsw.limit_in_bytes", bounds.memory_bytes),
            ),
            "pids": (("pids.max", bounds.processes),),
            "cpu": (("cpu.cfs_period_us", _PERIOD_US), ("cpu.cfs_quota_us", quota)),
        }
        newer = {
            "memory": (("memory.max", bounds.memory_bytes), ("memory.swap.max", 0)),
            "pids": (("pids.max", bounds.processes),),
            "cpu": (("cpu.max", f"{quota} {_PERIOD_US}"),),
        }
        for name in _CONTROLLERS:
            tree = self._trees[name]
            for file, value in (values if tree.version == 1 else newer)[name]:
                path = tree.top / self.name / file
                if path.exists() or "sw" not in file:  # without accounting for swap there is no such file
                    path.write_text(str(value))

    def _most_processes(self) -> int:
        """The most that there ever were at a time."""
        try:
            return int((self._trees["pids"].top / self.name / "pids.peak").read_text())
        except OSError:  # before Linux 6.1: a refused fork is counted where the one who asked for it is
            refused = sum(_counter(folder / "pids.events", "max") for folder in self._folders("pids"))
            return self.bounds.processes if refused else 0

    def _remove(self) -> None:
        for top in _mounts():  # others make theirs in all of them
            for folder, _, _ in os.walk(top / self.name, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def _event(folder: Path, version: int) -> int:
    """How many processes were killed there for want of memory."""
    return _counter(folder / ("memory.oom_control" if version == 1 else "memory.events"), "oom_kill")


def _counter(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80].strip()
    except OSError:
        return str(pid)
