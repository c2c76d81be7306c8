"""A job's events as server-sent events."""

import codecs
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import structlog
from starlette.requests import Request

from stockade.engine.jobs import JobEvent, StateChanged
from stockade.errors import StockadeError
from stockade.model.jobs import Job, OutputPiece
from stockade.wire.events import frame

__all__ = ["framed", "last_seen"]

log = structlog.get_logger()

_NAMED = re.compile(r"(\d{1,18})\.(\d{1,18})")

Seen = tuple[int, int]
"""Attempt and number of a piece of output."""


def last_seen(request: Request) -> Seen:
    """The last piece of output that the client has, by the header that browsers send when they come again."""
    match = _NAMED.fullmatch(request.headers.get("last-event-id", ""))
    return (int(match[1]), int(match[2])) if match else (0, 0)


async def framed(
    events: AsyncIterator[JobEvent], *, seen: Seen, shown: Callable[[Job], Mapping[str, Any]]
) -> AsyncGenerator[bytes, None]:
    """*events* as they go over the wire, without output that the client has *seen*; at last, what broke them off."""
    decoders = _decoders()
    try:
        async for event in events:
            match event:
                case StateChanged(job=job):
                    if not job.has_ended:
                        decoders = _decoders()  # it may be another attempt
                    yield frame("state", shown(job))
                case OutputPiece():
                    text = decoders[event.is_stderr].decode(event.data)
                    if text and (event.fence, event.number) > seen:
                        data = {"stream": "stderr" if event.is_stderr else "stdout", "text": text}
                        yield frame("output", data, id=f"{event.fence}.{event.number}")
    except StockadeError as error:
        # The head has gone out, so the status cannot tell any more.
        log.info("code_sandbox.events_broken", code=error.code, reason=str(error))
        yield frame("error", {"error": str(error), "code": error.code})


def _decoders() -> dict[bool, codecs.IncrementalDecoder]:
    make = codecs.getincrementaldecoder("utf-8")
    return {is_stderr: make(errors="replace") for is_stderr in (False, True)}
