"""One WebSocket connection and one process: its output to the client, the client's input to it.

Both directions wait for whoever is slower, so that a connection holds a few hundred KiB of output and two messages of
input, whatever is sent: what a process prints stays in the backend's bounded log until the client has taken what came
before, and nothing is read from a client while its process does not read.
"""

import asyncio
from dataclasses import dataclass, field

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from stockade.backends.sandboxing import Output, OutputSlice, ProcessEnd, Streams
from stockade.errors import Fault, StockadeError
from stockade.model import TerminalSize
from stockade.wire.frames import BadFrame, Frame, FrameType, decode, encode

__all__ = ["Relay"]

log = structlog.get_logger()

CHUNK_BYTES = 256 * 1024
"""Most output in one frame."""
END_OF_STREAM = 1000
BACKEND_LOST = 1011
_NOT_STARTED = (126, 127)
_START_ERROR_BYTES = 8 * 1024


@dataclass(kw_only=True)
class Relay:
    """Joins the connection and the process. Serves once."""

    socket: WebSocket
    """Accepted already."""
    streams: Streams
    stdout_at: int = 0
    """Where the client's own copy of the output ends, in bytes from the beginning."""
    stderr_at: int = 0
    has_terminal: bool = False
    """Whether the client may resize."""
    program: str = ""
    """Of a process that was started for this connection: where it could not be, the client gets an Error, too."""
    _complaint: bytes = field(default=b"", init=False)
    _is_over: bool = field(default=False, init=False)
    """The close frame is sent, or is about to be: nothing may follow it."""

    async def serve(self) -> None:
        """Returns when the process has ended and all is sent, or the client has gone. Then the socket is closed."""
        async with asyncio.TaskGroup() as group:
            incoming = group.create_task(self._take_input())
            outgoing = group.create_task(self._send_output())
            incoming.add_done_callback(lambda _: outgoing.cancel())
            outgoing.add_done_callback(lambda _: incoming.cancel())

    async def _send_output(self) -> None:
        try:
            while True:
                output = await self.streams.read(self.stdout_at, self.stderr_at, most=CHUNK_BYTES)
                await self._send(FrameType.STDOUT, "stdout", output.stdout)
                await self._send(FrameType.STDERR, "stderr", output.stderr)
                self._remember(output)
                self.stdout_at, self.stderr_at = output.stdout.end, output.stderr.end
                if output.end is not None:
                    await self._finish(output.end)
                    return
        except (WebSocketDisconnect, OSError):
            return  # the client has gone
        except StockadeError as error:
            await self._give_up(error)

    async def _send(self, kind: FrameType, name: str, part: OutputSlice) -> None:
        if part.dropped:
            await self._complain(f"{part.dropped} bytes of {name} are lost: more was printed than is kept")
        if part.data:
            await self.socket.send_bytes(encode(Frame(type=kind, data=part.data)))

    async def _complain(self, text: str) -> None:
        await self.socket.send_bytes(encode(Frame(type=FrameType.ERROR, data=text.encode(errors="replace"))))

    def _remember(self, output: Output) -> None:
        """Keep the beginning of standard error: it says why a program was not started."""
        if self.program and output.stderr.at == len(self._complaint) < _START_ERROR_BYTES:
            self._complaint += output.stderr.data[:_START_ERROR_BYTES]

    async def _finish(self, end: ProcessEnd) -> None:
        if self.program and end.exit_code in _NOT_STARTED:
            text = self._complaint.decode(errors="replace")
            if text.startswith(f"cannot start {self.program}:"):
                await self._complain(text.strip())
        await self.socket.send_bytes(encode(Frame(type=FrameType.EXIT, exit_code=end.exit_code)))
        await self._close(END_OF_STREAM)

    async def _give_up(self, error: StockadeError) -> None:
        """Tell the client that no more will come, and that nobody knows how it ended."""
        log.warning("execbox.stream_failed", code=error.code, reason=str(error))
        text = "internal server error" if isinstance(error, Fault) else str(error)
        try:
            await self._complain(text)
            await self._close(BACKEND_LOST)
        except (WebSocketDisconnect, OSError):
            return

    async def _close(self, code: int) -> None:
        self._is_over = True
        await self.socket.close(code)

    async def _take_input(self) -> None:
        """Returns when the client has gone. Its standard input stays open: it may come back."""
        is_open = True
        try:
            while True:
                message = await self.socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    frame = decode(_payload(message), resize=self.has_terminal)
                except BadFrame as error:
                    if not self._is_over:
                        await self._complain(str(error))
                    continue
                is_open = await self._act(frame, is_open)
        except (WebSocketDisconnect, OSError):
            return
        except StockadeError as error:
            # What becomes of the process is told with its output; here is only to wait for the end.
            log.info("execbox.input_failed", code=error.code)
            await self._ignore_input()

    async def _act(self, frame: Frame, is_open: bool) -> bool:
        """Do what *frame* says; whether the process still takes input. Frames for clients have no effect."""
        match frame.type:
            case FrameType.STDIN if frame.data and is_open:
                # False: nobody reads any more, which is no error.
                return await self.streams.write(frame.data)
            case FrameType.STDIN_CLOSE if is_open:
                await self.streams.close_stdin()
                return self.has_terminal  # there it was a character, and the next line may follow
            case FrameType.RESIZE:
                await self.streams.resize(TerminalSize(rows=frame.rows, columns=frame.columns))
        return is_open

    async def _ignore_input(self) -> None:
        try:
            while (await self.socket.receive())["type"] != "websocket.disconnect":
                pass
        except (WebSocketDisconnect, OSError):
            return


def _payload(message: object) -> bytes:
    """What a message holds, whether it was sent as binary or as text."""
    assert isinstance(message, dict)
    data = message.get("bytes")
    return bytes(data) if data is not None else str(message.get("text") or "").encode()
