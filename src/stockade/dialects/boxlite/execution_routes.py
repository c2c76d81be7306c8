"""Routes of executions: start, follow, write to, ask about, signal, resize, drop; and the WebSockets."""

from fastapi import APIRouter, Request, Response
from starlette.websockets import WebSocket

from stockade.dialects.boxlite.documented import BOOLEAN, STRING, operation, parameter
from stockade.dialects.boxlite.edge import json_response
from stockade.dialects.boxlite.execution_wire import ExecBody, ExecutionAnswer, ResizeBody, SignalBody, StartedAnswer
from stockade.dialects.boxlite.executions import BoxExecutions
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter, add_socket, sent_path
from stockade.errors import Invalid, StockadeError
from stockade.model import Actor
from stockade.wire.bodies import Upload

__all__ = ["execution_routes"]

_EXECUTIONS = "/v1/boxes/{box_id}/executions"
_EXECUTION = "/v1/boxes/{box_id}/executions/{execution_id}"
_BYTES = "application/octet-stream"
_READ_ONLY = parameter("stdin", "`0`: the connection only reads.", {"type": "integer"})
_MESSAGES = (
    "Binary messages from the server: a byte, 1 for standard output or 2 for standard error, and what was printed. "
    'Text: `{"type":"exit","exit_code":N}` at the end, `{"type":"error","message":…}` before. Binary messages from the '
    'client are standard input; text: `{"type":"stdin_eof"}`, `{"type":"resize","cols":C,"rows":R}`, '
    '`{"type":"signal","sig":N}`. One client at a time may be attached; who comes again goes on where the last one was.'
)


def execution_routes(context: Context) -> APIRouter:
    """The routes, over *context*."""
    router = ScopedRouter()
    executions = BoxExecutions(context)
    _add_start(router, context, executions)
    _add_questions(router, context, executions)
    _add_streams(router, context, executions)
    _add_controls(router, context, executions)
    _add_sockets(router, context, executions)
    return router


def _add_start(router: APIRouter, context: Context, executions: BoxExecutions) -> None:
    @router.post(
        "/v1/boxes/{box_id}/exec",
        **operation(
            "start_execution",
            "Start a process in a box",
            status=201,
            answer=StartedAnswer,
            errors=(404, 409),
            body=(ExecBody, {"command": "echo", "args": ["hello"]}),
        ),
    )
    async def start(request: Request, box_id: str) -> Response:
        """A box that does not run is started for it. What it prints is read by `…/output` or `…/attach`, also later,
        and after its end. A program that cannot be started is an execution that ends with 127 or 126 and says why on
        standard error.
        """

        async def work(actor: Actor, body: ExecBody) -> object:
            found = await executions.start(actor, box_id, body)
            path = f"{sent_path(request.scope).removesuffix('/exec')}/executions/{found}"
            return json_response({"execution_id": found}, 201, {"Location": path})

        return await context.edge.call_with(request, ExecBody, work)


def _add_questions(router: APIRouter, context: Context, executions: BoxExecutions) -> None:
    @router.get(
        _EXECUTIONS,
        **operation(
            "list_executions",
            "List executions",
            content={"application/json": {"schema": {"type": "array", "items": ExecutionAnswer.model_json_schema()}}},
            text="Those since the box's last start.",
            errors=(404,),
        ),
    )
    async def list_all(request: Request, box_id: str) -> Response:
        """In the order in which they were started; `main` is the box's main command."""

        async def work(actor: Actor) -> object:
            return await executions.list(actor, box_id)

        return await context.edge.call(request, work)

    @router.get(_EXECUTION, **operation("get_execution", "Read an execution", answer=ExecutionAnswer, errors=(404,)))
    async def read(request: Request, box_id: str, execution_id: str) -> Response:
        """As it is now."""

        async def work(actor: Actor) -> object:
            return await executions.status(actor, box_id, execution_id)

        return await context.edge.call(request, work)


