"""How the benchmark reads streams and the kernel's account of memory."""

import struct

import pytest
from bench.measure import BenchError
from bench.sessions_client import Messages, parse_head
from bench.sessions_crowd import memory, shares

STDOUT, STDERR, EXIT = 2, 3, 4


def message(payload: bytes, opcode: int = 2) -> bytes:
    """A WebSocket frame as a server sends it."""
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", 0x80 | opcode, size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", 0x80 | opcode, 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, 127, size)
    return head + payload


def data(kind: int, content: bytes) -> bytes:
    return message(struct.pack(">BI", kind, len(content)) + content)


CONVERSATION = b"".join([
    data(STDOUT, b"a" * 70_000),
    data(STDOUT, b""),
    data(STDERR, b"oh"),
    message(b"are you there", opcode=9),
    message(b"", opcode=9),
    data(STDOUT, b"b" * 300),
    message(struct.pack(">BI", EXIT, 3)),
    message(struct.pack(">H", 1000), opcode=8),
])  # fmt: skip


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 1 << 24])
def test_a_head_tells_how_long_its_frame_is(size: int) -> None:
    whole = message(bytes(size))
    found = parse_head(whole[:14])
    assert found is not None
    opcode, head, length = found
    assert (opcode, length) == (2, size)
    assert head + length == len(whole)


@pytest.mark.parametrize("size", [0, 126, 65_536])
def test_a_part_of_a_head_tells_nothing(size: int) -> None:
    head = message(bytes(size))[: {0: 2, 126: 4, 65_536: 10}[size]]
    assert all(parse_head(head[:count]) is None for count in range(len(head)))


def test_what_our_server_does_not_send_is_refused() -> None:
    """A masked frame, and one that is not the whole of a message."""
    for head in (b"\x82\x80", b"\x02\x00"):
        with pytest.raises(BenchError):
            parse_head(head)


@pytest.mark.parametrize("piece", [1, 2, 5, 7, 4096, len(CONVERSATION)])
def test_a_conversation_is_understood_in_whatever_pieces_it_comes(piece: int) -> None:
    messages = Messages()
    for at in range(0, len(CONVERSATION), piece):
        messages.feed(memoryview(CONVERSATION)[at : at + piece])
    assert (messages.stdout_bytes, messages.exit_code, messages.text) == (70_300, 3, b"oh")
    assert messages.is_closed


def test_a_length_that_is_wrong_is_an_error() -> None:
    with pytest.raises(BenchError):
        Messages().feed(memoryview(message(struct.pack(">BI", STDOUT, 9) + b"short")))


def test_a_sandbox_is_told_its_share_of_the_memory_that_is_gone() -> None:
    before = memory(
        "MemTotal:  9000 kB\nMemAvailable:  8000 kB\nSlab:  100 kB\nAnonPages:  10 kB\nHugePages_Total:  0\n"
    )
    after = memory(
        "MemTotal:  9000 kB\nMemAvailable:  6000 kB\nSlab:  300 kB\nAnonPages:  1010 kB\nHugePages_Total:  0\n"
    )
    each, where = shares(before, after, 10)
    assert each == 200
    assert where["slab"] == 20
    assert where["anonymous"] == 100
    assert where["page tables"] == 0
