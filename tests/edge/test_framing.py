"""What two programs could read as different requests is no request here; nothing hides in another one."""

import pytest

from tests.edge.conftest import Edge
from tests.edge.raw import connected, exchanged, request

HEALTH = request(b"/health")
HIDDEN = request(b"/hidden")
"""Answered with 404 where it is taken for a request."""
JSON = b"Content-Type: application/json"
RUN = b'{"language":"python","code":"print(1)"}'
WEBSOCKET = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return request(b"/execute", *fields, method=b"POST", body=body)


AMBIGUOUS = {
    "length and coding": post(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nX"),
    "coding and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"0\r\n\r\n"),
    "two equal lengths": post(b"Content-Length: 0", b"Content-Length: 0"),
    "two lengths": post(b"Content-Length: 0", b"Content-Length: 5", body=b"abcde"),
    "a list of lengths": post(b"Content-Length: 0, 0"),
    "a length with a sign": post(b"Content-Length: +0"),
    "a negative length": post(b"Content-Length: -1"),
    "a hexadecimal length": post(b"Content-Length: 0x0"),
    "an empty length": post(b"Content-Length: "),
    "a length in two parts": post(b"Content-Length: 1 0"),
    "a length beyond 64 bits": post(b"Content-Length: 18446744073709551616"),
    "a length in another script": post("Content-Length: \u0661".encode()),
    "two codings": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    "chunked twice": post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "chunked not last": post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "a space before the colon of the coding": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "a space before the colon of the length": post(b"Content-Length : 5", body=b"abcde"),
    "a vertical tab in the coding": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "a folded coding": post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"),
    "a folded line": post(b"X-A: 1\r\n Content-Length: 5"),
    "a folded first line": b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "line feeds alone": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "a line feed alone within a field": post(b"X-A: 1\nContent-Length: 5"),
    "a carriage return alone within a field": post(b"X-A: 1\rContent-Length: 5"),
    "a NUL in a value": post(b"X-A: a\0b"),
    "a NUL in a name": post(b"X\0A: a"),
    "a control character in a value": post(b"X-A: a\x01b"),
    "a line that is no field": post(b"Hello"),
    "a field without a name": post(b": x"),
    "a tab in the request line": b"GET\t/health\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes beyond ASCII in the target": "GET /h\u00e9 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "no path in the target": request(b"?a"),
    "a tunnel": b"CONNECT example.com:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": request(b"/health", b"Host: evil.example"),
    "two equal hosts": request(b"/health", b"Host: localhost"),
    "a host with a path": request(b"/health", host=b"localhost/evil.example"),
    "a host with a user": request(b"/health", host=b"localhost:80@evil.example"),
    "a host with a space": request(b"/health", host=b"localhost evil.example"),
    "two hosts in one": request(b"/health", host=b"localhost, evil.example"),
    "another host in the target": request(b"http://evil.example/health"),
    "another host in Host": request(b"http://localhost/health", host=b"evil.example"),
    "another port in the target": request(b"http://localhost:1/health"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "an unknown method": request(b"/health", method=b"FOO"),
    "a method in small letters": request(b"/health", method=b"get"),
    "a later version": b"GET /health HTTP/1.9\r\nHost: localhost\r\n\r\n",
}
CHUNKS = {
    "a line feed after an extension": b"2;a\n{}\r\n0\r\n\r\n",
    "a line feed after a size": b"2\n{}\r\n0\r\n\r\n",
    "a negative size": b"-2\r\n{}\r\n0\r\n\r\n",
    "a size with a prefix": b"0x2\r\n{}\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "no end of a chunk": b"2\r\n{}XX0\r\n\r\n",
    "a space after a size": b"2 \r\n{}\r\n0\r\n\r\n",
    "a length behind the body": b"2\r\n{}\r\n0\r\nContent-Length: 7\r\n\r\n",
}
UNSUPPORTED = {
    501: {
        "a coding that is none": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
        "identity": post(b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
        "gzip": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
        "a coding in HTTP/1.0": (
            b"POST /execute HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
    },
    505: {
        "HTTP/0.9": b"GET /health\r\n\r\n",
        "HTTP/2 by name": b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
    },
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused_and_ends_the_connection(edge: Edge, name: str) -> None:
    assert exchanged(edge.url, AMBIGUOUS[name] + HIDDEN) == [400]


@pytest.mark.parametrize("name", CHUNKS)
def test_a_body_in_malformed_chunks_ends_the_connection(edge: Edge, name: str) -> None:
    statuses = exchanged(edge.url, post(JSON, b"Transfer-Encoding: chunked", body=CHUNKS[name]) + HIDDEN)
    assert statuses in ([400], []), statuses


@pytest.mark.parametrize(
    ("status", "name"), [(status, name) for status, found in UNSUPPORTED.items() for name in found]
)
def test_what_is_not_spoken_here_is_refused_by_name(edge: Edge, status: int, name: str) -> None:
    assert exchanged(edge.url, UNSUPPORTED[status][name] + HIDDEN) == [status]


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (request(b"/health", b"Content-Length: 5", body=b"abcde"), 200),
        (request(b"/health", b"Transfer-Encoding: chunked", body=b"5\r\nabcde\r\n0\r\n\r\n"), 200),
        (request(b"/health", b"Transfer-Encoding: chunked", body=b"5;a=b\r\nabcde\r\n0\r\nX: y\r\n\r\n"), 200),
        (request(b"/health", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMA"), 200),
        (post(JSON, b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: %d" % len(RUN), body=RUN), 200),
        (b"\r\n\r\n" + HEALTH, 200),
        (request(b"http://localhost/health"), 200),
    ],
    ids=["length", "chunks", "extensions and trailers", "h2c", "upgrade with a body", "empty lines", "absolute"],
)
def test_a_request_that_is_only_unusual_ends_where_it_ends(edge: Edge, first: bytes, status: int) -> None:
    """The next one on the connection is answered, whatever came before it."""
    with connected(edge.url) as one:
        one.send(first + HIDDEN)
        answers = [one.read(), one.read()]
    assert [answer and answer.status for answer in answers] == [status, 404]


def test_the_last_request_of_a_connection_is_the_last(edge: Edge) -> None:
    for last in (request(b"/health", b"Connection: close"), b"GET /health HTTP/1.0\r\n\r\n"):
        with connected(edge.url) as one:
            one.send(last + HIDDEN)
            assert one.rest() == [200]


def test_what_comes_behind_the_body_is_no_header(edge: Edge) -> None:
    """A trailer could else set what has been checked already: the origin, the key, the client's address."""
    with connected(edge.url) as one:
        trailers = b"Origin: http://evil.example\r\nX-Request-ID: from-a-trailer\r\n"
        one.send(post(JSON, b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n"))
        answer = one.read()
        assert answer is not None
        assert answer.status == 400
        assert b"language" in answer.body
        assert b"from-a-trailer" not in answer.head


@pytest.mark.parametrize(
    "data",
    [
        request(b"/nowhere", *WEBSOCKET, b"Content-Length: 5", body=b"abcde"),
        request(b"/nowhere", *WEBSOCKET, b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        request(b"/nowhere", *WEBSOCKET, method=b"POST"),
        request(b"/nowhere", *WEBSOCKET, *(b"X-%d: a" % number for number in range(150))),
        request(b"/nowhere", *WEBSOCKET, b"X-A: " + b"a" * 9000),
        request(b"/nowhere?" + b"a" * 9000, *WEBSOCKET),
        request(b"/nowhere", b"Upgrade: websocket", b"Connection: Upgrade"),
        request(b"/nowhere", *WEBSOCKET) + HIDDEN,
    ],
    ids=["length", "chunked", "POST", "many fields", "long field", "long target", "no key", "followed"],
)
def test_a_handshake_that_is_none_is_answered_and_not_kept(edge: Edge, data: bytes) -> None:
    with connected(edge.url) as one:
        one.send(data)
        assert one.rest() == [400]


def test_a_websocket_cannot_begin_on_a_connection_that_still_answers(edge: Edge) -> None:
    """Else the answer would end up within the stream, and nobody would be told when its client leaves."""
    running = request(
        b"/execute",
        JSON,
        b"Content-Length: 57",
        method=b"POST",
        body=b'{"language":"python","code":"import time; time.sleep(2)"}',
    )
    statuses = exchanged(edge.url, running + request(b"/nowhere", *WEBSOCKET))
    assert statuses in ([], [400])
    assert not [one for one in edge.log_entries() if one["event"] == "request.crashed"]
