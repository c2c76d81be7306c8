"""Answers of bytes sent in pieces, no faster than the client takes them, that let go of what they hold in the end."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

__all__ = ["Sending", "no_more_than"]


class Sending(StreamingResponse):
    """Sends *content*, then closes it and *held*: also when the client goes away before the first byte."""

    def __init__(
        self,
        content: AsyncGenerator[bytes, None],
        held: AsyncExitStack,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str,
    ) -> None:
        super().__init__(content, status_code=status, headers=headers, media_type=media_type)
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


async def no_more_than(size: int | None, content: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """*content*, of which no more than *size* was announced, if any was: a file may grow while it is sent."""
    left = size
    async for part in content:
        yield part if left is None else part[:left]
        if left is not None:
            left -= len(part)
            if left <= 0:
                return
