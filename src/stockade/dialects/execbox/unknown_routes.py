"""Paths and methods below ours that the protocol does not have, and the description as YAML."""

import yaml  # type: ignore[import-untyped]  # it ships no types
from fastapi import APIRouter, Request, Response
from starlette.websockets import WebSocket

from stockade.dialects.execbox.edge import Edge, json_response
from stockade.dialects.execbox.failures import from_error
from stockade.errors import NotFound, Unsupported
from stockade.model import Actor

__all__ = ["PATHS", "add_unknown", "unsupported_router"]

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
PATHS = ("/v1/sessions", "/v1/account", "/v1/waitlist", "/v1/quota-requests")
"""Everything of ours lies below these."""


def unsupported_router() -> APIRouter:
    """Answers everything below our paths with 501."""
    router = APIRouter(tags=["execbox"])
    failure = from_error(Unsupported("this server has no sandboxes that stay: its backend, or a database, is missing"))

    async def unsupported(_request: Request) -> Response:
        return json_response(failure.body(), failure.status)

    for path in PATHS:
        for one in (path, f"{path}/{{rest:path}}"):
            router.add_api_route(one, unsupported, methods=_METHODS, include_in_schema=False)
    return router


def add_unknown(router: APIRouter, edge: Edge) -> None:
    """To be called last: earlier routes win."""

    async def unknown(request: Request) -> Response:
        return await edge.refuse(request, NotFound(f"there is no {request.method} {request.url.path[:200]}"))

    async def unknown_socket(socket: WebSocket) -> None:
        async def refuse(_actor: Actor) -> None:
            raise NotFound(f"there is no WebSocket at {socket.url.path[:200]}")

        await edge.stream(socket, refuse)

    async def description(request: Request) -> Response:
        text = yaml.safe_dump(request.app.openapi(), sort_keys=False, allow_unicode=True)
        return Response(text, media_type="application/yaml")

    router.add_api_route("/openapi.yaml", description, methods=["GET"], include_in_schema=False)
    for path in PATHS:
        for one in (path, f"{path}/{{rest:path}}"):
            router.add_api_route(one, unknown, methods=_METHODS, include_in_schema=False)
            router.add_websocket_route(one, unknown_socket)
