"""The faults: each is done to a deployment, lasts for a while, and is withdrawn."""

import asyncio
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.faults_stage import Stage

__all__ = ["KINDS", "Kind"]

LASTS_S = 2.5
"""What stands still or has no room does so for longer than any deadline of the settings that it is tried with."""
MIB = 1 << 20
Injection = Callable[[Stage, random.Random], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One fault."""

    name: str
    group: str
    """The short rehearsal takes some of each."""
    inject: Injection
    needs_shim: bool = False
    needs_services: bool = False
    """Whether it is done to PostgreSQL or Redis."""
    loses_disks: bool = False
    """Whether what lives must end before everything works again, see `docs/guarantees.md`."""


def _kill(unit: str, part: str = "") -> Injection:
    """`kill -9` of a unit's first process, or of those of its processes that are called *part*."""

    @contextlib.asynccontextmanager
    async def inject(stage: Stage, _: random.Random) -> AsyncIterator[None]:
        one = stage.units[unit]
        if not part:
            one.signal(signal.SIGKILL)
        for pid in one.find(part) if part else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        yield

    return inject


def _kill_several(*units: str) -> Injection:
    """`kill -9` of everything that belongs to the units, sandboxes included, as when a machine dies."""

    @contextlib.asynccontextmanager
    async def inject(stage: Stage, _: random.Random) -> AsyncIterator[None]:
        for unit in stage.units.keys() & units:
            for pid in stage.groups.pids(unit):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        yield

    return inject


def _freeze(unit: str, part: str = "") -> Injection:
    """SIGSTOP for a while, of all its processes outside sandboxes or of those that are called *part*."""

    @contextlib.asynccontextmanager
    async def inject(stage: Stage, _: random.Random) -> AsyncIterator[None]:
        one = stage.units[unit]
        found = one.find(part) if part else [one.process.pid] if one.process is not None else []
        if unit == "postgresql":
            found = stage.groups.pids(unit)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(LASTS_S)
            yield
        finally:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    return inject


def _fill(disk: str) -> Injection:
    """Leave no room on a file system."""

    @contextlib.asynccontextmanager
    async def inject(stage: Stage, _: random.Random) -> AsyncIterator[None]:
        filler = stage.disks[disk] / "filler"

        def fill() -> None:
            with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                for size in (1 << 20, 1 << 12, 1):
                    with contextlib.suppress(OSError):
                        while file.write(b"x" * size):
                            pass

        try:
            await asyncio.to_thread(fill)
            await asyncio.sleep(LASTS_S)
            yield
        finally:
            filler.unlink(missing_ok=True)

    return inject


def _no_forks(unit: str) -> Injection:
    """Let a unit have next to no further processes."""

    @contextlib.asynccontextmanager
    async def inject(stage: Stage, chance: random.Random) -> AsyncIterator[None]:
        stage.groups.limit_processes(unit, chance.choice((0, 1, 3)))
        try:
            await asyncio.sleep(LASTS_S)
            yield
        finally:
            stage.groups.limit_processes(unit, None)

    return inject


@contextlib.asynccontextmanager
async def _no_memory(stage: Stage, _: random.Random) -> AsyncIterator[None]:
    """Leave next to no memory to everything of ours, with a program beside that wants all of it."""
    hog = None
    stage.groups.limit_memory(24 * MIB)
    try:
        script = "import time\nkept = []\nwhile True:\n    kept.append(bytearray(1 << 20))\n    time.sleep(0.02)"
        procs = stage.groups.folder("memory") / "cgroup.procs"
        hog = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, preexec_fn=lambda: _be_first(procs), stderr=subprocess.DEVNULL
        )
        await asyncio.sleep(LASTS_S)
        yield
    finally:
        stage.groups.limit_memory(None)
        if hog is not None:
            with contextlib.suppress(ProcessLookupError):
                hog.kill()
            await hog.wait()


def _be_first(procs: Path) -> None:
    """In the hog, before its program: under our limit, and the first that the kernel ends."""
    procs.write_text("0")
    Path("/proc/self/oom_score_adj").write_text("1000")


