"""What a sandbox serves, asked for through the server: nothing passes that could be read as more than was asked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.edge.conftest import KEY, Edge
from tests.edge.raw import Answer, connected, request, until
from tests.edge.test_framing import AMBIGUOUS, CHUNKS, HIDDEN, UNSUPPORTED

MIRROR = """
import socket

def whole(data):
    head, end, body = data.lower().partition(b"\\r\\n\\r\\n")
    if not end:
        return False
    if b"chunked" in head:
        return body.endswith(b"0\\r\\n\\r\\n")
    return b"content-length: 5" not in head or len(body) >= 5

listener = socket.create_server(("0.0.0.0", 8080))
seen = 0
while True:
    peer, _ = listener.accept()
    peer.settimeout(5)
    data = b""
    try:
        while not whole(data):
            more = peer.recv(65536)
            if not more:
                raise ConnectionError
            data += more
        seen += 1
        body = str(seen).encode() + b" " + data
        peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    except OSError:
        pass
    peer.close()
"""
"""Answers each connection with how many it has had and the bytes that came."""


@dataclass(frozen=True, kw_only=True)
class Inside:
    """A service in a sandbox."""

    edge: Edge
    session_id: str

    @property
    def host(self) -> bytes:
        return f"8080-{self.session_id}.localhost".encode()

    @property
    def path(self) -> bytes:
        return f"/sandboxes/{self.session_id}/ports/8080".encode()

    def asked(self, data: bytes) -> Answer:
        with connected(self.edge.url) as one:
            one.send(data)
            answer = one.read()
            assert answer is not None
            return answer

    def count(self) -> int:
        """Requests that it has had, before this one."""
        return int(self.asked(request(b"/count", host=self.host)).body.split()[0]) - 1


@pytest.fixture(scope="module")
def inside(edge: Edge) -> Iterator[Inside]:
    body = {
        "image": "host",
        "command": ["python3", "-c", MIRROR],
        "network": "exposed",
        "ports": [{"container": 8080}],
        "resources": {"memoryMB": 256, "timeoutMs": 300_000},
    }
    answer = edge.ask("POST", "/v1/sessions", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 201, answer.text
    found = Inside(edge=edge, session_id=answer.json()["id"])
    until(lambda: found.asked(request(b"/", host=found.host)).status == 200, "the service answers")
    yield found
    edge.ask("POST", f"/v1/sessions/{found.session_id}/kill")


def addressed(data: bytes, host: bytes) -> bytes:
    return data.replace(b"Host: localhost\r\n", b"Host: " + host + b"\r\n")


def test_nothing_ambiguous_reaches_a_sandbox(inside: Inside) -> None:
    before = inside.count()
    hostile = [*AMBIGUOUS.values(), *UNSUPPORTED[501].values(), *UNSUPPORTED[505].values()]
    for data in hostile:
        assert inside.asked(addressed(data, inside.host) + HIDDEN).status in (400, 421, 501, 505), data
    assert inside.count() == before + 1  # that is the count itself


@pytest.mark.parametrize("name", CHUNKS)
def test_a_body_in_malformed_chunks_does_not_get_through_whole(inside: Inside, name: str) -> None:
    data = request(b"/", b"Transfer-Encoding: chunked", method=b"POST", host=inside.host, body=CHUNKS[name])
    with connected(inside.edge.url) as one:
        one.send(data + addressed(HIDDEN, inside.host))
        statuses = one.rest()
    assert statuses in ([], [400]), statuses
    assert inside.count() >= 0  # it lives


def test_one_request_is_one_request_inside(inside: Inside) -> None:
    """Whatever its body looks like, and however its end was told."""
    hidden = HIDDEN[:100]
    chunked = b"%x\r\n" % len(hidden) + hidden + b"\r\n0\r\nX-Trailer: 1\r\n\r\n"
    for fields, body in (((b"Transfer-Encoding: chunked",), chunked), ((b"Content-Length: 5",), b"GET /")):
        before = inside.count()
        answer = inside.asked(request(b"/a", *fields, method=b"POST", host=inside.host, body=body))
        assert answer.status == 200
        seen = answer.body.partition(b" ")[2]
        assert seen.count(b"\r\nhost: ") == 1
        assert b"x-trailer" not in seen.lower()
        head = seen.partition(b"\r\n\r\n")[0].lower()
        assert (b"transfer-encoding:" in head) != (b"content-length:" in head)
        assert inside.count() == before + 2


def test_a_request_by_path_carries_no_credentials_inside(inside: Inside) -> None:
    key = KEY.encode()
    fields = b"Authorization: Bearer " + key, b"X-API-Key: " + key, b"Cookie: stockade_session=" + key
    seen = inside.asked(request(inside.path + b"/a", *fields)).body
    assert b"GET /a HTTP/1.1" in seen
    assert key not in seen


@pytest.mark.parametrize(
    "named", [b"close, x-forwarded-for, host", b"content-length", b"transfer-encoding", b"upgrade"]
)
def test_hop_by_hop_names_change_nothing_of_the_framing(inside: Inside, named: bytes) -> None:
    """`Connection: content-length` asks a proxy to drop the length of the body."""
    data = request(
        b"/a", b"Connection: " + named, b"Content-Length: 5", method=b"POST", host=inside.host, body=b"GET /"
    )
    before = inside.count()
    with connected(inside.edge.url) as one:
        one.send(data)
        answer = one.read()
    assert answer is not None
    assert answer.status in (200, 400)
    if answer.status == 200:
        assert answer.body.count(b"\r\nhost: ") == 1
        assert b"x-forwarded-for: 127.0.0.1" in answer.body
        assert inside.count() == before + 2


@pytest.mark.parametrize(
    "rest", [b"/../../../health", b"/%2e%2e/%2e%2e/health", b"//evil.example/", b"/a%00b", b"/\\a", b"/;a"]
)
def test_a_path_stays_below_its_port(inside: Inside, rest: bytes) -> None:
    """It is the sandbox's, as it was sent; it never leads to the server's own routes."""
    answer = inside.asked(request(inside.path + rest))
    assert answer.status == 200
    assert b"GET " + rest + b" HTTP/1.1" in answer.body
    assert b"content-security-policy: sandbox" in answer.head.lower()


def test_a_rebound_name_reaches_no_sandbox(inside: Inside) -> None:
    before = inside.count()
    assert inside.asked(request(inside.path + b"/", host=b"evil.example")).status == 421
    assert inside.asked(request(b"/", host=inside.host.replace(b"localhost", b"evil.example"))).status == 421
    assert inside.count() == before + 1
