"""Streams that break: resumed where they were, or given up with the reason. The server is scripted, one connection at a
time; connections are cut as a dying machine cuts them."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from stockade.sdk import (
    AsyncClient,
    Chunk,
    Conflict,
    ConnectionLost,
    ProtocolError,
    Source,
    StreamFailed,
    _frames,
)

pytestmark = pytest.mark.anyio

KEY = "sk_test"
Act = Callable[[ServerConnection], Awaitable[None]]


def data(kind: int, payload: bytes) -> bytes:
    return struct.pack("!BI", kind, len(payload)) + payload


def exit_(code: int) -> bytes:
    return struct.pack("!BI", 4, code)


class Script:
    """What the server does with each connection, in turn; the last goes on for all that follow."""

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.queries: list[dict[str, list[str]]] = []

    async def __call__(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.queries.append(parse_qs(urlsplit(connection.request.path).query))
        await self.acts[min(len(self.queries), len(self.acts)) - 1](connection)

    @property
    def offsets(self) -> list[tuple[str, str]]:
        return [(one.get("stdoutOffset", ["0"])[0], one.get("stderrOffset", ["0"])[0]) for one in self.queries]


@contextlib.asynccontextmanager
async def scripted(*acts: Act) -> AsyncIterator[tuple[AsyncClient, Script]]:
    script = Script(*acts)
    async with serve(script, "127.0.0.1", 0, compression=None, max_size=2**24 + 5, close_timeout=1) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with AsyncClient(f"http://127.0.0.1:{port}", KEY) as client:
            yield client, script


def cutting(*messages: bytes) -> Act:
    """Says this, and is gone without a farewell."""

    async def act(connection: ServerConnection) -> None:
        for message in messages:
            await connection.send(message)
        # What was sent shall arrive: a peer that answers has read all before.
        await (await connection.ping())
        connection.transport.abort()

    return act


def closing(code: int, reason: str, *messages: bytes) -> Act:
    async def act(connection: ServerConnection) -> None:
        for message in messages:
            await connection.send(message)
        await connection.close(code, reason)

    return act


def saying(*messages: bytes) -> Act:
    return closing(1000, "", *messages)


async def test_a_broken_attachment_goes_on_where_it_was() -> None:
    async with (
        scripted(
            cutting(data(2, b"0123"), data(3, b"ab")),
            closing(1012, "restart", data(2, b"456")),
            cutting(),
            saying(data(2, b"789"), data(3, b"c"), exit_(5)),
        ) as (client, script),
        client.attach("sess_1") as process,
    ):
        finished = await process.collect(timeout_s=30)
    assert (finished.stdout, finished.stderr, finished.exit_code) == (b"0123456789", b"abc", 5)
    assert script.offsets == [("0", "0"), ("4", "2"), ("7", "2"), ("7", "2")]


async def test_output_that_the_server_dropped_counts_as_read() -> None:
    lost = b"1000 bytes of stdout are lost: more was printed than is kept"
    async with (
        scripted(cutting(data(5, lost), data(2, b"xyz")), saying(data(2, b"!"), exit_(0))) as (client, script),
        client.attach("sess_1") as process,
    ):
        finished = await process.collect(timeout_s=30)
    assert finished.stdout == b"xyz!"
    assert finished.notices == (lost.decode(),)
    assert script.offsets[1] == ("1003", "0")


async def test_what_was_said_once_is_said_to_the_next_connection_too() -> None:
    heard: list[bytes] = []

    async def listening(connection: ServerConnection) -> None:
        async for message in connection:
            assert isinstance(message, bytes)
            heard.append(message)
            if message == b"\x06":
                await connection.send(exit_(0))

    async def cut_after_close(connection: ServerConnection) -> None:
        while await connection.recv() != b"\x06":
            pass
        connection.transport.abort()

    async with scripted(cut_after_close, listening) as (client, _), client.attach("sess_1") as process:
        await process.write(b"all of it")
        await process.close_stdin()
        assert await process.read(timeout_s=30) is None
    assert heard == [b"\x06"]


async def test_a_writer_resumes_as_well_as_a_reader() -> None:
    async def echo(connection: ServerConnection) -> None:
        message = await connection.recv()
        assert isinstance(message, bytes)
        await connection.send(data(2, message[5:]))
        await connection.send(exit_(0))
        await connection.wait_closed()

    async with scripted(cutting(), echo) as (client, script), client.attach("sess_1") as process:
        async with asyncio.timeout(30):
            while len(script.queries) < 2:  # until the break is noticed, what is written is lost
                await process.write(b"")
                await process.write(b"x")
                await asyncio.sleep(0.01)
            finished = await process.collect()
    assert finished.stdout == b"x"


async def test_a_command_s_connection_is_not_resumed() -> None:
    async with scripted(cutting(data(2, b"some"))) as (client, script), client.exec("sess_1", ["x"]) as process:
        assert (await process.read(timeout_s=10)) == Chunk(source=Source.STDOUT, data=b"some")
        with pytest.raises(ConnectionLost):
            await process.read(timeout_s=10)
        with pytest.raises(ConnectionLost):
            await process.write(b"x")
    assert len(script.queries) == 1


async def test_a_stream_that_the_server_gives_up_says_why() -> None:
    act = closing(1011, "", data(2, b"some"), data(5, b"the warden has died"))
    async with scripted(act) as (client, script), client.attach("sess_1") as process:
        with pytest.raises(StreamFailed, match="the warden has died"):
            await process.collect(timeout_s=10)
    assert len(script.queries) == 1


async def test_a_sandbox_that_was_stopped_meanwhile_ends_the_attempts() -> None:
    async def refuse(connection: ServerConnection) -> None:
        raise AssertionError("it was refused before")

    first = True

    def admit(connection: ServerConnection, request: object) -> object:
        nonlocal first
        if first:
            first = False
            return None
        return connection.respond(409, '{"error": "session already stopped", "code": "CONFLICT"}')

    script = Script(cutting(data(2, b"x")), refuse)
    async with serve(script, "127.0.0.1", 0, process_request=admit, close_timeout=1) as server:  # type: ignore[arg-type]
        port = next(iter(server.sockets)).getsockname()[1]
        async with AsyncClient(f"http://127.0.0.1:{port}", KEY) as client, client.attach("sess_1") as process:
            with pytest.raises(Conflict, match="session already stopped"):
                await process.collect(timeout_s=10)


async def test_a_server_that_stays_away_is_given_up() -> None:
    async with scripted(cutting(data(2, b"x"))) as (client, _):
        process = client.attach("sess_1", reconnect_s=0.2)
        await process.open()
    # It is closed now, and so is its port.
    with pytest.raises(ConnectionLost, match="could not be resumed"):
        await process.collect(timeout_s=20)
    await process.close()


async def test_a_server_that_cuts_every_connection_is_given_up() -> None:
    async with scripted(cutting()) as (client, script), client.attach("sess_1", reconnect_s=1.0) as process:
        with pytest.raises(ConnectionLost, match="again and again"):
            await process.collect(timeout_s=30)
    assert 2 <= len(script.queries) < 30, "it tries again, at growing distances"


@pytest.mark.parametrize(
    "message",
    [b"", b"\x02", b"\x02\0\0\0\x02x", b"\x04\0\0\0", b"\x04\0\0\0\0\0", b"\x09\0\0\0\0", b"\x01\0\0\0\0", "text"],
)
async def test_a_message_that_is_no_frame_is_told(message: bytes | str) -> None:
    async def act(connection: ServerConnection) -> None:
        await connection.send(message)
        await connection.wait_closed()

    async with scripted(act) as (client, _), client.attach("sess_1") as process:
        with pytest.raises(ProtocolError):
            await process.read(timeout_s=10)


async def test_a_reader_that_rests_holds_little() -> None:
    """The server cannot send on while nobody reads: what waits is bounded by the queue and the sockets' buffers."""
    sent = 0

    async def flood(connection: ServerConnection) -> None:
        nonlocal sent
        while True:
            await connection.send(data(2, bytes(1 << 20)))
            sent += 1

    async with scripted(flood) as (client, _), client.attach("sess_1", reconnect_s=0) as process:
        await process.read(timeout_s=10)
        before = -1
        async with asyncio.timeout(30):
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
        assert sent < 64
        # And it goes on.
        for _ in range(sent + 8):
            await process.read(timeout_s=10)