def _no_descriptors(unit: str, part: str = "") -> Injection:
    """Let a process open no further descriptor."""

    @contextlib.asynccontextmanager
    async def inject(stage: Stage, chance: random.Random) -> AsyncIterator[None]:
        one = stage.units[unit]
        pids = one.find(part) if part else [one.process.pid] if one.process is not None else []
        before = {}
        for pid in pids:
            with contextlib.suppress(OSError):
                spare = chance.choice((0, 1, 2, 5))
                highest = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1 + spare
                soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                before[pid] = soft, hard
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(highest, soft), hard))
        try:
            await asyncio.sleep(LASTS_S)
            yield
        finally:
            for pid, limits in before.items():
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

    return inject


def _clock(unit: str, seconds: float) -> Injection:
    """Set the wall clock of one program forwards or back, and later right again."""

    @contextlib.asynccontextmanager
    async def inject(stage: Stage, _: random.Random) -> AsyncIterator[None]:
        stage.shim.set(unit, clock_s=seconds)
        try:
            await asyncio.sleep(LASTS_S)
            yield
        finally:
            stage.shim.set(unit)

    return inject


@contextlib.asynccontextmanager
async def _slow_disk(stage: Stage, chance: random.Random) -> AsyncIterator[None]:
    """Let each fsync of everybody take a good part of a second."""
    for unit in stage.units:
        stage.shim.set(unit, sync_s=chance.uniform(0.2, 0.6))
    try:
        await asyncio.sleep(LASTS_S)
        yield
    finally:
        for unit in stage.units:
            stage.shim.set(unit)


def _relay(service: str, how: str) -> Injection:
    """Cut all connections to a service, or let nothing come through them, for a while."""

    @contextlib.asynccontextmanager
    async def inject(stage: Stage, _: random.Random) -> AsyncIterator[None]:
        relay = stage.relays[service]
        (relay.cut if how == "cut" else relay.stall)()
        try:
            await asyncio.sleep(LASTS_S)
            yield
        finally:
            if how == "stall":
                relay.cut()  # what was on its way comes never, or by another connection
            relay.mend()

    return inject


def _kinds() -> Iterator[Kind]:
    for unit in ("server", "worker"):
        yield Kind(name=f"kill -9 {unit}", group="kill ours", inject=_kill(unit))
        for part in ("stockade-warden", "stockade-mason"):
            yield Kind(name=f"kill -9 {part} ({unit}'s)", group="kill part", inject=_kill(unit, part))
        yield Kind(name=f"no further process ({unit})", group="no room", inject=_no_forks(unit))
        for hours in (1, -1):
            inject = _clock(unit, 3600.0 * hours)
            yield Kind(name=f"clock of the {unit} {hours:+d} h", group="clock or disk", inject=inject, needs_shim=True)
    yield Kind(name="kill -9 keeper (server's)", group="kill part", inject=_kill("server", "keeper"))
    for part in ("stockade-egress", "stockade-disks"):
        yield Kind(name=f"kill -9 {part}", group="kill child", inject=_kill("server", part), loses_disks=True)
    everything = ("server", "worker", "postgresql", "redis")
    yield Kind(name="death of all that is the server's", group="kill all", inject=_kill_several("server"))
    yield Kind(name="death of everything", group="kill all", inject=_kill_several(*everything))
    for unit in everything:
        is_service = unit in ("postgresql", "redis")
        yield Kind(name=f"{unit} stands still", group="freeze", inject=_freeze(unit), needs_services=is_service)
    for part in ("stockade-warden", "stockade-mason", "stockade-disks"):
        yield Kind(name=f"{part} stands still", group="freeze", inject=_freeze("server", part))
    for disk in ("data", "database"):
        is_service = disk == "database"
        yield Kind(
            name=f"disk of the {disk} is full",
            group="full",
            inject=_fill(disk),
            needs_services=is_service,
            loses_disks=not is_service,
        )
    yield Kind(name="no memory on the host", group="no room", inject=_no_memory)
    yield Kind(name="no descriptors (server)", group="no room", inject=_no_descriptors("server"))
    yield Kind(name="no descriptors (warden)", group="no room", inject=_no_descriptors("server", "stockade-warden"))
    yield Kind(name="slow disk", group="clock or disk", inject=_slow_disk, needs_shim=True)
    for service in ("postgresql", "redis"):
        yield Kind(name=f"kill -9 {service}", group="kill store", inject=_kill(service), needs_services=True)
        for how in ("cut", "stall"):
            inject = _relay(service, how)
            yield Kind(name=f"connections to {service}: {how}", group="relay", inject=inject, needs_services=True)


KINDS: tuple[Kind, ...] = tuple(_kinds())
