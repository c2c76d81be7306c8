"""Server-sent events, as the protocol frames them: `event:`, one line of ASCII JSON as `data:`, an empty line.

Thousands of events are made by one call into C: all that lies between two of them is put in the place of a line feed,
or in that of the comma where their lines are written as a JSON array.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from stockade.dialects.executor.encoding import decode, json_array_of, json_lines

__all__ = ["END", "log_events", "output_events", "output_head"]

END = "}\n\n"
"""Closes the data of an event of `output_head`'s, after its line as JSON."""
_NS = 1_000_000_000


def output_head(*, is_stderr: bool) -> str:
    """What comes before the line in an `output` event."""
    return f'event: output\ndata: {{"stream":"{"stderr" if is_stderr else "stdout"}","data":'


def output_events(lines: bytes, *, is_stderr: bool) -> bytes:
    """An `output` event for each of *lines*, which line feeds separate; without all carriage returns at their ends."""
    return _events(output_head(is_stderr=is_stderr), lines, lambda line: line.rstrip("\r"))


def log_events(lines: bytes, *, is_stderr: bool, at_ns: int) -> bytes:
    """A `log` event for each of *lines*, all captured at one time; without one carriage return at their ends."""
    stream = "stderr" if is_stderr else "stdout"
    head = f'event: log\ndata: {{"timestamp":"{timestamp(at_ns)}","stream":"{stream}","data":'
    return _events(head, lines, lambda line: line.removesuffix("\r"))


def timestamp(at_ns: int) -> str:
    """Nanoseconds since the epoch by RFC 3339, UTC."""
    seconds, rest = divmod(at_ns, _NS)
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _events(head: str, lines: bytes, without_end: Callable[[str], str]) -> bytes:
    escaped = json_lines(lines)
    if escaped is not None:
        between = f'"{END}{head}"'.encode("ascii")
        return b"".join((f'{head}"'.encode("ascii"), escaped.replace(b"\n", between), f'"{END}'.encode("ascii")))
    texts = decode(lines).split("\n")
    if b"\r" in lines:
        texts = [without_end(text) for text in texts]
    return f"{head}{json_array_of(texts, between=END + head)}{END}".encode("ascii")
