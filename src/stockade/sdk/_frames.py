"""The binary messages of attach and exec, as pure functions: one message is one frame.

Stdin 01, Stdout 02, Stderr 03 and Error 05 carry a length and data, Exit 04 four bytes of exit code, StdinClose 06
nothing. Resize 07 is an extension, for processes with a terminal. Integers are unsigned, 32 bit, big endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from stockade.sdk.errors import ProtocolError

__all__ = ["MOST_BYTES", "STDIN_CLOSE", "Chunk", "Exit", "Source", "decode", "resize", "stdin"]

MOST_BYTES = (1 << 24) - 1
"""The largest payload of a frame."""
CHUNK_BYTES = 1 << 18
"""Of what we send: large enough for throughput, small enough that a resize need not wait long behind it."""
STDIN_CLOSE = b"\x06"

_HEADER = struct.Struct("!BI")
_RESIZE = struct.Struct("!BII")
_EXIT = 4


class Source(Enum):
    """Where a chunk comes from."""

    STDOUT = 2
    STDERR = 3
    NOTICE = 5
    """The server itself: what it could not do, or what it had to drop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Some output of a process, as it came."""

    source: Source
    data: bytes

    @property
    def text(self) -> str:
        """The data as text; what is not UTF-8 is replaced."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """The process has ended."""

    code: int


_SOURCES = {source.value: source for source in Source}


def stdin(data: bytes) -> Iterator[bytes]:
    """The messages that carry *data* to standard input, in order; none for no data."""
    for at in range(0, len(data), CHUNK_BYTES):
        part = data[at : at + CHUNK_BYTES]
        yield _HEADER.pack(1, len(part)) + part


def resize(rows: int, columns: int) -> bytes:
    """The message that tells a process's terminal its size."""
    return _RESIZE.pack(7, rows, columns)


def decode(message: bytes | str) -> Chunk | Exit:
    """What the server says with *message*.

    Raises:
        ProtocolError: it is no frame of the server's.
    """
    if isinstance(message, str):
        raise ProtocolError("the server sent text where the protocol has binary messages")
    if len(message) != _HEADER.size if message[:1] == b"\x04" else len(message) < _HEADER.size:
        raise ProtocolError(f"the server sent an undecodable message of {len(message)} bytes")
    kind, number = _HEADER.unpack_from(message)
    if kind == _EXIT:
        return Exit(code=number)
    source = _SOURCES.get(kind)
    if source is None or number != len(message) - _HEADER.size:
        raise ProtocolError(f"the server sent an undecodable message of type {kind:#04x} and {len(message)} bytes")
    return Chunk(source=source, data=message[_HEADER.size :])
