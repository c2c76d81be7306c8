"""WebSocket clients that send what no client sends."""

import os
import struct
from collections.abc import Iterator

import pytest

from tests.edge.conftest import Edge, Living
from tests.edge.raw import Raw, request
from tests.edge.test_streams import websocket

MIB = 1024 * 1024


def framed(opcode: int, payload: bytes = b"", *, final: bool = True, masked: bool = True) -> bytes:
    """A frame as a client sends it (RFC 6455, section 5.2)."""
    size, mask = len(payload), 0x80 if masked else 0
    head = bytes([opcode | (0x80 if final else 0)])
    if size < 126:
        head += bytes([size | mask])
    elif size < 65536:
        head += bytes([126 | mask]) + struct.pack("!H", size)
    else:
        head += bytes([127 | mask]) + struct.pack("!Q", size)
    return head + (b"\0\0\0\0" if masked else b"") + payload


@pytest.fixture
def attached(edge: Edge, living: Living) -> Iterator[Raw]:
    """A WebSocket to the main process of a session."""
    one = Raw(edge.url, receive_bytes=4096)
    one.send(websocket(f"/v1/sessions/{living.session_id}/attach"))
    head = b""
    while b"\r\n\r\n" not in head:
        head += one.socket.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    yield one
    one.close()


def flooded(one: Raw, data: bytes, times: int) -> bool:
    """Send *data* again and again and read nothing; whether the server has ended the connection over it."""
    one.socket.settimeout(2)
    try:
        for _ in range(times):
            one.send(data)
    except TimeoutError:
        return False  # it takes no more until something is read
    except OSError:
        return True
    return False


def test_pongs_that_nobody_takes_do_not_pile_up(edge: Edge, attached: Raw) -> None:
    before = edge.resident_bytes()
    flooded(attached, framed(0x9, b"p" * 125) * 5_000, 30)
    assert edge.answers()
    assert edge.resident_bytes() - before < 8 * MIB


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "one byte"])
def test_a_message_in_endless_pieces_is_ended(edge: Edge, attached: Raw, payload: bytes) -> None:
    before = edge.resident_bytes()
    attached.send(framed(0x2, b"\0", final=False))
    assert flooded(attached, framed(0x0, payload, final=False) * 20_000, 60)
    assert edge.answers()
    assert edge.resident_bytes() - before < 16 * MIB


@pytest.mark.parametrize(
    "data",
    [
        framed(0x2, b"x", masked=False),
        framed(0x3, b"x"),
        framed(0x0, b"x"),
        framed(0x9, b"x", final=False),
        framed(0x9, b"x" * 126),
        b"\xf2\x80\0\0\0\0",
        b"\x82\xff" + struct.pack("!Q", 1 << 62) + b"\0\0\0\0",
        b"\x82\xff" + struct.pack("!Q", 1 << 63) + b"\0\0\0\0",
        framed(0x8, b"\x00"),
        framed(0x8, b"\x03\xed"),
        framed(0x1, b"\xff\xfe"),
        os.urandom(1000),
        request(b"/health"),
    ],
    ids=[
        "not masked", "no opcode", "no beginning", "ping in pieces", "long ping", "reserved bits", "too long",
        "longer than can be", "half a code", "a code that is never sent", "no text", "noise", "HTTP",
    ],
)  # fmt: skip
def test_a_frame_against_the_protocol_ends_the_connection(edge: Edge, attached: Raw, data: bytes) -> None:
    attached.send(data)
    attached.socket.settimeout(60)
    _until_closed(attached)
    assert edge.answers()


def _until_closed(one: Raw) -> None:
    while not one.is_closed():
        pass


def test_a_client_that_never_answers_the_end_is_not_waited_for(edge: Edge, attached: Raw) -> None:
    """It sends its close, and takes nothing more: the descriptor goes all the same."""
    before = edge.descriptors()
    attached.send(framed(0x8, b"\x03\xe8"))
    _until_closed(attached)
    assert edge.descriptors() <= before
