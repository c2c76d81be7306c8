"""The file that a box is exported to: how it is written and read, piece by piece, whatever is in it.

    MARK, then frames: a letter, the length of what follows (4 bytes, little-endian), what follows
    H   header: JSON                       once, first
    P   a part begins: JSON                a name for what it is, and whatever else is said of it
    D   some of it, packed (zstd)          at most 1 MiB each
    E   the part is over: JSON             bytes packed and unpacked, SHA-256 of what was packed
    Z   all is over: SHA-256               of every byte before this frame

The format is ours alone and may change with its mark. What is read is a stranger's: no number in it is believed before
it is checked, little is held in memory, and nothing counts until the last frame has been reached.
"""

import asyncio
import hashlib
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import zstandard

from stockade.errors import Invalid

__all__ = ["MARK", "MOST_TEXT", "BadParcel", "ParcelReader", "ParcelWriter", "Part"]

MARK = b"stockade box 1\n"
MOST_TEXT = 1 << 20
"""Bytes of a header."""
_FRAME = struct.Struct("<cI")
_HEADER, _PART, _DATA, _PART_END, _END = b"H", b"P", b"D", b"E", b"Z"
_MOST_DATA = 1 << 20
_LEVEL = 3
_WINDOW = 1 << 23
"""Bytes that unpacking may look back, and so holds in memory."""
# The densest that zstd can be: a block of four bytes that stands for 128 KiB. So many at a time stand for 16 MiB.
_STEP = 512
_GATHERED = 1 << 18
_DIGEST_BYTES = 32


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


class BadParcel(Invalid):
    """It is no export of a box, or damaged, or cut off."""

    code = "box.bad_archive"


