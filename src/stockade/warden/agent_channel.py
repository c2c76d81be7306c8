"""What the file agent and the server say to each other, over a stream socket that nobody else holds.

Frames: one letter, the length of the body (4 bytes, little-endian), the body. JSON is ASCII; a name that is no UTF-8
is in it with surrogates (PEP 383).

    server → agent   Q request: {"op": …}          agent → server   H head (JSON) of what follows as data
                     D data                                          D data
                     E end of the data                               I items (a JSON list)
                     A the data breaks off here                      P "still at it"; at least every few seconds
                                                                     E done: {…result…}
                                                                     X failed: {"kind": …, "message": …,
                                                                       "errno": "ENOENT", where it was one}

Requests are answered one after the other. Data is whole only when an E has followed it: what ends otherwise is cut off.
"""

import errno
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

__all__ = [
    "ABORT",
    "ALIVE",
    "CHUNK",
    "DATA",
    "END",
    "ERROR",
    "FRAME",
    "HEAD",
    "ITEMS",
    "MOST_DATA",
    "MOST_TEXT",
    "REQUEST",
    "SOCKET_BUFFER",
    "Aborted",
    "AgentError",
    "Channel",
    "Gone",
    "Outgoing",
    "frame",
]

REQUEST, HEAD, DATA, ITEMS, ALIVE, END, ERROR, ABORT = b"Q", b"H", b"D", b"I", b"P", b"E", b"X", b"A"
FRAME = struct.Struct("<cI")
MOST_TEXT = 256 << 10
"""Longest frame that is no data, in bytes."""
MOST_DATA = 1 << 20
"""Longest frame of data."""
CHUNK = 256 << 10
"""What is moved at once."""
SOCKET_BUFFER = 1 << 20
"""Asked of the kernel, which gives what net.core.wmem_max allows."""

_ALIVE_EVERY_S = 1.0
_SMALL = 32 << 10
_BROKEN = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
_TO_READ_INSTEAD = (errno.EINVAL, errno.ENOSYS)
"""What sendfile(2) says of files that it cannot take from."""


class AgentError(Exception):
    """What the server is told; *kind* is the code of one of the kinds of `stockade.errors`."""

    def __init__(self, kind: str, message: str, number: int = 0) -> None:
        """*number*: what errno(3) calls it, where the kernel said it or would have."""
        self.kind = kind
        self.message = message
        self.number = number
        super().__init__(message)


class Aborted(Exception):
    """The server broke its data off."""


class Gone(Exception):
    """The server hung up, or does not keep to the protocol: there is nobody left to serve."""


def frame(kind: bytes, body: Any) -> bytes:
    """A frame with JSON in it."""
    data = json.dumps(body, separators=(",", ":")).encode("ascii")
    return FRAME.pack(kind, len(data)) + data


