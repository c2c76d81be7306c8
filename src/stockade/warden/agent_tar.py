"""Tar archives in and out: POSIX pax (IEEE 1003.1), and on the way in also what GNU tar and older ones write.

Not `tarfile`, on purpose: it would stay in the memory of every sandbox's PID 1 (1 MB, with all that it imports), and it
looks members up by path, which a tenant may change under it.
"""

import contextlib
import errno
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .agent_channel import CHUNK, AgentError, Outgoing
from .agent_paths import (
    BENEATH,
    MOST_MEMBERS,
    failure,
    make_directories,
    open_at,
    opened,
    refuse,
    show,
    walk,
)

__all__ = ["Unpacker", "pack_file", "pack_tree"]

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_FILE, _HARD_LINK, _LINK, _DIRECTORY, _PAX, _GLOBAL = b"0", b"1", b"2", b"5", b"x", b"g"
_GNU_LONG_NAME, _GNU_LONG_LINK = b"L", b"K"
_OLD_FILE = (b"\0", b"7")
_MOST_OCTAL = 0o77777777777
_MOST_ID = 0o7777777
_MOST_EXTENSION = 1 << 20
_LONGEST_NAME = 4095
_MOST_AFTER_END = 16 << 20
_GZIP = b"\x1f\x8b"


# ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def pack_file(out: Outgoing, source: int, name: bytes) -> None:
    """An archive of one open file, called *name* in it."""
    _put_file(out, source, os.fstat(source), name)
    out.write(_END)
    out.flush()


def pack_tree(out: Outgoing, top: int) -> None:
    """An archive of what is below the directory *top*. Sockets, FIFOs and devices are left out, and `/proc`'s content.

    Raises:
        AgentError: something cannot be read, or lies too deep.
    """
    for directory, name, path, info in walk(top):
        if stat.S_ISDIR(info.st_mode):
            out.write(_header(path + b"/", info, _DIRECTORY))
        elif stat.S_ISLNK(info.st_mode):
            with contextlib.suppress(FileNotFoundError):
                out.write(_header(path, info, _LINK, link=os.readlink(name, dir_fd=directory)))
        elif stat.S_ISREG(info.st_mode):
            try:
                source = open_at(directory, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise failure(error, path) from error
            with opened(source):
                found = os.fstat(source)
                if stat.S_ISREG(found.st_mode):  # it may have been changed for something else meanwhile
                    _put_file(out, source, found, path)
    out.write(_END)
    out.flush()


def _put_file(out: Outgoing, source: int, info: os.stat_result, name: bytes) -> None:
    size = info.st_size
    out.write(_header(name, info, _FILE, size=size))
    if not out.file(source, size):
        refuse("conflict", name, "it became shorter while it was read")
    out.write(bytes(-size % _BLOCK))


def _header(name: bytes, info: os.stat_result, kind: bytes, *, size: int = 0, link: bytes = b"") -> bytes:
    """The blocks before a member's content: what the old header has no room for stands in a pax header before it."""
    records = b""
    for key, value in ((b"path", name), (b"linkpath", link)):
        if len(value) > 100 or not value.isascii():
            records += _record(key, value)
    if size > _MOST_OCTAL:
        records += _record(b"size", b"%d" % size)
    if not _is_text(name) or not _is_text(link):
        records = _record(b"hdrcharset", b"BINARY") + records
    extension = b""
    if records:
        padding = bytes(-len(records) % _BLOCK)
        extension = _block(b"./PaxHeaders/entry", 0o644, 0, 0, len(records), 0, _PAX, b"") + records + padding
    seconds = min(max(0, int(info.st_mtime)), _MOST_OCTAL)
    mode = stat.S_IMODE(info.st_mode) & 0o1777
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
    ).ljust(_BLOCK, b"\0")
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


# ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Source:
    """The bytes of an archive, from pieces of it, unpacked where they are gzip."""

    def __init__(self, pieces: Iterable[memoryview]) -> None:
        self._pieces = self._plain(iter(pieces))
        self._rest = memoryview(b"")

    def _plain(self, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
        start = b""
        for piece in pieces:
            start += bytes(piece)  # until there is enough to tell
            if len(start) >= len(_GZIP):
                break
        if start[:2] == _GZIP:
            yield from _inflated(start, pieces)
            return
        yield memoryview(start)
        yield from pieces

    def some(self, most: int) -> memoryview:
        """Up to *most* bytes, nothing only at the end; valid until the next call."""
        while not self._rest:
            following = next(self._pieces, None)
            if following is None:
                return self._rest
            self._rest = following
        data, self._rest = self._rest[:most], self._rest[most:]
        return data

    def exactly(self, count: int) -> bytes:
        """Raises AgentError: the archive ends before."""
        data = bytearray()
        while len(data) < count:
            piece = self.some(count - len(data))
            if not piece:
                raise AgentError("invalid", "the archive is cut off")
            data += piece
        return bytes(data)

    def skip(self, count: int) -> None:
        while count:
            piece = self.some(min(count, CHUNK))
            if not piece:
                raise AgentError("invalid", "the archive is cut off")
            count -= len(piece)

    def finish(self) -> None:
        """Read what follows the end mark: padding, and in gzip the checksum."""
        count = 0
        while piece := self.some(CHUNK):
            count += len(piece)
            if count > _MOST_AFTER_END:
                raise AgentError("invalid", "the archive goes on after its end")


def _inflated(start: bytes, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
    data: bytes | memoryview = start
    while True:
        inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not inflate.eof:
            try:
                out = inflate.decompress(data, CHUNK)
            except zlib.error as error:
                raise AgentError("invalid", f"the archive is no proper gzip: {error}") from error
            data = inflate.unconsumed_tail
            if out:
                yield memoryview(out)
            elif not data and not inflate.eof:
                following = next(pieces, None)
                if following is None:
                    raise AgentError("invalid", "the archive is cut off")
                data = following
        data = inflate.unused_data
        while len(data) < len(_GZIP):  # another gzip stream may follow, or padding
            following = next(pieces, None)
            if following is None:
                return
            data = bytes(data) + bytes(following)
        if data[:2] != _GZIP:
            for _ in pieces:
                pass
            return


@dataclass
class _Member:
    name: bytes
    kind: bytes
    size: int
    mode: int
    seconds: int
    link: bytes


@dataclass
class Unpacker:
    """Unpacks an archive below the directory *top*, with the rights of whoever calls.

    Nothing is written outside *top*, whatever names and links say; set-id bits and owners are dropped. What is there
    already is replaced, except that no directory gives way to something else.
    """

    top: int
    is_root: bool
    """Whether *top* is `/`: nothing is outside, and absolute links may be followed."""
    alive: Callable[[], None]
    """Called often once all has been read: whoever waits for us hears nothing else then."""
    count: int = 0
    """Members so far."""
    _modes: list[tuple[bytes, int]] = field(default_factory=list)

    def unpack(self, pieces: Iterable[memoryview]) -> int:
        """The number of members.

        Raises:
            AgentError: the archive is damaged, or one of its members is not acceptable.
        """
        source = _Source(pieces)
        for member in _members(source):
            self.count += 1
            if self.count > MOST_MEMBERS:
                raise AgentError("limit_exceeded", f"the archive holds more than {MOST_MEMBERS} members")
            try:
                self._put(member, source)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    refuse("invalid", member.name, "a link leads out of the directory")
                raise failure(error, member.name) from error
        source.finish()
        for path, mode in reversed(self._modes):  # last, the inner ones first: some may not be written to
            self.alive()
            try:
                with opened(open_at(self.top, path, os.O_RDONLY | os.O_DIRECTORY, resolve=self._resolve)) as directory:
                    os.fchmod(directory, mode)
            except OSError as error:
                raise failure(error, path) from error
        return self.count

    @property
    def _resolve(self) -> int:
        return 0 if self.is_root else BENEATH

    def _put(self, member: _Member, source: _Source) -> None:
        path = _inside(member.name, member.name)
        if member.kind == _DIRECTORY:
            if path:
                with opened(make_directories(self.top, path, resolve=self._resolve)) as directory:
                    is_same = os.fstat(directory).st_mode & 0o777 == member.mode
                if not is_same:
                    self._modes.append((path, member.mode))
            return
        above, _, name = path.rpartition(b"/")
        if not name:
            refuse("invalid", member.name, "a file needs a name")
        with opened(make_directories(self.top, above, resolve=self._resolve)) as parent:
            self._clear(parent, name, member)
            if member.kind == _LINK:
                os.symlink(member.link, name, dir_fd=parent)
            elif member.kind == _HARD_LINK:
                self._link(member, parent, name)
            else:
                _write(member, source, parent, name)

    def _clear(self, parent: int, name: bytes, member: _Member) -> None:
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(info.st_mode):
            refuse("conflict", member.name, "there is a directory of this name")
        os.unlink(name, dir_fd=parent)

    def _link(self, member: _Member, parent: int, name: bytes) -> None:
        above, _, target = _inside(member.link, member.name).rpartition(b"/")
        if not target:
            refuse("invalid", member.name, "it is a link to nothing")
        flags = os.O_PATH | os.O_DIRECTORY
        with opened(open_at(self.top, above or b".", flags, resolve=self._resolve)) as directory:
            os.link(target, name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)


def _inside(name: bytes, member: bytes) -> bytes:
    """*name* without what means nothing in it.

    Raises:
        AgentError: it leads out, or is none.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts:
        refuse("invalid", member, "it would lie outside the directory")
    if b"\0" in name or len(name) > _LONGEST_NAME:
        refuse("invalid", member[:64], "this is no file name")
    return b"/".join(parts)


def _write(member: _Member, source: _Source, parent: int, name: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with opened(open_at(parent, name, flags, 0o600)) as target:
        left = member.size
        while left:
            piece = source.some(min(left, CHUNK))
            if not piece:
                raise AgentError("invalid", "the archive is cut off")
            left -= len(piece)
            while piece:
                piece = piece[os.write(target, piece) :]
        os.fchmod(target, member.mode)
        os.utime(target, (member.seconds, member.seconds))
    source.skip(-member.size % _BLOCK)


def _members(source: _Source) -> Iterator[_Member]:
    """The members up to the end mark; whoever takes one reads its content before the next."""
    name = link = None
    pax: dict[bytes, bytes] = {}
    extensions = 0
    while True:
        block = source.exactly(_BLOCK)
        if block == bytes(_BLOCK):
            if name is not None or link is not None or pax:
                raise AgentError("invalid", "the archive is cut off")
            return
        _check(block)
        kind = block[156:157]
        size = _number(block[124:136])
        if kind in (_PAX, _GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK):
            extensions += 1
            if size > _MOST_EXTENSION or extensions > 16:
                raise AgentError("invalid", "the archive has a header that is too long")
            data = source.exactly(size)
            source.skip(-size % _BLOCK)
            if kind == _PAX:
                pax.update(_records(data))
            elif kind == _GNU_LONG_NAME:
                name = data.split(b"\0")[0]
            elif kind == _GNU_LONG_LINK:
                link = data.split(b"\0")[0]
            continue
        if any(key.startswith(b"GNU.sparse.") for key in pax):
            kind = b"S"
        member = _Member(
            name=pax.get(b"path", _name(block) if name is None else name),
            kind=_FILE if kind in _OLD_FILE else kind,
            size=_decimal(pax[b"size"]) if b"size" in pax else size,
            mode=_number(block[100:108]) & 0o777,
            seconds=min(_number(block[136:148]), _MOST_OCTAL),
            link=pax.get(b"linkpath", block[157:257].split(b"\0")[0] if link is None else link),
        )
        if kind in _OLD_FILE and member.name.endswith(b"/"):
            member.kind = _DIRECTORY
        name = link = None
        pax = {}
        extensions = 0
        if member.kind not in (_FILE, _HARD_LINK, _LINK, _DIRECTORY):
            what = {b"3": "a device", b"4": "a device", b"6": "a FIFO", b"S": "a sparse file"}
            refuse("invalid", member.name, f"it is {what.get(kind, 'of a kind that we do not know')}")
        if member.kind != _FILE:
            member.size = 0  # POSIX: whatever a link's header says, no content follows
        yield member


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:265] == b"ustar\x0000" else b""
    return prefix + b"/" + name if prefix else name


def _check(block: bytes) -> None:
    said = _number(block[148:156])
    real = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if said != real:
        raise AgentError("invalid", "this is no tar archive, or it is damaged")


_DIGITS = re.compile(rb"[ \0]*([0-7]*)[ \0]*")


def _number(text: bytes) -> int:
    """Octal, or as GNU tar writes what is too large for it: base 256."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    found = _DIGITS.fullmatch(text)
    if found is None:
        raise AgentError("invalid", "this is no tar archive, or it is damaged")
    return int(found[1] or b"0", 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise AgentError("invalid", f"the archive has a size that is none: {show(text[:32])}")
    return int(text)


def _records(data: bytes) -> dict[bytes, bytes]:
    found = {}
    while data:
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or len(digits) > 7:
            raise AgentError("invalid", "the archive has a damaged header")
        length = int(digits)
        record = data[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(data):
            raise AgentError("invalid", "the archive has a damaged header")
        found[key] = value[:-1]
        data = data[length:]
    return found
