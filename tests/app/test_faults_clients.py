"""Clients that dawdle, flood, never read or go away."""

import asyncio
import json
import re
import select
import socket
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from stockade.app.connections import MOST_HEADER_BYTES, Bounded
from tests.app.serving import Server, serving
from tests.app.traces import commands, connect, request, until

HELLO = {"language": "python", "code": "print(6*7)"}
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("clients")
    with serving(data_dir, STOCKADE_SERVER_BODY_TIMEOUT_S="1", STOCKADE_QUEUE_PLACES="2") as server:
        yield server


def works(server: Server) -> bool:
    return bool(httpx.post(f"{server.url}/execute", json=HELLO, timeout=30).json()["stdout"] == "42\n")


def sleep(seconds: int) -> bytes:
    """A request whose program shows as `sleep SECONDS` on the host, and outlives the test."""
    return request("/execute", {"language": "bash", "code": f"exec sleep {seconds}", "timeout_seconds": 100})


def health(server: Server) -> dict[str, int]:
    found: dict[str, int] = httpx.get(f"{server.url}/health").json()
    return found


def is_connected(server: Server, client: socket.socket) -> bool:
    """Whether the server's end of *client* is there, by the kernel's table."""
    ports = urlsplit(server.url).port, client.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        if tuple(int(end.rpartition(":")[2], 16) for end in (local, remote)) == ports:
            return state == "01"  # TCP_ESTABLISHED
    return False


def peak_memory(server: Server) -> int:
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)[0])


def received(one: socket.socket) -> bytes:
    """All that comes until the end; a reset is an end too."""
    data = b""
    try:
        while chunk := one.recv(65536):
            data += chunk
    except ConnectionError:
        pass
    return data


def test_headers_that_come_byte_by_byte_are_given_up(server: Server) -> None:
    with connect(server.url) as slow:
        for number in range(10_000):
            slow.send(b"GET /health HTTP/1.1\r\nX-Slow: "[number : number + 1] or b"x")
            if select.select([slow], [], [], 0.02)[0]:
                break
            if number == 10:
                assert works(server)
        head, _, body = received(slow).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"] == "Request timeout"


def test_a_connection_that_says_nothing_is_closed(server: Server) -> None:
    with connect(server.url) as mute:
        assert received(mute) == b""


def test_line_ends_do_not_keep_a_connection_open(server: Server) -> None:
    with connect(server.url) as idle:
        for _ in range(10_000):
            try:
                idle.send(b"\r\n")
            except ConnectionError:
                break
            if select.select([idle], [], [], 0.02)[0]:
                break
        else:
            raise AssertionError("the connection is still open")


@pytest.mark.parametrize(
    "piece", [b"X-Many: more\r\n" * 512, b"x" * 8192], ids=["headers without end", "one header without end"]
)
def test_headers_without_end_are_refused_and_not_kept(server: Server, piece: bytes) -> None:
    before = peak_memory(server)
    sent = 0
    with connect(server.url) as flood:
        try:
            flood.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-First: ")
            while sent < 64 * MIB and not select.select([flood], [], [], 0)[0]:
                flood.sendall(piece)
                sent += len(piece)
        except ConnectionError:
            pass
        answer = received(flood)
    assert answer.startswith(b"HTTP/1.1 431 ") or not answer, "a reset may overtake the answer"
    assert sent < 64 * MIB
    assert peak_memory(server) < before + 16 * MIB
    assert works(server)


def test_headers_of_usual_length_are_read(server: Server) -> None:
    headers = {f"X-{number}": "x" * 1000 for number in range(MOST_HEADER_BYTES // 1024 - 2)}
    assert httpx.get(f"{server.url}/health", headers=headers).status_code == 200


def test_a_long_body_in_many_pieces_is_no_header(server: Server) -> None:
    body = json.dumps(HELLO | {"stdin": "x" * MIB}).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    answer = httpx.post(
        f"{server.url}/execute", content=pieces(), headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.json()["stdout"] == "42\n"


def test_a_client_that_never_reads_its_answers_is_dropped(server: Server) -> None:
    body = {"language": "python", "code": "import sys; sys.stdout.write('x' * 1000 * 1000)"}
    with connect(server.url, SO_RCVBUF=4096) as deaf:
        # One answer alone may find room in the kernel's buffers.
        deaf.sendall(request("/execute", body).replace(b"Connection: close\r\n", b"") * 12)
        until(lambda: select.select([deaf], [], [], 0)[0])
        assert works(server)
        until(lambda: not is_connected(server, deaf))
        assert len(received(deaf)) < 12_000_000
    assert health(server)["running"] == 0


def test_a_client_that_disconnects_in_the_run_ends_the_run(server: Server) -> None:
    with connect(server.url) as client:
        client.sendall(sleep(4711))
        until(lambda: "sleep 4711" in commands(server))
    until(lambda: "sleep 4711" not in commands(server))
    until(lambda: health(server)["running"] == 0)
    assert works(server)


def test_a_client_with_a_large_body_that_disconnects_in_the_run_ends_the_run(server: Server) -> None:
    """The server stops reading from a connection while a large body is worked on, and must yet see it go."""
    code = f"exec sleep 4715 #{'x' * MIB}"
    body = {"language": "bash", "code": code, "timeout_seconds": 100}
    with connect(server.url) as client:
        client.sendall(request("/execute", body))
        until(lambda: "sleep 4715" in commands(server))
    until(lambda: "sleep 4715" not in commands(server))
    until(lambda: health(server)["running"] == 0)
    assert works(server)


def test_a_client_that_disconnects_in_the_queue_gives_its_turn_up(server: Server) -> None:
    with connect(server.url) as one, connect(server.url) as two:
        one.sendall(sleep(4712))
        two.sendall(sleep(4713))
        until(lambda: health(server)["running"] == 2)
        with connect(server.url) as waiting:
            waiting.sendall(sleep(4714))
            until(lambda: health(server)["queued"] == 1)
        until(lambda: health(server)["queued"] == 0)
        assert health(server)["running"] == 2
    until(lambda: health(server)["running"] == 0)
    assert "sleep 4714" not in commands(server)
    assert works(server)


@pytest.mark.anyio
async def test_above_so_many_requests_all_are_told_to_come_again() -> None:
    going_on = asyncio.Event()
    sent: list[MutableMapping[str, Any]] = []

    async def app(*_: object) -> None:
        await going_on.wait()

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("not to be read")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    bounded = Bounded(app, most=1, excepted=lambda path: path == "/run")
    first = asyncio.ensure_future(bounded({"type": "http"}, receive, send))
    await asyncio.sleep(0)
    await bounded({"type": "http"}, receive, send)
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"1") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"] == "Server busy"
    excepted = asyncio.ensure_future(bounded({"type": "http", "path": "/run"}, receive, send))
    await asyncio.sleep(0)
    assert len(sent) == 2, "it is let in, and takes no place"
    going_on.set()
    await asyncio.gather(first, excepted)
    sent.clear()
    await bounded({"type": "http"}, receive, send)
    assert not sent, "the place is free again"
