"""A client of the sandbox-executor dialect (docs/dialects/executor.md), as cheap as one in Python can be.

One connection that stays open, blocking, and nothing between. Large answers are counted as they come, not kept.
"""

import json
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.measure import BenchError

__all__ = ["Answer", "Executor", "Told"]

ANSWER_S = 60.0
BUFFER_BYTES = 1 << 20
IDLE_S = 30.0
"""A connection that was not used for so long is replaced: servers close those that are idle."""
_TAIL_BYTES = 200
_END = b"0\r\n\r\n"
"""Of a chunked body."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    """Chunks are put together."""

    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


@dataclass(frozen=True, kw_only=True)
class Told:
    """An answer that was counted."""

    seconds: float
    """From the request to the answer's end."""
    first_s: float
    """To the first byte of its body."""
    wire_bytes: int
    """Of the body, and of what frames its chunks."""
    tail: bytes
    cpu_s: float
    """This client's own."""


class Executor:
    """A client with one connection and one secret."""

    def __init__(self, url: str, secret: str) -> None:
        address = urlsplit(url)
        self._address = (str(address.hostname), address.port or 80)
        self._fixed = f"Host: {self._address[0]}:{self._address[1]}\r\nAuthorization: Bearer {secret}\r\n"
        self._connection = self._connect()
        self._used = time.monotonic()
        self._buffer = bytearray(BUFFER_BYTES)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, timeout=ANSWER_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        self._connection.close()

    def _freshen(self) -> None:
        """Have a connection that the server has not closed."""
        now = time.monotonic()
        if now - self._used > IDLE_S:
            self._connection.close()
            self._connection = self._connect()
        self._used = now

    def prepare(self, method: str, path: str, body: dict[str, object] | None = None) -> bytes:
        """The bytes of a request."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\n{self._fixed}Content-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    def ask(self, method: str, path: str, body: dict[str, object] | None = None, *, status: int = 200) -> Answer:
        """One request and its whole answer.

        Raises:
            BenchError: its status is another.
        """
        answer = self.exchange(self.prepare(method, path, body))
        if answer.status != status:
            raise BenchError(f"{method} {path} is answered {answer.status}: {answer.body[:500]!r}")
        return answer

    def exchange(self, request: bytes) -> Answer:
        """Send a request, and read its whole answer."""
        self._freshen()
        self._connection.sendall(request)
        head, rest = self._head()
        status = int(head.split(None, 2)[1])
        length = _length(head)
        parts = bytearray(rest)
        if length is None:
            while not parts.endswith(_END):
                parts += self._more()
            return Answer(status=status, body=_put_together(bytes(parts)))
        while len(parts) < length:
            parts += self._more()
        return Answer(status=status, body=bytes(parts))

    def timed(self, request: bytes, expected: bytes) -> float:
        """Seconds that a small answer takes that must be 200 and contain *expected*."""
        began = time.perf_counter()
        answer = self.exchange(request)
        seconds = time.perf_counter() - began
        if answer.status != 200 or expected not in answer.body:
            raise BenchError(f"the server answered {answer.status}: {answer.body[:500]!r}")
        return seconds

    def first(self, request: bytes, expected: bytes) -> float:
        """Seconds until *expected* is there of an answer in chunks, whose rest is then read."""
        self._freshen()
        connection = self._connection
        seen = b""
        began = time.perf_counter()
        connection.sendall(request)
        while expected not in seen:
            seen += self._more()
        seconds = time.perf_counter() - began
        while not seen.endswith(_END):
            seen += self._more()
        if not seen.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"the server answered {seen[:500]!r}")
        return seconds

    def counted(self, request: bytes, expected: bytes) -> Told:
        """An answer of any length, whose last bytes must contain *expected*."""
        self._freshen()
        connection, view = self._connection, memoryview(self._buffer)
        cpu, began = time.thread_time(), time.perf_counter()
        connection.sendall(request)
        head, rest = self._head()
        length = _length(head)
        first = time.perf_counter() if rest else None
        count, tail = len(rest), rest[-_TAIL_BYTES:]
        while (not tail.endswith(_END)) if length is None else count < length:
            size = connection.recv_into(view)
            if not size:
                raise BenchError(f"the server hung up after {count} bytes")
            first = first or time.perf_counter()
            count += size
            tail = (tail + view[max(0, size - _TAIL_BYTES) : size])[-_TAIL_BYTES:]
        now = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200") or expected not in tail:
            raise BenchError(f"the server answered {head[:100]!r} and ended with {tail!r}")
        return Told(
            seconds=now - began,
            first_s=(first or now) - began,
            wire_bytes=count,
            tail=tail,
            cpu_s=time.thread_time() - cpu,
        )

    def _head(self) -> tuple[bytes, bytes]:
        """The head of an answer, and what came with it."""
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += self._more()
        head, _, rest = seen.partition(b"\r\n\r\n")
        return head, rest

    def _more(self) -> bytes:
        data = self._connection.recv(65536)
        if not data:
            raise BenchError("the server hung up in the middle of an answer")
        return data


def _length(head: bytes) -> int | None:
    """What an answer's head says of its length; `None` where it comes in chunks.

    Raises:
        BenchError: it says nothing.
    """
    if head.startswith(b"HTTP/1.1 204 "):
        return 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
        if line.startswith(b"transfer-encoding:") and b"chunked" in line:
            return None
    raise BenchError(f"an answer of unknown length: {head!r}")


def _put_together(chunks: bytes) -> bytes:
    body, at = bytearray(), 0
    while True:
        end = chunks.index(b"\r\n", at)
        size = int(chunks[at:end].partition(b";")[0], 16)
        if not size:
            return bytes(body)
        body += chunks[end + 2 : end + 2 + size]
        at = end + size + 4
