"""Routes of images: bring one here, list, read, name, remove."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response

from stockade.dialects.boxlite.documented import operation, parameter
from stockade.dialects.boxlite.engine_needs import Images
from stockade.dialects.boxlite.failures import CRASHED, from_error
from stockade.dialects.boxlite.image_objects import image_details, image_listed, image_pulled
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter
from stockade.dialects.boxlite.uploads import spooled
from stockade.dialects.boxlite.wire import (
    AliasBody,
    BadBody,
    ImageAnswer,
    ImagesAnswer,
    ImageUsageAnswer,
    PruneBody,
    PrunedAnswer,
    PullBody,
    PulledAnswer,
)
from stockade.engine.image_layouts import DockerArchive
from stockade.engine.image_progress import LayerProgress, watched
from stockade.engine.image_sources import ImageProgress, Silent
from stockade.errors import Denied, Invalid, StockadeError
from stockade.model import Actor
from stockade.model.images import ImageRecord
from stockade.wire.bodies import Upload
from stockade.wire.clients import while_connected
from stockade.wire.events import EventStream, frame

__all__ = ["image_routes"]

UNLIMITED = 2**31 - 1
"""`limit` of who has none: clients want a number."""
_TAR = "application/x-tar"
_EVENTS = "text/event-stream"
_STREAM = {_EVENTS: {"schema": {"type": "string"}}}


class BadArchive(Invalid):
    """What was uploaded is no image that can be had."""

    code = "image.bad_archive"


Pull = Callable[[ImageProgress], Awaitable[ImageRecord]]


def image_routes(context: Context, images: Images) -> APIRouter:
    """The routes, over *images*."""
    router = ScopedRouter()
    _add_figures(router, context, images)  # first: `usage` stands where the name of an image does
    _add_bringing(router, context, images)
    _add_single(router, context, images)
    _add_aliases(router, context, images)
    return router


def _add_figures(router: APIRouter, context: Context, images: Images) -> None:
    edge = context.edge

    @router.get("/v1/images", **operation("list_images", "List images", answer=ImagesAnswer))
    async def list_all(request: Request) -> Response:
        """The account's own, and everybody's."""

        async def work(actor: Actor) -> object:
            return {"images": [image_listed(one) for one in images.list(actor)]}

        return await edge.call(request, work)

    @router.get(
        "/v1/images/usage",
        **operation("image_usage", "How much room images take", answer=ImageUsageAnswer),
    )
    async def usage(request: Request) -> Response:
        """Of the account's own."""

        async def work(actor: Actor) -> object:
            found = images.usage(actor)
            return {"count": found.count, "limit": found.limit or UNLIMITED, "known_bytes": found.known_bytes}

        return await edge.call(request, work)

    @router.post(
        "/v1/images/prune",
        **operation(
            "prune_images",
            "Remove images that nobody uses",
            answer=PrunedAnswer,
            errors=(403,),
            body=(PruneBody, {"unused_s": 86400}),
        ),
    )
    async def prune(request: Request) -> Response:
        """For keys of the operator's account. (Not in the reference.)"""

        async def work(actor: Actor, body: PruneBody) -> object:
            _require_admin(actor)
            gone = await images.prune(None if body.unused_s is None else float(body.unused_s))
            return {"removed": [one.reference for one in gone.images], "freed_bytes": gone.freed_bytes}

        return await edge.call_with(request, PruneBody, work)


