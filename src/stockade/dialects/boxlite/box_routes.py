"""Routes of boxes: make, list, read, remove; start, stop, pause, resume."""

from typing import Any

from fastapi import APIRouter, Request, Response

from stockade.dialects.boxlite.documented import BOOLEAN, INTEGER, operation, parameter
from stockade.dialects.boxlite.edge import json_response
from stockade.dialects.boxlite.queries import flag, number
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter, sent_path
from stockade.dialects.boxlite.translate import Measures, box_object, states_of, to_request
from stockade.dialects.boxlite.tunnels import Tunnels
from stockade.dialects.boxlite.wire import BoxAnswer, BoxesAnswer, CreateBody, StopBody
from stockade.model import Actor, Box
from stockade.wire.clients import while_connected

__all__ = ["box_routes"]

PAGE = 500
MOST_OF_PAGE = 1000
_EXAMPLE = {"image": "alpine:latest", "cpus": 1, "memory_mib": 256, "network": {"mode": "enabled"}}


def box_routes(context: Context, tunnels: Tunnels) -> APIRouter:
    """The routes, over *context*."""
    router = ScopedRouter()
    _add_collection(router, context)
    _add_single(router, context, tunnels)
    _add_life(router, context, tunnels)
    return router


def _add_collection(router: APIRouter, context: Context) -> None:
    edge, boxes = context.edge, context.boxes

    @router.post(
        "/v1/boxes",
        **operation(
            "create_box",
            "Make a box",
            status=201,
            answer=BoxAnswer,
            errors=(409, 422),
            body=(CreateBody, _EXAMPLE),
        ),
    )
    async def create(request: Request) -> Response:
        """It is `configured`: it has a disk, and runs once it is started or used."""

        async def work(actor: Actor, body: CreateBody) -> object:
            measures = Measures(settings=context.settings, limits=context.limits, actor=actor)
            made = await while_connected(request, boxes.create(actor, to_request(body, measures)))
            return json_response(box_object(made), 201, {"Location": f"{sent_path(request.scope)}/{made.id}"})

        return await edge.call_with(request, CreateBody, work)

    @router.get(
        "/v1/boxes",
        **operation(
            "list_boxes",
            "List boxes",
            answer=BoxesAnswer,
            errors=(400,),
            parameters=(
                parameter("status", "Only those in this state; several with commas."),
                parameter("pageSize", "So many at most; without it, all of them.", INTEGER),
                parameter("pageToken", "Where the page begins: `next_page_token` of the one before."),
            ),
        ),
    )
    async def list_all(request: Request) -> Response:
        """Newest first. Without `pageSize`, all in one answer."""

        async def work(actor: Actor) -> object:
            states = states_of(request.query_params.get("status"))
            size = number(request, "pageSize", least=1, most=MOST_OF_PAGE)
            cursor = request.query_params.get("pageToken") or None
            found: list[dict[str, Any]] = []
            while True:
                page = await boxes.list(actor, states=states, limit=size or PAGE, cursor=cursor)
                found += map(box_object, page.items)
                cursor = page.cursor
                if size or cursor is None:
                    break
            return {"boxes": found, "next_page_token": cursor}

        return await edge.call(request, work)


def _add_single(router: APIRouter, context: Context, tunnels: Tunnels) -> None:
    edge, boxes = context.edge, context.boxes

    @router.get("/v1/boxes/{box_id}", **operation("get_box", "Read a box", answer=BoxAnswer, errors=(404,)))
    async def read(request: Request, box_id: str) -> Response:
        """By its id or its name, here as everywhere."""

        async def work(actor: Actor) -> object:
            return box_object(await boxes.get(actor, box_id))

        return await edge.call(request, work)

    @router.head(
        "/v1/boxes/{box_id}",
        **operation("has_box", "Whether there is a box", status=204, text="There is.", errors=(404,)),
    )
    async def exists(request: Request, box_id: str) -> Response:
        """No body either way."""

        async def work(actor: Actor) -> None:
            await boxes.get(actor, box_id)

        return await edge.call(request, work, status=204)

    @router.delete(
        "/v1/boxes/{box_id}",
        **operation(
            "remove_box",
            "Remove a box",
            status=204,
            text="It is gone, with its disk and snapshots.",
            errors=(400, 404, 409),
            parameters=(parameter("force", "Also one that runs.", BOOLEAN),),
        ),
    )
    async def remove(request: Request, box_id: str) -> Response:
        """One that runs is a 409, unless `force` is set."""

        async def work(actor: Actor) -> None:
            is_forced = flag(request, "force")
            found = await boxes.get(actor, box_id)
            await boxes.remove(actor, found, force=is_forced)
            tunnels.close_box(found.id)
            context.counts.forget(found.id)

        return await edge.call(request, work, status=204)


def _add_life(router: APIRouter, context: Context, tunnels: Tunnels) -> None:
    edge, boxes = context.edge, context.boxes

    @router.post(
        "/v1/boxes/{box_id}/start",
        **operation("start_box", "Start a box", answer=BoxAnswer, errors=(404, 409, 422)),
    )
    async def start(request: Request, box_id: str) -> Response:
        """One that runs stays as it is."""

        async def work(actor: Actor) -> object:
            return box_object(await boxes.start(actor, await boxes.get(actor, box_id)))

        return await edge.call(request, work)

    @router.post(
        "/v1/boxes/{box_id}/stop",
        **operation("stop_box", "Stop a box", answer=BoxAnswer, errors=(404, 409), body=(StopBody, {})),
    )
    async def stop(request: Request, box_id: str) -> Response:
        """Its processes end, its disk stays; then it is removed where `auto_remove`, or `auto_delete` 1, says so."""

        async def work(actor: Actor, body: StopBody) -> object:
            found = await boxes.get(actor, box_id)
            stopped = await boxes.stop(actor, found, grace_s=body.timeout_seconds)
            tunnels.close_box(found.id)
            return box_object(stopped)

        return await edge.call_with(request, StopBody, work)

    @router.post(
        "/v1/boxes/{box_id}/pause",
        **operation("pause_box", "Pause a box", answer=BoxAnswer, errors=(404, 409)),
    )
    async def pause(request: Request, box_id: str) -> Response:
        """No process of it gets any processor time until it is resumed. (Not in the reference.)"""

        async def work(actor: Actor) -> object:
            return box_object(await boxes.pause(actor, await boxes.get(actor, box_id)))

        return await edge.call(request, work)

    @router.post(
        "/v1/boxes/{box_id}/resume",
        **operation("resume_box", "Resume a box", answer=BoxAnswer, errors=(404, 409)),
    )
    async def resume(request: Request, box_id: str) -> Response:
        """It goes on where it was. (Not in the reference.)"""

        async def work(actor: Actor) -> object:
            found: Box = await boxes.get(actor, box_id)
            return box_object(await boxes.resume(actor, found))

        return await edge.call(request, work)
