"""Where things lie: `/v1/{slot}/<resource>…`, with a slot of any number of segments, or none.

What precedes the first segment that names a resource is the slot, and of no meaning here. Segments are decoded after
the path has been split: the name of a snapshot may hold a `/`. The framework decodes first, so its own patterns cannot
be used.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, unquote

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import Match
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

__all__ = ["ROOTS", "ScopedRoute", "ScopedRouter", "add_socket", "is_ours", "resource_path", "sent_path"]

RESOURCES = frozenset({"boxes", "images", "metrics", "volumes"})
ROOTS = frozenset({"/v1/config", "/v1/me", "/v1/oauth/tokens"})
"""Paths without a slot."""
_OTHERS = frozenset({"account", "auth", "execute", "jobs", "quota-requests", "sessions", "waitlist"})
"""No slot begins with one of these: below them lie other protocols of the server, whose ids may read like ours."""
_FOUND = "stockade.boxlite.path"
_CHOSEN = "stockade.boxlite.route"


def resource_path(scope: Scope) -> tuple[str, ...] | None:
    """The segments of a request's path from the resource on, decoded; `None` where it names none of ours."""
    if _FOUND not in scope:
        found = _below_slot(sent_path(scope))
        scope[_FOUND] = None if found is None else tuple(unquote(one) for one in found)
    segments: tuple[str, ...] | None = scope[_FOUND]
    return segments


def sent_path(scope: Scope) -> str:
    """A request's path as it was sent, still encoded: a header can hold it, whatever the slot is called."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    return raw.decode("ascii", errors="replace")


def is_ours(path: str) -> bool:
    """Whether the dialect answers at *path*."""
    return path in ROOTS or _below_slot(path) is not None


def _below_slot(path: str) -> list[str] | None:
    if not path.startswith("/v1/"):
        return None
    segments = path.split("/")[2:]
    if segments[0] in _OTHERS:
        return None
    at = next((at for at, one in enumerate(segments) if one in RESOURCES), None)
    return None if at is None else segments[at:]


class ScopedRoute(APIRoute):
    """A route below any slot; its path is the one without.

    Its handler is given the request and the path's parameters, decoded, and makes a `Response` of every error of its
    own: it is called without the framework's layers. A request with another method is none of the route's.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.pattern = tuple(path.split("/")[2:])

    def parameters(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        """Those of a path of as many segments as the route's; `None` where it is not the route's."""
        found: dict[str, str] = {}
        for wanted, segment in zip(self.pattern, segments, strict=True):
            if wanted.startswith("{"):
                found[wanted[1:-1]] = segment
            elif wanted != segment:
                return None
        return found

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        segments = resource_path(scope) if scope["type"] == "http" else None
        if segments is None or len(segments) != len(self.pattern) or scope["method"] not in (self.methods or ()):
            return Match.NONE, {}
        parameters = self.parameters(segments)
        if parameters is None:
            return Match.NONE, {}
        return Match.FULL, {"endpoint": self.endpoint, "path_params": parameters, "route": self}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.endpoint(Request(scope, receive), **scope["path_params"])
        await response(scope, receive, send)


class ScopedRouter(APIRouter):
    """Routes of the dialect. A request for anything else passes by with one look, and one for a route that was added
    by `add` goes there by two.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=ScopedRoute, **options)
        self._known: dict[tuple[str, int], list[ScopedRoute]] = {}
        """By method and number of segments."""

    def add(self, router: APIRouter) -> None:
        """Have the routes of *router*, after those that are there."""
        self.include_router(router)
        for route in router.routes:
            if isinstance(route, ScopedRoute):
                for method in route.methods or ():
                    self._known.setdefault((method, len(route.pattern)), []).append(route)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not is_ours(scope["path"]):
            return Match.NONE, {}
        if scope["type"] == "http" and (segments := resource_path(scope)) is not None:
            for route in self._known.get((scope["method"], len(segments)), ()):
                parameters = route.parameters(segments)
                if parameters is not None:
                    scope[_CHOSEN] = route, parameters
                    return Match.FULL, {}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _CHOSEN not in scope:
            await super().handle(scope, receive, send)
            return
        scope["route"], scope["path_params"] = scope[_CHOSEN]
        await scope["route"].handle(scope, receive, send)


def add_socket(router: APIRouter, path: str, handler: Callable[[WebSocket], Awaitable[None]]) -> None:
    """Serve WebSocket connections to *path* (which begins with `/v1`) and to the same below a slot."""
    router.add_websocket_route(path, handler)
    router.add_websocket_route(path.replace("/v1", "/v1/{slot:path}", 1), handler)
