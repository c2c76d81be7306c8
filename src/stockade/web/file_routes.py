"""Routes of a sandbox's files: streamed both ways, never whole in memory."""

import posixpath
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stockade.backends.sandboxing import FileAccess
from stockade.errors import StockadeError
from stockade.web import translate
from stockade.web.edge import Caller, Edge
from stockade.web.failures import FieldInvalid
from stockade.web.sandboxes import AccountSandboxes
from stockade.web.wire import DirectoryBody
from stockade.wire.bodies import Upload
from stockade.wire.sending import Sending, no_more_than

__all__ = ["add_files", "is_upload"]

_LONGEST_PATH = 4095
_UPLOADS = ("/api/sandboxes/", "/files/content")


def is_upload(path: str) -> bool:
    """Whether requests to *path* may bring a file."""
    return path.startswith(_UPLOADS[0]) and path.endswith(_UPLOADS[1])


def add_files(router: APIRouter, sandboxes: AccountSandboxes, edge: Edge) -> None:
    """List, download, upload, make a directory, delete."""

    @asynccontextmanager
    async def opened(request: Request, caller: Caller) -> AsyncIterator[FileAccess]:
        sandbox_id: str = request.path_params["sandbox_id"]
        bearer = await sandboxes.bearer(caller.actor, sandbox_id)
        async with sandboxes.engine.files(bearer, sandbox_id) as files:
            yield files

    async def list_some(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            path = _path(request, default="/")
            async with opened(request, caller) as files:
                entries = await files.list(path)
            return {"path": path, "entries": [translate.entry(one) for one in entries]}

        return await edge.call(request, work)

    async def download(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            path = _path(request)
            async with AsyncExitStack() as stack:
                stack.enter_context(edge.hold(caller))
                files = await stack.enter_async_context(opened(request, caller))
                info, content = await files.read(path)
                headers = {
                    "Content-Length": str(info.size),
                    # A tenant has chosen the name: percent-encoded, it can be nothing but a name (RFC 8187).
                    "Content-Disposition": f"attachment; filename*=UTF-8''{quote(posixpath.basename(path), safe='')}",
                }
                return Sending(
                    no_more_than(info.size, content),
                    stack.pop_all(),
                    headers=headers,
                    media_type="application/octet-stream",
                )

        return await edge.call(request, work)

    async def upload(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            path = _path(request)
            body = Upload(request, edge.body_timeout_s, most=edge.config.upload_bytes)
            try:
                with edge.hold(caller):
                    async with opened(request, caller) as files:
                        await files.write(path, body.parts())
            except StockadeError:
                await body.discard()  # else a reset overtakes the answer
                raise
            return None

        return await edge.call(request, work)

    async def make_directory(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            body = await edge.read(request, DirectoryBody)
            async with opened(request, caller) as files:
                await files.mkdir(body.path)
            return None

        return await edge.call(request, work)

    async def delete(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            path = _path(request)
            async with opened(request, caller) as files:
                await files.delete(path, recursive=True)
            return None

        return await edge.call(request, work)

    router.add_route("/api/sandboxes/{sandbox_id}/files", list_some, methods=["GET"])
    router.add_route("/api/sandboxes/{sandbox_id}/files", delete, methods=["DELETE"])
    router.add_route("/api/sandboxes/{sandbox_id}/files/content", download, methods=["GET"])
    router.add_route("/api/sandboxes/{sandbox_id}/files/content", upload, methods=["PUT"])
    router.add_route("/api/sandboxes/{sandbox_id}/files/directory", make_directory, methods=["POST"])


def _path(request: Request, *, default: str = "") -> str:
    """The absolute path that the query names."""
    path = request.query_params.get("path") or default
    if not path.startswith("/") or "\0" in path or len(path.encode(errors="replace")) > _LONGEST_PATH:
        raise FieldInvalid("path", "path: must be an absolute path inside the sandbox")
    return path
