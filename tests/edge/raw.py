"""HTTP spoken byte by byte, as no client library would."""

import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

WAIT_S = 60.0
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
_CHUNKED = re.compile(rb"^transfer-encoding: *chunked", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer on a connection."""

    status: int
    head: bytes
    body: bytes


class Raw:
    """A connection to a server."""

    def __init__(self, url: str, *, receive_bytes: int = 0) -> None:
        """*receive_bytes*: how much the kernel takes in for who reads nothing; 0 for its own choice."""
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(WAIT_S)
        self.socket.connect((parts.hostname, parts.port))
        self._kept = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, *, is_head: bool = False) -> Answer | None:
        """The next answer; `None` where the server has closed the connection (or reset it)."""
        while b"\r\n\r\n" not in self._kept:
            if not self._more():
                return None
        head, _, self._kept = self._kept.partition(b"\r\n\r\n")
        found = _STATUS.match(head)
        assert found, head
        status = int(found[1])
        if status == 100:
            return Answer(status=status, head=head, body=b"")
        body = b""
        if is_head or status in (204, 304):
            pass
        elif length := _LENGTH.search(head):
            while len(self._kept) < int(length[1]):
                assert self._more(), "the answer broke off"
            body, self._kept = self._kept[: int(length[1])], self._kept[int(length[1]) :]
        elif _CHUNKED.search(head):
            body = self._chunks()
        else:
            raise AssertionError(f"an answer whose end nobody can tell: {head!r}")
        return Answer(status=status, head=head, body=body)

    def rest(self) -> list[int]:
        """The status of every answer until the server closes the connection."""
        found = []
        while (answer := self.read()) is not None:
            found.append(answer.status)
        return found

    def is_closed(self) -> bool:
        """Whether the server has ended the connection; waits for it or for a byte."""
        return not self._more()

    def reset(self) -> None:
        """Go without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def _more(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            return False
        self._kept += data
        return bool(data)

    def _chunks(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._kept:
                assert self._more(), "the answer broke off"
            size, _, self._kept = self._kept.partition(b"\r\n")
            count = int(size, 16)
            while len(self._kept) < count + 2:
                assert self._more(), "the answer broke off"
            body, self._kept = body + self._kept[:count], self._kept[count + 2 :]
            if not count:
                return body


@contextmanager
def connected(url: str, **options: int) -> Iterator[Raw]:
    one = Raw(url, **options)
    try:
        yield one
    finally:
        one.close()


def exchanged(url: str, data: bytes) -> list[int]:
    """The status of every answer to *data*, after which the client says that it has nothing more to send."""
    with connected(url) as one:
        try:
            one.send(data)
            one.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was refused before its end
        return one.rest()


def request(
    target: bytes, *fields: bytes, method: bytes = b"GET", host: bytes = b"localhost", body: bytes = b""
) -> bytes:
    """A request with these header fields, as they are."""
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: " + host, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def until(condition: object, what: str = "", seconds: float = WAIT_S) -> None:
    """Wait until *condition* (a function) holds."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        time.sleep(0.02)
