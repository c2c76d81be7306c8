"""Messages on the wire: whatever arrives, it is a message or refused, and no descriptor stays open."""

import array
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.warden import protocol


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        for one in (ours, theirs):
            one.settimeout(30)
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


@contextlib.contextmanager
def no_descriptor_leaks() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(text, json_values, max_size=5), st.integers(0, protocol.MOST_DESCRIPTORS))
@settings(deadline=None)
def test_what_is_sent_is_received(message: dict[str, Any], count: int) -> None:
    with no_descriptor_leaks(), pair() as (ours, theirs):
        files = [protocol.memory_file("x") for _ in range(count)]
        protocol.send(ours, message, tuple(files))
        received = protocol.receive(theirs)
        assert received is not None
        assert received[0] == message
        assert [os.fstat(fd).st_ino for fd in received[1]] == [os.fstat(fd).st_ino for fd in files]
        assert not any(os.get_inheritable(fd) for fd in received[1])
        for fd in (*files, *received[1]):
            os.close(fd)


@given(st.binary(min_size=1, max_size=400), st.integers(0, protocol.MOST_DESCRIPTORS + 4))
@settings(deadline=None, max_examples=200)
def test_noise_is_a_message_or_refused(noise: bytes, count: int) -> None:
    with no_descriptor_leaks(), pair() as (ours, theirs):
        read, write = os.pipe()
        try:
            socket.send_fds(ours, [noise], [read] * count)
            received = protocol.receive(theirs)
        except protocol.ProtocolError:
            pass
        else:
            assert received is not None
            assert isinstance(received[0], dict)
            assert len(received[1]) == count
            for fd in received[1]:
                os.close(fd)
        finally:
            os.close(read)
            os.close(write)


BROKEN = {
    "not JSON": b"{]",
    "not an object": b'["run"]',
    "a string": b'"run"',
    "null": b"null",
    "cut off": b'{"op": "run", ',
    "two at once": b"{}{}",
    "too deep": b'{"a":' * 20_000,
    "digits without end": b'{"a":' + b"1" * 50_000 + b"}",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_message_is_refused_and_its_descriptors_closed(data: bytes) -> None:
    with no_descriptor_leaks(), pair() as (ours, theirs):
        read, write = os.pipe()
        socket.send_fds(ours, [data], [read, write])
        os.close(read)
        os.close(write)
        with pytest.raises(protocol.ProtocolError):
            protocol.receive(theirs)


@pytest.mark.parametrize("count", [protocol.MOST_DESCRIPTORS + 1, 100, 253])
def test_too_many_descriptors_are_refused_and_closed(count: int) -> None:
    with no_descriptor_leaks(), pair() as (ours, theirs):
        read, write = os.pipe()
        socket.send_fds(ours, [b"{}"], [read] * count)
        os.close(read)
        with pytest.raises(protocol.ProtocolError, match="cut off"):
            protocol.receive(theirs)
        # Nobody holds the reading end any more: the kernel says so to the writer.
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")
        os.close(write)


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pair() as (ours, _):
        protocol.send(ours, {"a": "x" * (protocol.MOST_BYTES - 20)})
        with pytest.raises(protocol.ProtocolError, match="fit"):
            protocol.send(ours, {"a": "x" * protocol.MOST_BYTES})


def test_a_packet_that_is_too_long_is_refused() -> None:
    with pair() as (ours, theirs):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.send(b'{"a": "' + b"x" * (protocol.MOST_BYTES) + b'"}')
        with pytest.raises(protocol.ProtocolError, match="cut off"):
            protocol.receive(theirs)


def test_the_end_is_none() -> None:
    with pair() as (ours, theirs):
        ours.close()
        assert protocol.receive(theirs) is None


def test_descriptors_without_a_message_are_closed() -> None:
    with no_descriptor_leaks(), pair() as (ours, theirs):
        read, write = os.pipe()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [read]))]
        ours.sendmsg([b""], rights)
        os.close(read)
        os.close(write)
        with pytest.raises(protocol.ProtocolError):
            protocol.receive(theirs)


def test_nothing_there_yet_is_said_so() -> None:
    with pair() as (_, theirs):
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            protocol.receive(theirs)


def test_bytes_survive_as_surrogate_escapes() -> None:
    with pair() as (ours, theirs):
        protocol.send(ours, {"a": os.fsdecode(b"\xff\x80")})
        received = protocol.receive(theirs)
        assert received is not None
        assert os.fsencode(received[0]["a"]) == b"\xff\x80"
        ours.send(json.dumps({"a": "\udcff"}).encode())
        assert protocol.receive(theirs) == ({"a": "\udcff"}, [])


def test_a_memory_file_cannot_be_executed() -> None:
    fd = protocol.memory_file("program")
    os.write(fd, b"#!/bin/sh\nexit 0\n")
    try:
        if os.fstat(fd).st_mode & 0o111:
            pytest.skip("this kernel (before 6.3) cannot seal a memory file against execution")
        with pytest.raises(PermissionError):
            os.fchmod(fd, 0o755)
    finally:
        os.close(fd)
