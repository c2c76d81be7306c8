"""Programs that are started again whenever they end, as a service manager does, and what is needed to hurt them.

Each runs in control groups of its own, by which all of its processes are found, those in sandboxes included, however
they were orphaned: what is left of it in the end is seen whoever else works on this machine.
"""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError

__all__ = ["Groups", "Shim", "Unit", "command_of", "is_alive"]

RESTART_S = 0.2
END_S = 40.0
_NEEDED = ("pids", "memory")
_BASE = Path("/sys/fs/cgroup")
_SHIM = Path(__file__).with_name("faults_shim.c")


class Groups:
    """Control groups (v1) of this rehearsal: `pids` and `memory`, with a group for each unit below.

    Raises:
        BenchError: they cannot be had here.
    """

    def __init__(self) -> None:
        missing = [name for name in _NEEDED if not (_BASE / name / "cgroup.procs").exists()]
        if missing or os.geteuid():
            raise BenchError(f"faults need root and control groups v1: {', '.join(missing) or 'not root'}")
        self._name = f"faults-{os.getpid()}-{time.monotonic_ns()}"
        self._units: list[str] = []
        for name in _NEEDED:
            (_BASE / name / self._name).mkdir()

    def add(self, unit: str) -> None:
        """A group for the processes of *unit*."""
        self._units.append(unit)
        for name in _NEEDED:
            (self.folder(name) / unit).mkdir(exist_ok=True)

    def folder(self, controller: str, unit: str = "") -> Path:
        return _BASE / controller / self._name / unit

    def join(self, unit: str) -> None:
        """Move the calling process there."""
        for name in _NEEDED:
            (self.folder(name, unit) / "cgroup.procs").write_text("0")

    def pids(self, unit: str = "") -> list[int]:
        """All that live in a unit, or in all of them."""
        found: list[int] = []
        for folder, _, _ in os.walk(self.folder("pids", unit)):
            with contextlib.suppress(OSError):
                found += map(int, Path(folder, "cgroup.procs").read_text().split())
        return found

    def made_inside(self) -> list[str]:
        """Groups that somebody has made below those of the units."""
        found = []
        for name in _NEEDED:
            for unit in self._units:
                found += [str(one) for one in self.folder(name, unit).glob("*/")]
        return found

    def limit_processes(self, unit: str, spare: int | None) -> None:
        """Let a unit have *spare* processes more than it has; `None`: any number."""
        file = self.folder("pids", unit) / "pids.max"
        if spare is None:
            file.write_text("max")
        else:
            now = int((self.folder("pids", unit) / "pids.current").read_text())
            file.write_text(str(now + spare))

    def limit_memory(self, spare: int | None) -> None:
        """Let all units together have *spare* bytes more than they have; `None`: any number."""
        folder = self.folder("memory")
        now = int((folder / "memory.usage_in_bytes").read_text())
        (folder / "memory.limit_in_bytes").write_text("-1" if spare is None else str(now + spare))

    def remove(self) -> None:
        """End whatever is left, and remove the groups."""
        deadline = time.monotonic() + END_S
        while (left := self.pids()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for name in _NEEDED:
            for folder, _, _ in os.walk(self.folder(name), topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


class Shim:
    """What is loaded into programs to set their clocks and to slow down their disks, see `faults_shim.c`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "faults.so"
        compiler = shutil.which("gcc") or shutil.which("cc")
        self.problem = "no C compiler"
        """Why there is none; empty where there is."""
        if compiler is not None:
            done = subprocess.run(
                [compiler, "-O1", "-shared", "-fPIC", "-o", self._library, _SHIM, "-ldl"],
                capture_output=True,
                timeout=60,
            )
            self.problem = done.stderr.decode(errors="replace")[-300:] if done.returncode else ""

    def environment(self, unit: str) -> dict[str, str]:
        """What a unit needs in its environment to be reached by `set`."""
        if self.problem:
            return {}
        self.set(unit)
        return {"LD_PRELOAD": str(self._library), "FAULTS_CONTROL": str(self._control(unit))}

    def set(self, unit: str, *, clock_s: float = 0.0, sync_s: float = 0.0) -> None:
        """Let the wall clock of a unit be off by *clock_s*, and each fsync take *sync_s* longer."""
        values = struct.pack("=qq", int(clock_s * 1e9), int(sync_s * 1e6))
        with os.fdopen(os.open(self._control(unit), os.O_WRONLY | os.O_CREAT, 0o644), "wb", buffering=0) as file:
            file.write(values)

    def _control(self, unit: str) -> Path:
        return self._folder / f"{unit}.control"


@dataclass(kw_only=True)
class Unit:
    """One program."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str]
    log: Path
    groups: Groups
    user: pwd.struct_passwd | None = None
    """Whom to run it as, where that is not root."""
    folder: Path = Path("/")
    """Where it works."""
    before: Callable[[], None] | None = None
    """Called before each start."""
    starts: int = 0
    process: asyncio.subprocess.Process | None = None
    _is_wanted: bool = True
    _keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep it running."""
        self.groups.add(self.name)
        self._keeper = asyncio.create_task(self._keep(), name=f"unit {self.name}")

    async def end(self, number: int) -> int:
        """Send a signal and wait for the end, after which it is not started again; its exit status.

        Raises:
            BenchError: it does not end; then it is killed.
        """
        self._is_wanted = False
        process, keeper = self.process, self._keeper
        if process is None or keeper is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            async with asyncio.timeout(END_S):
                return await process.wait()
        except TimeoutError:
            process.kill()
            raise BenchError(f"{self.name} does not end within {END_S:g} s") from None
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    def signal(self, number: int) -> bool:
        """Send a signal to its first process; whether there was one."""
        if self.process is None or self.process.returncode is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
            return True
        return False

    def find(self, name: str) -> list[int]:
        """Its processes whose command line begins with, or for the keeper holds, *name*."""
        found = []
        for pid in self.groups.pids(self.name):
            command = command_of(pid)
            if command.startswith(name) or (name == "keeper" and "app/keeper" in command):
                found.append(pid)
        return found

    def lines(self) -> list[str]:
        """What it has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []

    async def _keep(self) -> None:
        while self._is_wanted:
            if self.before is not None:
                self.before()
            with self.log.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *self.command,
                    env=dict(self.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    preexec_fn=self._join,
                )
            self.starts += 1
            await self.process.wait()
            await asyncio.sleep(RESTART_S)

    def _join(self) -> None:
        """In the child, before the program: whom it may be is given up after the groups are joined."""
        self.groups.join(self.name)
        if self.user is not None:
            os.setgroups([])
            os.setgid(self.user.pw_gid)
            os.setuid(self.user.pw_uid)


def command_of(pid: int) -> str:
    """Its command line; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
