"""What clients can take of the server: connections, time, memory and places. Whoever else comes is served meanwhile."""

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from tests.edge.conftest import KEY, MOST_CONNECTIONS, PATIENCE_S, PLACES, QUEUE_LENGTH, Edge
from tests.edge.raw import Raw, connected, exchanged, request, until

IS_LONG = bool(os.environ.get("STOCKADE_LONG_TESTS"))
IDLE = 10_000 if IS_LONG else 2_000
MIB = 1024 * 1024
JSON = b"Content-Type: application/json"
REQUESTS = PLACES + QUEUE_LENGTH + 256
"""That may be under way at once: `SPARE_REQUESTS` of `app.http` beside places and queue."""


@pytest.fixture(scope="module", autouse=True)
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def crowd(edge: Edge, count: int, data: bytes = b"") -> Iterator[list[Raw]]:
    """So many connections, on each of which *data* has been sent."""
    ones: list[Raw] = []
    try:
        for _ in range(count):
            one = Raw(edge.url)
            ones.append(one)
            if data:
                with contextlib.suppress(OSError):  # it has been ended already
                    one.send(data)
        yield ones
    finally:
        for one in ones:
            one.close()


def test_idle_connections_beyond_the_bound_make_room_for_whoever_comes(edge: Edge) -> None:
    until(lambda: edge.descriptors() < MOST_CONNECTIONS // 2, "nobody is connected")
    before = edge.descriptors(), edge.resident_bytes()
    with crowd(edge, IDLE) as ones:
        assert edge.answers()
        assert edge.descriptors() - before[0] <= MOST_CONNECTIONS + 300
        until(lambda: edge.descriptors() - before[0] <= MOST_CONNECTIONS + 8, "those beyond the bound have been ended")
        assert edge.resident_bytes() - before[1] < 64 * MIB
        assert ones[0].is_closed()  # who has waited longest went first
        last = ones[-1]
        last.send(request(b"/health"))
        answer = last.read()
        assert answer is not None
        assert answer.status == 200
    until(lambda: edge.descriptors() <= before[0] + 8, "all have left")


def test_connections_that_are_kept_alive_make_room_too(edge: Edge) -> None:
    with crowd(edge, MOST_CONNECTIONS + 50, request(b"/health")) as ones:
        assert edge.answers()
        first = ones[0].read()
        assert first is not None
        assert first.status == 200
        assert ones[0].is_closed()


def test_headers_that_come_byte_by_byte_end_with_a_408(edge: Edge) -> None:
    with connected(edge.url) as one:
        one.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - started < 10 * PATIENCE_S:
                one.send(b"X")
                one.socket.settimeout(0.3)
                with contextlib.suppress(TimeoutError):
                    if one.socket.recv(1, socket.MSG_PEEK):
                        break
        one.socket.settimeout(60)
        assert one.rest() == [408]


def test_who_says_nothing_at_all_is_hung_up_on(edge: Edge) -> None:
    with connected(edge.url) as one:
        assert one.rest() == []


def test_a_body_that_nobody_asked_for_does_not_keep_the_connection(edge: Edge) -> None:
    """The request is answered before its body has come; a byte of it now and then is no reason to stay."""
    with connected(edge.url) as one:
        one.send(request(b"/health", b"Content-Length: 1000000"))
        answer = one.read()
        assert answer is not None
        assert answer.status == 200
        started = time.monotonic()
        with contextlib.suppress(OSError):
            one.socket.settimeout(0.3)
            while time.monotonic() - started < 10 * PATIENCE_S:
                one.send(b"x")
                with contextlib.suppress(TimeoutError):
                    if not one.socket.recv(1):
                        break
        assert time.monotonic() - started < 10 * PATIENCE_S


def test_bodies_that_do_not_come_keep_no_place_from_requests_that_are_there(edge: Edge) -> None:
    """As many as may be under way are, each lacking the end of its body; the next one takes the place of the oldest."""
    half = request(b"/execute", JSON, b"Content-Length: 1000", method=b"POST", body=b'{"language":')
    with crowd(edge, REQUESTS, half) as ones:
        until(edge.answers, "somebody else is served", 30)
        gone = sum(_is_gone(one) for one in ones)
        assert gone >= 1


def _is_gone(one: Raw) -> bool:
    one.socket.setblocking(False)
    try:
        return one.socket.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(
    "data",
    [
        request(b"/health", b"X-A: " + b"a" * 70_000),
        request(b"/health", b"X-A: " + b"a" * 1_000_000),
        request(b"/health", *(b"X-%d: a" % number for number in range(300))),
        request(b"/health", *(b"X-%d: a" % number for number in range(20_000))),
        request(b"/" + b"a" * 70_000),
        request(b"/health?" + b"a" * 1_000_000),
        request(b"/health", b"X" * 1_000_000 + b": a"),
    ],
    ids=["one", "giant", "many", "very many", "path", "query", "name"],
)
def test_headers_are_bounded_in_size_and_number(edge: Edge, data: bytes) -> None:
    """However they arrive: in one packet, too."""
    assert exchanged(edge.url, data) == [431]


@pytest.mark.parametrize(
    "body",
    [b"2;" + b"a" * 1_000_000 + b"\r\n{}\r\n0\r\n\r\n", b"0\r\nX-A: " + b"a" * 1_000_000 + b"\r\n\r\n"],
    ids=["extension", "trailer"],
)
def test_what_stands_between_the_chunks_is_bounded(edge: Edge, body: bytes) -> None:
    before = edge.resident_bytes()
    data = request(b"/execute", JSON, b"Transfer-Encoding: chunked", method=b"POST", body=body)
    assert exchanged(edge.url, data) in ([], [400], [431])
    assert edge.resident_bytes() - before < 16 * MIB


def test_a_body_of_endless_tiny_chunks_ends_at_the_largest_size_or_the_time(edge: Edge) -> None:
    with connected(edge.url) as one:
        one.send(request(b"/execute", JSON, b"Transfer-Encoding: chunked", method=b"POST"))
        with contextlib.suppress(OSError):
            for _ in range(60):
                one.send(b"4\r\n    \r\n" * 20_000)
        statuses = one.rest()
    assert statuses in ([413], [400], [408], []), statuses
    assert edge.answers()


def test_requests_sent_ahead_are_answered_up_to_a_bound(edge: Edge) -> None:
    with connected(edge.url) as one:
        one.send(request(b"/health") * 10)
        answers = [one.read() for _ in range(10)]
        assert [answer and answer.status for answer in answers] == [200] * 10
    before = edge.resident_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            with contextlib.suppress(OSError):
                stack.enter_context(connected(edge.url)).send(request(b"/health") * 5_000)
        assert edge.answers()
        assert edge.resident_bytes() - before < 32 * MIB


def test_large_answers_that_nobody_reads_are_given_up(edge: Edge) -> None:
    before, descriptors = edge.resident_bytes(), edge.descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            one = stack.enter_context(connected(edge.url, receive_bytes=4096))
            one.send(request(b"/openapi.json") * 10)
        assert edge.answers()
        until(lambda: edge.descriptors() <= descriptors + 4, "who takes nothing has been dropped")
    assert edge.resident_bytes() - before < 128 * MIB


def test_an_expectation_is_met_and_no_other_is_known(edge: Edge) -> None:
    with connected(edge.url) as one:
        one.send(request(b"/execute", JSON, b"Expect: 100-continue", b"Content-Length: 2", method=b"POST"))
        answer = one.read()
        assert answer is not None
        assert answer.status == 100
        one.send(b"{}")
        answer = one.read()
        assert answer is not None
        assert answer.status == 400
    with connected(edge.url) as one:
        one.send(request(b"/execute", JSON, b"Expect: 100-continue", b"Content-Length: 999999999", method=b"POST"))
        answer = one.read()
        assert answer is not None
        assert answer.status == 413


def test_a_compressed_body_is_not_unpacked(edge: Edge) -> None:
    answer = edge.ask(
        "POST",
        "/execute",
        content=b"\x1f\x8b\x08\x00" + b"\0" * 100,
        headers={"content-encoding": "gzip", "content-type": "application/json"},
    )
    assert answer.status_code == 400


def test_a_burst_of_what_is_wrong_does_not_flood_the_log(edge: Edge) -> None:
    before = len(edge.server.log)
    for _ in range(100):
        exchanged(edge.url, b"\x16\x03\x01 nonsense\r\n\r\n")
    assert edge.ask("GET", "/health", headers={"x-api-key": KEY}).status_code == 200
    assert len(edge.server.log) - before < 20