def _add_streams(router: APIRouter, context: Context, executions: BoxExecutions) -> None:
    @router.get(
        f"{_EXECUTION}/output",
        **operation(
            "follow_execution",
            "Follow what an execution prints",
            text="Server-sent events.",
            content={"text/event-stream": {"schema": STRING}},
            errors=(404,),
        ),
    )
    async def output(request: Request, box_id: str, execution_id: str) -> Response:
        """From its beginning, as far as it is kept. Events: `stdout` and `stderr` with `data`, base64 of whole UTF-8
        characters, where what is none of them is U+FFFD; at last `exit` with `exit_code`, `duration_ms` and, where
        there is more to say, `error`. Any number of clients may read it, and each gets everything.
        """

        async def work(actor: Actor) -> object:
            return await executions.output(request, actor, box_id, execution_id)

        return await context.edge.call(request, work)

    described = operation(
        "write_execution", "Write to standard input", status=204, text="Written.", errors=(404, 409), upload=_BYTES
    )
    described["openapi_extra"]["requestBody"]["required"] = False
    described["openapi_extra"]["parameters"] = [
        {
            "name": "X-Close-Stdin",
            "in": "header",
            "description": "`true`: the input ends behind the body, which may be empty.",
            "schema": BOOLEAN,
        }
    ]

    @router.post(f"{_EXECUTION}/input", **described)
    async def write(request: Request, box_id: str, execution_id: str) -> Response:
        """In the order in which requests come. To end the input of what has ended already is no error."""

        async def work(actor: Actor) -> None:
            body = Upload(request, context.edge.body_timeout_s)
            close = request.headers.get("x-close-stdin", "").strip().lower() in ("true", "1")
            try:
                await executions.write(actor, box_id, execution_id, body, close=close)
            except StockadeError:
                await body.discard()  # else a reset overtakes the answer
                raise

        return await context.edge.call(request, work, status=204)


def _add_controls(router: APIRouter, context: Context, executions: BoxExecutions) -> None:
    @router.post(
        f"{_EXECUTION}/signal",
        **operation("signal_execution", "Send a signal", status=204, errors=(404,), body=(SignalBody, {"signal": 15})),
    )
    async def send(request: Request, box_id: str, execution_id: str) -> Response:
        """To the process and its process group; 9 to all that it has started. Nothing happens where it has ended."""

        async def work(actor: Actor, body: SignalBody) -> None:
            await executions.signal(actor, box_id, execution_id, body.signal)

        return await context.edge.call_with(request, SignalBody, work, status=204)

    @router.post(
        f"{_EXECUTION}/resize",
        **operation(
            "resize_execution",
            "Set the size of a terminal",
            status=204,
            errors=(404,),
            body=(ResizeBody, {"cols": 80, "rows": 24}),
        ),
    )
    async def resize(request: Request, box_id: str, execution_id: str) -> Response:
        """Nothing happens where there is none."""

        async def work(actor: Actor, body: ResizeBody) -> None:
            await executions.resize(actor, box_id, execution_id, body)

        return await context.edge.call_with(request, ResizeBody, work, status=204)

    @router.delete(
        _EXECUTION,
        **operation("drop_execution", "Kill an execution and forget it", status=204, text="It is gone.", errors=(404,)),
    )
    async def drop(request: Request, box_id: str, execution_id: str) -> Response:
        """With all that it has started. Who is attached to it still gets the rest of its output, and its end."""

        async def work(actor: Actor) -> None:
            await executions.drop(actor, box_id, execution_id)

        return await context.edge.call(request, work, status=204)


def _add_sockets(router: APIRouter, context: Context, executions: BoxExecutions) -> None:
    async def attach(socket: WebSocket) -> None:
        async def work(actor: Actor) -> None:
            asked = socket.path_params
            await executions.attach(actor, asked["box_id"], asked["execution_id"], socket)

        await context.edge.stream(socket, work)

    async def attach_main(socket: WebSocket) -> None:
        async def work(actor: Actor) -> None:
            await executions.attach_main(actor, socket.path_params["box_id"], socket)

        await context.edge.stream(socket, work)

    add_socket(router, f"{_EXECUTION}/attach", attach)
    add_socket(router, "/v1/boxes/{box_id}/attach", attach_main)
    _add_plain(router, context)


def _add_plain(router: APIRouter, context: Context) -> None:
    """The same paths without an upgrade: refused, and described."""
    refusal = Invalid("this is a WebSocket: the request must ask for an upgrade")

    @router.get(
        f"{_EXECUTION}/attach",
        **operation(
            "attach_execution",
            "Connect to an execution (WebSocket)",
            status=101,
            text=_MESSAGES,
            errors=(400, 404, 409),
            parameters=(_READ_ONLY,),
        ),
    )
    async def attach(request: Request, box_id: str, execution_id: str) -> Response:
        """Its output, from the beginning or from where the last one to attach was, and its input."""
        return await context.edge.refuse(request, refusal)

    @router.get(
        "/v1/boxes/{box_id}/attach",
        **operation(
            "attach_box",
            "Connect to a box's main command (WebSocket)",
            status=101,
            text=_MESSAGES,
            errors=(400, 404, 409),
            parameters=(_READ_ONLY,),
        ),
    )
    async def attach_main(request: Request, box_id: str) -> Response:
        """A box that does not run is started. `x-boxlite-execution-id` of the answer names the execution."""
        return await context.edge.refuse(request, refusal)
