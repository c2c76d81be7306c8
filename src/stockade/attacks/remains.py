"""What a server leaves on the host: processes, control groups, mounts, loop devices. Linux only."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["Remains"]

_SET_CHILD_SUBREAPER: Final = 36
_GET_CHILD_SUBREAPER: Final = 37
_GROUPS: Final = Path("/sys/fs/cgroup")
_DEEP: Final = 6


class Remains:
    """Watches one server from its start, and says what is still there after its end.

    To be made before the server is started, in a session of its own: from then on what becomes an orphan below this
    process becomes its child, and so cannot hide. The server's is whatever descends from a new child of this process
    that is not of its session, which nothing below the server can join. So what else this process has started, and
    other servers on the host, are left alone. To be closed in the end: who has orphans has to reap them.
    """

    def __init__(self, directory: Path) -> None:
        """*directory*: where the server keeps everything."""
        self._directory = str(directory)
        self._seen: set[str] = set()
        self._before = {_name(pid) for pid in _children(os.getpid())}
        libc, had = ctypes.CDLL(None), ctypes.c_int()
        libc.prctl(_GET_CHILD_SUBREAPER, ctypes.byref(had), 0, 0, 0)
        self._had_orphans = had.value
        libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def close(self) -> None:
        """Orphans go from now on to whom they went before."""
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, self._had_orphans, 0, 0, 0)

    def look(self) -> None:
        """Note which processes the server has: control groups bear their names."""
        self._seen |= {_name(pid) for pid in self._of_server()}

    def left(self) -> list[str]:
        """What is still there of a server that has ended; a line for each."""
        return [*self._processes(), *self._control_groups(), *self._mounts(), *self._loop_devices()]

    def _processes(self) -> Iterator[str]:
        for pid in sorted(self._of_server()):
            if _state(pid) == "Z":
                _reap(pid)
                continue
            yield f"process {pid}: {_command(pid)}"

    def _of_server(self) -> set[int]:
        session = os.getsid(0)
        children = _children(os.getpid())
        begun = [pid for pid in children if _session(pid) != session and _name(pid) not in self._before]
        return {*begun, *(one for pid in begun for one in _descendants(pid))}

    def _control_groups(self) -> Iterator[str]:
        for directory, below, _ in os.walk(_GROUPS):
            if directory.count("/") > _DEEP:
                below.clear()
            for name in below:
                prefix, _, tag = name.partition("-")
                if prefix == "stockade" and tag in self._seen:
                    yield f"control group {directory}/{name}"

    def _mounts(self) -> Iterator[str]:
        for line in Path("/proc/self/mounts").read_text("utf-8").splitlines():
            if self._directory in line:
                yield f"mount {line}"

    def _loop_devices(self) -> Iterator[str]:
        for file in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                backing = file.read_text("utf-8").strip()
            except OSError:  # detached meanwhile
                continue
            if backing.startswith(self._directory):
                yield f"loop device {file.parts[3]}: {backing}"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text("ascii").split())
    except OSError:  # ended meanwhile
        pass
    return found


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    queue = [pid]
    while queue:
        for child in _children(queue.pop()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def _status(pid: int) -> list[str]:
    """What `/proc` says of a process after its name: the state first. Nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def _state(pid: int) -> str:
    return next(iter(_status(pid)), "Z")


def _session(pid: int) -> int:
    """0 of one that is gone."""
    return int(status[3]) if (status := _status(pid)) else 0


def _name(pid: int) -> str:
    """As a warden tells itself from all others in the names of its control groups: they may have had its number."""
    status = _status(pid)
    return f"{os.stat('/proc/self/ns/pid').st_ino}-{pid}-{status[19] if status else ''}"


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        words = ""
    return words or "(no arguments)"


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # somebody else's child, who has yet to ask for it
        return
