"""The archive in a layer's blob: plain, gzip or zstd, unpacked as it comes, counted and checked.

A blob is a stranger's. A few bytes of it can stand for gigabytes, so no more is unpacked at once than fits into a
bounded piece, and no more in all than was allowed; what has not the digest that it should have is refused.
"""

import asyncio
import hashlib
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import zstandard

from stockade.engine.image_manifests import BadManifest

__all__ = ["Archive", "BadLayer", "Budget"]

PIECE = 1 << 18
"""Bytes unpacked at once."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x04\x22\x4d\x18": "lz4"}
_LONGEST_MAGIC = 6
_ZSTD_WINDOW = 1 << 27
"""Bytes that unpacking may look back, and so holds in memory: what `zstd` itself takes without being told."""
# The densest that zstd can be: a block of four bytes that stands for 128 KiB. So many at a time stand for 32 MiB.
_ZSTD_STEP = 1 << 10


class BadLayer(BadManifest):
    """A layer is damaged, too large, or not what it should be."""


@dataclass
class Budget:
    """Bytes that the archives of one image may have together."""

    most: int
    taken: int = 0

    def take(self, size: int) -> None:
        """Raises BadLayer: there are not so many left."""
        self.taken += size
        if self.taken > self.most:
            raise BadLayer(f"the image unpacks to more than {self.most} bytes (registries.most_image_bytes)")


class _Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]:
        """What *data* stands for, in pieces; data is taken as they are asked for."""
        ...

    def finish(self) -> None:
        """Raises BadLayer: the end is missing."""
        ...


class Archive:
    """Iterates over the archive in a layer's blob, once. What comes is only to be believed once `finish` has returned.

    It has no `aclose`: who unpacks an archive may stop at its end mark, and the rest still has to be checked.
    """

    def __init__(
        self,
        blob: AsyncIterator[bytes],
        *,
        diff_id: str,
        budget: Budget,
        fetched: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Take a blob.

        Args:
            diff_id: the digest that the archive has to have.
            budget: what it may take.
            fetched: told how many bytes of the blob have been unpacked, again and again.
        """
        self._pieces = self._unpacked(blob)
        self._diff_id = diff_id
        self._budget = budget
        self._fetched = fetched
        self._sha256 = hashlib.sha256()
        self._is_checked = False

    def __aiter__(self) -> "Archive":
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._pieces)

    async def finish(self) -> None:
        """Read and check what has not been read. Raises BadLayer, and what the blob raises."""
        async for _ in self._pieces:
            pass
        if not self._is_checked:
            raise BadLayer("the layer was not read to its end")

    async def close(self) -> None:
        """Let go of the blob."""
        await self._pieces.aclose()

    async def _unpacked(self, blob: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        decoder: _Decoder | None = None
        head = b""
        try:
            async for data in blob:
                self._fetched(len(data))
                if decoder is None:
                    head += data
                    if len(head) < _LONGEST_MAGIC:
                        continue
                    decoder, data = _decoder(head), head
                async for piece in self._pieces_of(decoder, data):
                    yield piece
            if decoder is None:  # shorter than any magic number
                decoder = _decoder(head)
                async for piece in self._pieces_of(decoder, head):
                    yield piece
            decoder.finish()
        finally:
            close = getattr(blob, "aclose", None)
            if close is not None:
                await close()
        found = f"sha256:{self._sha256.hexdigest()}"
        if found != self._diff_id:
            raise BadLayer(f"a layer unpacks to something with the digest {found}; it should be {self._diff_id}")
        self._is_checked = True

    async def _pieces_of(self, decoder: _Decoder, data: bytes) -> AsyncIterator[bytes]:
        pieces = decoder.feed(data)
        # In a thread: unpacking and hashing take as long as the processor needs, and others are to be served.
        while (piece := await asyncio.to_thread(self._next, pieces)) is not None:
            self._budget.take(len(piece))
            yield piece

    def _next(self, pieces: Iterator[bytes]) -> bytes | None:
        piece = next(pieces, None)
        if piece is not None:
            self._sha256.update(piece)
        return piece


def _decoder(head: bytes) -> _Decoder:
    if head.startswith(_GZIP):
        return _Gzip()
    if head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):  # a skippable frame
        return _Zstd()
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise BadLayer(f"a layer is packed by {name}; plain, gzip and zstd can be unpacked here")
    return _Plain()


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        if data:
            yield data

    def finish(self) -> None:
        return None


class _Gzip:
    """Gzip, also of several members one after the other, as some builders write it."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(31)
            try:
                piece = self._member.decompress(data, PIECE)
            except zlib.error as error:
                raise BadLayer(f"a layer is damaged: {error}") from None
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if piece:
                yield piece
        # What it has taken may stand for more than one piece.
        while not self._member.eof and (piece := self._member.decompress(b"", PIECE)):
            yield piece

    def finish(self) -> None:
        if not self._member.eof:
            raise BadLayer("a layer is damaged: its end is missing")


class _Zstd:
    """Zstandard, also of several frames, as parallel packers write it."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame = self._decompressor.decompressobj(read_across_frames=False)
        self._is_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        at, gathered, size = 0, [], 0
        while at < len(data):
            step = data[at : at + _ZSTD_STEP]
            at += len(step)
            for piece in self._taken(step):
                gathered.append(piece)
                size += len(piece)
            if size >= PIECE:
                yield b"".join(gathered)
                gathered, size = [], 0
        if gathered:
            yield b"".join(gathered)

    def _taken(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._frame.eof:
                self._frame = self._decompressor.decompressobj(read_across_frames=False)
            self._is_begun = True
            try:
                piece = self._frame.decompress(data)
            except zstandard.ZstdError as error:
                raise BadLayer(f"a layer is damaged: {error}") from None
            if piece:
                yield piece
            data = self._frame.unused_data if self._frame.eof else b""

    def finish(self) -> None:
        if not self._is_begun or not self._frame.eof:
            raise BadLayer("a layer is damaged: its end is missing")
