"""Reading tar archives as they come: POSIX pax (IEEE 1003.1), GNU tar's extensions, and what older ones write.

Not `tarfile`, on purpose: it would stay in the memory of every sandbox's PID 1 (1 MB, with all that it imports). What
a member is said to be is what the archive says: nothing of it is to be believed.
"""

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .agent_channel import CHUNK, AgentError
from .agent_paths import refuse, show

__all__ = [
    "BLOCK",
    "DEVICES",
    "DIRECTORY",
    "FIFO",
    "FILE",
    "HARD_LINK",
    "LINK",
    "LONGEST_NAME",
    "MOST_EXTENSION",
    "MOST_PIECES",
    "XATTR",
    "Member",
    "Source",
    "inside",
    "members",
]

BLOCK = 512
FILE, HARD_LINK, LINK, DIRECTORY, FIFO = b"0", b"1", b"2", b"5", b"6"
DEVICES = (b"3", b"4")
LONGEST_NAME = 4095
MOST_EXTENSION = 1 << 20
"""Bytes of a header before the header proper: long names, attributes."""
MOST_PIECES = 100_000
"""Pieces of data between holes of a file; they are held in memory while it is written."""
XATTR = b"SCHILY.xattr."
"""Begins the keys of pax records that hold extended attributes (star(5))."""
_PAX, _GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK, _GNU_SPARSE = b"x", b"g", b"L", b"K", b"S"
_OLD_FILE = (b"\0", b"7")
_KNOWN = (FILE, HARD_LINK, LINK, DIRECTORY, FIFO, *DEVICES)
_WITH_CONTENT = (FILE, _GNU_SPARSE)
_SPARSE = b"GNU.sparse."
_MOST_OCTAL = 0o77777777777
_MOST_SIZE = (1 << 63) - 1
_MOST_AFTER_END = 16 << 20
_NS = 1_000_000_000
_GZIP = b"\x1f\x8b"


class Source:
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
        piece = self.some(count)
        if len(piece) == count:
            return bytes(piece)
        data = bytearray(piece)
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


@dataclass(slots=True)
class Member:
    """What stands before a member's content."""

    name: bytes
    kind: bytes
    """`FILE`, `HARD_LINK`, `LINK`, `DIRECTORY`, `FIFO`, or one of `DEVICES`."""
    stored: int
    """Bytes of its content in the archive."""
    mode: int
    """Permissions, set-id bits and the sticky bit."""
    uid: int
    gid: int
    modified_ns: int
    """Since the epoch; not before it."""
    link: bytes
    records: dict[bytes, bytes]
    """Its pax records."""
    pieces: list[tuple[int, int]] | None = None
    """Of a sparse file: offset and length of what is stored, in order. `None` for one that is stored whole."""
    size: int = 0
    """Bytes of the file, holes included."""

    def write(self, source: Source, target: int) -> None:
        """Read the content, and write it to the new file *target*.

        Raises:
            AgentError: the archive ends before.
            OSError: it cannot be written.
        """
        for offset, length in [(0, self.stored)] if self.pieces is None else self.pieces:
            if self.pieces is not None:
                os.lseek(target, offset, os.SEEK_SET)
            left = length
            while left:
                piece = source.some(min(left, CHUNK))
                if not piece:
                    raise AgentError("invalid", "the archive is cut off")
                left -= len(piece)
                while piece:
                    piece = piece[os.write(target, piece) :]
        if self.pieces is not None:
            os.ftruncate(target, self.size)
        self.skip_padding(source)

    def skip(self, source: Source) -> None:
        """Read past the content."""
        source.skip(self.stored)
        self.skip_padding(source)

    def skip_padding(self, source: Source) -> None:
        source.skip(-self.stored % BLOCK)


