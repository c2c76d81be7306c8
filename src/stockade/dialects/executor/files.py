"""Files, as the protocol moves them: whole, in JSON, with the system's own words for what goes wrong.

Whatever becomes of an operation that has begun is told with status 200, as the reference does: its clients repeat what
is answered with a 5xx, and would do it again. Only what has changed nothing may be answered so.
"""

import asyncio
import binascii
import contextlib
import errno
import json
import os
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from stockade.backends.sandboxing import FileAccess
from stockade.dialects.executor.encoding import decode, json_text
from stockade.dialects.executor.operation import Caller, Fields, Operation
from stockade.dialects.executor.replies import JSON, json_reply
from stockade.dialects.executor.sending import Emit, Streaming
from stockade.errors import StockadeError, Unavailable
from stockade.model import Actor, FileInfo, FileKind, Sandbox
from stockade.wire.characters import incomplete

__all__ = ["FileSandboxes", "file_operations"]

_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_AT_ONCE = 256 << 10
"""Bytes of a file up to which its answer is made before it is sent, and its length is known."""
_SLICE = 192 << 10
"""Characters that are encoded or decoded at a time. A multiple of 4: those of base64 go by fours."""
_MOST_LINKS = 40  # as many as the kernel follows
_FIRST_MOMENT, _LAST_MOMENT = -62_135_596_800.0, 253_402_300_799.0
"""The years 1 to 9999, in seconds since the epoch: a file's time may be anything, RFC 3339 knows no other year."""
_AFTER_OPENING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))
"""What read(2) and write(2) say, and open(2) hardly ever."""


class FileSandboxes(Protocol):
    """What is needed of the engine."""

    async def require_running(self, actor: Actor, sandbox_id: str, /) -> Sandbox: ...

    def files(
        self, actor: Actor, sandbox_id: str, /, *, user: str | None = None
    ) -> AbstractAsyncContextManager[FileAccess]: ...


class _Failed(Exception):
    """An operation did not succeed; the message is what the client reads. No `StockadeError`: none of its kinds."""


