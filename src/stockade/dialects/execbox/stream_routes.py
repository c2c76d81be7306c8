"""Routes of streams: attach and exec over WebSocket, logs over plain HTTP."""

from fastapi import APIRouter, Request, Response
from starlette.websockets import WebSocket

from stockade.dialects.execbox.documented import BEARER, MESSAGES, failing, query, upgrading
from stockade.dialects.execbox.edge import Edge
from stockade.dialects.execbox.logs import to_logs
from stockade.dialects.execbox.service import Sessions
from stockade.dialects.execbox.session_routes import query_of
from stockade.errors import Invalid
from stockade.model import Actor

__all__ = ["add_streams"]

_STRING = {"type": "string"}
_STRINGS = {"type": "array", "items": _STRING}
_NUMBER = {"type": "integer", "minimum": 0}
_USER = {"type": "string", "enum": ["user", "root"]}
_FLAG = {"type": "boolean"}
_COMMAND = (
    "Repeated: argv in order. Once, without white space: the program. Once, with white space: a command for "
    "`/bin/sh -c`."
)
_PROTOCOL = ("protocol", "Only `binary`.", {"type": "string", "enum": ["binary"]})


def add_streams(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    """attach, exec, logs."""
    _add_upgrades(router, sessions, edge)
    _add_plain(router, edge)
    _add_logs(router, sessions, edge)


def _add_upgrades(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    async def attach(socket: WebSocket) -> None:
        async def work(actor: Actor) -> None:
            await sessions.attach(actor, socket.path_params["session_id"], query_of(socket), socket)

        await edge.stream(socket, work)

    async def execute(socket: WebSocket) -> None:
        async def work(actor: Actor) -> None:
            await sessions.exec(actor, socket.path_params["session_id"], query_of(socket), socket)

        await edge.stream(socket, work)

    router.add_websocket_route("/v1/sessions/{session_id}/attach", attach)
    router.add_websocket_route("/v1/sessions/{session_id}/exec", execute)


def _add_plain(router: APIRouter, edge: Edge) -> None:
    """The same paths without an upgrade: refused, and described."""

    async def refused(_actor: Actor) -> object:
        raise Invalid("this is a WebSocket: the request must ask for an upgrade")

    @router.get(
        "/v1/sessions/{session_id}/attach",
        operation_id="attachSession",
        summary="Connect to the main process (WebSocket)",
        description="Standard input, output and error of the main process, from its very first byte. Any number of "
        "clients may be attached; each gets everything. Also after the process has ended by itself, as long as its "
        "output is kept." + MESSAGES,
        status_code=101,
        response_class=Response,
        responses=upgrading(),
        openapi_extra=query(
            _PROTOCOL,
            ("stdoutOffset", "Bytes of standard output that the client has already. (Not in the reference.)", _NUMBER),
            ("stderrOffset", "The same of standard error. (Not in the reference.)", _NUMBER),
        ),
        dependencies=BEARER,
    )
    async def attach(request: Request, session_id: str) -> Response:
        return await edge.call(request, refused)

    @router.get(
        "/v1/sessions/{session_id}/exec",
        operation_id="execSession",
        summary="Start another process and connect to it (WebSocket)",
        description="The process is killed when the connection ends." + MESSAGES,
        status_code=101,
        response_class=Response,
        responses=upgrading(),
        openapi_extra=query(
            ("cmd", _COMMAND, _STRINGS),
            ("workdir", "Working directory; the session's own if not set.", _STRING),
            ("env", "`NAME=VALUE`, repeated; over the session's own.", _STRINGS),
            _PROTOCOL,
            ("tty", "Give it a terminal. (Not in the reference.)", _FLAG),
            ("rows", "Size of the terminal; message `07`, rows, columns changes it.", _NUMBER),
            ("cols", "Size of the terminal.", _NUMBER),
            ("user", "`root` is that of the sandbox. (Not in the reference.)", _USER),
            required="cmd",
        ),
        dependencies=BEARER,
    )
    async def execute(request: Request, session_id: str) -> Response:
        return await edge.call(request, refused)


def _add_logs(router: APIRouter, sessions: Sessions, edge: Edge) -> None:
    @router.get(
        "/v1/sessions/{session_id}/logs",
        operation_id="getSessionLogs",
        summary="Output of the main process",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": _STRING}, "application/x-ndjson": {"schema": _STRING}}},
            **failing(400, 404, 409),
        },
        openapi_extra=query(
            ("stream", "`both` if not set.", {"type": "string", "enum": ["both", "stdout", "stderr"]}),
            ("tail", "Only so many bytes at the end of each stream.", _NUMBER),
            ("follow", "Go on until the process ends.", _FLAG),
            (
                "format",
                "`text`, or `ndjson`: a line for each piece, with `stream`, `offset` and `text`.",
                {"type": "string", "enum": ["text", "ndjson"]},
            ),
        ),
        dependencies=BEARER,
    )
    async def logs(request: Request, session_id: str) -> Response:
        """What is kept of it. (Not in the reference.)"""

        async def work(actor: Actor) -> object:
            choice = to_logs(query_of(request))
            return choice.response(await sessions.open_output(actor, session_id))

        return await edge.call(request, work)
