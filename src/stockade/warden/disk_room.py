"""A file system in a file that grows must never want more of its host than the host has.

Were it to, its writes would fail where no file system expects that: it would lose what was written last, and take no
more changes of anybody. So it is made smaller while the host has too little, down to what it has laid out already, and
larger again: whoever fills a disk is then told that there is no room, as anywhere.
"""

import os

from . import btrfs
from .disk_image import NAME

__all__ = ["Room", "spare_bytes"]

_RESERVE = 2 << 30
_RESERVE_SHARE = 10  # a tenth
_LAST_SHARE = 0.6
"""Of the reserve, what the disks that are there may have: btrfs needs some room to make as much as an empty file."""
_LEAST = 256 << 20
_STEP = 64 << 20


def spare_bytes(host: int) -> int:
    """What the file system of a directory of the host's has for more disks: some of it the host needs for itself."""
    free, reserve = _free_and_reserve(host)
    return max(0, free - reserve)


def _most_bytes(host: int) -> int:
    """What the disks that are there may grow by."""
    free, reserve = _free_and_reserve(host)
    return max(free - reserve, int(_LAST_SHARE * min(free, reserve)))


def _free_and_reserve(host: int) -> tuple[int, int]:
    room = os.fstatvfs(host)
    return room.f_bavail * room.f_frsize, min(_RESERVE, room.f_blocks * room.f_frsize // _RESERVE_SHARE)


class Room:
    """Keeps a file system of ours to what the host can give."""

    def __init__(self, root: int, host: int) -> None:
        """Begin with the file system of directory *root*, which lies in the image in directory *host*."""
        self._root, self._host = root, host

    def fit(self) -> None:
        """Compare, and make it smaller or larger. To be called every second or so. Raises OSError."""
        image = os.stat(NAME, dir_fd=self._host, follow_symlinks=False)
        # What the image has of the host already it need not ask for again. What is laid out could only be moved.
        wanted = max(image.st_blocks * 512 + _most_bytes(self._host), btrfs.laid_out_bytes(self._root), _LEAST)
        wanted = min(image.st_size, -(-wanted // _STEP) * _STEP)
        here = os.fstatvfs(self._root)
        size = here.f_blocks * here.f_frsize
        if abs(wanted - size) >= _STEP or size < wanted == image.st_size:
            btrfs.resize(self._root, wanted)
