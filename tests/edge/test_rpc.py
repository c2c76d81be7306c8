"""The port of the gRPC service, by clients that speak something else, or too much of it."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.edge.conftest import Edge
from tests.edge.raw import connected, request, until

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
messages = pytest.importorskip("stockade.dialects.isobox.messages", reason="the extra grpc is not installed")

MIB = 1024 * 1024
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, RESET, CONTINUATION, PING = 4, 1, 3, 9, 6
POST = b"\x83\x86\x84"
""":method POST, :scheme http, :path / by the static table of HPACK (RFC 7541, appendix A)."""


def framed(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@pytest.fixture
def channel(edge: Edge) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{edge.rpc_port}") as channel:
        yield channel


def called(channel: Any, method: str, message: bytes = b"", **options: Any) -> bytes:
    """The answer, unparsed."""
    answer: bytes = channel.unary_unary(f"/{messages.SERVICE}/{method}")(message, timeout=60, **options)
    return answer


def is_well(edge: Edge) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{edge.rpc_port}") as channel:
        return bool(called(channel, "HealthCheck"))


def resets() -> Iterator[bytes]:
    """Calls that are taken back at once (CVE-2023-44487)."""
    yield PREFACE + framed(SETTINGS)
    for number in range(1, 20_000, 2):
        yield framed(HEADERS, POST, flags=0x4, stream=number) + framed(RESET, b"\0\0\0\x08", stream=number)


def continued() -> Iterator[bytes]:
    """Headers that go on for ever (CVE-2024-27316 and others)."""
    yield PREFACE + framed(SETTINGS) + framed(HEADERS, POST, stream=1)
    for _ in range(20_000):
        yield framed(CONTINUATION, b"\x40\x01a\x01b" * 100, stream=1)


def pings() -> Iterator[bytes]:
    yield PREFACE + framed(SETTINGS)
    for _ in range(200):
        yield framed(PING, b"p" * 8) * 100


def noise() -> Iterator[bytes]:
    yield PREFACE
    yield os.urandom(100_000)


def of_http1() -> Iterator[bytes]:
    yield request(b"/execute", b"Content-Length: 2", method=b"POST", body=b"{}") * 100


@pytest.mark.parametrize("flood", [resets, continued, pings, noise, of_http1])
def test_what_is_no_call_harms_nobody(edge: Edge, flood: Any) -> None:
    before, descriptors = edge.resident_bytes(), edge.descriptors()
    with connected(f"http://127.0.0.1:{edge.rpc_port}", receive_bytes=4096) as one:
        one.socket.settimeout(2)
        try:
            for data in flood():
                one.send(data)
        except OSError:
            pass  # it has been hung up on, or takes no more until something is read
        assert is_well(edge)
        assert edge.resident_bytes() - before < 64 * MIB
    until(lambda: edge.descriptors() <= descriptors + 4, "it has gone")


@pytest.mark.parametrize("message", [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", b"\x1b" * 10_000])
def test_a_malformed_message_is_refused(channel: Any, message: bytes) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        called(channel, "ExecuteCode", message)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_or_metadata_without_measure_is_refused(edge: Edge, channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        called(channel, "ExecuteCode", b"\x0a\x80\x80\x80\x02" + b"a" * (4 * MIB))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError):
        called(channel, "HealthCheck", metadata=(("x-long", "a" * 64_000),))
    assert is_well(edge)


def test_a_call_of_nothing_is_refused(channel: Any) -> None:
    for method in ("Nothing", "../ExecuteCode", "executecode", ""):
        with pytest.raises(grpc.RpcError) as refused:
            called(channel, method)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.skipif(not os.environ.get("STOCKADE_LONG_TESTS"), reason="STOCKADE_LONG_TESTS is not set")
def test_who_never_begins_is_hung_up_on(edge: Edge) -> None:
    with connected(f"http://127.0.0.1:{edge.rpc_port}") as one:
        one.send(PREFACE[:10])
        while not one.is_closed():
            pass
