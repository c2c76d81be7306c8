"""bubblewrap as somebody who means it would use it: by an account of its own, all of its walls, and prlimit(1).

It has no limits of its own, so the usual ones for each process are set before it; it has no system call filter of its
own, so there are two of it: without one, and with ours.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from bench.enclosure import Enclosure
from bench.measure import BenchError
from bench.peers import PATH, Attempts, Peer, command_of, deadline_of, ending_of
from bench.peers_launch import launch
from stockade.attacks import LIMITS, Attack, Ending
from stockade.warden import seccomp

__all__ = ["bubblewrap", "bubblewrap_filtered"]

ACCOUNT: Final = 61234
"""A uid that nobody else has: limits on processes are counted for each account."""
_LEFT_S: Final = 3.0
_FILTER: Final = "FILTER"


def _limits() -> tuple[str, ...]:
    values = {
        "as": LIMITS.memory_bytes,
        "nproc": LIMITS.processes,
        "nofile": LIMITS.open_files,
        "fsize": LIMITS.disk_bytes,
        "cpu": int(LIMITS.cpu_s or 0),
        "core": 0,
    }
    return tuple(f"--{name}={value}" for name, value in values.items())


def _system_directory(name: str) -> tuple[str, ...]:
    path = f"/{name}"
    if os.path.islink(path):
        return ("--symlink", os.readlink(path), path)
    return ("--ro-bind", path, path) if os.path.isdir(path) else ()


def _walls() -> tuple[str, ...]:
    merged = [word for name in ("bin", "sbin", "lib", "lib64") for word in _system_directory(name)]
    size = str(LIMITS.disk_bytes)
    return (
        "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", "--clearenv", "--setenv", "PATH", PATH, "--setenv", "LANG", "C.UTF-8",
        "--uid", "1000", "--gid", "1000",
        "--hostname", "sandbox", "--ro-bind", "/usr", "/usr", *merged, "--proc", "/proc", "--dev", "/dev",
        "--size", size, "--tmpfs", "/dev/shm", "--size", size, "--tmpfs", "/tmp", "--size", size, "--tmpfs", "/code",
        "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/code",
    )  # fmt: skip


class _Bubblewrap(Attempts):
    def __init__(self, name: str, program: str, filter_path: Path | None) -> None:
        super().__init__(name)
        self._program = program
        self._filter = filter_path

    @property
    def command(self) -> tuple[str, ...]:
        account = ("setpriv", "--reuid", str(ACCOUNT), "--regid", str(ACCOUNT), "--clear-groups")
        command = (*account, "prlimit", *_limits(), self._program, *_walls())
        return (*command, "--seccomp", "9", "--") if self._filter is not None else (*command, "--")

    async def _step(self, attack: Attack, step: str, stdin: bytes) -> Ending:
        command = (*self.command, *command_of(attack.language, step))
        if self._filter is not None:
            command = ("/bin/sh", "-c", 'exec "$@" 9< "$0"', str(self._filter), *command)
        with Enclosure() as enclosure:
            launched = await launch(command, step.encode() + stdin, deadline_s=deadline_of(attack), enclosure=enclosure)
            left = await enclosure.left(within_s=_LEFT_S)
            self._found += [f"it took {bound}" for bound in enclosure.reached()]
            self._found += [f"it outlived the sandbox: {line}" for line in left]
        return ending_of(attack, launched)


@contextlib.asynccontextmanager
async def bubblewrap(directory: Path) -> AsyncIterator[Peer]:
    """Without a filter of system calls: it brings none.

    Raises:
        BenchError: it is not installed.
    """
    yield _peer("bubblewrap", None)


@contextlib.asynccontextmanager
async def bubblewrap_filtered(directory: Path) -> AsyncIterator[Peer]:
    """With the filter that Stockade has for runs, which is more than anybody's usual one.

    Raises:
        BenchError: it is not installed.
    """
    path = directory / "filter.bpf"
    path.write_bytes(seccomp.build())
    path.chmod(0o644)
    yield _peer("bubblewrap + filter", path)


def _peer(name: str, filter_path: Path | None) -> Peer:
    program = shutil.which("bwrap")
    if program is None:
        raise BenchError("bubblewrap is not installed (Debian package bubblewrap)")
    if os.geteuid() != 0:
        raise BenchError("bubblewrap is tried by an account of its own, which only root can become")
    way = _Bubblewrap(name, program, filter_path)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    return Peer(way=way, version=version.strip(), flags=shlex.join(way.command))
