"""Routes of what a box's disk can become: snapshots, clones, forks, files for elsewhere."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import APIRouter, Request, Response

from stockade.dialects.boxlite.documented import BINARY, operation, parameter
from stockade.dialects.boxlite.edge import json_response
from stockade.dialects.boxlite.engine_needs import Archives
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter
from stockade.dialects.boxlite.translate import box_object, checked_name, snapshot_object
from stockade.dialects.boxlite.wire import (
    BadBody,
    BoxAnswer,
    BoxesAnswer,
    CloneBody,
    ForkBody,
    SnapshotAnswer,
    SnapshotBody,
    SnapshotsAnswer,
)
from stockade.errors import StockadeError, Unsupported
from stockade.model import Actor
from stockade.wire.bodies import Upload
from stockade.wire.sending import Sending

__all__ = ["disk_routes"]

_BYTES = "application/octet-stream"


def disk_routes(context: Context, archives: Archives | None) -> APIRouter:
    """The routes, over *context*.

    Args:
        archives: `None` where boxes cannot be exported.
    """
    router = ScopedRouter()
    _add_import(router, context, archives)  # first: `import` stands where the name of a box does
    _add_snapshots(router, context)
    _add_copies(router, context)
    _add_export(router, context, archives)
    return router


def _add_snapshots(router: APIRouter, context: Context) -> None:
    edge, boxes = context.edge, context.boxes

    @router.post(
        "/v1/boxes/{box_id}/snapshots",
        **operation(
            "create_snapshot",
            "Keep the disk as it is",
            status=201,
            answer=SnapshotAnswer,
            errors=(404, 409),
            body=(SnapshotBody, {"name": "before"}),
        ),
    )
    async def create(request: Request, box_id: str) -> Response:
        """Of a box that runs, as of one moment: its processes stand still meanwhile."""

        async def work(actor: Actor, body: SnapshotBody) -> object:
            return snapshot_object(await boxes.snapshot(actor, await boxes.get(actor, box_id), body.name))

        return await edge.call_with(request, SnapshotBody, work, status=201)

    @router.get(
        "/v1/boxes/{box_id}/snapshots",
        **operation("list_snapshots", "List snapshots", answer=SnapshotsAnswer, errors=(404,)),
    )
    async def list_all(request: Request, box_id: str) -> Response:
        """Oldest first."""

        async def work(actor: Actor) -> object:
            found = await boxes.snapshots(actor, await boxes.get(actor, box_id))
            return {"snapshots": [snapshot_object(one) for one in found]}

        return await edge.call(request, work)

    @router.get(
        "/v1/boxes/{box_id}/snapshots/{name}",
        **operation("get_snapshot", "Read a snapshot", answer=SnapshotAnswer, errors=(404,)),
    )
    async def read(request: Request, box_id: str, name: str) -> Response:
        """Its name is percent-encoded as one segment."""

        async def work(actor: Actor) -> object:
            return snapshot_object(await boxes.get_snapshot(actor, await boxes.get(actor, box_id), name))

        return await edge.call(request, work)

    @router.delete(
        "/v1/boxes/{box_id}/snapshots/{name}",
        **operation("remove_snapshot", "Remove a snapshot", status=204, text="It is gone.", errors=(404, 409)),
    )
    async def remove(request: Request, box_id: str, name: str) -> Response:
        """What was made of it stays."""

        async def work(actor: Actor) -> None:
            await boxes.remove_snapshot(actor, await boxes.get(actor, box_id), name)

        return await edge.call(request, work, status=204)

    @router.post(
        "/v1/boxes/{box_id}/snapshots/{name}/restore",
        **operation(
            "restore_snapshot",
            "Put the disk back",
            status=204,
            text="The disk is as it was then.",
            errors=(404, 409),
        ),
    )
    async def restore(request: Request, box_id: str, name: str) -> Response:
        """Only of a box that does not run."""

        async def work(actor: Actor) -> None:
            await boxes.restore(actor, await boxes.get(actor, box_id), name)

        return await edge.call(request, work, status=204)


def _add_copies(router: APIRouter, context: Context) -> None:
    edge, boxes = context.edge, context.boxes

    @router.post(
        "/v1/boxes/{box_id}/clone",
        **operation(
            "clone_box",
            "Make a copy",
            status=201,
            answer=BoxAnswer,
            errors=(404, 409),
            body=(CloneBody, {"name": "copy"}),
        ),
    )
    async def clone(request: Request, box_id: str) -> Response:
        """A box of its own, with the disk as it is now."""

        async def work(actor: Actor, body: CloneBody) -> object:
            name = None if body.name is None else checked_name(body.name)
            found = await boxes.get(actor, box_id)
            made = await boxes.clone(actor, found, name=name, snapshot=body.snapshot)
            return json_response(box_object(made), 201, {"Location": f"/v1/boxes/{made.id}"})

        return await edge.call_with(request, CloneBody, work)

    @router.post(
        "/v1/boxes/{box_id}/fork",
        **operation(
            "fork_box",
            "Make several copies",
            status=201,
            answer=BoxesAnswer,
            errors=(404, 409),
            body=(ForkBody, {"count": 3}),
        ),
    )
    async def fork(request: Request, box_id: str) -> Response:
        """All of the same moment, and started, unless `start` is false. All or none. (Not in the reference.)"""

        async def work(actor: Actor, body: ForkBody) -> object:
            if body.count > context.settings.most_fork:
                raise BadBody(f"count: must be at most {context.settings.most_fork} (got {body.count})")
            found = await boxes.get(actor, box_id)
            made = await boxes.fork(actor, found, body.count, snapshot=body.snapshot, start=body.start)
            return {"boxes": [box_object(one) for one in made], "next_page_token": None}

        return await edge.call_with(request, ForkBody, work, status=201)


def _add_export(router: APIRouter, context: Context, archives: Archives | None) -> None:
    @router.post(
        "/v1/boxes/{box_id}/export",
        **operation(
            "export_box",
            "Make a file of a box",
            text="The file.",
            content={_BYTES: BINARY},
            errors=(400, 404, 409),
        ),
    )
    async def export(request: Request, box_id: str) -> Response:
        """Its configuration, without values of secrets, its image and its disk: for `import`, here or elsewhere."""

        async def work(actor: Actor) -> object:
            if archives is None:
                raise _no_archives()
            found = await context.boxes.get(actor, box_id)
            async with contextlib.AsyncExitStack() as held:
                held.enter_context(context.edge.streams.hold(actor))
                held.enter_context(context.boxes.using(found.id))
                content = archives.export(actor, found)
                close = getattr(content, "aclose", None)
                if close is not None:
                    held.push_async_callback(close)
                # What cannot begin is refused; once the answer has begun, it can only break off.
                first = await anext(content, b"")
                return Sending(_after(first, content), held.pop_all(), media_type=_BYTES)

        return await context.edge.call(request, work)


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    async for part in rest:
        yield part


def _add_import(router: APIRouter, context: Context, archives: Archives | None) -> None:
    @router.post(
        "/v1/boxes/import",
        **operation(
            "import_box",
            "Make a box of a file",
            status=201,
            answer=BoxAnswer,
            errors=(409, 422),
            upload=_BYTES,
            parameters=(parameter("name", "Its name; none if not set."),),
        ),
    )
    async def import_(request: Request) -> Response:
        """What `export` gave. A file that is damaged, or not ours, is a 400, and leaves nothing."""

        async def work(actor: Actor) -> object:
            settings = context.settings
            body = Upload(request, context.edge.body_timeout_s, most=settings.max_transfer_bytes)
            try:
                if archives is None:
                    raise _no_archives()
                given = request.query_params.get("name")
                name = checked_name(given) if given else None
                with context.edge.streams.hold(actor):
                    made = await archives.import_(actor, body.parts(), name=name)
            except StockadeError:
                await body.discard()  # else a reset overtakes the answer
                raise
            return json_response(box_object(made), 201, {"Location": f"/v1/boxes/{made.id}"})

        return await context.edge.call(request, work)


def _no_archives() -> Unsupported:
    return Unsupported("this server cannot make files of boxes")
