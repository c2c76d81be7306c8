"""Routes of a session's files: streamed both ways, never whole in memory."""

import re
from contextlib import AsyncExitStack

from fastapi import APIRouter, Request, Response

from stockade.backends.sandboxing import FileAccess
from stockade.dialects.execbox.documented import BEARER, failing, query
from stockade.dialects.execbox.edge import Edge
from stockade.dialects.execbox.failures import FileTooLarge, NoRange
from stockade.dialects.execbox.queries import Query
from stockade.dialects.execbox.service import Sessions
from stockade.dialects.execbox.session_routes import query_of
from stockade.dialects.execbox.translate import (
    entry,
)
from stockade.dialects.execbox.wire import DirectoryAnswer, UploadAnswer
from stockade.errors import Invalid, LimitExceeded, StockadeError
from stockade.model import Actor, FileKind
from stockade.wire.bodies import Upload
from stockade.wire.sending import Sending, no_more_than

__all__ = ["add_files"]

FILE_MODE = 0o644
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_BYTES = "application/octet-stream"
_TAR = "application/x-tar"
_STRING = {"type": "string"}
_PATH = ("path", "Absolute, or relative to the session's `workDir`.", _STRING)
_USER = (
    "user",
    "With whose rights; the user of the main process if not set. (Not in the reference.)",
    {"type": "string", "enum": ["user", "root"]},
)
_ARCHIVE = (
    "archive",
    "`tar`: a directory with all below it. (Not in the reference.)",
    {"type": "string", "enum": ["tar"]},
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def add_files(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    """Upload, download and list, delete."""
    _add_upload(router, sessions, edge)
    _add_download(router, sessions, edge)
    _add_delete(router, sessions, edge)


def _add_upload(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    @router.post(
        "/v1/sessions/{session_id}/files",
        operation_id="uploadFile",
        summary="Upload a file",
        status_code=201,
        response_class=Response,
        responses={201: {"model": UploadAnswer}, **failing(400, 403, 404, 408, 409, 413)},
        openapi_extra={
            **query(
                _PATH,
                _ARCHIVE,
                _USER,
                ("mode", "Permission bits as a decimal number; 420 if not set.", {"type": "integer"}),
                ("directory", "Make a directory instead. (Not in the reference.)", {"type": "boolean"}),
                required="path",
            ),
            "requestBody": {"required": True, "content": {_BYTES: _BINARY}},
        },
        dependencies=BEARER,
    )
    async def upload(request: Request, session_id: str) -> Response:
        """The body is the file. It has its name only once it is complete; what was there is replaced."""

        async def work(actor: Actor) -> object:
            body = Upload(request, edge.body_timeout_s)
            try:
                return await _upload(sessions, actor, session_id, query_of(request), body)
            except StockadeError:
                await body.discard()  # else a reset overtakes the answer
                raise

        return await edge.call(request, work, status=201)


async def _upload(sessions: Sessions, actor: Actor, session_id: str, asked: Query, body: Upload) -> dict[str, object]:
    path = asked.text("path")
    mode = asked.number("mode", least=0, most=0o777, default=FILE_MODE)
    archive = asked.choice("archive", "", "tar")
    directory = asked.flag("directory")
    if path and path.endswith("/") and not (archive or directory):
        raise Invalid("path: names a directory")
    async with sessions.files(actor, session_id, asked) as (files, absolute):
        try:
            if directory:
                await files.mkdir(absolute, mode=0o755 if asked.text("mode") is None else mode or 0)
                return {"path": path, "size": 0}
            if archive:
                return {"path": path, "members": await files.write_tar(absolute, body.parts())}
            return {
                "path": path,
                "size": await files.write(absolute, body.parts(), mode=FILE_MODE if mode is None else mode),
            }
        except LimitExceeded as error:
            raise FileTooLarge(str(error)) from None


def _add_download(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    @router.get(
        "/v1/sessions/{session_id}/files",
        operation_id="downloadFile",
        summary="Download a file, or list a directory",
        response_class=Response,
        responses={
            200: {"model": DirectoryAnswer, "content": {_BYTES: _BINARY, _TAR: _BINARY}},
            206: {"description": "The part that `Range` asks for. (Not in the reference.)"},
            **failing(400, 403, 404, 409, 416),
        },
        openapi_extra=query(
            _PATH,
            ("list", "`true`: list the directory.", {"type": "boolean"}),
            _ARCHIVE,
            _USER,
            required="path",
        ),
        dependencies=BEARER,
    )
    async def download(request: Request, session_id: str) -> Response:
        """The file's bytes; with `list=true`, the direct children of a directory."""

        async def work(actor: Actor) -> object:
            asked = query_of(request)
            path = asked.text("path")
            archive = asked.choice("archive", "", "tar")
            async with AsyncExitStack() as stack:
                files, absolute = await stack.enter_async_context(sessions.files(actor, session_id, asked))
                if asked.flag("list"):
                    return {"path": path, "entries": [entry(one) for one in await files.list(absolute)]}
                if archive:
                    content = await files.read_tar(absolute)
                    return Sending(no_more_than(None, content), stack.pop_all(), media_type=_TAR)
                return await _download(files, absolute, request.headers.get("range", ""), stack)

        return await edge.call(request, work)


async def _download(files: FileAccess, path: str, wanted: str, stack: AsyncExitStack) -> Response:
    """The file, or the part of it that the header `Range` asks for (RFC 9110, section 14)."""
    span = None
    if wanted:
        info = await files.stat(path)
        is_link = info.kind is FileKind.LINK
        if (info.target_kind if is_link else info.kind) is FileKind.FILE:
            span = _span(wanted, info.target_size if is_link else info.size)
    start, length = span or (0, None)
    info, content = await files.read(path, offset=start, length=length)
    size = info.size if length is None else length
    headers = {"Content-Length": str(size), "Accept-Ranges": "bytes"}
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{start + size - 1}/{info.size}"
    return Sending(
        no_more_than(size, content),
        stack.pop_all(),
        status=206 if span is not None else 200,
        headers=headers,
        media_type=_BYTES,
    )


def _span(wanted: str, size: int) -> tuple[int, int] | None:
    """Start and length of one range of a file; `None` where the whole is to be sent.

    Raises:
        NoRange: the file has nothing there.
    """
    match = _RANGE.fullmatch(wanted.strip())
    if match is None or not (match[1] or match[2]):
        return None  # several ranges, or another unit: the whole is a right answer, too
    if not match[1]:
        length = min(int(match[2]), size)
        start = size - length
    else:
        start = int(match[1])
        end = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < start:
            return None
        length = end - start + 1
    if length <= 0 or start >= size:
        raise NoRange(size)
    return start, length


def _add_delete(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    @router.delete(
        "/v1/sessions/{session_id}/files",
        operation_id="deleteFile",
        summary="Delete a file or directory",
        status_code=204,
        response_class=Response,
        responses={204: {"description": "It is gone."}, **failing(400, 403, 404, 409)},
        openapi_extra=query(
            _PATH, ("recursive", "With all that is below it.", {"type": "boolean"}), _USER, required="path"
        ),
        dependencies=BEARER,
    )
    async def delete(request: Request, session_id: str) -> Response:
        """A link itself, not what it leads to. (Not in the reference.)"""

        async def work(actor: Actor) -> object:
            asked = query_of(request)
            async with sessions.files(actor, session_id, asked) as (files, absolute):
                await files.delete(absolute, recursive=asked.flag("recursive"))
            return Response(status_code=204)

        return await edge.call(request, work)
