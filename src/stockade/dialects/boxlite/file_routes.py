"""Routes of a box's files: a tar in, a tar out; streamed both ways, never whole in memory."""

import posixpath
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from fastapi import APIRouter, Request, Response

from stockade.backends.sandboxing import FileAccess
from stockade.dialects.boxlite.documented import BINARY, BOOLEAN, operation, parameter
from stockade.dialects.boxlite.queries import flag
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter
from stockade.dialects.boxlite.wire import BadBody
from stockade.engine import Sandboxes
from stockade.errors import StockadeError, Unsupported
from stockade.model import Actor
from stockade.wire.bodies import Upload
from stockade.wire.sending import Sending, no_more_than

__all__ = ["file_routes"]

_FILES = "/v1/boxes/{box_id}/files"
_TAR = "application/x-tar"
_DIRECTORY_HEADER = "x-boxlite-source-is-dir"
_MOST_PATH = 4095
_PATH = parameter("path", "Absolute, or relative to the box's working directory.", required=True)


def file_routes(context: Context) -> APIRouter:
    """The routes, over *context*.

    Raises:
        Unsupported: the server has no sandboxes that live.
    """
    if context.services.engine.sandboxes is None:
        raise Unsupported("this server has no sandboxes that live")
    router = ScopedRouter()
    files = _Files(context, context.services.engine.sandboxes)
    _add_upload(router, context, files)
    _add_download(router, context, files)
    return router


class _Files:
    """Files of boxes."""

    def __init__(self, context: Context, sandboxes: Sandboxes) -> None:
        self._context = context
        self._sandboxes = sandboxes

    @asynccontextmanager
    async def of(self, actor: Actor, name: str, path: str) -> AsyncIterator[tuple[FileAccess, str]]:
        """A box's files, with the rights of its user, and *path* as an absolute one; the box is started for that."""
        box = await self._context.boxes.get(actor, name)
        with self._context.boxes.using(box.id):
            sandbox = await self._context.boxes.sandbox(actor, box)
            # A key knows only the sandboxes that it made; a box is its account's.
            maker = replace(actor, id=sandbox.key_id)
            async with self._sandboxes.files(maker, sandbox.id) as files:
                yield files, absolute(path, sandbox.cwd)


def _add_upload(router: APIRouter, context: Context, files: _Files) -> None:
    @router.put(
        _FILES,
        **operation(
            "upload_files",
            "Copy into a box",
            status=204,
            text="It is there.",
            errors=(404, 409),
            upload=_TAR,
            parameters=(
                _PATH,
                parameter(
                    "source_is_dir",
                    "Whether a directory was packed, whose name then leads all entries. Not set: a single file is one, "
                    "and of anything else the content goes to `path`.",
                    BOOLEAN,
                ),
            ),
        ),
    )
    async def upload(request: Request, box_id: str) -> Response:
        """The body is a tar, unpacked as `cp -r` would copy what it holds: into `path` where that is a directory or
        ends with `/`, else to be `path`. What is there is written over; a member that would lie outside is a 400.
        """

        async def work(actor: Actor) -> None:
            body = Upload(request, context.edge.body_timeout_s, most=context.settings.max_transfer_bytes)
            try:
                is_directory = flag(request, "source_is_dir") if "source_is_dir" in request.query_params else None
                async with files.of(actor, box_id, _path(request)) as (access, path):
                    await access.copy_in(path, body.parts(), is_directory=is_directory)
            except StockadeError:
                await body.discard()  # else a reset overtakes the answer
                raise

        return await context.edge.call(request, work, status=204)


def _add_download(router: APIRouter, context: Context, files: _Files) -> None:
    @router.get(
        _FILES,
        **operation(
            "download_files",
            "Copy out of a box",
            text=f"A tar. `{_DIRECTORY_HEADER}` says whether it is of a directory.",
            content={_TAR: BINARY},
            errors=(400, 404, 409),
            parameters=(_PATH,),
        ),
    )
    async def download(request: Request, box_id: str) -> Response:
        """Of a file: one entry with its name. Of a directory: `./` and all that is below it."""

        async def work(actor: Actor) -> object:
            async with AsyncExitStack() as held:
                held.enter_context(context.edge.streams.hold(actor))
                access, path = await held.enter_async_context(files.of(actor, box_id, _path(request)))
                is_directory, content = await access.copy_out(path)
                headers = {_DIRECTORY_HEADER: "true" if is_directory else "false"}
                return Sending(no_more_than(None, content), held.pop_all(), headers=headers, media_type=_TAR)

        return await context.edge.call(request, work)


def _path(request: Request) -> str:
    path = request.query_params.get("path", "")
    if not path or "\0" in path or len(path.encode(errors="replace")) > _MOST_PATH:
        raise BadBody(f"path: must be a path of at most {_MOST_PATH} bytes")
    return path


def absolute(path: str, base: str) -> str:
    """*path* from *base* on; a slash at its end, which says that it is to be a directory, stays."""
    whole = "/" + posixpath.normpath(posixpath.join(base, path)).lstrip("/")
    says_directory = path.endswith(("/", "/.")) or path == "."
    return f"{whole}/" if says_directory and whole != "/" else whole
