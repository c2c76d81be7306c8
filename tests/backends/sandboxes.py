"""What the suites on backends share: limits, short ways to run a program, and what can be seen of it from outside."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stockade.backends.base import Backend, SandboxSpec
from stockade.model import Limits, OnOutputLimit, ProcessResult, ProcessSpec

__all__ = ["MB", "children", "commands", "limits", "mason_of", "run", "running", "spec", "until", "wardens"]

MB = 1 << 20
DEFAULTS = Limits(
    wall_s=20.0,
    cpu_s=20.0,
    cpus=2.0,
    memory_bytes=256 * MB,
    processes=64,
    disk_bytes=32 * MB,
    disk_inodes=4096,
    open_files=256,
    stack_bytes=8 * MB,
    output_bytes=1 * MB,
)


def limits(**changes: Any) -> Limits:
    return Limits(**{**{name: getattr(DEFAULTS, name) for name in Limits.__dataclass_fields__}, **changes})


def spec(*argv: str, cwd: str = "/code", env: Mapping[str, str] | None = None, **members: Any) -> ProcessSpec:
    return ProcessSpec(argv=argv, cwd=cwd, env={"PATH": "/usr/bin:/bin"} if env is None else env, **members)


async def run(
    backend: Backend,
    *argv: str,
    image: str = "host",
    network: str = "none",
    stdin: bytes = b"",
    files: Mapping[str, bytes] | None = None,
    bundle: Any = None,
    collect: bool = False,
    cwd: str = "/code",
    env: Mapping[str, str] | None = None,
    drop: bool = False,
    **changes: Any,
) -> ProcessResult:
    """Run *argv* in a fresh sandbox; *changes* are limits."""
    process = spec(
        *argv,
        cwd=cwd,
        env=env,
        stdin=stdin,
        files=files or {},
        bundle=bundle,
        collect=collect,
        on_output_limit=OnOutputLimit.DROP if drop else OnOutputLimit.KILL,
    )
    return await backend.run(SandboxSpec(image=image, limits=limits(**changes), network=network), process)


def until(condition: Callable[[], Any], within_s: float = 60.0) -> None:
    """Wait until *condition* holds; the test fails when it does not come to."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {within_s:g} s"
        time.sleep(0.01)


def commands() -> dict[int, str]:
    """Command lines of all processes that live, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def running(marker: str) -> list[int]:
    """Pids of processes with *marker* in their command line, other than the tests' own."""
    return [pid for pid, command in commands().items() if marker in command and "pytest" not in command]


def mason_of(warden: int) -> int | None:
    """The process that makes sandboxes for a warden, where there is one: what it has just made has its name for a
    moment, and is younger.
    """
    named = [pid for pid, command in commands().items() if command.startswith("stockade-mason")]
    return min(children(warden).intersection(named), key=_started, default=None)


def _started(pid: int) -> int:
    """In clock ticks since the machine was started; of one that is gone, later than all (proc(5))."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 1 << 62


def children(pid: int) -> set[int]:
    """Living descendants of a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


STRANGERS: set[int] = set()
"""Wardens of this process that are another test's, such as the session engine's."""


def wardens(parent: int | None = None) -> set[int]:
    """Wardens that *parent*, or this process, has started; strangers left out."""
    named = {pid for pid, command in commands().items() if command.startswith("stockade-warden")}
    return (named & children(os.getpid() if parent is None else parent)) - STRANGERS
