"""Copies, sizes and ends of trees that tenants have written: all by descriptors, and through no link.

Whoever wrote them stands still meanwhile, or is gone. What holds here even if not: nothing outside the tree is read,
changed or deleted, and no special file is opened.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .fields import Refused

__all__ = ["clone_file", "copy_tree", "remove_tree", "used_bytes"]

_DEEPEST = 500
"""Directories in directories; each level of a copy takes three descriptors."""
_FICLONE = 0x4004_9409
_PART = 64 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTRIBUTES = ("user.", "system.posix_acl_")
_WHITEOUT = os.makedev(0, 0)
_UNCLONABLE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


@dataclass(frozen=True, kw_only=True)
class _Level:
    source: int
    target: int
    entries: "os._ScandirIterator[str]"

    def close(self) -> None:
        self.entries.close()
        os.close(self.source)
        os.close(self.target)


def copy_tree(source: int, target: int, links: int) -> None:
    """Make the empty directory *target* like *source*: content, owners, modes, times, links among its own, marks.

    File capabilities are left out: only who may give them to any program on the host could write them.

    Args:
        links: an empty directory beside *target*, in which files that have several names are kept meanwhile. Empty it.

    Raises:
        Refused: it is nested too deeply (`unsupported`).
        OSError: there is no room, or the like; what has been copied is left.
    """
    levels: list[_Level] = []
    try:
        levels.append(_descend(os.dup(source), os.dup(target)))
        while levels:
            level = levels[-1]
            entry = next(level.entries, None)
            if entry is None:
                _copy_marks(level.source, level.target, os.fstat(level.source))
                levels.pop().close()
            elif not entry.is_dir(follow_symlinks=False):
                _copy_entry(level, entry.name, links)
            elif len(levels) >= _DEEPEST:
                raise Refused("unsupported", f"directories nested more than {_DEEPEST} deep cannot be copied here")
            else:
                os.mkdir(entry.name, 0o700, dir_fd=level.target)
                below = os.open(entry.name, _DIRECTORY, dir_fd=level.source)
                try:
                    new = os.open(entry.name, _DIRECTORY, dir_fd=level.target)
                except BaseException:
                    os.close(below)
                    raise
                levels.append(_descend(below, new))
    finally:
        for level in levels:
            level.close()


def _descend(source: int, target: int) -> _Level:
    """Begin with a directory; the descriptors are the level's from here."""
    try:
        return _Level(source=source, target=target, entries=os.scandir(source))
    except BaseException:
        os.close(source)
        os.close(target)
        raise


def _copy_entry(level: _Level, name: str, links: int) -> None:
    """Copy what is not a directory."""
    status = os.stat(name, dir_fd=level.source, follow_symlinks=False)
    kept = f"{status.st_ino}"
    if status.st_nlink > 1:
        with contextlib.suppress(FileNotFoundError):
            os.link(kept, name, src_dir_fd=links, dst_dir_fd=level.target, follow_symlinks=False)
            return
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        source = os.open(name, _READ, dir_fd=level.source)
        try:
            target = os.open(name, _NEW, 0o600, dir_fd=level.target)
            try:
                status = os.fstat(source)
                if stat.S_ISREG(status.st_mode):
                    _copy_content(source, target, status.st_size)
                    _copy_marks(source, target, status)
            finally:
                os.close(target)
        finally:
            os.close(source)
    else:
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=level.source), name, dir_fd=level.target)
        elif kind in (stat.S_IFIFO, stat.S_IFSOCK) or (kind == stat.S_IFCHR and status.st_rdev == _WHITEOUT):
            os.mknod(name, kind | 0o600, device=_WHITEOUT, dir_fd=level.target)
        else:
            raise Refused("unsupported", "the disk holds a device node, which none should")
        os.chown(name, status.st_uid, status.st_gid, dir_fd=level.target, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=level.target)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=level.target, follow_symlinks=False)
    if status.st_nlink > 1:
        os.link(name, kept, src_dir_fd=level.target, dst_dir_fd=links, follow_symlinks=False)


def clone_file(source: int, target: int) -> bool:
    """Have *target* share all blocks of *source*; whether the file system can."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _UNCLONABLE:
            return False
        raise
    return True


def _copy_content(source: int, target: int, size: int) -> None:
    if size and clone_file(source, target):
        return
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        end = min(os.lseek(source, at, os.SEEK_HOLE), size)
        while at < end:
            copied = os.copy_file_range(source, target, min(_PART, end - at), at, at)
            if not copied:
                return  # it has become shorter
            at += copied


def _copy_marks(source: int, target: int, status: os.stat_result) -> None:
    """Owner, then what a change of owner takes away."""
    os.fchown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        if name.startswith(_ATTRIBUTES):
            os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def used_bytes(top: int) -> int:
    """The room that a tree takes. Raises Refused: it is nested too deeply."""
    total = 0
    seen: set[int] = set()
    levels = [_scan(os.dup(top))]
    try:
        while levels:
            directory, entries = levels[-1]
            entry = next(entries, None)
            if entry is None:
                entries.close()
                os.close(directory)
                levels.pop()
                continue
            status = entry.stat(follow_symlinks=False)
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if status.st_ino in seen:
                    continue
                seen.add(status.st_ino)
            total += status.st_blocks * 512
            if stat.S_ISDIR(status.st_mode):
                if len(levels) >= _DEEPEST:
                    raise Refused("unsupported", f"directories nested more than {_DEEPEST} deep cannot be measured")
                levels.append(_scan(os.open(entry.name, _DIRECTORY, dir_fd=directory)))
    finally:
        for directory, entries in levels:
            entries.close()
            os.close(directory)
    return total


def _scan(directory: int) -> "tuple[int, os._ScandirIterator[str]]":
    try:
        return directory, os.scandir(directory)
    except BaseException:
        os.close(directory)
        raise


def remove_tree(place: int, name: str) -> None:
    """Delete what is called *name* in *place*, however deep it is. Raises OSError.

    Directories in directories are moved up until none is left, so that no depth takes more than a few descriptors.
    """
    try:
        top = os.open(name, _DIRECTORY, dir_fd=place)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=place)
        return
    try:
        fresh = _fresh_names()
        while directories := _clear(top, lambda _, directory: directory.name):
            for directory in directories:
                below = os.open(directory, _DIRECTORY, dir_fd=top)
                try:
                    _clear(below, lambda fd, entry: _move(entry.name, fd, top, fresh))
                finally:
                    os.close(below)
                os.rmdir(directory, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=place)


def _clear(directory: int, keep: "Callable[[int, os.DirEntry[str]], str]") -> list[str]:
    """Delete all but directories that are not empty; what *keep* makes of each of those."""
    kept = []
    again = os.open(".", _DIRECTORY, dir_fd=directory)  # btrfs shows a descriptor no more than there was at its opening
    try:
        with os.scandir(again) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=directory)
                    continue
                try:
                    os.rmdir(entry.name, dir_fd=directory)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    kept.append(keep(directory, entry))
    finally:
        os.close(again)
    return kept


def _move(name: str, directory: int, top: int, fresh: Iterator[str]) -> str:
    """Move a directory to the top, under a name that nothing has there."""
    for new in fresh:
        try:
            os.rename(name, new, src_dir_fd=directory, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return new
    raise AssertionError("names have no end")


def _fresh_names() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f".{number}"