class _Because(Exception):
    """The reason, as an error number: the kernel would have said so, had it been asked."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(os.strerror(number))


_Step = Callable[[FileAccess, str], Awaitable[None]]
"""What changes a file, given its absolute path."""


def file_operations(sandboxes: FileSandboxes, *, max_read_bytes: int) -> Mapping[str, Operation]:
    """The operations on files, by path.

    Args:
        max_read_bytes: that a file which is read may have.
    """
    files = _Files(sandboxes, max_read_bytes)
    path = {"path": {"type": "string", "description": "Absolute, or relative to the sandbox's working directory."}}
    content = {"content": {"type": "string"}}
    is_base64 = {
        "is_base64": {
            "type": "boolean",
            "default": False,
            "description": "`content` is base64. (Not in the reference.)",
        }
    }
    entries = {"entries": {"type": "array", "items": {"type": "string"}}}
    facts = {
        "name": {"type": "string"},
        "is_dir": {"type": "boolean"},
        "size": {"type": "integer"},
        "mod_time": {"type": "string", "format": "date-time"},
        "mode": {"type": "string", "description": "Permission bits, in octal."},
    }
    success = {"success": {"type": "boolean"}}

    def operation(
        work: Callable[[Caller, Fields, Request], Awaitable[Response]],
        summary: str,
        takes: Mapping[str, Any],
        gives: Mapping[str, Any],
    ) -> Operation:
        answer = {"type": "object", "properties": {**gives, "error": {"type": "string"}}}
        return Operation(
            method="POST",
            work=work,
            summary=summary,
            description=" ".join((work.__doc__ or "").split()),
            responses={200: {"description": "Done, or why not.", "content": {JSON: {"schema": answer}}}},
            extra={"requestBody": {"content": {JSON: {"schema": {"type": "object", "properties": dict(takes)}}}}},
        )

    return {
        "/write_file": operation(files.write_file, "Write a file", {**path, **content, **is_base64}, success),
        "/read_file": operation(files.read_file, "Read a file", {**path, **is_base64}, {**content, **is_base64}),
        "/delete_file": operation(files.delete_file, "Delete a file", path, success),
        "/make_dir": operation(files.make_dir, "Make a directory", path, success),
        "/delete_dir": operation(files.delete_dir, "Delete a directory", path, success),
        "/list_dir": operation(files.list_dir, "List a directory", path, entries),
        "/stat_file": operation(files.stat_file, "Say what a file is", path, facts),
    }


class _Files:
    """The operations' work. Each answers everything that becomes of it; what is raised has changed nothing."""

    def __init__(self, sandboxes: FileSandboxes, max_read_bytes: int) -> None:
        self._sandboxes = sandboxes
        self._max_read_bytes = max_read_bytes

    # ── what changes something ───────────────────────────────────────────────────────────────────────────────────

    async def write_file(self, caller: Caller, fields: Fields, request: Request) -> Response:
        """Make a file (0644), or replace the content of one. No directories are made."""
        path, text, is_base64 = fields.text("path"), fields.text("content"), fields.flag("is_base64")

        async def write(files: FileAccess, absolute: str) -> None:
            pieces = _encoded(text)
            if is_base64:
                try:
                    decoded = await _from_base64(text)  # before the file is cut to nothing
                except ValueError as error:
                    raise _Failed(f"open {path}: content is not base64: {error}") from None
                pieces = _each(decoded)
            await files.write(absolute, pieces, mode=_FILE_MODE, in_place=True)

        return await self._change(caller, "open", path, write)

    async def delete_file(self, caller: Caller, fields: Fields, request: Request) -> Response:
        """Delete a file, a link (not what it leads to), or an empty directory."""
        path = fields.text("path")

        async def delete(files: FileAccess, absolute: str) -> None:
            if _ends_in_dot(path):
                raise _Because(errno.EINVAL)
            if absolute == "/":
                raise _Because(errno.EBUSY)
            if path.endswith("/") and (await files.stat(absolute)).kind is not FileKind.DIRECTORY:
                raise _Because(errno.ENOTDIR)
            await files.delete(absolute)

        return await self._change(caller, "remove", path, delete)

    async def make_dir(self, caller: Caller, fields: Fields, request: Request) -> Response:
        """Make a directory (0755) and what is missing above it. It may be there already."""
        path = fields.text("path")

        async def make(files: FileAccess, absolute: str) -> None:
            try:
                await files.mkdir(absolute, mode=_DIRECTORY_MODE)
            except StockadeError as error:
                if _number(error) == errno.EEXIST:
                    # The reference says the latter, the Python client looks for the former.
                    raise _Failed(f"mkdir {path}: file exists, and is not a directory") from error
                raise

        return await self._change(caller, "mkdir", path, make)

    async def delete_dir(self, caller: Caller, fields: Fields, request: Request) -> Response:
        """Delete whatever is there, with all below it. It may be gone already. The root itself is refused."""
        path = fields.text("path")
        if not path:
            return json_reply({"success": True})  # as the reference: nothing is named, nothing is deleted

        async def delete(files: FileAccess, absolute: str) -> None:
            if _ends_in_dot(path):
                raise _Because(errno.EINVAL)
            if absolute == "/":
                raise _Because(errno.EBUSY)
            try:
                await files.delete(absolute.rstrip("/"), recursive=True)
            except StockadeError as error:
                if _number(error) != errno.ENOENT:
                    raise

        return await self._change(caller, "RemoveAll", path, delete)

    async def _change(self, caller: Caller, word: str, path: str, step: _Step) -> Response:
        try:
            async with self._reached(caller, word, path) as (files, absolute):
                await step(files, absolute)
        except _Failed as error:
            return json_reply({"success": False, "error": str(error)})
        return json_reply({"success": True})

    # ── what only looks ──────────────────────────────────────────────────────────────────────────────────────────

    async def read_file(self, caller: Caller, fields: Fields, request: Request) -> Response:
        """The content of a file; a byte that is no UTF-8 is U+FFFD. With `is_base64`, every byte as it is."""
        path, is_base64 = fields.text("path"), fields.flag("is_base64")
        async with AsyncExitStack() as stack:
            try:
                reached = self._reached(caller, "open", path, looks_only=True)
                files, absolute = await stack.enter_async_context(reached)
                with _told(path, "open", absolute, looks_only=True):
                    info, content = await files.read(absolute)
                    if path.endswith(("/", "/.")):
                        raise _Because(errno.ENOTDIR)
                if info.size > self._max_read_bytes:
                    raise _Failed(f"read {path}: file too large: it has {info.size} bytes of {self._max_read_bytes}")
            except _Failed as error:
                return json_reply({"error": str(error)})
            answer = _Content(content, lambda error: f"read {path}: {_reason(error, absolute)}", is_base64=is_base64)
            if info.size <= _AT_ONCE:
                body = b"".join([part async for part in answer.parts()])
                return Response(body, headers={"content-type": JSON})
            held = stack.pop_all()

        async def produce(emit: Emit) -> None:
            async with held:
                async for part in answer.parts():
                    await emit(part)

        return Streaming(
            request,
            produce,
            headers={"content-type": JSON},
            close=files.close,
            stopped=lambda: answer.cut_off(f"read {path}: the server is stopping"),
        )

    async def list_dir(self, caller: Caller, fields: Fields, request: Request) -> Response:
        """The names in a directory, hidden ones included, sorted by their bytes."""
        path = fields.text("path")
        try:
            async with self._reached(caller, "open", path, looks_only=True) as (files, absolute):
                found = await files.list(absolute)
        except _Failed as error:
            return json_reply({"error": str(error)})
        names = sorted(info.name.encode("utf-8", "surrogateescape") for info in found)
        return json_reply({"entries": [decode(name) for name in names]})

    async def stat_file(self, caller: Caller, fields: Fields, request: Request) -> Response:
        """What a file is; links are followed. (Not in the reference.)"""
        path = fields.text("path")
        try:
            async with self._reached(caller, "stat", path, looks_only=True) as (files, absolute):
                info = await _followed(files, absolute)
                if path.endswith(("/", "/.")) and info.kind is not FileKind.DIRECTORY:
                    raise _Because(errno.ENOTDIR)
        except _Failed as error:
            return json_reply({"error": str(error)})
        name = posixpath.basename(absolute.rstrip("/")) or "/"
        return json_reply(
            {
                "name": name,
                "is_dir": info.kind is FileKind.DIRECTORY,
                "size": info.size,
                "mod_time": _moment(info.modified_at),
                "mode": f"{info.mode:04o}",
            }
        )

    @contextlib.asynccontextmanager
    async def _reached(
        self, caller: Caller, word: str, path: str, *, looks_only: bool = False
    ) -> AsyncIterator[tuple[FileAccess, str]]:
        """The sandbox's files, and *path* as an absolute one.

        Raises:
            _Failed: *path* is none, or what the block did went wrong: told as `<word> <path>: <reason>`.
            StockadeError: the sandbox cannot be reached, so nothing was done. With *looks_only*, Unavailable at any
                time: whoever only looks may look again.
        """
        if not path:
            raise _Failed(f"{word} : {_words(errno.ENOENT)}")
        if "\0" in path:
            raise _Failed(f"{word} {path}: {_words(errno.EINVAL)}")
        absolute = path
        if not path.startswith("/"):
            absolute = f"{(await self._sandboxes.require_running(caller.actor, caller.sandbox_id)).cwd}/{path}"
        absolute = _tidy(absolute)
        async with self._sandboxes.files(caller.actor, caller.sandbox_id) as files:
            with _told(path, word, absolute, looks_only=looks_only):
                yield files, absolute


