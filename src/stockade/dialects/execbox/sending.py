"""A streamed answer that lets go of what it reads from, however it ends."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

__all__ = ["Sending"]


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
