"""Routes of sessions. Each names what is done; `edge` does the rest."""

from typing import Any

from fastapi import APIRouter, Request, Response

from stockade.dialects.execbox.documented import BEARER, failing, query
from stockade.dialects.execbox.edge import Edge
from stockade.dialects.execbox.queries import Query
from stockade.dialects.execbox.service import Sessions
from stockade.dialects.execbox.translate import (
    STATUSES,
)
from stockade.dialects.execbox.wire import (
    CreateAnswer,
    CreateBody,
    ExtendBody,
    SessionAnswer,
    SessionsAnswer,
    StatsAnswer,
    StatusAnswer,
    UrlAnswer,
)
from stockade.model import Actor
from stockade.wire.clients import while_connected
from stockade.wire.openapi import request_body
from stockade.wire.routes import DirectRoute

__all__ = ["add_sessions", "query_of"]

_EXAMPLE = {
    "image": "host",
    "command": ["sh", "-c", "echo $GREETING; exit 3"],
    "env": {"GREETING": "hallo"},
    "resources": {"cpuMillis": 500, "memoryMB": 256, "timeoutMs": 20000},
}
_STRING = {"type": "string"}
_NUMBER = {"type": "integer"}


def query_of(request: Any) -> Query:
    """The query of a request or of a WebSocket connection."""
    return Query(request.query_params.multi_items())


def add_sessions(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    """Create, list, read, stop, kill; and what we added to it."""
    _add_collection(router, sessions, edge)
    _add_ends(router, sessions, edge)
    _add_details(router, sessions, edge)


def _add_collection(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    url_for = sessions.executor_api.url_for

    async def create(request: Request) -> Response:
        """Start a sandbox with one main process. It runs when this answers."""

        async def work(actor: Actor, body: CreateBody) -> object:
            return await while_connected(request, sessions.create(actor, body, executor_url=url_for(request)))

        return await edge.call_with(request, CreateBody, work, status=201)

    async def list_all(request: Request) -> Response:
        """All sessions that were created with this key, newest first, ended ones too."""
        return await edge.call(
            request, lambda actor: sessions.list(actor, query_of(request), executor_url=url_for(request))
        )

    # Without the framework's layers, which cost more than these handlers do.
    router.routes.append(
        DirectRoute(
            "/v1/sessions",
            create,
            methods=["POST"],
            operation_id="createSession",
            summary="Create a session",
            status_code=201,
            response_class=Response,
            responses={201: {"model": CreateAnswer}, **failing(400, 408, 409, 413, 501)},
            openapi_extra=request_body(CreateBody, _EXAMPLE),
            dependencies=BEARER,
            tags=["execbox"],
        )
    )
    router.routes.append(
        DirectRoute(
            "/v1/sessions",
            list_all,
            methods=["GET"],
            operation_id="listSessions",
            summary="List sessions",
            response_class=Response,
            responses={200: {"model": SessionsAnswer}, **failing(400)},
            openapi_extra=query(
                ("status", "Only those in this state.", {"type": "string", "enum": list(STATUSES)}),
                ("limit", "Look at so many at most, and say where the next page begins.", _NUMBER),
                ("cursor", "Where the page begins.", _STRING),
            ),
            dependencies=BEARER,
            tags=["execbox"],
        )
    )


def _add_ends(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    @router.post(
        "/v1/sessions/{session_id}/stop",
        operation_id="stopSession",
        summary="Stop a session",
        response_class=Response,
        responses={200: {"model": StatusAnswer}, **failing(404, 409)},
        dependencies=BEARER,
    )
    async def stop(request: Request, session_id: str) -> Response:
        """SIGTERM to the main process, SIGKILL to everything when the grace is over. Answers when it has ended."""
        return await edge.call(request, lambda actor: sessions.stop(actor, session_id))

    @router.delete(
        "/v1/sessions/{session_id}",
        operation_id="killSession",
        summary="Kill a session",
        response_class=Response,
        responses={200: {"model": StatusAnswer}, **failing(404)},
        dependencies=BEARER,
    )
    async def kill(request: Request, session_id: str) -> Response:
        """SIGKILL to everything. Of a session that has ended, drops the output that is kept."""
        return await edge.call(request, lambda actor: sessions.kill(actor, session_id))

    @router.post(
        "/v1/sessions/{session_id}/extend",
        operation_id="extendSession",
        summary="Set the life that is left",
        response_class=Response,
        responses={200: {"model": SessionAnswer}, **failing(400, 404, 408, 409, 413)},
        openapi_extra=request_body(ExtendBody, {"timeoutMs": 60000}),
        dependencies=BEARER,
    )
    async def extend(request: Request, session_id: str) -> Response:
        """From now on, it lives for `timeoutMs`. (Not in the reference.)"""

        async def work(actor: Actor, body: ExtendBody) -> object:
            url = sessions.executor_api.url_for(request)
            return await sessions.extend(actor, session_id, body, executor_url=url)

        return await edge.call_with(request, ExtendBody, work)


def _add_details(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    @router.get(
        "/v1/sessions/{session_id}",
        operation_id="getSession",
        summary="Read a session",
        response_class=Response,
        responses={200: {"model": SessionAnswer}, **failing(404)},
        dependencies=BEARER,
    )
    async def read(request: Request, session_id: str) -> Response:
        """The session as it is now."""
        url = sessions.executor_api.url_for(request)
        return await edge.call(request, lambda actor: sessions.read(actor, session_id, executor_url=url))

    @router.get(
        "/v1/sessions/{session_id}/url",
        operation_id="getSessionUrl",
        summary="Where an exposed port is reached",
        response_class=Response,
        responses={200: {"model": UrlAnswer}, **failing(400, 404, 409)},
        openapi_extra=query(("port", "Port inside.", _NUMBER), required="port"),
        dependencies=BEARER,
    )
    async def url(request: Request, session_id: str) -> Response:
        """It stays the same for the life of the session."""
        return await edge.call(request, lambda actor: sessions.url(actor, session_id, query_of(request)))

    @router.get(
        "/v1/sessions/{session_id}/stats",
        operation_id="getSessionStats",
        summary="What a session has used",
        response_class=Response,
        responses={200: {"model": StatsAnswer}, **failing(404)},
        dependencies=BEARER,
    )
    async def stats(request: Request, session_id: str) -> Response:
        """From the kernel's own counters. (Not in the reference.)"""
        return await edge.call(request, lambda actor: sessions.stats(actor, session_id))