def _tidy(path: str) -> str:
    """*path* without what means nothing in it, but with the slash at its end. `..` stays: links are the kernel's."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/" + "/".join(parts) + ("/" if parts and path.endswith("/") else "")


def _ends_in_dot(path: str) -> bool:
    return path == "." or path.endswith("/.")


# ── what went wrong, in words ────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _told(path: str, word: str, absolute: str, *, looks_only: bool) -> Iterator[None]:
    """Turn what the block raises into what the client is told."""
    try:
        yield
    except _Because as error:
        raise _Failed(f"{word} {path}: {_words(error.number)}") from error
    except StockadeError as error:
        if looks_only and isinstance(error, Unavailable):
            raise
        number = _number(error)
        if word == "open" and number == errno.EISDIR and looks_only:
            word = "read"  # a directory can be opened to be read
        elif word == "open" and number in _AFTER_OPENING:
            word = "read" if looks_only else "write"
        raise _Failed(f"{word} {path}: {_reason(error, absolute)}") from error


def _reason(error: StockadeError, absolute: str) -> str:
    number = _number(error)
    return _words(number) if number else str(error).removeprefix(f"{absolute.rstrip('/')}: ")


def _number(error: StockadeError) -> int:
    """The error number behind *error*; 0 where there is none."""
    # Behind an Unavailable it may be that of our own connection.
    cause = None if isinstance(error, Unavailable) else error.__cause__
    return cause.errno or 0 if isinstance(cause, OSError) else 0


def _words(number: int) -> str:
    """As the reference has it: the C library's words, in lower case."""
    return os.strerror(number).lower()


