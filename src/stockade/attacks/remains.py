"""What a server leaves on the host: processes, control groups, mounts, loop devices. Linux only."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["Remains"]

_SET_CHILD_SUBREAPER: Final = 36
_GROUPS: Final = Path("/sys/fs/cgroup")
_DEEP: Final = 6


class Remains:
    """Watches one server from its start, and says what is still there after its end.

    To be made before the server is started: from then on what becomes an orphan below this process becomes its child,
    and so cannot hide.
    """

    def __init__(self, directory: Path) -> None:
        """*directory*: where the server keeps everything."""
        self._directory = str(directory)
        self._seen: set[int] = set()
        self._before = set(_children(os.getpid()))
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def look(self) -> None:
        """Note which processes the server has: control groups bear their numbers."""
        self._seen |= _descendants(os.getpid())

    def left(self) -> list[str]:
        """What is still there of a server that has ended; a line for each."""
        return [*self._processes(), *self._control_groups(), *self._mounts(), *self._loop_devices()]

    def _processes(self) -> Iterator[str]:
        for pid in sorted(_descendants(os.getpid())):
            if pid in self._before:
                continue
            if _state(pid) == "Z":
                _reap(pid)
                continue
            yield f"process {pid}: {_command(pid)}"

    def _control_groups(self) -> Iterator[str]:
        numbers = {str(pid) for pid in self._seen}
        for directory, below, _ in os.walk(_GROUPS):
            if directory.count("/") > _DEEP:
                below.clear()
            for name in below:
                parts = name.split("-")
                if parts[0] == "stockade" and len(parts) > 2 and parts[2] in numbers:
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


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "Z"


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
