"""One WebSocket connection and one execution, as clients from 0.9.5 on speak to it.

    binary 01 …                      server → client   standard output; of a terminal, everything
    binary 02 …                      server → client   standard error
    text {"type":"exit","exit_code"} server → client   the end; nothing follows but the close (1000)
    text {"type":"error","message"}  server → client   something was refused, or is lost; the connection goes on
    binary …                         client → server   standard input
    text {"type":"stdin_eof"}        client → server
    text {"type":"resize"|"signal"}  client → server

Clients give up a connection on which they have heard nothing for ten seconds after its beginning, or for 45 later on:
hence the pings. Both directions wait for whoever is slower, so that a connection holds next to nothing.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from stockade.backends.sandboxing import Output, ProcessEnd, in_order
from stockade.dialects.boxlite.execution_wire import Ending, ResizeBody, SignalBody
from stockade.dialects.boxlite.sse import STOPPED
from stockade.engine.executions import Follower
from stockade.errors import Fault, NotFound, StockadeError
from stockade.model import TerminalSize
from stockade.wire.characters import Aligner
from stockade.wire.websockets import PING

__all__ = ["PING_S", "Attachment"]

log = structlog.get_logger()

PING_S = 12.0
"""Between two pings; clients want one every 15 seconds."""
_CHUNK = 1 << 18
"""Most output in one frame."""
_CHANNELS = (b"\x01", b"\x02")
_END_OF_STREAM = 1000
_TRY_AGAIN = 1011


@dataclass(eq=False, kw_only=True)
class Attachment:
    """Joins the connection and the execution. Serves once."""

    socket: WebSocket
    """Accepted already."""
    follower: Follower
    ending: Callable[[ProcessEnd], Awaitable[Ending]]
    """How the execution ended, as clients are told."""
    signal: Callable[[int], Awaitable[None]]
    takes_input: bool
    sent: Callable[[int], object]
    """Told how many bytes of output went out."""
    received: Callable[[int], object]
    """Told how many bytes of input came in."""
    _aligners: tuple[Aligner, Aligner] = field(default_factory=lambda: (Aligner(), Aligner()), init=False)
    _is_over: bool = field(default=False, init=False)
    """The last frame is sent, or about to be: nothing may follow it."""

    async def serve(self) -> None:
        """Returns when the execution has ended and all is sent, or the client has gone; its input stays open then."""
        async with asyncio.TaskGroup() as group:
            parts = [
                group.create_task(self._take_input()),
                group.create_task(self._send_output()),
                group.create_task(self._stay_awake()),
            ]
            for part in parts:
                part.add_done_callback(lambda _: [one.cancel() for one in parts])

    async def _stay_awake(self) -> None:
        """Ping at once, and again and again. Returns when the client has gone: while its input waits for an execution
        that takes none, nothing else says so.
        """
        ping = self.socket.scope.get("extensions", {}).get(PING, {}).get("now")
        while True:
            if ping is not None and not ping():
                return
            await asyncio.sleep(PING_S)

    async def _send_output(self) -> None:
        read_at = self.follower.at
        try:
            while True:
                output = await self.follower.streams.read(*read_at, most=_CHUNK)
                await self._tell_of_loss(output)
                for is_stderr, data in in_order(output):
                    await self._send(is_stderr, self._aligners[is_stderr].take(data))
                read_at = output.stdout.end, output.stderr.end
                if output.end is not None:
                    await self._finish(await self.ending(output.end))
                    return
        except (WebSocketDisconnect, OSError):
            return  # the client has gone
        except NotFound:  # the box was stopped, and what its processes printed went with them
            await self._give_up(STOPPED.error or "", STOPPED)
        except StockadeError as error:
            log.warning("boxlite.stream_failed", code=error.code, reason=str(error))
            await self._give_up("internal server error" if isinstance(error, Fault) else str(error), None)

    async def _send(self, is_stderr: bool, data: bytes) -> None:
        if not data:
            return
        await self.socket.send_bytes(_CHANNELS[is_stderr] + data)
        # What was sent counts as delivered: nothing in the protocol says what the client has taken.
        stdout_at, stderr_at = self.follower.at
        self.follower.at = (stdout_at, stderr_at + len(data)) if is_stderr else (stdout_at + len(data), stderr_at)
        self.sent(len(data))

    async def _tell_of_loss(self, output: Output) -> None:
        for number, (one, name) in enumerate(((output.stdout, "stdout"), (output.stderr, "stderr"))):
            if one.dropped:
                await self._send(bool(number), self._aligners[number].rest())
                at = list(self.follower.at)
                at[number] = one.at
                self.follower.at = (at[0], at[1])
                await self._complain(f"{one.dropped} bytes of {name} are lost: more was printed than is kept")

    async def _finish(self, ending: Ending) -> None:
        for number, aligner in enumerate(self._aligners):
            await self._send(bool(number), aligner.rest())
        self._is_over = True
        await self.socket.send_text(json.dumps({"type": "exit", "exit_code": ending.exit_code}))
        await self.socket.close(_END_OF_STREAM)

    async def _give_up(self, why: str, ending: Ending | None) -> None:
        """Tell the client why no more will come; of an execution whose end is unknown it asks again by itself."""
        try:
            await self._complain(why)
            if ending is not None:
                await self._finish(ending)
                return
            self._is_over = True
            await self.socket.close(_TRY_AGAIN)
        except (WebSocketDisconnect, OSError):
            return

    async def _complain(self, text: str) -> None:
        if not self._is_over:
            await self.socket.send_text(json.dumps({"type": "error", "message": text}))

    async def _take_input(self) -> None:
        """Returns when the client has gone."""
        try:
            while True:
                message = await self.socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    await self._act(message)
                except StockadeError as error:  # what becomes of the execution is told with its output
                    await self._complain(str(error))
        except (WebSocketDisconnect, OSError):
            return

    async def _act(self, message: Any) -> None:
        data = message.get("bytes")
        if data is not None:
            if not self.takes_input:
                await self._complain("this connection is read-only (stdin=0)")
            elif data and await self.follower.streams.write(bytes(data)):
                self.received(len(data))
            return
        control = _control(message.get("text") or "")
        try:
            match control.get("type"):
                case "stdin_eof":
                    if self.takes_input:
                        await self.follower.streams.close_stdin()
                    else:
                        await self._complain("this connection is read-only (stdin=0)")
                case "resize":
                    size = ResizeBody.model_validate(control)
                    await self.follower.streams.resize(TerminalSize(rows=size.rows, columns=size.cols))
                case "signal":
                    await self.signal(SignalBody.model_validate({"signal": control.get("sig")}).signal)
                case _:
                    await self._complain("unknown message: known are stdin_eof, resize and signal")
        except ValidationError as error:
            first = error.errors()[0]
            await self._complain(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _control(text: str) -> dict[str, Any]:
    """A text message; empty where it is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
