"""Routes of volumes: disks that belong to no box."""

from fastapi import APIRouter, Request, Response

from stockade.dialects.boxlite.documented import BOOLEAN, operation, parameter
from stockade.dialects.boxlite.engine_needs import Volumes
from stockade.dialects.boxlite.queries import flag
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter
from stockade.dialects.boxlite.translate import GIB, checked_volume, volume_object
from stockade.dialects.boxlite.wire import VolumeAnswer, VolumeBody, VolumesAnswer
from stockade.errors import NotFound
from stockade.model import Actor

__all__ = ["volume_routes"]


def volume_routes(context: Context, volumes: Volumes) -> APIRouter:
    """The routes, over *volumes*."""
    router = ScopedRouter()
    edge = context.edge

    @router.post(
        "/v1/volumes",
        **operation(
            "create_volume",
            "Make a volume",
            status=201,
            answer=VolumeAnswer,
            errors=(409,),
            body=(VolumeBody, {"name": "data"}),
        ),
    )
    async def create(request: Request) -> Response:
        """It can be mounted by its id or its name."""

        async def work(actor: Actor, body: VolumeBody) -> object:
            name = None if body.name is None else checked_volume(body.name)
            size = None if body.size_gb is None else body.size_gb * GIB
            return volume_object(await volumes.create(actor, name=name, size_bytes=size))

        return await edge.call_with(request, VolumeBody, work, status=201)

    @router.get("/v1/volumes", **operation("list_volumes", "List volumes", answer=VolumesAnswer))
    async def list_all(request: Request) -> Response:
        """The account's."""

        async def work(actor: Actor) -> object:
            return {"volumes": [volume_object(one) for one in await volumes.list(actor)]}

        return await edge.call(request, work)

    @router.get(
        "/v1/volumes/{volume_id}",
        **operation("get_volume", "Read a volume", answer=VolumeAnswer, errors=(404,)),
    )
    async def read(request: Request, volume_id: str) -> Response:
        """By its id or its name."""

        async def work(actor: Actor) -> object:
            return volume_object(await volumes.get(actor, volume_id))

        return await edge.call(request, work)

    @router.delete(
        "/v1/volumes/{volume_id}",
        **operation(
            "remove_volume",
            "Remove a volume",
            status=204,
            text="It is gone.",
            errors=(400, 404, 409),
            parameters=(parameter("force", "Also succeed where there is none.", BOOLEAN),),
        ),
    )
    async def remove(request: Request, volume_id: str) -> Response:
        """One that a box has is a 409."""

        async def work(actor: Actor) -> None:
            is_forced = flag(request, "force")
            try:
                await volumes.remove(actor, volume_id, force=is_forced)
            except NotFound:
                if not is_forced:
                    raise

        return await edge.call(request, work, status=204)

    return router
