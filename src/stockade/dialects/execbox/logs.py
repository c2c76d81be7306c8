"""The output of a main process over plain HTTP."""

import asyncio
import codecs
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from starlette.responses import Response

from stockade.backends.sandboxing import Output, OutputSlice, Streams
from stockade.dialects.execbox.queries import Query
from stockade.errors import StockadeError
from stockade.wire.sending import Sending

__all__ = ["Logs", "to_logs"]

NOTHING_MORE_S = 0.1
"""What has been printed already comes at once; after such a pause, it has all come."""
MOST_KEPT_BYTES = 16 * 1024 * 1024
"""Of each stream in memory, where only its end is wanted."""
_MOST_TAIL = 2**40


@dataclass(frozen=True, kw_only=True)
class Logs:
    """What a client wants to see of the output."""

    streams: tuple[str, ...]
    tail: int | None
    follow: bool
    as_lines: bool

    def response(self, source: Streams) -> Response:
        """The answer; *source* is closed in the end."""
        kind = "application/x-ndjson" if self.as_lines else "text/plain; charset=utf-8"
        held = AsyncExitStack()
        held.callback(source.close)
        return Sending(self._content(source), held, media_type=kind)

    async def _content(self, source: Streams) -> AsyncGenerator[bytes, None]:
        writers = {name: _Writer(name, as_lines=self.as_lines) for name in self.streams}
        try:
            kept: dict[str, OutputSlice] = {}
            async for output in self._outputs(source):
                for name, writer in writers.items():
                    part: OutputSlice = getattr(output, name)
                    if self.tail is None:
                        if part.data:
                            yield writer.write(part)
                    else:
                        kept[name] = _end(kept.get(name), part, min(self.tail, MOST_KEPT_BYTES))
            for name, part in kept.items():
                if part.data:
                    yield writers[name].write(part)
        except StockadeError:
            return  # its output is dropped, or the backend is lost: that was all

    async def _outputs(self, source: Streams) -> AsyncIterator[Output]:
        stdout_at = stderr_at = 0
        while True:
            try:
                async with asyncio.timeout(None if self.follow else NOTHING_MORE_S):
                    output = await source.read(stdout_at, stderr_at)
            except TimeoutError:
                return
            yield output
            if output.end is not None:
                return
            stdout_at, stderr_at = output.stdout.end, output.stderr.end


class _Writer:
    """Pieces of one stream in the format that was asked for."""

    def __init__(self, name: str, *, as_lines: bool) -> None:
        self._name = name
        self._as_lines = as_lines
        # A character may lie across two pieces.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(self, part: OutputSlice) -> bytes:
        if not self._as_lines:
            return part.data
        text = self._decoder.decode(part.data)
        return json.dumps({"stream": self._name, "offset": part.at, "text": text}).encode() + b"\n"


def to_logs(query: Query) -> Logs:
    """What the query asks for.

    Raises:
        Invalid: a parameter is wrong.
    """
    stream = query.choice("stream", "both", "stdout", "stderr")
    follow = query.flag("follow")
    return Logs(
        streams=("stdout", "stderr") if stream == "both" else (stream,),
        # Of a stream that goes on there is no end to show.
        tail=None if follow else query.number("tail", least=0, most=_MOST_TAIL),
        follow=follow,
        as_lines=query.choice("format", "text", "ndjson") == "ndjson",
    )


def _end(before: OutputSlice | None, part: OutputSlice, most: int) -> OutputSlice:
    """The last *most* bytes of what came before and *part*."""
    joined = (before.data if before is not None and before.end == part.at else b"") + part.data
    data = joined[-most:] if most else b""
    return OutputSlice(data=data, at=part.end - len(data))
