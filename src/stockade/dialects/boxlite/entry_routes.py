"""Routes of single entries of a box's file system, which the protocol has none for: its clients move archives."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request, Response

from stockade.backends.sandboxing import FileAccess
from stockade.dialects.boxlite.documented import BOOLEAN, operation, parameter
from stockade.dialects.boxlite.file_routes import absolute
from stockade.dialects.boxlite.queries import flag
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter
from stockade.dialects.boxlite.wire import Answer, BadBody
from stockade.engine import Sandboxes
from stockade.errors import Unsupported
from stockade.model import Actor, FileInfo

__all__ = ["EntriesAnswer", "EntryAnswer", "entry_routes"]

_FILES = "/v1/boxes/{box_id}/files"
_MOST_PATH = 4095
_PATH = parameter("path", "Absolute, or relative to the box's working directory.", required=True)


class EntryAnswer(Answer):
    name: str
    path: str
    kind: str
    size: int
    mode: int
    modified_at: float
    uid: int
    gid: int
    target: str | None


class EntriesAnswer(Answer):
    entries: list[EntryAnswer]


def entry_routes(context: Context) -> APIRouter:
    """The routes, over *context*. None of them is in the reference.

    Raises:
        Unsupported: the server has no sandboxes that live.
    """
    sandboxes = context.services.engine.sandboxes
    if sandboxes is None:
        raise Unsupported("this server has no sandboxes that live")
    router = ScopedRouter()
    entries = _Entries(context, sandboxes)
    _add_questions(router, entries)
    _add_changes(router, entries)
    return router


class _Entries:
    """Entries of boxes."""

    def __init__(self, context: Context, sandboxes: Sandboxes) -> None:
        self._context = context
        self._sandboxes = sandboxes

    async def answer(
        self,
        request: Request,
        box_id: str,
        work: Callable[[FileAccess, str], Awaitable[object]],
        *,
        status: int = 200,
    ) -> Response:
        """What *work* gives, with a box's files and an absolute path."""

        async def found(actor: Actor) -> object:
            async with self._of(actor, box_id, _path(request)) as (files, path):
                return await work(files, path)

        return await self._context.edge.call(request, found, status=status)

    @asynccontextmanager
    async def _of(self, actor: Actor, name: str, path: str) -> AsyncIterator[tuple[FileAccess, str]]:
        """A box's files, with the rights of its user; the box is started for that."""
        boxes = self._context.boxes
        box = await boxes.get(actor, name)
        with boxes.using(box.id):
            sandbox = await boxes.sandbox(actor, box)
            async with self._sandboxes.files(boxes.acting(box), sandbox.id) as files:
                yield files, absolute(path, sandbox.cwd)


def _add_questions(router: APIRouter, entries: _Entries) -> None:
    @router.get(
        f"{_FILES}/entry",
        **operation(
            "read_entry",
            "Look at a file",
            answer=EntryAnswer,
            errors=(400, 404, 409),
            parameters=(_PATH,),
        ),
    )
    async def read(request: Request, box_id: str) -> Response:
        """Links are not followed. (Not in the reference.)"""

        async def work(files: FileAccess, path: str) -> object:
            return _entry(await files.stat(path))

        return await entries.answer(request, box_id, work)

    @router.get(
        f"{_FILES}/entries",
        **operation(
            "list_entries",
            "List a directory",
            answer=EntriesAnswer,
            errors=(400, 404, 409),
            parameters=(_PATH,),
        ),
    )
    async def list_all(request: Request, box_id: str) -> Response:
        """By name. (Not in the reference.)"""

        async def work(files: FileAccess, path: str) -> object:
            return {"entries": [_entry(one) for one in await files.list(path)]}

        return await entries.answer(request, box_id, work)


def _add_changes(router: APIRouter, entries: _Entries) -> None:
    @router.post(
        f"{_FILES}/directories",
        **operation(
            "make_directory",
            "Make a directory",
            status=204,
            text="It is there.",
            errors=(400, 404, 409),
            parameters=(_PATH,),
        ),
    )
    async def make(request: Request, box_id: str) -> Response:
        """And those above it; it may be there already. (Not in the reference.)"""

        async def work(files: FileAccess, path: str) -> object:
            await files.mkdir(path)
            return None

        return await entries.answer(request, box_id, work, status=204)

    @router.delete(
        _FILES,
        **operation(
            "remove_entry",
            "Remove a file",
            status=204,
            text="It is gone.",
            errors=(400, 404, 409),
            parameters=(_PATH, parameter("recursive", "Also a directory that is not empty.", BOOLEAN)),
        ),
    )
    async def remove(request: Request, box_id: str) -> Response:
        """Of a link, the link. (Not in the reference.)"""

        async def work(files: FileAccess, path: str) -> object:
            await files.delete(path, recursive=flag(request, "recursive"))
            return None

        return await entries.answer(request, box_id, work, status=204)


def _path(request: Request) -> str:
    path = request.query_params.get("path", "")
    if not path or "\0" in path or len(path.encode(errors="replace")) > _MOST_PATH:
        raise BadBody(f"path: must be a path of at most {_MOST_PATH} bytes")
    return path


def _entry(found: FileInfo) -> dict[str, Any]:
    return {
        "name": found.name,
        "path": found.path,
        "kind": found.kind.value,
        "size": found.size,
        "mode": found.mode,
        "modified_at": found.modified_at,
        "uid": found.uid,
        "gid": found.gid,
        "target": found.target,
    }
