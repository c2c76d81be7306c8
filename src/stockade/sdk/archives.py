"""Tar archives of local files, as streams: to send a directory to a sandbox, and to take one from it.

What comes from a sandbox was made by a stranger. `unpack` never follows a link, on the way or at the end: every step
is taken from the descriptor of the directory before it. No link that it leaves leads out of the target, so that whoever
reads the result is not led astray either.
"""

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from stockade.sdk.errors import UnsafeArchive

__all__ = ["pack", "unpack"]

PART_BYTES = 1 << 20
READ_BYTES = 1 << 17
MOST_HEADER_BYTES = 4 << 20
"""Of an archive that one member's headers may take; more is an attempt to fill our memory."""
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(path: Path, *, name: str | None = None) -> Iterator[bytes]:
    """A tar archive of a file, or of what is in a directory, in parts.

    Sockets, devices and pipes are left out; owners are not told. A file that shrinks meanwhile is filled up with zeros.

    Args:
        path: a link as such is followed, links below it are packed as links.
        name: of the one member when *path* is a file; its own where it is not given.

    Raises:
        OSError: something cannot be read.
    """
    root = path.resolve(strict=True)
    if root.is_dir():
        yield from _directory(root, "")
    else:
        yield from _member(root, name or path.name)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _directory(directory: Path, prefix: str) -> Iterator[bytes]:
    waiting = [(directory, prefix)]
    while waiting:
        at, above = waiting.pop()
        for one in sorted(os.scandir(at), key=lambda entry: entry.name):
            name = above + one.name
            yield from _member(Path(one.path), name)
            if one.is_dir(follow_symlinks=False):
                waiting.append((Path(one.path), name + "/"))


