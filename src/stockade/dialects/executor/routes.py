"""The paths, each with and without the prefix under which Koyeb's edge shows them.

Every method has a route, so that who has no secret learns nothing by trying methods; only the right one is described,
with the prefix.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request, Response

from stockade.dialects.executor.documented import documented
from stockade.dialects.executor.edge import Edge
from stockade.dialects.executor.operation import Operation
from stockade.dialects.executor.replies import json_reply, text_reply
from stockade.wire.routes import DirectRoute

__all__ = ["PREFIX", "make_router", "unsupported_router"]

PREFIX = "/koyeb-sandbox"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


def make_router(edge: Edge, operations: Mapping[str, Operation], health: Callable[[], dict[str, object]]) -> APIRouter:
    """The routes of *operations*, which go by path."""
    router = APIRouter(tags=["executor"], route_class=DirectRoute)
    for path, operation in operations.items():
        handler = _handler(edge, path, operation)
        others = sorted(_METHODS - {operation.method})
        router.add_api_route(PREFIX + path, handler, methods=[operation.method], **documented(path, operation))
        router.add_api_route(PREFIX + path, handler, methods=others, include_in_schema=False)
        router.add_api_route(path, handler, methods=sorted(_METHODS), include_in_schema=False)

    async def answer_health(request: Request) -> Response:
        """Whether the server works; needs no secret."""
        if request.method not in ("GET", "HEAD"):
            return text_reply("Method not allowed", 405, {"allow": "GET, HEAD"})
        return json_reply(health())

    path = f"{PREFIX}/health"
    router.add_api_route(path, answer_health, methods=["GET"], operation_id="executor_health", response_class=Response)
    router.add_api_route(path, answer_health, methods=sorted(_METHODS - {"GET"}), include_in_schema=False)
    return router


def unsupported_router() -> APIRouter:
    """Answers everything below the prefix with 501."""
    router = APIRouter(tags=["executor"])

    async def unsupported(_request: Request) -> Response:
        words = "This server has no sandboxes that stay: its backend, or a database, is missing"
        return text_reply(words, 501)

    router.add_api_route(f"{PREFIX}/{{rest:path}}", unsupported, methods=sorted(_METHODS), include_in_schema=False)
    return router


def _handler(edge: Edge, path: str, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def handler(request: Request) -> Response:
        return await edge.answer(request, path, operation)

    return handler
