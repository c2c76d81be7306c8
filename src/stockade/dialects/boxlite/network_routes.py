"""Routes of a box's network: tunnels to its ports, and what it may connect to."""

from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from stockade.dialects.boxlite.documented import INTEGER, operation, parameter
from stockade.dialects.boxlite.queries import number
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter
from stockade.dialects.boxlite.translate import with_inbound, with_outbound
from stockade.dialects.boxlite.tunnels import Tunnels
from stockade.dialects.boxlite.wire import BadBody, InboundBody, OutboundBody, TunnelAnswer
from stockade.model import Actor

__all__ = ["network_routes"]

_PORT = parameter("port", "Port inside the box.", {**INTEGER, "minimum": 1, "maximum": 65535}, required=True)
_ANY = ("", "0.0.0.0", "::")


def network_routes(context: Context, tunnels: Tunnels) -> APIRouter:
    """The routes, over *context*."""
    router = ScopedRouter()
    _add_tunnels(router, context, tunnels)
    _add_policies(router, context, tunnels)
    return router


def _add_tunnels(router: APIRouter, context: Context, tunnels: Tunnels) -> None:
    edge, boxes = context.edge, context.boxes

    @router.post(
        "/v1/boxes/{box_id}/network/tunnel",
        **operation(
            "open_tunnel",
            "Open a way to a port",
            answer=TunnelAnswer,
            errors=(400, 404, 409),
            parameters=(_PORT,),
        ),
    )
    async def open_(request: Request, box_id: str) -> Response:
        """An address that leads to the port, by `CONNECT` or as it is, until it is revoked or the box stops."""

        async def work(actor: Actor) -> object:
            port = _port(request)
            found = await boxes.get(actor, box_id)
            sandbox = await boxes.sandbox(actor, found)
            outside = await tunnels.open(actor, found, sandbox, port)
            return {"uri": f"http://{_host(context, request)}:{outside}"}

        return await edge.call(request, work)

    @router.delete(
        "/v1/boxes/{box_id}/network/tunnel",
        **operation(
            "revoke_tunnel",
            "Close the way to a port",
            status=204,
            text="Nobody comes in by it any more; who is in stays.",
            errors=(400, 404),
            parameters=(_PORT,),
        ),
    )
    async def revoke(request: Request, box_id: str) -> Response:
        """Succeeds also where there is none."""

        async def work(actor: Actor) -> None:
            port = _port(request)
            tunnels.revoke((await boxes.get(actor, box_id)).id, port)

        return await edge.call(request, work, status=204)


def _port(request: Request) -> int:
    port = number(request, "port", least=1, most=65535)
    if port is None:
        raise BadBody("port is required")
    return port


def _host(context: Context, request: Request) -> str:
    """Where clients reach this server, as a part of a URL: as they did just now, unless the operator says otherwise."""
    named = context.settings.tunnel_host
    if named not in _ANY:
        return f"[{named}]" if ":" in named else named
    asked = urlsplit(f"//{request.headers.get('host', '')}").hostname or "127.0.0.1"
    return f"[{asked}]" if ":" in asked else asked


def _add_policies(router: APIRouter, context: Context, tunnels: Tunnels) -> None:
    edge, boxes = context.edge, context.boxes

    @router.put(
        "/v1/boxes/{box_id}/network/outbound",
        **operation(
            "update_outbound",
            "Say where a box may connect",
            status=204,
            text="It counts for connections that are made from now on.",
            errors=(404, 409),
            body=(OutboundBody, {"mode": "enabled", "allow_net": ["api.example.com"]}),
        ),
    )
    async def outbound(request: Request, box_id: str) -> Response:
        """In place of what was said before, the whole list included."""

        async def work(actor: Actor, body: OutboundBody) -> None:
            found = await boxes.get(actor, box_id)
            await boxes.update_network(actor, found, with_outbound(found.network, body))

        return await edge.call_with(request, OutboundBody, work, status=204)

    @router.put(
        "/v1/boxes/{box_id}/network/inbound",
        **operation(
            "update_inbound",
            "Say whether a box can be reached",
            status=204,
            text="It can, or cannot: its tunnels are closed then.",
            errors=(404, 409),
            body=(InboundBody, {"mode": "enabled"}),
        ),
    )
    async def inbound(request: Request, box_id: str) -> Response:
        """By tunnels, that is."""

        async def work(actor: Actor, body: InboundBody) -> None:
            found = await boxes.get(actor, box_id)
            is_enabled = body.mode == "enabled"
            await boxes.update_network(actor, found, with_inbound(found.network, is_enabled=is_enabled))
            if not is_enabled:
                tunnels.close_box(found.id)

        return await edge.call_with(request, InboundBody, work, status=204)
