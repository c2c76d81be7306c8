"""Load generators, against a server that answers what the test wants."""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from bench.generators import Load, closed_load, counted_load, open_load, our_closed_load
from bench.measure import BenchError

RIGHT = b'{"stdout":"hello\\n"}'
wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@contextlib.contextmanager
def answering(answer: Callable[[int], tuple[int, bytes]]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers request number n by `answer(n)`: its address, and what it was sent."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = answer(len(asked))
            head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n"
            self.wfile.write(head.encode() + body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


closed = pytest.mark.parametrize("load", [pytest.param(closed_load, marks=wrk), our_closed_load])


@closed
def test_each_right_answer_is_a_run(load: Callable[..., Load]) -> None:
    """And the generator's own CPU time is told."""
    with answering(lambda number: (200, RIGHT)) as (url, asked):
        found = load(url, clients=2, seconds=1)
    assert 0 < found.runs <= len(asked)
    assert found.refused == 0
    assert 0 < found.p50_s <= found.p99_s <= found.max_s
    assert found.cpu_s > 0


@closed
def test_one_wrong_answer_spoils_the_measurement(load: Callable[..., Load]) -> None:
    """A figure of which not every answer was right says nothing."""
    with (
        answering(lambda number: (200, RIGHT if number != 3 else b'{"stdout":""}')) as (url, _),
        pytest.raises(BenchError),
    ):
        load(url, clients=2, seconds=1)


@closed
def test_refusals_are_counted_and_are_no_runs(load: Callable[..., Load]) -> None:
    """Every other request is refused."""
    with answering(lambda number: (200, RIGHT) if number % 2 else (429, b"{}")) as (url, asked):
        found = load(url, clients=1, seconds=1)
    assert found.refused > 0
    assert found.runs + found.refused <= len(asked) + 1


def test_a_count_of_requests_is_kept() -> None:
    """Not one more."""
    with answering(lambda number: (200, RIGHT)) as (url, asked):
        found = counted_load(url, clients=3, runs=20)
    assert found.runs == len(asked) == 20


def test_an_open_load_does_not_wait_for_answers() -> None:
    """While the first answer is kept back, the others are asked for all the same."""
    all_asked = threading.Event()

    def answer(number: int) -> tuple[int, bytes]:
        if number == 30:
            all_asked.set()
        if number == 1:
            assert all_asked.wait(20)
        return 200, RIGHT

    with answering(answer) as (url, asked):
        found = open_load(url, rate=30, seconds=1, body=b'{"a":1}', expected=b"hello")
    assert len(asked) == 30
    assert found.runs <= 30
    assert found.unsent == 0
    assert set(asked) == {b'{"a":1}'}
