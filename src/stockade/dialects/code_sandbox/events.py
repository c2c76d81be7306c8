"""A job's events as server-sent events, sent no faster than the client takes them."""

import asyncio
import codecs
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stockade.engine.jobs import JobEvent, StateChanged
from stockade.errors import StockadeError
from stockade.model.jobs import Job, OutputPiece
from stockade.wire.clients import HANG_UP, ClientGone, while_connected

__all__ = ["ALIVE_S", "EventStream", "framed", "last_seen"]

log = structlog.get_logger()

ALIVE_S = 15.0
"""A comment follows so long after the last event: proxies close what is silent."""
_HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # a proxy that gathers events first breaks what they are for; nginx listens to this
}
_NAMED = re.compile(r"(\d{1,18})\.(\d{1,18})")
_COMMENT = b": alive\n\n"

Seen = tuple[int, int]
"""Attempt and number of a piece of output."""


def last_seen(request: Request) -> Seen:
    """The last piece of output that the client has, by the header that browsers send when they come again."""
    match = _NAMED.fullmatch(request.headers.get("last-event-id", ""))
    return (int(match[1]), int(match[2])) if match else (0, 0)


async def framed(
    events: AsyncIterator[JobEvent], *, seen: Seen, shown: Callable[[Job], Mapping[str, Any]]
) -> AsyncIterator[bytes]:
    """*events* as they go over the wire; without output that the client has *seen*."""
    decoders = _decoders()
    async for event in events:
        match event:
            case StateChanged(job=job):
                if not job.has_ended:
                    decoders = _decoders()  # it may be another attempt
                yield _frame("state", shown(job))
            case OutputPiece():
                text = decoders[event.is_stderr].decode(event.data)
                if text and (event.fence, event.number) > seen:
                    data = {"stream": "stderr" if event.is_stderr else "stdout", "text": text}
                    yield _frame("output", data, id=f"{event.fence}.{event.number}")


def _decoders() -> dict[bool, codecs.IncrementalDecoder]:
    make = codecs.getincrementaldecoder("utf-8")
    return {is_stderr: make(errors="replace") for is_stderr in (False, True)}


def _frame(name: str, data: Mapping[str, Any], *, id: str = "") -> bytes:
    # ASCII: some clients take more than LF for the end of a line.
    text = json.dumps(data, separators=(",", ":"))
    named = f"id: {id}\n" if id else ""
    return f"event: {name}\n{named}data: {text}\n\n".encode("ascii")


class EventStream(Response):
    """Sends frames until there are none; ended at once when the client leaves. However it ends, what is *held* is let
    go of.
    """

    def __init__(self, request: Request, frames: AsyncIterator[bytes], *, held: ExitStack) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._request = request
        self._frames = frames
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wait = scope.get("extensions", {}).get(HANG_UP, {}).get("wait_for_reader")
        try:
            if wait is not None:
                wait(however_long=True)  # next to nothing is kept here for who is slow
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(self._request, self._send_all(send))
        except ClientGone:
            return
        finally:
            self._held.close()
            if wait is not None:
                wait(however_long=False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        coming: asyncio.Task[bytes | None] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(_next(self._frames))
                done, _ = await asyncio.wait([coming], timeout=ALIVE_S)
                frame = coming.result() if done else _COMMENT
                if frame is None:
                    return
                if done:
                    coming = None
                await _emit(send, frame)
        except StockadeError as error:
            # The head has gone out, so the status cannot tell any more.
            log.info("code_sandbox.events_broken", code=error.code, reason=str(error))
            await _emit(send, _frame("error", {"error": str(error), "code": error.code}))
        finally:
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.wait([coming])


async def _next(frames: AsyncIterator[bytes]) -> bytes | None:
    """The next of *frames*; `None` when there are no more."""
    return await anext(frames, None)


async def _emit(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
