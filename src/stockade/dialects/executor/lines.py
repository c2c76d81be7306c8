"""Output cut into lines, and lines into events.

A whole piece is cut at once in C; a loop over lines would cost more than the sandbox does.
"""

from collections.abc import AsyncGenerator, Callable

from stockade.dialects.executor.events import END, output_events, output_head
from stockade.dialects.executor.output import NoRoom, Spool

__all__ = ["LineEvents"]

_LONG = 64 * 1024
"""A line that has begun and is longer than that is no longer joined with what follows, again and again."""


class LineEvents:
    """Makes `output` events of one stream's bytes: one for each line, once it has ended, without the line's end and all
    carriage returns before that.
    """

    def __init__(self, make_spool: Callable[[], Spool], *, is_stderr: bool, longest: int) -> None:
        """*make_spool* makes what a line of more than some KiB is kept in, until it has ended."""
        self._make_spool = make_spool
        self._is_stderr = is_stderr
        self._longest = longest
        self._begun = b""
        """Of a line that has not ended; all of it, or what came after what is in `_long`."""
        self._long: Spool | None = None
        self._returns = 0
        """Carriage returns at the end of `_long` that are not in it: they may be the line's last."""

    async def take(self, data: bytes) -> AsyncGenerator[bytes, None]:
        """The events of the lines that end in *data*, which follows what was taken before.

        Raises:
            OSError: the line that has begun cannot be kept; NoRoom where it is longer than may be.
        """
        if self._long is not None:
            head, newline, data = data.partition(b"\n")
            await self._keep(self._long, head)
            if not newline:
                return
            async for piece in self._end_long():
                yield piece
        if self._begun:
            data, self._begun = self._begun + data, b""
        ended, newline, rest = data.rpartition(b"\n")
        if newline:
            yield output_events(ended, is_stderr=self._is_stderr)
        if len(rest) <= _LONG:
            self._begun = rest
        else:
            self._long = self._make_spool()
            await self._keep(self._long, rest)

    async def finish(self) -> AsyncGenerator[bytes, None]:
        """The event of a last line without end, where there is one."""
        if self._long is not None:
            async for piece in self._end_long():
                yield piece
        elif self._begun:
            line, self._begun = self._begun, b""
            yield output_events(line, is_stderr=self._is_stderr)

    def drop(self) -> None:
        """Forget the line that has begun: what follows is missing."""
        self._begun = b""
        self.close()

    def close(self) -> None:
        """Let go of what is kept. Idempotent."""
        if self._long is not None:
            self._long.close()
            self._long = None
            self._returns = 0

    async def _keep(self, long: Spool, data: bytes) -> None:
        text = data.rstrip(b"\r")
        if long.size + self._returns + len(data) > self._longest:
            raise NoRoom(f"it is longer than {self._longest} bytes")
        if text:
            await long.append(b"\r" * self._returns + text)
            self._returns = 0
        self._returns += len(data) - len(text)

    async def _end_long(self) -> AsyncGenerator[bytes, None]:
        long = self._long
        assert long is not None
        yield f'{output_head(is_stderr=self._is_stderr)}"'.encode("ascii")
        async for piece in long.json():
            yield piece
        yield f'"{END}'.encode("ascii")
        self.close()
