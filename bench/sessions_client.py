"""A client of sandboxes that live, over their wire (docs/dialects/execbox.md), as cheap as one in Python can be.

It shares the processors with the server, so it does nothing that a figure does not need: plain sockets that block, one
buffer for everything that comes, and no library between. Bytes of streams are counted, not kept.
"""

import base64
import http.client
import json
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from bench.measure import BenchError

__all__ = ["Client", "Messages", "parse_head"]

ANSWER_S = 30.0
BUFFER_BYTES = 1 << 20
_CLOSE = b"\x88\x80\0\0\0\0"  # masked, as clients must, with nothing in it
_STDOUT, _EXIT, _ERROR = 2, 4, 5
_FRAME_BYTES = 5
"""Type and length before the data of each of the protocol's frames."""
_MOST_TEXT = 2000


def parse_head(data: bytes | bytearray) -> tuple[int, int, int] | None:
    """Opcode, length of the head, and length of the payload of a WebSocket frame; `None` when the head is not whole.

    Raises:
        BenchError: it is masked, or a part of a message only: our server sends neither.
    """
    if len(data) < 2:
        return None
    first, second = data[0], data[1]
    if not first & 0x80 or second & 0x80:
        raise BenchError(f"an unexpected WebSocket frame: {first:#04x} {second:#04x}")
    length = second & 0x7F
    if length < 126:
        return first & 0x0F, 2, length
    size, code = (4, ">H") if length == 126 else (10, ">Q")
    if len(data) < size:
        return None
    (length,) = struct.unpack_from(code, data, 2)
    return first & 0x0F, size, length


@dataclass
class Messages:
    """What a process prints, out of the bytes of a connection: counted as they come, whatever pieces they come in."""

    stdout_bytes: int = 0
    exit_code: int | None = None
    text: bytes = b""
    """The beginning of what it said on standard error, and of what the server complained about."""
    is_closed: bool = False
    _head: bytearray = field(default_factory=bytearray)
    """A frame's beginning, until enough of it is there."""
    _kind: int = 0
    _left: int = 0
    """Of the data of the frame under way."""

    def feed(self, data: memoryview) -> None:
        """Take what has come.

        Raises:
            BenchError: it is not what our server sends.
        """
        while data:
            if self._left:
                part, data = data[: self._left], data[self._left :]
                self._left -= len(part)
                if self._kind == _STDOUT:
                    self.stdout_bytes += len(part)
                elif len(self.text) < _MOST_TEXT:
                    self.text += bytes(part[:_MOST_TEXT])
                continue
            self._head += data[:1]
            data = data[1:]
            self._begin()

    def _begin(self) -> None:
        """Begin with a frame's data, once its head is whole."""
        found = parse_head(self._head)
        if found is None:
            return
        opcode, size, length = found
        if opcode == 8:
            self.is_closed = True
        if opcode != 2:  # a ping, or the end
            if len(self._head) == size + length:
                self._head.clear()
            return
        if len(self._head) < size + min(length, _FRAME_BYTES):
            return
        kind, number = struct.unpack_from(">BI", self._head, size)
        self._head.clear()
        self._kind = kind
        if kind == _EXIT:
            self.exit_code = number
        elif length != number + _FRAME_BYTES:
            raise BenchError(f"a message of {length} bytes says that it holds {number}")
        else:
            self._left = number


