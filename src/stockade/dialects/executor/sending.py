"""Answers that are sent in pieces, no faster than the client takes them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stockade.wire.clients import HANG_UP, ClientGone, while_connected

__all__ = ["EVENTS", "Emit", "Streaming"]

EVENTS: Mapping[str, str] = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # a proxy that gathers events first breaks what they are for; nginx listens to this
}
"""Headers of a stream of events."""

Emit = Callable[[bytes], Awaitable[None]]
"""Sends some of the body; waits while the client is slow."""


class Streaming(Response):
    """Sends a head, then what *produce* emits. That is cancelled at once when the client leaves, be it silent or not;
    however it all ends, *close* is called.
    """

    def __init__(
        self,
        request: Request,
        produce: Callable[[Emit], Awaitable[None]],
        *,
        headers: Mapping[str, str],
        close: Callable[[], object],
        stopped: Callable[[], bytes],
    ) -> None:
        """What to send, and how.

        Args:
            stopped: gives what ends the body where the server stops before *produce* is done.
        """
        self.status_code = 200
        self.background = None
        self.init_headers(headers)
        self._request = request
        self._produce = produce
        self._is_live = headers is EVENTS
        self._held = ExitStack()
        self._held.callback(close)
        self._stopped = stopped

    def hold(self, held: ExitStack) -> None:
        """Let go of *held*, too, when all is over."""
        self._held.enter_context(held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def emit(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        wait = scope.get("extensions", {}).get(HANG_UP, {}).get("wait_for_reader") if self._is_live else None
        try:
            if wait is not None:
                wait(however_long=True)  # the protocol knows no deadlines, and nothing is kept here for who is slow
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await while_connected(self._request, self._produce(emit))
            except asyncio.CancelledError:
                # Only a server that ends cancels requests. The body ends as it should: a client that saw it break off
                # might ask once more for what has had its effect already.
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
                await emit(self._stopped())
        except ClientGone:
            return
        finally:
            self._held.close()
            if wait is not None:
                wait(however_long=False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
