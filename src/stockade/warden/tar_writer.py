"""Writing tar archives: POSIX pax (IEEE 1003.1), as every tar of today reads it."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from .agent_channel import Outgoing
from .agent_paths import failure, open_at, opened, refuse, walk
from .tar_reader import BLOCK, DIRECTORY, FIFO, FILE, HARD_LINK, LINK, MOST_EXTENSION, MOST_PIECES, XATTR

__all__ = [
    "GONE",
    "OPAQUE",
    "OPAQUE_MARK",
    "OPAQUE_NAME",
    "OVERLAYS_OWN",
    "WHITEOUT",
    "pack_file",
    "pack_tree",
    "pack_upper",
]

OPAQUE, WHITEOUT = b"STOCKADE.opaque", b"STOCKADE.whiteout"
"""Pax records of ours, with the value `1`: of a directory that hides what lies below it; of a name that is gone."""
GONE, OPAQUE_NAME = b".wh.", b".wh..wh..opq"
"""How layers of images say the same: before a name; as one. See layer.md of the OCI image specification."""
OPAQUE_MARK = "user.overlay.opaque"
"""How an overlay that was mounted with `userxattr` marks such a directory (overlayfs.rst of the kernel)."""
OVERLAYS_OWN = "user.overlay."
_ESCAPED = "user.overlay.overlay."
"""Not the overlay's own, but of one that was mounted inside."""
_NOTHINGS = os.stat_result((0,) * 10)
"""Of what is gone: so that the same tree gives the same archive."""
_END = bytes(2 * BLOCK)
_PAX = b"x"
_MOST_OCTAL = 0o77777777777
_MOST_ID = 0o7777777
_NS = 1_000_000_000
_NO_XATTRS = (errno.EOPNOTSUPP, errno.ENOSYS)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def pack_file(out: Outgoing, source: int, name: bytes) -> None:
    """An archive of one open file, called *name* in it."""
    _put_file(out, source, os.fstat(source), name)
    out.write(_END)
    out.flush()


def pack_tree(out: Outgoing, top: int, *, prefix: bytes = b"") -> None:
    """An archive of what is below the directory *top*. Sockets, FIFOs and devices are left out, and `/proc`'s content.

    Args:
        prefix: before every name, and a member itself, unless it is empty.

    Raises:
        AgentError: something cannot be read, or lies too deep.
    """
    if prefix:
        out.write(_header(prefix, os.fstat(top), DIRECTORY))
    for directory, name, path, info in walk(top):
        if stat.S_ISDIR(info.st_mode):
            out.write(_header(prefix + path + b"/", info, DIRECTORY))
        elif stat.S_ISLNK(info.st_mode):
            with contextlib.suppress(FileNotFoundError):
                out.write(_header(prefix + path, info, LINK, link=os.readlink(name, dir_fd=directory)))
        elif stat.S_ISREG(info.st_mode):
            try:
                source = open_at(directory, name, _READ)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise failure(error, path) from error
            with opened(source):
                found = os.fstat(source)
                if stat.S_ISREG(found.st_mode):  # it may have been changed for something else meanwhile
                    _put_file(out, source, found, prefix + path)
    out.write(_END)
    out.flush()


def _put_file(out: Outgoing, source: int, info: os.stat_result, name: bytes) -> None:
    size = info.st_size
    out.write(_header(name, info, FILE, size=size))
    if not out.file(source, size):
        refuse("conflict", name, "it became shorter while it was read")
    out.write(bytes(-size % BLOCK))


# ── the upper layer of an overlay ────────────────────────────────────────────────────────────────────────────────


def pack_upper(out: Outgoing, top: int, *, as_image_layer: bool = False) -> None:
    """An archive of the directory *top*, an overlay's upper layer, from which `agent_layers` makes the same again.

    Owners, set-id bits, times, hard links, holes and extended attributes (`user.*`) are in it. Sockets are left out.
    Call it when nothing else writes.

    Args:
        as_image_layer: names that are gone, and directories that hide what lies below, are said as images say it, which
            has no room for files that are called so; else in records of ours.

    Raises:
        AgentError: something cannot be read, lies too deep, or was changed meanwhile.
    """
    out.write(_exact(b"./", os.fstat(top), DIRECTORY, _marks(top, hidden=not as_image_layer)))
    if as_image_layer and _is_opaque(top):
        out.write(_exact(OPAQUE_NAME, os.fstat(top), FILE))
    linked: dict[tuple[int, int], bytes] = {}
    for directory, name, path, info in walk(top):
        mode = info.st_mode
        if as_image_layer and name.startswith(GONE):
            refuse("invalid", path, "the layer of an image can have no file of such a name")
        if stat.S_ISDIR(mode):
            with opened(_open(directory, name, path, os.O_DIRECTORY)) as found:
                out.write(_exact(path + b"/", info, DIRECTORY, _marks(found, hidden=not as_image_layer)))
                if as_image_layer and _is_opaque(found):
                    out.write(_exact(path + b"/" + OPAQUE_NAME, info, FILE))
            continue
        if stat.S_ISCHR(mode) and info.st_rdev == 0:  # several may be one file: no hard links
            if as_image_layer:
                out.write(_header(path[: len(path) - len(name)] + GONE + name, _NOTHINGS, FILE))
            else:
                out.write(_header(path, _NOTHINGS, FILE, records=_record(WHITEOUT, b"1")))
            continue
        if info.st_nlink > 1:
            first = linked.setdefault((info.st_dev, info.st_ino), path)
            if first != path:
                out.write(_exact(path, info, HARD_LINK, link=first))
                continue
        if stat.S_ISLNK(mode):
            out.write(_exact(path, info, LINK, link=os.readlink(name, dir_fd=directory)))
        elif stat.S_ISFIFO(mode):
            out.write(_exact(path, info, FIFO))
        elif stat.S_ISREG(mode):
            with opened(_open(directory, name, path)) as source:
                _put_exactly(out, source, path)
    out.write(_END)
    out.flush()


