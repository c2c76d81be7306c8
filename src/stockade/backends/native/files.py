"""A sandbox's files, by way of the agent inside it (`stockade.warden.agent`)."""

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from stockade.errors import LimitExceeded, StockadeError
from stockade.model import FileInfo, FileKind
from stockade.warden import agent_channel as wire

from .agents import Place
from .file_channel import FileChannel, Stream

__all__ = ["NativeFiles"]

_EVENTS = ("created", "modified", "deleted", "renamed", "overflow")
_MOST_LISTED = 100_000
_MOST_NAME = 8192
_SILENCE_S = 10.0
_AWAKE_S = 1.0
"""A new agent takes a few milliseconds: after so long it is the better choice, whatever the old one waits for."""


class NativeFiles:
    """Satisfies `stockade.backends.sandboxing.FileAccess`. Close it.

    An error that a system call inside gave, or would have given, has that OSError as its `__cause__`.

    Beside what is said there, every method raises Unavailable when the channel is closed or the agent is silent for
    longer than the deadline; get another one then. One request at a time is under way, a stream until its end: whoever
    stops reading one early closes the channel.
    """

    def __init__(self, connection: socket.socket, *, silence_s: float = _SILENCE_S, place: Place | None = None) -> None:
        """Take over the connected stream socket *connection*, whose other end an agent serves.

        Args:
            place: who gets the connection afterwards, where it is in order.
        """
        self._channel = FileChannel(connection, silence_s)
        self._place = place

    async def is_awake(self) -> bool:
        """Whether the agent answers: one that was idle may have been stopped, or be dying. Where not, this is closed.

        Asked before anything that has an effect, so that nothing is ever done twice.
        """
        try:
            async with asyncio.timeout(_AWAKE_S):
                await self._channel.call("stat", path="/")
        except (StockadeError, TimeoutError):
            self._channel.close()
            return False
        return True

    async def stat(self, path: str) -> FileInfo:
        return _file_info(self._channel, await self._channel.call("stat", path=path))

    async def list(self, path: str) -> list[FileInfo]:
        channel = self._channel
        found: list[FileInfo] = []
        async with channel.in_turn():
            await channel.request("list", path=path)
            while (frame := await channel.frame())[0] == wire.ITEMS:
                found += [_file_info(channel, item) for item in await channel.items(frame[1])]
                if len(found) > _MOST_LISTED:
                    channel.give_up("it lists more than there can be")
            await channel.result(frame)
        found.sort(key=lambda info: info.name)
        return found

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> tuple[FileInfo, AsyncIterator[bytes]]:
        channel = self._channel
        async with channel.in_turn(keep=True):
            await channel.request("read", path=path, offset=offset, length=length)
            info = _file_info(channel, await channel.head())
        most = max(0, info.size - offset)
        return info, _Data(channel, most if length is None else min(length, most))

    async def write(
        self, path: str, content: AsyncIterable[bytes], *, mode: int = 0o644, in_place: bool = False
    ) -> int:
        """See `FileAccess.write`. *in_place* writes to regular files, and to the devices that swallow what they get."""
        result = await self._channel.upload("write", content, path=path, mode=mode, in_place=in_place)
        return self._channel.count(result, "size")

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        await self._channel.call("delete", path=path, recursive=recursive)

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> None:
        await self._channel.call("mkdir", path=path, mode=mode, parents=parents)

    async def rename(self, path: str, new_path: str) -> None:
        await self._channel.call("rename", path=path, new_path=new_path)

    async def read_tar(self, path: str) -> AsyncIterator[bytes]:
        channel = self._channel
        async with channel.in_turn(keep=True):
            await channel.request("read_tar", path=path)
            await channel.head()
        return _Data(channel, None)

    async def write_tar(self, path: str, archive: AsyncIterable[bytes]) -> int:
        return self._channel.count(await self._channel.upload("write_tar", archive, path=path), "count")

    async def copy_in(self, path: str, archive: AsyncIterable[bytes], *, is_directory: bool | None = None) -> int:
        result = await self._channel.upload("copy_in", archive, path=path, is_directory=is_directory)
        return self._channel.count(result, "count")

    async def copy_out(self, path: str) -> tuple[bool, AsyncIterator[bytes]]:
        channel = self._channel
        async with channel.in_turn(keep=True):
            await channel.request("read_tar", path=path, prefix="./")
            is_directory = (await channel.head()).get("is_directory")
            if type(is_directory) is not bool:
                channel.give_up("it describes a file wrongly")
        return is_directory, _Data(channel, None)

    async def write_layer(
        self,
        path: str,
        archive: AsyncIterable[bytes],
        *,
        keep_set_id: bool = True,
        most_bytes: int | None = None,
        most_members: int | None = None,
    ) -> int:
        """See `FileAccess.write_layer`. More bytes or members than the most raise LimitExceeded."""
        limits = {"most_bytes": most_bytes, "most_members": most_members}
        result = await self._channel.upload("write_layer", archive, path=path, keep_set_id=keep_set_id, **limits)
        return self._channel.count(result, "size")

    async def save_tree(self, path: str, *, as_image_layer: bool = False) -> AsyncIterator[bytes]:
        """See `FileAccess.save_tree`. *as_image_layer*: as `write_layer` takes it, instead of `load_tree`."""
        channel = self._channel
        async with channel.in_turn(keep=True):
            await channel.request("save_tree", path=path, as_image_layer=as_image_layer)
            await channel.head()
        return _Data(channel, None)

    async def load_tree(
        self,
        path: str,
        content: AsyncIterable[bytes],
        *,
        most_bytes: int | None = None,
        most_members: int | None = None,
    ) -> int:
        """See `FileAccess.load_tree`. More bytes or members than the most raise LimitExceeded."""
        limits = {"most_bytes": most_bytes, "most_members": most_members}
        return self._channel.count(await self._channel.upload("load_tree", content, path=path, **limits), "size")

    async def watch(self, path: str) -> AsyncIterator[tuple[str, str]]:
        """See `FileAccess.watch`. `renamed` has the old path; the new one is `created`. `overflow` says that events
        below a path were lost. Files in a directory that appears may be told twice. Whoever stops early loses the
        channel.
        """
        channel = self._channel
        async with channel.in_turn(keep=True):
            await channel.request("watch", path=path)
            await channel.head()
        return _Events(channel)

    async def save_layer(self, target: int, *, most_bytes: int) -> int:
        """See `FileAccess.save_layer`. (The descriptor stays with us: the bytes come over the channel.)"""
        channel = self._channel
        if self._place is not None:
            self._place.leave()  # nothing runs then, and nothing is to run on
        async with channel.in_turn(keep=True):
            await channel.request("save_layer")
            await channel.head()
        count = 0
        data = _Data(channel, None)
        try:
            async for piece in data:
                count += len(piece)
                if count > most_bytes:
                    raise LimitExceeded(f"what was changed of the image takes more than {most_bytes} bytes")
                await asyncio.to_thread(_write_all, target, piece)
        finally:
            await data.aclose()
        return count

    def close(self) -> None:
        """Hang up, or leave the agent to the next, where nothing is under way. Idempotent."""
        connection = self._channel.release() if self._place is not None else None
        if self._place is None or connection is None:
            self._channel.close()
        else:
            self._place.keep(connection)


