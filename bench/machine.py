"""Facts about the machine that explain its figures."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

from bench.context import Bench
from bench.measure import Figure, Timing

__all__ = ["facts", "group_join"]

SAMPLES = 15
PAUSE_S = 0.05
"""Longer than the kernel keeps a lock in its quick state after a join: what is asked is the cost of a single one."""


def facts(bench: Bench) -> None:
    """What differs between machines and is not of our making."""
    joining = group_join()
    if joining is not None:
        bench.results.figures.append(
            Figure(name=joining.name, value=joining.median * 1e3, unit="ms", note="a fact about this machine's kernel")
        )


def group_join() -> Timing | None:
    """How long it takes to put a process into a control group, or `None` where we may not.

    Some milliseconds on most machines: the kernel waits until every processor has left what it was doing (an RCU grace
    period). Far less where control groups are mounted with `favordynmods`, or ever were since the last boot.
    """
    top = _writable_hierarchy()
    if top is None:
        return None
    group = top / f"stockade-bench-{os.getpid()}"
    took = []
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        for _ in range(SAMPLES):
            with subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL) as process:
                time.sleep(PAUSE_S)
                began = time.perf_counter()
                try:
                    (group / "cgroup.procs").write_text(str(process.pid))
                    took.append(time.perf_counter() - began)
                finally:
                    process.kill()
    except OSError:
        return None
    finally:
        _remove(group)
    return Timing(name="joining a control group", seconds=tuple(took))


def _writable_hierarchy() -> Path | None:
    """One with the pids controller, else v2."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        kind, _, options = line.partition(" - ")[2].split(" ", 2)
        path = Path(line.split()[4])
        if os.access(path, os.W_OK) and (kind == "cgroup2" or (kind == "cgroup" and "pids" in options.split(","))):
            found.setdefault(kind, path)
    return found.get("cgroup", found.get("cgroup2"))


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.01)
