"""Answers sent in pieces, no faster than the browser takes them, that let go of what they hold in the end."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from stockade.wire.clients import HANG_UP, ClientGone, while_connected

__all__ = ["KEEP_ALIVE", "Events", "Sending", "event", "ticking"]

T = TypeVar("T")
KEEP_ALIVE = b": still here\n\n"
_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx: do not gather
}


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """A server-sent event; JSON has no line feeds of its own."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode("ascii")


class Sending(StreamingResponse):
    """Sends *content*, then closes it and *held*: also when the client goes away before the first byte."""

    def __init__(
        self,
        content: AsyncGenerator[bytes, None],
        held: AsyncExitStack,
        *,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._content = content
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            try:
                await self._content.aclose()
            finally:
                await self._held.aclose()


class Events(Response):
    """Sends what *content* gives as server-sent events. Ends at once when the client leaves, be it silent or not; then
    *content* and *held* are closed.
    """

    def __init__(self, request: Request, content: AsyncGenerator[bytes, None], held: ExitStack) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._request = request
        self._content = content
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def produce() -> None:
            async for data in self._content:
                await send({"type": "http.response.body", "body": data, "more_body": True})

        wait = scope.get("extensions", {}).get(HANG_UP, {}).get("wait_for_reader")
        try:
            if wait is not None:
                wait(however_long=True)  # nothing is kept here for who is slow
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await while_connected(self._request, produce())
        except ClientGone:
            return
        except asyncio.CancelledError:
            # Only a server that ends cancels requests: the body ends as it should, and the browser asks again.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        finally:
            try:
                await self._content.aclose()
            finally:
                self._held.close()
                if wait is not None:
                    wait(however_long=False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def ticking(work: AsyncIterator[T], every_s: float) -> AsyncGenerator[T | None, None]:
    """What *work* gives, and `None` whenever it has given nothing for *every_s*."""

    async def following() -> T:
        return await anext(work)

    pending: asyncio.Task[T] | None = None
    try:
        while True:
            pending = asyncio.create_task(following())
            while not (await asyncio.wait({pending}, timeout=every_s))[0]:
                yield None
            try:
                got = pending.result()
            except StopAsyncIteration:
                return
            yield got
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            await asyncio.wait({pending})
        if isinstance(work, AsyncGenerator):
            await work.aclose()