def members(source: Source) -> Iterator[Member]:
    """The members up to the end mark; whoever takes one reads its content (`write`, `skip`) before the next.

    Raises:
        AgentError: the archive is damaged, or has a member of a kind that nobody here knows.
    """
    name = link = None
    pax: dict[bytes, bytes] = {}
    extensions = 0
    while True:
        block = source.exactly(BLOCK)
        if block == bytes(BLOCK):
            if name is not None or link is not None or pax:
                raise AgentError("invalid", "the archive is cut off")
            return
        _check(block)
        kind = block[156:157]
        size = _number(block[124:136])
        if kind in (_PAX, _GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK):
            extensions += 1
            if size > MOST_EXTENSION or extensions > 16:
                raise AgentError("invalid", "the archive has a header that is too long")
            data = source.exactly(size)
            source.skip(-size % BLOCK)
            if kind == _PAX:
                pax.update(_records(data))
            elif kind == _GNU_LONG_NAME:
                name = data.split(b"\0")[0]
            elif kind == _GNU_LONG_LINK:
                link = data.split(b"\0")[0]
            continue
        yield _member(source, block, name, link, pax)
        name = link = None
        pax = {}
        extensions = 0


def _member(source: Source, block: bytes, name: bytes | None, link: bytes | None, pax: dict[bytes, bytes]) -> Member:
    kind = block[156:157]
    member = Member(
        name=pax.get(b"path", _name(block) if name is None else name),
        kind=FILE if kind in _OLD_FILE else kind,
        stored=_decimal(pax[b"size"]) if b"size" in pax else _number(block[124:136]),
        mode=_number(block[100:108]) & 0o7777,
        uid=_decimal(pax[b"uid"]) if b"uid" in pax else _number(block[108:116]),
        gid=_decimal(pax[b"gid"]) if b"gid" in pax else _number(block[116:124]),
        modified_ns=_time(pax[b"mtime"]) if b"mtime" in pax else _seconds(block[136:148]) * _NS,
        link=pax.get(b"linkpath", block[157:257].split(b"\0")[0] if link is None else link),
        records=pax,
    )
    if member.stored > _MOST_SIZE:
        refuse("invalid", member.name[:64], "it is larger than a file can be")
    if kind in _OLD_FILE and member.name.endswith(b"/"):
        member.kind = DIRECTORY
    if member.kind not in _KNOWN and member.kind != _GNU_SPARSE:
        refuse("invalid", member.name[:256], "it is of a kind that we do not know")
    if member.kind not in _WITH_CONTENT:
        member.stored = 0  # POSIX: whatever a link's header says, no content follows
        return member
    member.size = member.stored
    if member.kind == _GNU_SPARSE:
        member.kind = FILE
        _set_pieces(member, _old_map(source, block), _number(block[483:495]))
    elif any(key.startswith(_SPARSE) for key in pax):
        _read_sparse(source, member)
    return member


# ── sparse files ─────────────────────────────────────────────────────────────────────────────────────────────────


def _old_map(source: Source, block: bytes) -> list[int]:
    """GNU tar's first format: four pieces in the header, 21 in each block that follows."""
    numbers: list[int] = []
    entries, goes_on = block[386:482], block[482]
    while True:
        for start in range(0, len(entries), 12):
            field = entries[start : start + 12]
            if not field.strip(b" \0"):
                break
            numbers.append(_number(field))
        if not goes_on:
            return numbers
        if len(numbers) > 2 * MOST_PIECES:
            raise AgentError("invalid", "the archive has a file with too many holes")
        following = source.exactly(BLOCK)
        entries, goes_on = following[:504], following[504]


def _read_sparse(source: Source, member: Member) -> None:
    """The formats in pax records: 1.0 has its map before the content, 0.1 in a record. (See GNU tar's manual.)"""
    pax = member.records
    member.name = pax.get(b"GNU.sparse.name", member.name)
    size = pax.get(b"GNU.sparse.realsize", pax.get(b"GNU.sparse.size"))
    if size is None:
        refuse("invalid", member.name[:256], "it is a sparse file that does not say its size")
    if pax.get(b"GNU.sparse.major") == b"1":
        numbers = _map_before_content(source, member)
    elif b"GNU.sparse.map" in pax:
        numbers = [_decimal(number) for number in pax[b"GNU.sparse.map"].split(b",") if number]
    else:
        refuse("invalid", member.name[:256], "it is a sparse file in a format that we do not know")
    _set_pieces(member, numbers, _decimal(size))


