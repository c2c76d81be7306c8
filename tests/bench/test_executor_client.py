"""How the benchmark reads answers, whole and in chunks, and the yardstick that it compares with."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from bench.executor import unisolated
from bench.executor_client import Executor
from bench.measure import BenchError

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@contextlib.contextmanager
def answering(*pieces: bytes) -> Iterator[Executor]:
    """A client whose first request is answered with just these pieces, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with contextlib.closing(Executor(f"http://127.0.0.1:{listener.getsockname()[1]}", "secret")) as client:
                yield client
        finally:
            thread.join(5)


@pytest.mark.parametrize("at", [5, 17, 38, 47, 50, 55])
def test_chunks_are_put_together_wherever_they_are_cut(at: int) -> None:
    whole = CHUNKED + b"3\r\nabc\r\n4;x=y\r\nd\r\ne\r\n0\r\n\r\n"
    with answering(whole[:at], whole[at:]) as client:
        answer = client.exchange(client.prepare("POST", "/run", {"cmd": "true"}))
    assert (answer.status, answer.body) == (200, b"abcd\r\ne")


def test_an_answer_of_known_length_is_counted() -> None:
    with answering(HEAD + b"Content-Length: 300000\r\n\r\n" + bytes(200_000), bytes(99_997) + b"end") as client:
        told = client.counted(client.prepare("POST", "/run", {}), b"end")
    assert told.wire_bytes == 300_000
    assert 0 < told.first_s <= told.seconds


def test_an_answer_that_ends_otherwise_is_no_figure() -> None:
    with answering(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n") as client, pytest.raises(BenchError, match="ended with"):
        client.counted(client.prepare("POST", "/run", {}), b'"code":0')


def test_a_server_that_hangs_up_is_no_figure() -> None:
    with answering(CHUNKED + b"3\r\nabc\r\n") as client, pytest.raises(BenchError, match="hung up"):
        client.exchange(client.prepare("POST", "/run", {}))


def test_the_yardstick_answers_as_the_protocol_says() -> None:
    with unisolated() as url, contextlib.closing(Executor(url, "none is asked for")) as client:
        answer = client.ask("POST", "/run", {"cmd": "printf hi; printf no >&2; exit 3"})
        assert answer.json() == {"stdout": "hi", "stderr": "no", "code": 3}
        body = client.ask("POST", "/run_streaming", {"cmd": "printf 'a\\nb'"}).body
    assert body == (
        b'event: output\ndata: {"stream":"stdout","data":"a"}\n\n'
        b'event: output\ndata: {"stream":"stdout","data":"b"}\n\n'
        b'event: complete\ndata: {"code":0,"error":false}\n\n'
    )
