"""Routes of a sandbox's files: streamed both ways, never whole in memory."""

import asyncio
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stockade.backends.sandboxing import FileAccess
from stockade.errors import StockadeError
from stockade.web import translate
from stockade.web.edge import Caller, Edge
from stockade.web.failures import FieldInvalid
from stockade.web.sandboxes import AccountSandboxes
from stockade.web.sending import Sending
from stockade.web.wire import DirectoryBody
from stockade.wire.bodies import BodyTimeout, BodyTooLarge, discard_body

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
                    _announced(content, info.size),
                    stack.pop_all(),
                    headers=headers,
                    media_type="application/octet-stream",
                )

        return await edge.call(request, work)

    async def upload(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            path = _path(request)
            body = _Body(request, patience_s=edge.body_timeout_s, most=edge.config.upload_bytes)
            try:
                with edge.hold(caller):
                    async with opened(request, caller) as files:
                        await files.write(path, body.parts())
            except StockadeError:
                if not body.is_read:
                    await discard_body(request.receive)  # else a reset overtakes the answer
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


async def _announced(content: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """*content*, of which no more than *size* was announced: the file may grow meanwhile."""
    left = size
    async for part in content:
        yield part[:left]
        left -= len(part)
        if left <= 0:
            return


class _Body:
    """A request's body as it comes. A client that sends nothing for too long is given up."""

    def __init__(self, request: Request, *, patience_s: float, most: int) -> None:
        self._request = request
        self._patience_s = patience_s
        self._most = most
        announced = request.headers.get("content-length", "")
        self._announced = int(announced[:19]) if announced.isdecimal() else None
        self.is_read = self._announced == 0
        """To its end; nothing more may be asked of the connection then."""

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, once.

        Raises:
            BodyTimeout: nothing came for too long.
            BodyTooLarge: it is, or announces that it will be.
            ClientDisconnect: the client went away in the middle (starlette's).
        """
        if (self._announced or 0) > self._most:
            raise BodyTooLarge(self._most)
        stream = self._request.stream()
        size = 0
        while True:
            try:
                async with asyncio.timeout(self._patience_s):
                    part = await anext(stream, None)
            except TimeoutError:
                raise BodyTimeout(self._patience_s) from None
            except HTTPException as error:  # the application's own guard
                if error.status_code == 413:
                    raise BodyTooLarge(self._most) from None
                raise
            if part is None:
                self.is_read = True
                return
            size += len(part)
            if self._announced is not None:
                self.is_read = size >= self._announced  # also when who reads stops here
            if size > self._most:
                raise BodyTooLarge(self._most)
            if part:
                yield part