async def test_collecting_has_a_bound() -> None:
    act = saying(data(2, bytes(1000)), data(3, bytes(1000)), exit_(0))
    async with scripted(act) as (client, _), client.attach("sess_1") as process:
        with pytest.raises(StreamFailed, match="more than 1999 bytes"):
            await process.collect(most_bytes=1999, timeout_s=10)


def test_frames_are_those_of_the_protocol() -> None:
    assert list(_frames.stdin(b"ok\n")) == [bytes.fromhex("01000000036f6b0a")]
    assert list(_frames.stdin(b"")) == []
    assert bytes.fromhex("06") == _frames.STDIN_CLOSE
    assert _frames.decode(bytes.fromhex("020000000668616c6c6f0a")) == Chunk(source=Source.STDOUT, data=b"hallo\n")
    assert _frames.decode(bytes.fromhex("0300000000")) == Chunk(source=Source.STDERR, data=b"")
    assert _frames.decode(bytes.fromhex("0400000089")) == _frames.Exit(code=137)
    assert _frames.decode(bytes.fromhex("0500000004626f6f6d")) == Chunk(source=Source.NOTICE, data=b"boom")


@given(st.binary(max_size=200))
def test_no_message_is_decoded_by_half(message: bytes) -> None:
    try:
        frame = _frames.decode(message)
    except ProtocolError:
        return
    if isinstance(frame, Chunk):
        assert struct.pack("!BI", frame.source.value, len(frame.data)) + frame.data == message
    else:
        assert exit_(frame.code) == message