def _member(path: Path, name: str) -> Iterator[bytes]:
    found = path.lstat()
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(found.st_mode)
    member.mtime = int(found.st_mtime)
    if stat.S_ISDIR(found.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(found.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif not stat.S_ISREG(found.st_mode):
        return
    if member.type != tarfile.REGTYPE:
        yield member.tobuf(tarfile.PAX_FORMAT)
        return
    with path.open("rb") as file:
        member.size = os.fstat(file.fileno()).st_size
        yield member.tobuf(tarfile.PAX_FORMAT)
        left = member.size
        while left:
            part = file.read(min(PART_BYTES, left)) or bytes(min(PART_BYTES, left))
            left -= len(part)
            yield part
    yield bytes(-member.size % tarfile.BLOCKSIZE)


def unpack(archive: Iterable[bytes], target: Path) -> list[str]:
    """Unpack a tar archive, a plain one, into a directory, which is made where it is missing.

    Files that are there are replaced, directories filled. Permissions are kept but for set-id and sticky bits, owners
    are not. Returns what was left out, a line for each: devices and pipes, files with holes, and links that
    lead out.

    Raises:
        UnsafeArchive: a name leads out of the target, or through a link; or a header is absurd.
        OSError: something cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a link to the target is the user's own
    try:
        return list(_unpack(_Reader(archive), root))
    finally:
        os.close(root)


def _unpack(reader: "_Reader", root: int) -> Iterator[str]:
    modes: list[tuple[tuple[str, ...], int]] = []
    try:
        with tarfile.open(fileobj=cast(IO[bytes], reader), mode="r|", bufsize=READ_BYTES) as archive:
            while True:
                reader.allow(MOST_HEADER_BYTES)
                member = archive.next()
                reader.allow(None)
                if member is None:
                    break
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                parts = _parts(member.name)
                if member.isdir():
                    os.close(_opened(root, parts))
                    if parts:
                        modes.append((parts, member.mode & 0o777))
                elif not parts:
                    raise UnsafeArchive(f"the archive has a member named {member.name!r}")
                elif left_out := _written(archive, member, root, parts):
                    yield left_out
    except tarfile.TarError as error:
        raise UnsafeArchive(f"the archive cannot be read: {error}") from None
    # Last, so that a directory that may not be written to could be filled.
    for parts, mode in reversed(modes):
        directory = _opened(root, parts)
        try:
            os.fchmod(directory, mode | 0o700)
        finally:
            os.close(directory)


def _written(archive: tarfile.TarFile, member: tarfile.TarInfo, root: int, parts: tuple[str, ...]) -> str | None:
    """Write one member that is no directory. Returns why it was left out, if it was."""
    if member.issym() and not _stays_inside(member.linkname, len(parts) - 1):
        return f"{member.name}: a link that leads out ({member.linkname})"
    if not (member.isreg() or member.issym() or member.islnk()):
        return f"{member.name}: neither file, directory nor link"
    if member.issparse():
        # A few bytes of an archive would fill the disk.
        return f"{member.name}: a file with holes"
    parent = _opened(root, parts[:-1])
    try:
        _make_room(parent, parts[-1], member.name)
        if member.issym():
            os.symlink(member.linkname, parts[-1], dir_fd=parent)
        elif member.islnk():
            return _hard_link(root, parent, member, parts[-1])
        else:
            content = archive.extractfile(member)
            assert content is not None
            with content:
                _copy(content, parent, parts[-1], member)
    finally:
        os.close(parent)
    return None


def _copy(content: IO[bytes], parent: int, name: str, member: tarfile.TarInfo) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:
        while part := content.read(PART_BYTES):
            file.write(part)
        file.flush()
        os.fchmod(file.fileno(), member.mode & 0o777)


def _hard_link(root: int, parent: int, member: tarfile.TarInfo, name: str) -> str | None:
    parts = _parts(member.linkname)
    if not parts:
        raise UnsafeArchive(f"{member.name} is a hard link to {member.linkname!r}")
    origin = _opened(root, parts[:-1])
    try:
        if not stat.S_ISREG(os.stat(parts[-1], dir_fd=origin, follow_symlinks=False).st_mode):
            return f"{member.name}: a hard link to what is no file ({member.linkname})"
        os.link(parts[-1], name, src_dir_fd=origin, dst_dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return f"{member.name}: a hard link to what is not there ({member.linkname})"
    finally:
        os.close(origin)
    return None


def _make_room(parent: int, name: str, told: str) -> None:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        raise UnsafeArchive(f"{told} would replace a directory by a file")
    os.unlink(name, dir_fd=parent)


def _opened(root: int, parts: tuple[str, ...]) -> int:
    """The descriptor of a directory below *root*, made where it is missing; the caller closes it."""
    at = os.dup(root)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):  # a directory, or the next line finds out
                os.mkdir(part, 0o755, dir_fd=at)
            below = os.open(part, DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
    except OSError as error:
        os.close(at)
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise UnsafeArchive(f"{'/'.join(parts)} leads through something that is no directory") from None
        raise
    return at


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise UnsafeArchive(f"the archive has a member named {name!r}")
    return parts


def _stays_inside(target: str, depth: int) -> bool:
    """Whether a link in a directory *depth* below the root leads to somewhere below the root, whatever lies there.

    It may first go up to a directory that is one of its own, and then only down: what is on the way down may itself be
    a link, which stays inside too. After a step down, `..` would be taken from wherever that link leads.
    """
    if not target or target.startswith("/"):
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return ups <= depth and ".." not in parts[ups:]


class _Reader:
    """What `tarfile` reads from: parts as they come, and no more than is allowed for now."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._rest = memoryview(b"")
        self._allowed: int | None = MOST_HEADER_BYTES

    def allow(self, size: int | None) -> None:
        """Let *size* further bytes be read; `None` for any number."""
        self._allowed = size

    def read(self, size: int) -> bytes:
        if self._allowed is not None:
            self._allowed -= size
            if self._allowed < 0:
                raise UnsafeArchive(f"a header of the archive is longer than {MOST_HEADER_BYTES} bytes")
        taken: list[memoryview] = []
        while size:
            if not self._rest:
                part = next(self._parts, None)
                if part is None:
                    break
                self._rest = memoryview(part)
            taken.append(self._rest[:size])
            self._rest = self._rest[size:]
            size -= len(taken[-1])
        return b"".join(taken)
