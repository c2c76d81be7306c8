"""How the benchmark of boxes tells what went well from what did not."""

import contextlib
import os
import socket
import tarfile
import threading
from collections.abc import Iterator

import pytest
from bench.boxes_client import Boxes, archive
from bench.boxes_crowd import together
from bench.measure import BenchError


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[Boxes]:
    """A client whose requests, over one connection, are answered with these."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                for one in answers:
                    connection.recv(65536)
                    connection.sendall(one)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with contextlib.closing(Boxes(f"http://127.0.0.1:{listener.getsockname()[1]}", "secret")) as client:
                yield client
        finally:
            thread.join(5)


def whole(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


STARTED = whole("201 Created", b'{"execution_id":"x"}')


def ended(code: int) -> bytes:
    return whole("200 OK", b'event: exit\ndata: {"exit_code":%d,"duration_ms":1}\n\n' % code)


def test_an_execution_that_ends_well_is_a_figure() -> None:
    with answering(STARTED, ended(0)) as client:
        assert client.true("b") > 0


@pytest.mark.parametrize("output", [ended(1), ended(137), whole("200 OK", b'event: stdout\ndata: {"data":""}\n\n')])
def test_an_execution_that_does_not_is_none(output: bytes) -> None:
    with answering(STARTED, output) as client, pytest.raises(BenchError, match="ended so"):
        client.true("b")


def test_an_empty_answer_has_no_length() -> None:
    with answering(b"HTTP/1.1 204 No Content\r\n\r\n") as client:
        client.remove("b")


def test_what_is_sent_is_a_tar_of_one_file() -> None:
    descriptor, size = archive("file", 1_500_000)
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb") as file, tarfile.open(fileobj=file) as tar:
        assert [(one.name, one.size) for one in tar] == [("file", 1_500_000)]
        assert os.fstat(descriptor).st_size == size


def test_all_begin_together_and_failures_are_told() -> None:
    meeting = threading.Barrier(5, timeout=30)

    def fail() -> None:
        meeting.wait()
        raise BenchError("no")

    _, errors = together([meeting.wait, meeting.wait, meeting.wait, meeting.wait, fail])
    assert errors == ["no"]