class Client:
    """One client with one key; its requests go over one connection that stays open, a stream has one of its own."""

    def __init__(self, url: str, key: str) -> None:
        address = urlsplit(url)
        self._address = (str(address.hostname), address.port or 80)
        self._authority = f"{self._address[0]}:{self._address[1]}"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._http = http.client.HTTPConnection(*self._address, timeout=ANSWER_S)
        self._buffer = bytearray(BUFFER_BYTES)

    def close(self) -> None:
        self._http.close()

    # ── sandboxes ────────────────────────────────────────────────────────────────────────────────────────────────

    def create(self, **body: object) -> str:
        """A sandbox that runs; its id."""
        return str(self.made(**body)["id"])

    def made(self, **body: object) -> dict[str, Any]:
        """A sandbox that runs; all that is said of it."""
        return self._ask("POST", "/v1/sessions", {"image": "host", **body}, expected=201)

    def kill(self, session: str) -> None:
        """End it, and whatever it left."""
        self._ask("DELETE", f"/v1/sessions/{session}", expected=200)

    def _ask(self, method: str, path: str, body: object = None, *, expected: int) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        self._http.request(method, path, content, self._headers | {"Content-Type": "application/json"})
        response = self._http.getresponse()
        answer = response.read()
        if response.status != expected:
            raise BenchError(f"{method} {path.partition('?')[0]} is answered {response.status}: {answer[:500]!r}")
        return dict(json.loads(answer))

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────

    def exec(self, session: str, *argv: str) -> tuple[float, int]:
        """Run a program in a sandbox over a connection of its own, to its exit code 0.

        Returns:
            Seconds from connecting to the exit code; bytes that it printed.
        """
        began = time.perf_counter()
        query = urlencode([("cmd", word) for word in argv])
        with self._upgraded(f"/v1/sessions/{session}/exec?{query}") as (connection, messages):
            view = memoryview(self._buffer)
            while messages.exit_code is None and not messages.is_closed:
                count = connection.recv_into(view)
                if not count:
                    break
                messages.feed(view[:count])
            seconds = time.perf_counter() - began
            if messages.exit_code != 0:
                raise BenchError(f"{' '.join(argv)} ended with {messages.exit_code} and said {messages.text[:500]!r}")
            connection.sendall(_CLOSE)
        return seconds, messages.stdout_bytes

    def _upgraded(self, path: str) -> "_Upgraded":
        connection = socket.create_connection(self._address, timeout=ANSWER_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = {
            "Host": self._authority,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
            **self._headers,
        }
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        connection.sendall("\r\n".join(lines).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = connection.recv(65536)
            if not data:
                break
            answer += data
        head_text, _, rest = answer.partition(b"\r\n\r\n")
        if not head_text.startswith(b"HTTP/1.1 101 "):
            connection.close()
            raise BenchError(f"{path.partition('?')[0]} is answered {answer[:500]!r}")
        messages = Messages()
        messages.feed(memoryview(rest))
        return _Upgraded(connection=connection, messages=messages)

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────

    def upload(self, session: str, path: str, source: int, size: int) -> float:
        """Send *size* bytes of the file *source* (a descriptor) into a sandbox; seconds."""
        began = time.perf_counter()
        connection = self._http
        connection.putrequest("POST", _files(session, path), skip_accept_encoding=True)
        for name, value in {**self._headers, "Content-Length": str(size)}.items():
            connection.putheader(name, value)
        connection.putheader("Content-Type", "application/octet-stream")
        connection.endheaders()
        sock = connection.sock
        sock.setblocking(True)  # sendfile(2) knows no deadline
        sent = 0
        while sent < size:
            count = os.sendfile(sock.fileno(), source, sent, size - sent)
            if not count:
                raise BenchError("the file to be sent is too short")
            sent += count
        sock.settimeout(ANSWER_S)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 201 or json.loads(answer).get("size") != size:
            raise BenchError(f"an upload is answered {response.status}: {answer[:500]!r}")
        return time.perf_counter() - began

    def download(self, session: str, path: str) -> tuple[float, int]:
        """Fetch a file out of a sandbox: seconds, and how many bytes came."""
        seconds, count, _ = self._download(session, path, keep=False)
        return seconds, count

    def read(self, session: str, path: str) -> bytes:
        """What is in a small file of a sandbox."""
        return self._download(session, path, keep=True)[2]

    def _download(self, session: str, path: str, *, keep: bool) -> tuple[float, int, bytes]:
        began = time.perf_counter()
        self._http.request("GET", _files(session, path), headers=self._headers)
        response = self._http.getresponse()
        kept = bytearray()
        count = 0
        view = memoryview(self._buffer)
        while part := response.readinto(view):
            count += part
            if keep:
                kept += view[:part]
        if response.status != 200 or count != int(response.headers["Content-Length"]):
            raise BenchError(f"a download is answered {response.status}, with {count} bytes")
        return time.perf_counter() - began, count, bytes(kept)


@dataclass(frozen=True, kw_only=True)
class _Upgraded:
    """A WebSocket connection, closed with its block."""

    connection: socket.socket
    messages: Messages

    def __enter__(self) -> tuple[socket.socket, Messages]:
        return self.connection, self.messages

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def _files(session: str, path: str) -> str:
    return f"/v1/sessions/{session}/files?path={quote(path, safe='')}"
