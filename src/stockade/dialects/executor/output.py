"""What a command has printed, kept until it can be answered: a little in memory, more of it on disk."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from typing import IO

from stockade.dialects.executor.encoding import json_text
from stockade.wire.characters import incomplete

__all__ = ["IN_MEMORY", "PIECE", "NoRoom", "Room", "Spool"]

IN_MEMORY = 1 << 20
"""Bytes of one stream that are kept in memory."""
PIECE = 1 << 18
"""Bytes that are read, and answered with, at a time."""


class NoRoom(OSError):
    """No more may be kept on disk."""


class Room:
    """How much the output of all commands together may take of the disk; no sandbox gets more than a share of it."""

    SHARES = 4

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._share = most_bytes // self.SHARES
        self._taken: dict[str, int] = {}

    def take(self, sandbox_id: str, size: int) -> None:
        """Raises NoRoom."""
        taken = self._taken.get(sandbox_id, 0) + size
        if size > self._left or taken > self._share:
            raise NoRoom("too much output of commands is kept already")
        self._left -= size
        self._taken[sandbox_id] = taken

    def give_back(self, sandbox_id: str, size: int) -> None:
        """What was taken is free again."""
        self._left += size
        left = self._taken.get(sandbox_id, 0) - size
        if left > 0:
            self._taken[sandbox_id] = left
        else:
            self._taken.pop(sandbox_id, None)


class Spool:
    """Bytes in the order in which they came. Beyond `IN_MEMORY` they are in a file without a name, which is gone with
    this, whatever becomes of the server.
    """

    def __init__(self, room: Room, sandbox_id: str) -> None:
        self.size = 0
        self._room = room
        self._sandbox_id = sandbox_id
        self._on_disk = 0
        self._pieces: list[bytes] = []
        # Buffered, although what is written is large: its lock lets it be closed while a thread is still writing.
        self._file: IO[bytes] | None = None

    async def append(self, data: bytes) -> None:
        """Keep *data*, too.

        Raises:
            OSError: the disk is full, or broken, or holds as much as it may (NoRoom).
        """
        if not data:
            return
        self.size += len(data)
        self._pieces.append(data)
        if self.size > IN_MEMORY:
            size = self.size - self._on_disk
            self._room.take(self._sandbox_id, size)
            self._on_disk += size
            pieces, self._pieces = self._pieces, []
            await asyncio.to_thread(self._write, pieces)

    def whole(self) -> bytes:
        """All of it, where `size` is at most `IN_MEMORY`."""
        assert self._file is None
        return b"".join(self._pieces)

    async def json(self) -> AsyncGenerator[bytes, None]:
        """All of it as a JSON string without its quotes, in pieces.

        Raises:
            OSError: the disk is broken.
        """
        begun = b""
        async for piece in self._read():
            data = begun + piece
            cut = len(data) - incomplete(data)
            begun = data[cut:]
            yield json_text(data[:cut])
        if begun:
            yield json_text(begun)

    def close(self) -> None:
        """Drop all of it. Idempotent."""
        self._pieces.clear()
        self._room.give_back(self._sandbox_id, self._on_disk)
        self._on_disk = 0
        if self._file is not None:
            self._file.close()

    def _write(self, pieces: list[bytes]) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 – closed with this
        self._file.writelines(pieces)

    async def _read(self) -> AsyncGenerator[bytes, None]:
        file = self._file
        if file is None:
            for piece in self._pieces:
                yield piece
            return
        await asyncio.to_thread(file.seek, 0)
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece
