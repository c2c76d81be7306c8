"""An execution's output as server-sent events, as clients up to 0.9.3 read it."""

import base64
from collections.abc import AsyncGenerator, Awaitable, Callable

from stockade.backends.sandboxing import Output, ProcessEnd, in_order
from stockade.dialects.boxlite.execution_wire import Ending
from stockade.engine.executions import Follower
from stockade.errors import Fault, NotFound, StockadeError
from stockade.wire.characters import Aligner
from stockade.wire.events import frame

__all__ = ["STOPPED", "event", "exit_event", "output_events"]

_CHUNK = 1 << 16
"""Bytes of each stream that become events at a time."""
_STREAMS = ("stdout", "stderr")
STOPPED = Ending(status="killed", exit_code=137, error="killed: the box was stopped")


def event(is_stderr: bool, data: bytes) -> bytes:
    """The event that says that *data* was printed. Clients drop what is no UTF-8, so that is made U+FFFD."""
    text = data.decode(errors="replace").encode()
    return frame(_STREAMS[is_stderr], {"data": base64.b64encode(text).decode("ascii")})


def exit_event(ending: Ending) -> bytes:
    """The event that ends a stream."""
    return frame("exit", ending.event())


async def output_events(
    follower: Follower, ending: Callable[[ProcessEnd], Awaitable[Ending]], *, sent: Callable[[int], object]
) -> AsyncGenerator[bytes, None]:
    """All that an execution prints, then how it ended, which is told in any case.

    Args:
        ending: how it ended, as clients are told.
        sent: told how many bytes of output went out.
    """
    pieces = _Pieces(follower.at)
    try:
        while True:
            output = await follower.streams.read(*pieces.at, most=_CHUNK)
            events = pieces.take(output)
            sent(len(output.stdout.data) + len(output.stderr.data))
            if events:
                yield events
            if output.end is not None:
                last = exit_event(await ending(output.end))
                break
    except NotFound:  # the box was stopped, and what its processes printed went with them
        last = exit_event(STOPPED)
    except StockadeError as error:
        last = frame("error", {"message": "internal server error" if isinstance(error, Fault) else str(error)})
    yield pieces.rest() + last


class _Pieces:
    """Makes events of output, cut between characters."""

    def __init__(self, at: tuple[int, int]) -> None:
        self.at = at
        """From where to read on."""
        self._aligners = (Aligner(), Aligner())

    def take(self, output: Output) -> bytes:
        events: list[bytes] = []
        for number, one in enumerate((output.stdout, output.stderr)):
            if one.dropped:
                events += self._rest_of(number)
                name = _STREAMS[number]
                note = f"\n[{one.dropped} bytes of {name} are lost: more was printed than is kept for who is late]\n"
                events.append(event(True, note.encode()))
        for is_stderr, data in in_order(output):
            whole = self._aligners[is_stderr].take(data)
            if whole:
                events.append(event(is_stderr, whole))
        self.at = output.stdout.end, output.stderr.end
        return b"".join(events)

    def rest(self) -> bytes:
        """What is held of characters that will never be whole."""
        return b"".join([*self._rest_of(0), *self._rest_of(1)])

    def _rest_of(self, number: int) -> list[bytes]:
        rest = self._aligners[number].rest()
        return [event(bool(number), rest)] if rest else []