class ParcelWriter:
    """Makes the bytes of a file; each method gives those that come next."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()

    def begin(self, header: Mapping[str, Any]) -> bytes:
        return self._noted(MARK + _frame(_HEADER, _text(header)))

    async def part(self, facts: Mapping[str, Any], content: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """A part, whose *content* is read to its end. What that raises is passed on: the file is worth nothing then."""
        yield self._noted(_frame(_PART, _text(facts)))
        packing = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        digest = hashlib.sha256()
        packed = size = 0
        async for piece in content:
            size += len(piece)
            # In a thread: packing takes as long as the processor needs, and others are to be served.
            frames, count = await asyncio.to_thread(self._framed, packing.compress, piece, digest)
            packed += count
            if frames:
                yield frames
        frames, count = await asyncio.to_thread(self._framed, lambda _: packing.flush(), b"", digest)
        ending = {"packed": packed + count, "size": size, "sha256": digest.hexdigest()}
        yield frames + self._noted(_frame(_PART_END, _text(ending)))

    def end(self) -> bytes:
        return _frame(_END, self._whole.digest())

    def _framed(self, pack: Callable[[bytes], bytes], piece: bytes, digest: _Digest) -> tuple[bytes, int]:
        """What *piece* is packed to, as frames, and its length without them."""
        data = pack(piece)
        digest.update(data)
        frames = b"".join(_frame(_DATA, data[at : at + _MOST_DATA]) for at in range(0, len(data), _MOST_DATA))
        return self._noted(frames), len(data)

    def _noted(self, data: bytes) -> bytes:
        self._whole.update(data)
        return data


class ParcelReader:
    """Reads a file as it comes. Its parts are read one after the other, each to its end.

    Every method raises BadParcel where the file is not what it should be, and what *content* raises.
    """

    def __init__(self, content: AsyncIterable[bytes]) -> None:
        self._content = aiter(content)
        self._buffer = bytearray()
        self._whole = hashlib.sha256()
        self._part: Part | None = None

    async def header(self) -> dict[str, Any]:
        """What the whole is said to be."""
        mark = await self._exactly(len(MARK), what="export of a box")
        if mark != MARK:
            if mark.startswith(MARK[: MARK.rindex(b" ") + 1]):
                raise BadParcel("this export of a box has a format that is not known here; a newer version wrote it")
            raise BadParcel("this is no export of a box")
        kind, body = await self._frame()
        if kind != _HEADER:
            raise BadParcel("the export of the box is damaged: it says nothing of itself")
        return _parsed(body)

    async def part(self) -> "Part | None":
        """The next part; `None` where there is none, and all that came is whole."""
        if self._part is not None and not self._part.is_over:
            raise RuntimeError("a part is read to its end before the next")
        before = self._whole.copy()
        kind, body = await self._frame()
        if kind == _PART:
            self._part = Part(self, _parsed(body))
            return self._part
        if kind != _END or body != before.digest():
            raise BadParcel("the export of the box is damaged")
        if self._buffer or await self._more():
            raise BadParcel("the export of the box goes on after its end")
        return None

    async def _frame(self) -> tuple[bytes, bytes]:
        kind, length = _FRAME.unpack(await self._exactly(_FRAME.size))
        most = {_DATA: _MOST_DATA, _END: _DIGEST_BYTES}.get(kind, MOST_TEXT)
        if length > most:
            raise BadParcel("the export of the box is damaged: a piece of it is too long")
        return kind, await self._exactly(length)

    async def _exactly(self, count: int, *, what: str = "") -> bytes:
        while len(self._buffer) < count:
            if not await self._more():
                raise BadParcel(f"this is no {what}" if what else "the export of the box is cut off")
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._whole.update(data)
        return data

    async def _more(self) -> bool:
        async for piece in self._content:
            if piece:
                self._buffer += piece
                return True
        return False


class Part:
    """A part of a file that is being read."""

    def __init__(self, reader: ParcelReader, facts: dict[str, Any]) -> None:
        self._reader = reader
        self.facts = facts
        """What is said of it."""
        self.is_over = False
        """Whether it has been read, and is whole."""
        self._said_size: object = None

    async def packed(self, *, most_bytes: int) -> AsyncGenerator[bytes, None]:
        """It as it is: zstd.

        Raises:
            BadParcel: it is damaged, or has more than *most_bytes*; what came before is not to be believed.
        """
        digest = hashlib.sha256()
        size = 0
        while True:
            kind, body = await self._reader._frame()
            if kind == _PART_END:
                break
            if kind != _DATA:
                raise BadParcel("the export of the box is damaged: a part of it has no end")
            size += len(body)
            if size > most_bytes:
                raise BadParcel(f"a part of the export of the box has more than {most_bytes} bytes")
            digest.update(body)
            yield body
        ending = _parsed(body)
        if (ending.get("packed"), ending.get("sha256")) != (size, digest.hexdigest()):
            raise BadParcel("the export of the box is damaged: a part of it is not what was written")
        self._said_size = ending.get("size")
        self.is_over = True

    async def content(self, *, most_bytes: int) -> AsyncGenerator[bytes, None]:
        """What it holds, unpacked. Raises as `packed`."""
        unpacking = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj(read_across_frames=False)
        size = 0
        async for data in self.packed(most_bytes=most_bytes + MOST_TEXT):
            rest = data
            while rest:
                piece, rest = await asyncio.to_thread(_unpacked, unpacking, rest)
                size += len(piece)
                if size > most_bytes:
                    raise BadParcel(f"a part of the export of the box unpacks to more than {most_bytes} bytes")
                if piece:
                    yield piece
        if not unpacking.eof or self._said_size != size:
            raise BadParcel("the export of the box is damaged: a part of it is cut off")

    async def skip(self, *, most_bytes: int) -> None:
        """Read past it. Raises as `packed`."""
        async for _ in self.packed(most_bytes=most_bytes):
            pass


def _unpacked(unpacking: Any, data: bytes) -> tuple[bytes, bytes]:
    """Some of what *data* stands for, and what is left of it."""
    gathered: list[bytes] = []
    size = at = 0
    try:
        while at < len(data) and size < _GATHERED:
            gathered.append(unpacking.decompress(data[at : at + _STEP]))
            size += len(gathered[-1])
            at += _STEP
    except zstandard.ZstdError as error:
        raise BadParcel(f"the export of the box is damaged: {error}") from None
    if unpacking.unused_data:
        raise BadParcel("the export of the box is damaged: a part of it goes on after its end")
    return b"".join(gathered), data[at:]


def _frame(kind: bytes, body: bytes) -> bytes:
    return _FRAME.pack(kind, len(body)) + body


def _text(body: Mapping[str, Any]) -> bytes:
    data = json.dumps(body, separators=(",", ":"), ensure_ascii=True).encode()
    if len(data) > MOST_TEXT:
        raise BadParcel(f"what is said of the box takes more than {MOST_TEXT} bytes")
    return data


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadParcel("the export of the box is damaged: it has a header that cannot be read")
    return found