class _Data(Stream[bytes]):
    """The data of a request; *count* bytes of it, where that is known."""

    def __init__(self, channel: FileChannel, count: int | None) -> None:
        super().__init__(channel)
        self._expected = count
        self._count = 0
        self._left = 0
        """Of the frame under way."""

    async def _next(self) -> bytes:
        channel = self.channel
        while not self._left:
            kind, length = await channel.frame()
            if kind == wire.DATA:
                self._left = length
                continue
            size = channel.count(await channel.result((kind, length)), "size")
            if size != self._count or (self._expected is not None and size != self._expected):
                channel.give_up("it has not sent what it said")
            raise StopAsyncIteration
        piece = await channel.some(self._left)
        self._left -= len(piece)
        self._count += len(piece)
        if self._expected is not None and self._count > self._expected:
            channel.give_up("it sends more than it said")
        return piece


class _Events(Stream[tuple[str, str]]):
    """What happens below a directory."""

    def __init__(self, channel: FileChannel) -> None:
        super().__init__(channel)
        self._pending: list[tuple[str, str]] = []

    async def _next(self) -> tuple[str, str]:
        channel = self.channel
        while not self._pending:
            kind, length = await channel.frame()
            if kind != wire.ITEMS:
                await channel.result((kind, length))
                raise StopAsyncIteration
            for item in await channel.items(length):
                if not isinstance(item, list) or len(item) != 2 or item[0] not in _EVENTS or type(item[1]) is not str:
                    channel.give_up("it tells of what cannot happen")
                self._pending.append((item[0], item[1]))
            self._pending.reverse()
        return self._pending.pop()


def _file_info(channel: FileChannel, body: object) -> FileInfo:
    try:
        if isinstance(body, dict):
            return _parsed(body)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    return channel.give_up("it describes a file wrongly")


def _parsed(body: dict[str, Any]) -> FileInfo:
    """Raises KeyError, TypeError or ValueError for what describes no file."""

    def number(name: str, most: int, default: int | None = None) -> int:
        value = body[name] if default is None else body.get(name, default)
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(name)
        return value

    def text(name: str) -> str:
        value = body[name]
        if type(value) is not str or not value or len(value) > _MOST_NAME or "\0" in value:
            raise ValueError(name)
        return value

    name = text("name")
    if name != "/" and ("/" in name or name == "."):
        raise ValueError("name")
    modified_at = float(body["modified_at"])
    if not math.isfinite(modified_at):
        raise ValueError("modified_at")
    target_kind = body.get("target_kind")
    return FileInfo(
        name=name,
        path=text("path"),
        kind=FileKind(body["kind"]),
        size=number("size", 1 << 63),
        mode=number("mode", 0o7777),
        modified_at=modified_at,
        uid=number("uid", (1 << 32) - 1),
        gid=number("gid", (1 << 32) - 1),
        target=text("target") if "target" in body else None,
        target_kind=None if target_kind is None else FileKind(target_kind),
        target_size=number("target_size", 1 << 63, 0),
        target_mode=number("target_mode", 0o7777, 0),
    )


def _write_all(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
