"""What the protocol does not have below its paths, or this server does not: refused in the protocol's words."""

from fastapi import APIRouter, Request, Response
from starlette.websockets import WebSocket

from stockade.dialects.boxlite.edge import Edge
from stockade.dialects.boxlite.slots import RESOURCES
from stockade.errors import NotFound, StockadeError
from stockade.model import Actor

__all__ = ["refusing_router"]

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def refusing_router(
    edge: Edge, error: StockadeError | None = None, *, resources: frozenset[str] = RESOURCES
) -> APIRouter:
    """Refuses all below *resources*: with *error*, or by what was asked for. To be added last."""
    router = APIRouter()

    async def refuse(request: Request) -> Response:
        return await edge.refuse(request, error or NotFound(f"there is no {request.method} {request.url.path[:200]}"))

    async def refuse_socket(socket: WebSocket) -> None:
        async def work(_actor: Actor) -> None:
            raise error or NotFound(f"there is no WebSocket at {socket.url.path[:200]}")

        await edge.stream(socket, work)

    for one in sorted(resources):
        for path in (f"/v1/{one}", f"/v1/{one}/{{rest:path}}", f"/v1/{{slot:path}}/{one}"):
            router.add_api_route(path, refuse, methods=_METHODS, include_in_schema=False)
        path = f"/v1/{{slot:path}}/{one}/{{rest:path}}"
        router.add_api_route(path, refuse, methods=_METHODS, include_in_schema=False)
        router.add_websocket_route(f"/v1/{one}/{{rest:path}}", refuse_socket)
        router.add_websocket_route(path, refuse_socket)
    return router