def _open(directory: int, name: bytes, path: bytes, flags: int = 0) -> int:
    try:
        return open_at(directory, name, _READ | flags)
    except OSError as error:
        raise failure(error, path) from error


def _put_exactly(out: Outgoing, source: int, path: bytes) -> None:
    info = os.fstat(source)
    size = info.st_size
    records = _marks(source)
    pieces = [(0, size)]
    table = b""
    if info.st_blocks * BLOCK < size:
        pieces = [*_pieces(source, size), (size, 0)]  # an empty last one says where the file ends, as GNU tar has it
        numbers = (len(pieces), *(number for piece in pieces for number in piece))
        table = b"".join(b"%d\n" % number for number in numbers)
        table += bytes(-len(table) % BLOCK)
        records += _record(b"GNU.sparse.major", b"1") + _record(b"GNU.sparse.minor", b"0")
        records += _record(b"GNU.sparse.name", path) + _record(b"GNU.sparse.realsize", b"%d" % size)
    stored = len(table) + sum(length for _, length in pieces)
    out.write(_exact(path, info, FILE, records, size=stored))
    out.write(table)
    for offset, length in pieces:
        if length and not out.file(source, length, offset):
            refuse("conflict", path, "it became shorter while it was read")
    out.write(bytes(-stored % BLOCK))


def _pieces(source: int, size: int, most: int = MOST_PIECES - 1) -> Iterator[tuple[int, int]]:
    """Where a file has data, as offset and length; see lseek(2). Of holes beyond *most* pieces nothing is said."""
    offset = count = 0
    while offset < size:
        try:
            begin = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        if begin >= size:
            return
        count += 1
        offset = size if count == most else min(os.lseek(source, begin, os.SEEK_HOLE), size)
        yield begin, offset - begin


def _is_opaque(directory: int) -> bool:
    return OPAQUE_MARK in _names(directory) and os.getxattr(directory, OPAQUE_MARK) == b"y"


def _names(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return []
        raise


def _marks(fd: int, *, hidden: bool = True) -> bytes:
    """The extended attributes of an open file that are worth keeping, as records; with *hidden* also that it hides."""
    records = _record(OPAQUE, b"1") if hidden and _is_opaque(fd) else b""
    for name in _names(fd):
        if name.startswith("user.") and (not name.startswith(OVERLAYS_OWN) or name.startswith(_ESCAPED)):
            records += _record(XATTR + os.fsencode(name), os.getxattr(fd, name))
    return records


def _exact(
    name: bytes, info: os.stat_result, kind: bytes, records: bytes = b"", *, size: int = 0, link: bytes = b""
) -> bytes:
    """The blocks before a member's content, with all that is known of it."""
    seconds, rest = divmod(max(0, info.st_mtime_ns), _NS)
    records += _record(b"mtime", b"%d.%09d" % (seconds, rest))
    for key, number in ((b"uid", info.st_uid), (b"gid", info.st_gid)):
        if number > _MOST_ID:
            records += _record(key, b"%d" % number)
    return _header(name, info, kind, size=size, link=link, records=records, modes=0o7777)


# ── headers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _header(
    name: bytes,
    info: os.stat_result,
    kind: bytes,
    *,
    size: int = 0,
    link: bytes = b"",
    records: bytes = b"",
    modes: int = 0o1777,
) -> bytes:
    """The blocks before a member's content: what the old header has no room for stands in a pax header before it."""
    for key, value in ((b"path", name), (b"linkpath", link)):
        if len(value) > 100 or not value.isascii():
            records += _record(key, value)
    if size > _MOST_OCTAL:
        records += _record(b"size", b"%d" % size)
    if not _is_text(name) or not _is_text(link):
        records = _record(b"hdrcharset", b"BINARY") + records
    extension = b""
    if records:
        if len(records) > MOST_EXTENSION:
            refuse("limit_exceeded", name[:256], "it has more attributes than an archive has room for")
        padding = bytes(-len(records) % BLOCK)
        extension = _block(b"./PaxHeaders/entry", 0o644, 0, 0, len(records), 0, _PAX, b"") + records + padding
    seconds = min(max(0, int(info.st_mtime)), _MOST_OCTAL)
    mode = stat.S_IMODE(info.st_mode) & modes
    uid, gid = min(info.st_uid, _MOST_ID), min(info.st_gid, _MOST_ID)
    return extension + _block(name, mode, uid, gid, size if size <= _MOST_OCTAL else 0, seconds, kind, link)


def _block(name: bytes, mode: int, uid: int, gid: int, size: int, seconds: int, kind: bytes, link: bytes) -> bytes:
    head = b"".join(
        (
            name[:100].ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, seconds),
            b" " * 8,
            kind,
            link[:100].ljust(100, b"\0"),
            b"ustar\x0000",
        )
    ).ljust(BLOCK, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """`length key=value\\n`, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if rest + len(str(length)) > length:
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
