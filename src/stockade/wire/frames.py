"""execbox's frames: what one WebSocket binary message holds. Pure functions; docs/dialects/execbox.md has the layout.

    01 Stdin       type, length, data     client → server
    02 Stdout      type, length, data     server → client
    03 Stderr      type, length, data     server → client
    04 Exit        type, exit code        server → client; the code stands where others have their length
    05 Error       type, length, UTF-8    server → client
    06 StdinClose  type                   client → server
    07 Resize      type, rows, columns    client → server; ours, and only for a process with a terminal

Integers are unsigned, 32 bit, big endian.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from stockade.errors import Invalid

__all__ = [
    "HEADER_BYTES",
    "MOST_DATA_BYTES",
    "MOST_ERROR_BYTES",
    "MOST_MESSAGE_BYTES",
    "BadFrame",
    "Frame",
    "FrameType",
    "decode",
    "encode",
]

MOST_DATA_BYTES = (1 << 24) - 1
MOST_ERROR_BYTES = 1024
HEADER_BYTES = 5
MOST_MESSAGE_BYTES = HEADER_BYTES + MOST_DATA_BYTES
"""The longest message with a legal frame."""

_NUMBER = struct.Struct(">BI")
_RESIZE = struct.Struct(">BII")
_MOST_CELLS = 0xFFFF
"""Rows or columns that the kernel can hold: `struct winsize` has 16 bits for each."""


class FrameType(IntEnum):
    STDIN = 1
    STDOUT = 2
    STDERR = 3
    EXIT = 4
    ERROR = 5
    STDIN_CLOSE = 6
    RESIZE = 7


class BadFrame(Invalid):
    """A message is no frame."""

    code = "execbox.bad_frame"

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid binary message: {reason}")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One message."""

    type: FrameType
    data: bytes = b""
    """Of Stdin, Stdout, Stderr; of Error, its text in UTF-8."""
    exit_code: int = 0
    """Of Exit."""
    rows: int = 0
    """Of Resize."""
    columns: int = 0


def encode(frame: Frame) -> bytes:
    """The message that holds *frame*. An error's text that is too long is cut at a character's boundary.

    Raises:
        ValueError: the data is longer than a frame can hold, or a number is out of range; a mistake of the caller's.
    """
    match frame.type:
        case FrameType.STDIN_CLOSE:
            return bytes((frame.type,))
        case FrameType.EXIT:
            if not 0 <= frame.exit_code <= 0xFFFFFFFF:
                raise ValueError(f"an exit code has 32 bits and no sign (got {frame.exit_code})")
            return _NUMBER.pack(frame.type, frame.exit_code)
        case FrameType.RESIZE:
            return _RESIZE.pack(frame.type, frame.rows, frame.columns)
    data = _shortened(frame.data) if frame.type is FrameType.ERROR else frame.data
    if len(data) > MOST_DATA_BYTES:
        raise ValueError(f"a frame holds at most {MOST_DATA_BYTES} bytes (got {len(data)})")
    return b"".join((_NUMBER.pack(frame.type, len(data)), data))


def decode(message: bytes, *, resize: bool = False) -> Frame:
    """The frame that *message* is.

    Args:
        resize: take Resize too, which the protocol itself does not know.

    Raises:
        BadFrame: it is none; the text says why.
    """
    if not message:
        raise BadFrame("it is empty")
    if message[0] == FrameType.RESIZE and resize:
        return _resize(message)
    if message[0] not in _KNOWN:
        raise BadFrame(f"unknown type 0x{message[0]:02x}")
    kind = FrameType(message[0])
    if kind is FrameType.STDIN_CLOSE:
        if len(message) != 1:
            raise BadFrame(f"StdinClose is 1 byte, this has {len(message)}")
        return Frame(type=kind)
    if len(message) < HEADER_BYTES:
        raise BadFrame(f"{len(message)} bytes are too few for its type")
    _, number = _NUMBER.unpack_from(message)
    if kind is FrameType.EXIT:
        if len(message) != HEADER_BYTES:
            raise BadFrame(f"Exit is {HEADER_BYTES} bytes, this has {len(message)}")
        return Frame(type=kind, exit_code=number)
    follow = len(message) - HEADER_BYTES
    if number != follow:
        raise BadFrame(f"its length says {number}, and {follow} bytes follow")
    most = MOST_ERROR_BYTES if kind is FrameType.ERROR else MOST_DATA_BYTES
    if number > most:
        raise BadFrame(f"it holds {number} bytes; {most} are allowed")
    return Frame(type=kind, data=message[HEADER_BYTES:])


_KNOWN = frozenset(FrameType) - {FrameType.RESIZE}


def _resize(message: bytes) -> Frame:
    if len(message) != _RESIZE.size:
        raise BadFrame(f"Resize is {_RESIZE.size} bytes, this has {len(message)}")
    _, rows, columns = _RESIZE.unpack(message)
    if not (1 <= rows <= _MOST_CELLS and 1 <= columns <= _MOST_CELLS):
        raise BadFrame(f"rows and columns are 1 to {_MOST_CELLS} (got {rows} and {columns})")
    return Frame(type=FrameType.RESIZE, rows=rows, columns=columns)


def _shortened(text: bytes) -> bytes:
    if len(text) <= MOST_ERROR_BYTES:
        return text
    return text[:MOST_ERROR_BYTES].decode(errors="ignore").encode()
