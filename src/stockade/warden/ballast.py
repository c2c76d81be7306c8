"""A file system in a file that grows must never want more of its host than the host has.

Were it to, its writes would fail where no file system expects that: it would lose what was written last, and take no
more changes of anybody. So what it has left over what the host can give is taken up by a file of its own, `ballast`:
blocks that are set aside and never written, which cost the host nothing. Whoever fills a disk is then told that there
is no room, as anywhere.
"""

import contextlib
import os

__all__ = ["Ballast", "spare_bytes"]

_NAME = "ballast"
_RESERVE = 2 << 30
_RESERVE_SHARE = 10  # a tenth
_LAST_SHARE = 0.6
"""Of the reserve, for what is there: without unallocated room for one more chunk btrfs makes not even an empty file."""
_STEP = 32 << 20


def spare_bytes(host: int) -> int:
    """What the file system of a directory of the host's has for more disks: some of it the host needs for itself."""
    free, reserve = _room(host)
    return max(0, free - reserve)


def _most_bytes(host: int) -> int:
    """What the disks that are there may grow by."""
    free, reserve = _room(host)
    return max(free - reserve, int(_LAST_SHARE * min(free, reserve)))


def _room(host: int) -> tuple[int, int]:
    room = os.fstatvfs(host)
    return room.f_bavail * room.f_frsize, min(_RESERVE, room.f_blocks * room.f_frsize // _RESERVE_SHARE)


class Ballast:
    """Keeps the free room of a file system of ours to what the host can give."""

    def __init__(self, root: int, host: int) -> None:
        """Begin with the file system of directory *root*, which lies in a file on that of *host*. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._root, self._host = root, host
        self._file = os.open(_NAME, flags, 0o600, dir_fd=root)

    def trim(self) -> None:
        """Compare, and take up or give back what has changed. To be called every second or so."""
        room = os.fstatvfs(self._root)
        excess = room.f_bavail * room.f_frsize - _most_bytes(self._host)
        size = os.fstat(self._file).st_size
        wanted = max(0, size + excess) // _STEP * _STEP
        if wanted < size:
            os.ftruncate(self._file, wanted)
        while size < wanted:  # in steps, the last of which may find no room
            with contextlib.suppress(OSError):
                os.posix_fallocate(self._file, size, _STEP)
            if os.fstat(self._file).st_size == size:
                return
            size = os.fstat(self._file).st_size