def _add_bringing(router: APIRouter, context: Context, images: Images) -> None:
    edge = context.edge

    @router.post(
        "/v1/images/pull",
        **operation(
            "pull_image",
            "Bring an image here from its registry",
            answer=PulledAnswer,
            content=_STREAM,
            errors=(422,),
            body=(PullBody, {"reference": "alpine:3.20"}),
        ),
    )
    async def pull(request: Request) -> Response:
        """With `Accept: text/event-stream`, an event for each step of each layer, and one for the end."""

        async def work(actor: Actor, body: PullBody) -> object:
            async def bring(progress: ImageProgress) -> ImageRecord:
                if body.force:
                    return await images.pull(actor, body.reference, progress=progress)
                return await images.ensure(actor, body.reference, progress=progress)

            return await _brought(context, actor, request, bring, contextlib.AsyncExitStack())

        return await edge.call_with(request, PullBody, work)

    @router.post(
        "/v1/images/import",
        **operation(
            "import_image",
            "Bring an image here from a file",
            answer=PulledAnswer,
            content=_STREAM,
            errors=(403, 422),
            upload=_TAR,
            parameters=(parameter("reference", "By which it is asked for from now on.", required=True),),
        ),
    )
    async def import_(request: Request) -> Response:
        """What `docker save` writes, or a tar of an OCI layout; for keys of the operator's account, and for everybody.
        (Not in the reference.)"""

        async def work(actor: Actor) -> object:
            body = Upload(request, edge.body_timeout_s, most=context.settings.max_transfer_bytes)
            async with contextlib.AsyncExitStack() as held:
                try:
                    _require_admin(actor)
                    reference = request.query_params.get("reference", "")
                    if not reference:
                        raise BadBody("reference is required")
                    path = await held.enter_async_context(spooled(body.parts(), _spool(context)))
                except StockadeError:
                    await body.discard()  # else a reset overtakes the answer
                    raise
                source = DockerArchive(path)
                held.push_async_callback(source.close)

                async def bring(progress: ImageProgress) -> ImageRecord:
                    try:
                        return await images.add(source, reference=reference, account_id="", progress=progress)
                    except Invalid as error:
                        raise BadArchive(str(error).replace(str(path), "the archive")) from None

                return await _brought(context, actor, request, bring, held.pop_all())

        return await edge.call(request, work)


async def _brought(
    context: Context, actor: Actor, request: Request, bring: Pull, held: contextlib.AsyncExitStack
) -> object:
    """The image once it is here, or how it comes, as events; *held* is let go of in the end."""
    async with held:
        held.enter_context(context.edge.streams.hold(actor))
        if _EVENTS not in request.headers.get("accept", ""):
            return image_pulled(await while_connected(request, bring(Silent())))
        return EventStream(request, _events(bring), held.pop_all())


async def _events(bring: Pull) -> AsyncGenerator[bytes, None]:
    try:
        async with contextlib.aclosing(watched(bring)) as steps:
            async for step in steps:
                if isinstance(step, LayerProgress):
                    yield frame(
                        "layer",
                        {
                            "digest": step.digest,
                            "size_bytes": step.size_bytes,
                            "fetched_bytes": step.fetched_bytes,
                            "state": step.state,
                        },
                    )
                else:
                    yield frame("image", image_pulled(step))
    except StockadeError as error:
        yield frame("error", from_error(error).body())
    except TimeoutError:
        yield frame("error", CRASHED.body())


def _add_single(router: APIRouter, context: Context, images: Images) -> None:
    edge = context.edge

    @router.get("/v1/images/{name}", **operation("get_image", "Read an image", answer=ImageAnswer, errors=(404,)))
    async def read(request: Request, name: str) -> Response:
        """By a reference, an alias or its digest, percent-encoded as one segment."""

        async def work(actor: Actor) -> object:
            return image_details(images.get(actor, name))

        return await edge.call(request, work)

    @router.delete(
        "/v1/images/{name}",
        **operation("remove_image", "Remove an image", status=204, text="It is gone.", errors=(403, 404, 409)),
    )
    async def remove(request: Request, name: str) -> Response:
        """One that a box stands on is a 409."""

        async def work(actor: Actor) -> None:
            await images.remove(actor, name)

        return await edge.call(request, work, status=204)


def _add_aliases(router: APIRouter, context: Context, images: Images) -> None:
    edge = context.edge

    @router.post(
        "/v1/images/{name}/aliases",
        **operation(
            "create_alias",
            "Give an image another name",
            answer=ImageAnswer,
            errors=(403, 404, 409),
            body=(AliasBody, {"alias": "base"}),
        ),
    )
    async def create(request: Request, name: str) -> Response:
        """For the account's own boxes."""

        async def work(actor: Actor, body: AliasBody) -> object:
            return image_details(await images.alias(actor, body.digest or name, body.alias))

        return await edge.call_with(request, AliasBody, work)

    @router.delete(
        "/v1/images/{name}/aliases/{alias}",
        **operation("remove_alias", "Take a name from an image", status=204, text="It is gone.", errors=(403, 404)),
    )
    async def remove(request: Request, name: str, alias: str) -> Response:
        """The image stays."""

        async def work(actor: Actor) -> None:
            images.get(actor, name)
            await images.unalias(actor, alias)

        return await edge.call(request, work, status=204)


def _spool(context: Context) -> Path | None:
    """Where uploads lie until they are an image."""
    archives = context.services.engine.archives
    return None if archives is None else archives.spool


def _require_admin(actor: Actor) -> None:
    if not actor.is_admin:
        raise Denied("only keys of the operator's account may do this")
