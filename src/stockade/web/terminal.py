"""A terminal in the page: one WebSocket and one process of a sandbox.

Binary messages are the terminal's bytes, both ways; text messages are JSON: `{"resize": {"cols", "rows"}}` from the
page, `{"exit": {"code"}}` or `{"error"}` to it. Both directions wait for whoever is slower, so that a connection holds
a few hundred KiB, whatever is printed or sent.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from stockade.backends.sandboxing import Output, Streams, in_order
from stockade.errors import Fault, Invalid, StockadeError
from stockade.model import Actor, ExecSpec, TerminalSize
from stockade.web.edge import Caller, Edge
from stockade.web.failures import FieldInvalid
from stockade.web.job_routes import to_number
from stockade.web.sandboxes import AccountSandboxes
from stockade.web.wire import ResizeBody, checked
from stockade.wire.bodies import parse_object

__all__ = ["add_terminal"]

log = structlog.get_logger()

CHUNK_BYTES = 64 * 1024
CHECK_S = 10.0
"""How often is looked whether the log-in still is one."""
_END = 1000
_LOST = 1011
_LOGGED_OUT = 4401
_SHELL = ("/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l")


@dataclass(kw_only=True)
class Terminal:
    """Joins a connection and a process. Serves once."""

    socket: WebSocket
    """Accepted already."""
    streams: Streams
    is_still_in: Callable[[], Awaitable[bool]]
    """Whether who opened it is logged in yet."""
    _is_over: bool = field(default=False, init=False)
    """The close frame is sent, or is about to be: nothing may follow it."""

    async def serve(self) -> None:
        """Returns when the process has ended and all is sent, or the page or its log-in has gone."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in (self._take_input(), self._send_output(), self._watch_log_in())]

            def end(_: object) -> None:
                for task in tasks:
                    task.cancel()

            for task in tasks:
                task.add_done_callback(end)

    async def _send_output(self) -> None:
        stdout_at = stderr_at = 0
        try:
            while True:
                output = await self.streams.read(stdout_at, stderr_at, most=CHUNK_BYTES)
                await self._send(output)
                stdout_at, stderr_at = output.stdout.end, output.stderr.end
                if output.end is not None:
                    await self._tell({"exit": {"code": output.end.exit_code}})
                    await self._close(_END)
                    return
        except (WebSocketDisconnect, OSError):
            return  # the page has gone
        except StockadeError as error:
            log.warning("portal.terminal_failed", code=error.code, reason=str(error))
            with suppress(WebSocketDisconnect, OSError):
                text = "something went wrong on the server" if isinstance(error, Fault) else str(error)
                await self._tell({"error": text})
                await self._close(_LOST)

    async def _send(self, output: Output) -> None:
        if self._is_over:
            return
        if dropped := output.stdout.dropped + output.stderr.dropped:
            await self._tell({"error": f"{dropped} bytes are lost: more was printed than is kept"})
        for _, data in in_order(output):
            await self.socket.send_bytes(data)

    async def _take_input(self) -> None:
        """Returns when the page has gone."""
        is_read = True
        try:
            while True:
                message = await self.socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                data = message.get("bytes")
                if data is None:
                    await self._act(message.get("text") or "")
                elif is_read and data:
                    is_read = await self.streams.write(bytes(data))
        except (WebSocketDisconnect, OSError):
            return
        except StockadeError as error:
            # What becomes of the process is told with its output; here is only to wait for the end.
            log.info("portal.terminal_input_failed", code=error.code)
            with suppress(WebSocketDisconnect, OSError):
                while (await self.socket.receive())["type"] != "websocket.disconnect":
                    pass

    async def _act(self, text: str) -> None:
        try:
            asked = parse_object(text.encode(errors="replace")).get("resize")
            if not isinstance(asked, dict):
                raise FieldInvalid("resize", "a text message must be {resize: {cols, rows}}")
            size = checked(ResizeBody, asked)
        except Invalid as error:
            if not self._is_over:
                await self._tell({"error": str(error)})
            return
        # A main process may have no terminal. That the backend is lost is told with the output.
        with suppress(StockadeError):
            await self.streams.resize(TerminalSize(rows=size.rows, columns=size.cols))

    async def _watch_log_in(self) -> None:
        while await self.is_still_in():  # noqa: ASYNC110 -- other servers end log-ins, too
            await asyncio.sleep(CHECK_S)
        with suppress(WebSocketDisconnect, OSError):
            await self._tell({"error": "your log-in has ended"})
            await self._close(_LOGGED_OUT)

    async def _tell(self, message: dict[str, Any]) -> None:
        await self.socket.send_text(json.dumps(message))

    async def _close(self, code: int) -> None:
        self._is_over = True
        await self.socket.close(code)


def add_terminal(router: APIRouter, sandboxes: AccountSandboxes, edge: Edge) -> None:
    """The terminal of a sandbox: a shell of its own, which ends with the connection, or the main process."""

    async def terminal(socket: WebSocket) -> None:
        async def work(caller: Caller) -> None:
            sandbox_id: str = socket.path_params["sandbox_id"]
            bearer = await sandboxes.bearer(caller.actor, sandbox_id)
            attach = socket.query_params.get("attach") or ""
            if attach not in ("", "main"):
                raise FieldInvalid("attach", "attach: must be main, or left out")
            if attach:
                streams = await sandboxes.engine.attach(bearer, sandbox_id)
                try:
                    await serve(socket, caller, streams)
                finally:
                    streams.close()
            else:
                await own_shell(socket, caller, bearer, sandbox_id)

        await edge.stream(socket, work)

    async def own_shell(socket: WebSocket, caller: Caller, bearer: Actor, sandbox_id: str) -> None:
        query = socket.query_params
        size = TerminalSize(
            rows=to_number(query, "rows", least=1, most=0xFFFF, default=24),
            columns=to_number(query, "cols", least=1, most=0xFFFF, default=80),
        )
        spec = ExecSpec(argv=_SHELL, env={"COLORTERM": "truecolor"}, terminal=size)
        execution = await sandboxes.engine.exec(bearer, sandbox_id, spec)
        try:
            await serve(socket, caller, execution.streams)
        finally:
            await execution.kill()  # nobody can come back to it

    async def serve(socket: WebSocket, caller: Caller, streams: Streams) -> None:
        await socket.accept()
        await Terminal(socket=socket, streams=streams, is_still_in=lambda: edge.is_still_in(caller)).serve()

    router.add_websocket_route("/api/sandboxes/{sandbox_id}/terminal", terminal)