# ── content ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _encoded(text: str) -> AsyncGenerator[bytes, None]:
    """*text* in UTF-8, a slice at a time: it may be large, and is not to be kept twice."""
    for start in range(0, len(text), _SLICE):
        yield text[start : start + _SLICE].encode()


async def _each(pieces: list[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


async def _from_base64(text: str) -> list[bytes]:
    """Raises ValueError: it is no base64 (RFC 4648, section 4), with nothing else in it."""
    pieces = []
    for start in range(0, len(text), _SLICE):
        piece = binascii.a2b_base64(text[start : start + _SLICE], strict_mode=True)
        if start + _SLICE < len(text) and len(piece) < _SLICE // 4 * 3:
            raise ValueError("it ends in the middle")
        pieces.append(piece)
        await asyncio.sleep(0)  # others have their turn
    return pieces


class _Content:
    """The answer to `/read_file`, as the file comes.

    What goes wrong in the middle is told behind what has come so far: clients look for `error` before `content`.
    """

    def __init__(
        self, content: AsyncIterator[bytes], told: Callable[[StockadeError], str], *, is_base64: bool = False
    ) -> None:
        """*told* words what goes wrong."""
        self._content = content
        self._told = told
        self._is_base64 = is_base64
        self._is_begun = self._is_over = False

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """All of it, once."""
        self._is_begun = True
        yield b'{"content":"'
        kept = b""
        try:
            async for piece in self._content:
                data = kept + piece if kept else piece
                rest = len(data) % 3 if self._is_base64 else incomplete(data)
                kept = data[len(data) - rest :]
                yield self._text(data[: len(data) - rest])
        except StockadeError as error:
            yield self.cut_off(self._told(error))
            return
        if kept:
            yield self._text(kept)
        self._is_over = True
        yield b'","is_base64":true}\n' if self._is_base64 else b'"}\n'

    def cut_off(self, why: str) -> bytes:
        """The end of an answer that cannot be given in full; nothing where it was."""
        if self._is_over:
            return b""
        self._is_over = True
        return (b'","error":' if self._is_begun else b'{"error":') + json.dumps(why).encode("ascii") + b"}\n"

    def _text(self, data: bytes) -> bytes:
        return binascii.b2a_base64(data, newline=False) if self._is_base64 else json_text(data)


async def _followed(files: FileAccess, path: str) -> FileInfo:
    """What is at the end of the links that stand at *path*, if any."""
    for _ in range(_MOST_LINKS):
        info = await files.stat(path)
        if info.kind is not FileKind.LINK or info.target is None:
            return info
        path = _tidy(posixpath.join(posixpath.dirname(path.rstrip("/")), info.target))
    raise _Because(errno.ELOOP)


def _moment(seconds: float) -> str:
    """RFC 3339, in UTC."""
    moment = datetime.fromtimestamp(min(max(seconds, _FIRST_MOMENT), _LAST_MOMENT), UTC)
    return moment.isoformat().replace("+00:00", "Z")