class Channel:
    """The agent's end. Blocks; every method raises `Gone` when the server has hung up."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = memoryview(bytearray(CHUNK))
        self._has_input = False
        self._unread = 0
        """Bytes of the frame of data under way that nobody has asked for yet."""
        self._alive_at = 0.0

    def fileno(self) -> int:
        return self._connection.fileno()

    def request(self) -> dict[str, Any] | None:
        """The next request; `None` when there will be none."""
        try:
            kind, length = self._head()
        except Gone:
            return None
        if kind != REQUEST or length > MOST_TEXT:
            raise Gone
        body = b"".join(bytes(piece) for piece in self._body(length))
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Gone from error
        if not isinstance(message, dict):
            raise Gone
        self._alive_at = time.monotonic() + _ALIVE_EVERY_S
        return message

    # ── data that comes in ───────────────────────────────────────────────────────────────────────────────────────

    def incoming(self) -> Iterator[memoryview]:
        """The data that follows a request, each piece valid until the next is asked for.

        Raises:
            Aborted: the server has broken it off.
        """
        self._has_input = True
        while True:
            while self._unread:
                piece = self._some(self._unread)
                self._unread -= len(piece)
                yield piece
            kind, length = self._head()
            if kind == DATA and length <= MOST_DATA:
                self._unread = length
                continue
            self._has_input = False
            if kind == END and not length:
                return
            if kind == ABORT and not length:
                raise Aborted
            raise Gone

    def expect_input(self) -> None:
        """Data follows this request, whether or not we come to read it."""
        self._has_input = True

    def drain(self) -> None:
        """Read past what is left of the data of a request that has failed."""
        try:
            while self._has_input:
                for _ in self.incoming():
                    pass
        except Aborted:
            pass

    def _head(self) -> tuple[bytes, int]:
        for piece in self._body(FRAME.size):
            kind, length = FRAME.unpack(piece)
        return kind, length

    def _body(self, length: int) -> Iterator[memoryview]:
        while length:
            piece = self._some(length)
            yield piece
            length -= len(piece)

    def _some(self, most: int) -> memoryview:
        """The next bytes, as many of *most* as the buffer holds; valid until the next call."""
        piece = self._buffer[: min(most, CHUNK)]
        try:
            got = self._connection.recv_into(piece, 0, socket.MSG_WAITALL)
        except OSError as error:
            raise Gone from error
        if got < len(piece):
            raise Gone
        return piece

    # ── what goes out ────────────────────────────────────────────────────────────────────────────────────────────

    def say(self, kind: bytes, body: Any) -> None:
        """Send a frame of JSON."""
        self._send(frame(kind, body))

    def fail(self, error: AgentError) -> None:
        body = {"kind": error.kind, "message": error.message[:1000]}
        if error.number in errno.errorcode:
            body["errno"] = errno.errorcode[error.number]
        self.say(ERROR, body)

    def alive(self) -> None:
        """Say now and then that we are at it: whoever waits for us gives up after some seconds of silence."""
        now = time.monotonic()
        if now >= self._alive_at:
            self._alive_at = now + _ALIVE_EVERY_S
            self._send(FRAME.pack(ALIVE, 0))

    def data(self, content: bytes | bytearray | memoryview) -> None:
        view = memoryview(content)
        while view:
            piece, view = view[:MOST_DATA], view[MOST_DATA:]
            self._send(FRAME.pack(DATA, len(piece)))
            self._send(piece)

    def file(self, source: int, offset: int, length: int) -> bool:
        """Send *length* bytes of a file as data. Whether they were all there: where not, zeros stand for them.

        (The frame's length is out before the file is read, and a tenant may cut the file off at any moment.)
        """
        is_whole = True
        while length:
            size = min(length, MOST_DATA)
            self._send(FRAME.pack(DATA, size))
            sent = self._copy(source, offset, size) if is_whole else 0
            if sent < size:
                is_whole = False
                self._send(bytes(size - sent))
            offset += size
            length -= size
        return is_whole

    def _copy(self, source: int, offset: int, size: int) -> int:
        sent = 0
        out = self._connection.fileno()
        while sent < size:
            try:
                done = os.sendfile(out, source, offset + sent, size - sent)
            except OSError as error:
                if error.errno in _BROKEN:
                    raise Gone from error
                if error.errno in _TO_READ_INSTEAD:
                    return sent + self._read_over(source, offset + sent, size - sent)
                return sent
            if not done:
                return sent
            sent += done
        return sent

    def _read_over(self, source: int, offset: int, size: int) -> int:
        sent = 0
        while sent < size:
            try:
                data = os.pread(source, min(CHUNK, size - sent), offset + sent)
            except OSError:
                return sent
            if not data:
                return sent
            self._send(data)
            sent += len(data)
        return sent

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self._connection.sendall(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise Gone from error


class Outgoing:
    """A stream of many small pieces and whole files, sent in large frames."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = bytearray()
        self.count = 0
        """Bytes so far."""

    def write(self, data: bytes) -> None:
        self._buffer += data
        self.count += len(data)
        if len(self._buffer) >= CHUNK:
            self.flush()

    def file(self, source: int, size: int, offset: int = 0) -> bool:
        """*size* bytes of a file; see `Channel.file`."""
        if size > _SMALL:
            self.flush()
            self.count += size
            return self._channel.file(source, offset, size)
        left = size
        try:
            while left and (data := os.pread(source, left, offset + size - left)):
                self.write(data)
                left -= len(data)
        except OSError:
            pass  # as if it were cut off
        self.write(bytes(left))
        return not left

    def flush(self) -> None:
        if self._buffer:
            self._channel.data(self._buffer)
            self._buffer.clear()
