"""Server-sent events: how one is written, and a stream of them, sent no faster than the client takes them.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stockade.wire.clients import HANG_UP, ClientGone, while_connected

__all__ = ["ALIVE_S", "EventStream", "frame", "ticking"]

T = TypeVar("T")
ALIVE_S = 15.0
"""A comment follows so long after the last event: proxies close what is silent."""
_COMMENT = b": alive\n\n"
_HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # a proxy that gathers events first breaks what they are for; nginx listens to this
}


def frame(name: str, data: Mapping[str, Any], *, id: str = "") -> bytes:
    """An event as it goes over the wire; JSON has no line feeds of its own."""
    # ASCII: some clients take more than LF for the end of a line.
    text = json.dumps(data, separators=(",", ":"))
    named = f"id: {id}\n" if id else ""
    return f"event: {name}\n{named}data: {text}\n\n".encode("ascii")


class EventStream(Response):
    """Sends *frames* until there are none, with comments between them while nothing happens; ends at once when the
    client leaves, be it silent or not. However it ends, *frames* are closed and *held* is let go of.

    The body ends after that: who has seen its end may ask for what was held, and waits for what letting go takes. Each
    frame is asked for in a task of its own, once the one before is sent. An error that *frames* raise breaks the answer
    off: what a client is to hear of it is a frame.
    """

    def __init__(
        self,
        request: Request,
        frames: AsyncGenerator[bytes, None],
        held: AsyncExitStack,
        *,
        alive_s: float = ALIVE_S,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._request = request
        self._frames = frames
        self._alive_s = alive_s
        self._held = AsyncExitStack()
        self._held.push_async_exit(held)
        self._held.push_async_callback(frames.aclose)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def produce() -> None:
            async with aclosing(ticking(self._frames, self._alive_s)) as coming:
                async for one in coming:
                    data = _COMMENT if one is None else one
                    await send({"type": "http.response.body", "body": data, "more_body": True})

        wait = scope.get("extensions", {}).get(HANG_UP, {}).get("wait_for_reader")
        try:
            if wait is not None:
                wait(however_long=True)  # next to nothing is kept here for who is slow
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(self._request, produce())
        except ClientGone:
            return
        except asyncio.CancelledError:
            # Only a server that ends cancels requests: the body ends as it should, and clients can ask again.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        finally:
            try:
                await self._held.aclose()
            finally:
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
