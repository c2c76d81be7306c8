"""Programs started without us: bare, and in bubblewrap."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence

from bench.measure import BenchError, Sample
from stockade.warden import seccomp

__all__ = ["ENVIRONMENT", "HELLO", "PYTHON", "TRUE", "bare", "bubblewrap", "spawn"]

PYTHON = "/usr/bin/python3"
TRUE = "/usr/bin/true"
HELLO = "print('hello')"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}


def spawn(argv: Sequence[str], expected: bytes, *, environment: Mapping[str, str] = ENVIRONMENT) -> float:
    """Start a program, read what it prints, reap it; seconds.

    The leanest way that there is (posix_spawn shares memory until execve), so that nothing of ours is counted against
    those whom we compare with.
    """
    read, write = os.pipe()
    try:
        began = time.perf_counter()
        try:
            pid = os.posix_spawn(argv[0], list(argv), environment, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
        finally:
            os.close(write)
        output = b""
        while chunk := os.read(read, 65536):
            output += chunk
        _, status = os.waitpid(pid, 0)
        seconds = time.perf_counter() - began
    finally:
        os.close(read)
    if status or output != expected:
        raise BenchError(f"{' '.join(argv[:3])} … ended with wait status {status} and printed {output[:200]!r}")
    return seconds


def bare(argv: Sequence[str], expected: bytes) -> Sample:
    """The program as it is."""
    return lambda: spawn(argv, expected)


def bubblewrap(argv: Sequence[str], expected: bytes) -> Sample | None:
    """The program in bubblewrap with all that it can do, our own system call filter included; `None` where it is not
    installed. It has no limits on memory, processes, CPU and time: those it does not know."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    filter_fd = os.memfd_create("filter", 0)  # inherited
    os.write(filter_fd, seccomp.build())
    merged = [word for name in ("bin", "sbin", "lib", "lib64") for word in _system_directory(name)]
    command = [
        program, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--uid", "1000", "--gid", "1000",
        "--hostname", "sandbox", "--ro-bind", "/usr", "/usr", *merged,
        "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev",
        "--size", str(64 << 20), "--tmpfs", "/tmp", "--chdir", "/tmp", "--seccomp", str(filter_fd), "--", *argv,
    ]  # fmt: skip

    def sample() -> float:
        os.lseek(filter_fd, 0, os.SEEK_SET)  # each reads it to its end
        return spawn(command, expected)

    return sample


def _system_directory(name: str) -> list[str]:
    path = f"/{name}"
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path] if os.path.isdir(path) else []