def _map_before_content(source: Source, member: Member) -> list[int]:
    lines: list[bytes] = []
    text = b""
    wanted = 1
    while len(lines) < wanted:
        if member.stored < BLOCK or len(lines) > 2 * MOST_PIECES:
            raise AgentError("invalid", "the archive has a sparse file that is damaged")
        text += source.exactly(BLOCK)
        member.stored -= BLOCK
        *more, text = text.split(b"\n")
        lines += more
        if lines:
            wanted = 1 + 2 * min(_decimal(lines[0]), MOST_PIECES + 1)
        if len(lines) < wanted and len(text) > 20:
            raise AgentError("invalid", "the archive has a sparse file that is damaged")
    return [_decimal(line) for line in lines[1:wanted]]


def _set_pieces(member: Member, numbers: list[int], size: int) -> None:
    """Raises AgentError: they overlap, lie beyond the end, or are not what is stored."""
    pieces = list(zip(numbers[::2], numbers[1::2], strict=False))
    end = 0
    for offset, length in pieces:
        if offset < end:
            refuse("invalid", member.name[:256], "it is a sparse file whose pieces overlap")
        end = offset + length
    is_whole = sum(length for _, length in pieces) == member.stored
    if len(numbers) % 2 or len(pieces) > MOST_PIECES or end > size or size > _MOST_SIZE or not is_whole:
        refuse("invalid", member.name[:256], "it is a sparse file that is damaged")
    member.pieces, member.size = pieces, size


# ── names and numbers ────────────────────────────────────────────────────────────────────────────────────────────


def inside(name: bytes, member: bytes, *, is_root: bool = False) -> bytes:
    """*name* without what means nothing in it.

    Args:
        is_root: the archive is of a whole root: that a name is absolute means nothing, either.

    Raises:
        AgentError: it leads out, or is none.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if (name.startswith(b"/") and not is_root) or b".." in parts:
        refuse("invalid", member[:256], "it would lie outside the directory")
    if b"\0" in name or len(name) > LONGEST_NAME:
        refuse("invalid", member[:64], "this is no file name")
    return b"/".join(parts)


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:265] == b"ustar\x0000" else b""
    return prefix + b"/" + name if prefix else name


def _check(block: bytes) -> None:
    said = _number(block[148:156])
    real = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if said != real:
        raise AgentError("invalid", "this is no tar archive, or it is damaged")


_DIGITS = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_TIME = re.compile(rb"(-?)(\d{1,19})(?:\.(\d*))?")


def _number(text: bytes) -> int:
    """Octal, or as GNU tar writes what is too large for it: base 256."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    found = _DIGITS.fullmatch(text)
    if found is None:
        raise AgentError("invalid", "this is no tar archive, or it is damaged")
    return int(found[1] or b"0", 8)


def _seconds(text: bytes) -> int:
    if text[0] == 0xFF:  # GNU tar's way to write a time before the epoch
        return 0
    return min(_number(text), _MOST_OCTAL)


def _time(text: bytes) -> int:
    """Nanoseconds of a pax record's time."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise AgentError("invalid", f"the archive has a time that is none: {show(text[:32])}")
    if found[1]:
        return 0
    return min(int(found[2]), _MOST_OCTAL) * _NS + int((found[3] or b"")[:9].ljust(9, b"0"))


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise AgentError("invalid", f"the archive has a size that is none: {show(text[:32])}")
    return int(text)


def _records(data: bytes) -> dict[bytes, bytes]:
    found = {}
    view = memoryview(data)
    while view:
        digits, _, _ = bytes(view[:8]).partition(b" ")
        if not digits.isdigit() or len(digits) > 7:
            raise AgentError("invalid", "the archive has a damaged header")
        length = int(digits)
        record = bytes(view[len(digits) + 1 : length])
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(view):
            raise AgentError("invalid", "the archive has a damaged header")
        found[key] = value[:-1]
        view = view[length:]
    return found
