"""Disks as subvolumes of a btrfs file system: a copy takes a moment, and each has a size that the kernel enforces.

`Subvolumes` is one of the two ways in which `disk_store` keeps disks. The rest speaks to the kernel: ioctls of
<linux/btrfs.h>, on descriptors.

Quotas are the full ones, not the simple ones of Linux 6.7, which charge a block to whom it was first written for as
long as anybody has it: after a snapshot, a disk could not write again what it had written. It costs little; measured
with 20 copies of one disk of which each is changed, a tenth.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

__all__ = [
    "Subvolumes",
    "delete_stale_groups",
    "file_system_id",
    "has_quotas",
    "laid_out_bytes",
    "resize",
    "start_quotas",
]


def _code(kind: int, number: int, size: int) -> int:
    """_IO, _IOW (1), _IOR (2) and _IOWR (3) of <asm-generic/ioctl.h>, for btrfs."""
    return kind << 30 | size << 16 | 0x94 << 8 | number


# <linux/btrfs.h>
_RESIZE = _code(1, 3, 4096)
_DELETE = _code(1, 15, 4096)
_TREE_SEARCH = _code(3, 17, 4096)
_LOOKUP = _code(3, 18, 4096)
_WAIT_SYNC = _code(1, 22, 8)
_SNAPSHOT = _code(1, 23, 4096)
_CREATE = _code(1, 24, 4096)
_START_SYNC = _code(2, 24, 8)
_SET_FLAGS = _code(1, 26, 8)
_FS_INFO = _code(2, 31, 1024)
_QUOTA_CONTROL = _code(3, 40, 16)
_GROUP_CREATE = _code(1, 42, 16)
_GROUP_LIMIT = _code(2, 43, 48)
_RESCAN = _code(1, 44, 64)
_RESCAN_WAIT = _code(0, 46, 0)
_DELETE_BY_ID = _code(1, 63, 4096)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = struct.Struct("=qQQQQ16s4040s")  # struct btrfs_ioctl_vol_args_v2
_OLD = struct.Struct("=q4088s")  # struct btrfs_ioctl_vol_args
_INHERIT = struct.Struct("=9Q")  # struct btrfs_qgroup_inherit
_KEY = struct.Struct("=7Q4I4Q")  # struct btrfs_ioctl_search_key
_HEADER = struct.Struct("=3Q2I")  # struct btrfs_ioctl_search_header
_READ_ONLY = 1 << 1
_WITH_GROUP = 1 << 2
_BY_ID = 1 << 4
_SET_LIMITS = 1
_MAX_REFERENCED = 1
_NO_LIMIT = (1 << 64) - 1

# <linux/btrfs_tree.h>
_ROOT_TREE, _DEVICE_TREE, _QUOTA_TREE = 1, 4, 8
_FIRST_FREE, _LAST = 256, (1 << 48) - 1
_ROOT_REF, _DEVICE_EXTENT, _STATUS, _INFO, _LIMIT = 156, 204, 240, 242, 244
_IS_ON, _IS_INCONSISTENT, _IS_SIMPLE = 1, 4, 8


class Subvolumes:
    """See `disk_store.Driver`."""

    kind = "btrfs"
    shares_blocks = True
    enforces_size = True
    copies_at_once = True

    def __init__(self, root: int, temporary: int) -> None:
        """Keep disks in the file system of directory *root*; *temporary* is one in it, for what is soon gone."""
        self._root = root
        self._temporary = temporary

    def create(self, place: int, name: str, size_bytes: int) -> None:
        limits, arguments = _arguments(0, name, size_bytes)
        fcntl.ioctl(place, _CREATE, arguments)
        del limits

    def copy(self, source: int, place: int, name: str, size_bytes: int) -> None:
        limits, arguments = _arguments(source, name, size_bytes)
        # What was written to the source is on the disk before this begins, and all is committed when it returns.
        fcntl.ioctl(place, _SNAPSHOT, arguments)
        del limits
        if self.sizes(source)[0] != size_bytes:  # a snapshot has the limit of its source, whatever it was asked for
            disk = os.open(name, _DIRECTORY, dir_fd=place)
            try:
                self.resize(disk, size_bytes)
            finally:
                os.close(disk)
            self.commit()

    def flush(self, disk: int) -> None:
        # A snapshot is what has the kernel write back one subvolume, and none of the others.
        name = f".flush{_id_of(disk)}"
        fcntl.ioctl(self._temporary, _SNAPSHOT, bytearray(_NEW.pack(disk, 0, _READ_ONLY, 0, 0, b"", name.encode())))
        self.delete(self._temporary, name)

    def delete(self, place: int, name: str) -> None:
        arguments = _OLD.pack(0, name.encode())
        try:
            fcntl.ioctl(place, _DELETE, bytearray(arguments))
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            self._delete_all_in(
                place, name
            )  # subvolumes in it, which no sandbox can make: its filter is the first wall
            fcntl.ioctl(place, _DELETE, bytearray(arguments))

    def _delete_all_in(self, place: int, name: str) -> None:
        disk = os.open(name, _DIRECTORY, dir_fd=place)
        try:
            found = [_id_of(disk)]
        finally:
            os.close(disk)
        for parent in found:  # which grows meanwhile
            found += [number for number, _ in _search(self._root, _ROOT_REF, _FIRST_FREE, _LAST, parent, _ROOT_TREE)]
        for number in reversed(found[1:]):
            fcntl.ioctl(self._root, _DELETE_BY_ID, bytearray(_NEW.pack(0, 0, _BY_ID, 0, 0, b"", _number(number))))

    def protect(self, disk: int) -> None:
        fcntl.ioctl(disk, _SET_FLAGS, bytearray(struct.pack("=Q", _READ_ONLY)))

    def resize(self, disk: int, size_bytes: int) -> None:
        limit = struct.pack("=6Q", 0, _MAX_REFERENCED, size_bytes, 0, 0, 0)  # struct btrfs_ioctl_qgroup_limit_args
        fcntl.ioctl(disk, _GROUP_LIMIT, bytearray(limit))

    def sizes(self, disk: int) -> tuple[int, int]:
        number = _id_of(disk)
        used = next((_unpack_info(item) for _, item in _search(self._root, _INFO, number, number)), 0)
        most = next((_unpack_limit(item) for _, item in _search(self._root, _LIMIT, number, number)), 0)
        return most, used

    def commit(self) -> None:
        transaction = bytearray(8)
        fcntl.ioctl(self._root, _START_SYNC, transaction)
        fcntl.ioctl(self._root, _WAIT_SYNC, transaction)


def file_system_id(directory: int) -> str | None:
    """The UUID of the btrfs file system of a directory; `None` where it is another kind of file system."""
    info = bytearray(1024)
    try:
        fcntl.ioctl(directory, _FS_INFO, info)
    except OSError:
        return None
    text = info[16:32].hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def has_quotas(directory: int) -> bool:
    """Whether the file system of a directory keeps full quotas."""
    return file_system_id(directory) is not None and _quota_status(directory) & (_IS_ON | _IS_SIMPLE) == _IS_ON


def start_quotas(directory: int) -> None:
    """Have a file system of ours keep quotas. Raises OSError."""
    status = _quota_status(directory)
    if not status & _IS_ON:
        fcntl.ioctl(directory, _QUOTA_CONTROL, bytearray(struct.pack("=QQ", 1, 0)))  # BTRFS_QUOTA_CTL_ENABLE
        fcntl.ioctl(directory, _RESCAN_WAIT)
    elif status & _IS_INCONSISTENT:
        with contextlib.suppress(OSError):  # one is under way already
            fcntl.ioctl(directory, _RESCAN, bytearray(64))
        fcntl.ioctl(directory, _RESCAN_WAIT)


def delete_stale_groups(directory: int, disks: Iterator[int]) -> None:
    """In a file system of ours, forget the quotas of subvolumes that are gone; *disks* are descriptors of all others.

    Kernels leave them behind, and hold all of them in memory.
    """
    living = {_id_of(disk) for disk in disks}
    for number, _ in list(_search(directory, _INFO, _FIRST_FREE, _LAST)):
        if number not in living:
            with contextlib.suppress(OSError):  # not yet gone from the disk
                fcntl.ioctl(directory, _GROUP_CREATE, bytearray(struct.pack("=QQ", 0, number)))


def resize(directory: int, size_bytes: int) -> None:
    """Let a file system of ours take up so much of its one device; what lies further back is moved."""
    fcntl.ioctl(directory, _RESIZE, bytearray(_OLD.pack(0, b"1:%d" % size_bytes)))


def laid_out_bytes(directory: int) -> int:
    """Up to where a file system of ours has laid out its one device."""
    extents = _search(directory, _DEVICE_EXTENT, 0, _NO_LIMIT >> 1, 1, _DEVICE_TREE)
    # struct btrfs_dev_extent: the length is its fourth member.
    return max((start + int.from_bytes(item[24:32], "little") for start, item in extents), default=0)


def _arguments(source: int, name: str, size_bytes: int) -> tuple[object, bytearray]:
    """What makes a subvolume with its limit, in one step; the first must live until the call is over."""
    limits = ctypes.create_string_buffer(
        _INHERIT.pack(_SET_LIMITS, 0, 0, 0, _MAX_REFERENCED, size_bytes, 0, 0, 0), _INHERIT.size
    )
    arguments = _NEW.pack(source, 0, _WITH_GROUP, _INHERIT.size, ctypes.addressof(limits), b"", name.encode())
    return limits, bytearray(arguments)


def _id_of(disk: int) -> int:
    """The number of the subvolume that a descriptor is of."""
    found = bytearray(struct.pack("=QQ4080s", 0, _FIRST_FREE, b""))  # struct btrfs_ioctl_ino_lookup_args
    fcntl.ioctl(disk, _LOOKUP, found)
    return int.from_bytes(found[:8], "little")


def _quota_status(directory: int) -> int:
    """`_IS_…` flags; 0 where there are no quotas."""
    for _, item in _search(directory, _STATUS, 0, 0):
        return int.from_bytes(item[16:24], "little")
    return 0


def _unpack_info(item: bytes) -> int:
    """What a subvolume refers to: struct btrfs_qgroup_info_item."""
    return int.from_bytes(item[8:16], "little")


def _unpack_limit(item: bytes) -> int:
    """The most that it may refer to, 0 where that is not limited: struct btrfs_qgroup_limit_item."""
    flags, most = struct.unpack_from("<QQ", item)
    return most if flags & _MAX_REFERENCED else 0


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _search(
    directory: int, kind: int, first: int, last: int, about: int = 0, tree: int = _QUOTA_TREE
) -> Iterator[tuple[int, bytes]]:
    """Items about an object in a tree, with the last number of their keys, which is from *first* to *last*."""
    while first <= last:
        key = _KEY.pack(tree, about, about, first, last, 0, _NO_LIMIT, kind, kind, 4096, 0, 0, 0, 0, 0)
        found = bytearray(key.ljust(4096, b"\0"))
        try:
            fcntl.ioctl(directory, _TREE_SEARCH, found)
        except OSError as error:
            if error.errno == errno.ENOENT:  # there is no such tree: quotas are off
                return
            raise
        count = _KEY.unpack_from(found)[9]
        if not count:
            return
        at = _KEY.size
        for _ in range(count):
            _, _, number, _, length = _HEADER.unpack_from(found, at)
            at += _HEADER.size
            yield number, bytes(found[at : at + length])
            at += length
            first = number + 1
