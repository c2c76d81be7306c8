"""Clients of sessions that dawdle, flood, talk nonsense or go away: they cost little, and nobody else notices."""

import asyncio
import base64
import contextlib
import os
import random
import select
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect as connect_blocking

from stockade.wire.frames import BadFrame, Frame, FrameType, decode, encode
from tests.app.serving import Server
from tests.dialects.execbox.serving import KEY, Client, Heard, client_of, stdin, until_heard
from tests.faults.sessions import (
    LONG,
    MIB,
    becomes_so,
    descriptors,
    hear_until_cut,
    nothing_left,
    peak_memory,
    processes_like,
    reset_peak,
    served,
    warden_of,
)

pytestmark = pytest.mark.anyio

GROWTH = 64 * MIB
FLOOD_BYTES = 1 << 30
SPARE_DESCRIPTORS = 8
"""Caches and connections to the database come and go."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A server, and the processes whose memory and descriptors count."""

    server: Server
    folder: Path

    @property
    def warden(self) -> int:
        (found,) = warden_of(self.folder)
        return found

    @property
    def pids(self) -> tuple[int, int]:
        return self.server.process.pid, self.warden

    def open_descriptors(self) -> tuple[int, ...]:
        return tuple(map(descriptors, self.pids))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("clients")
    with nothing_left(folder) as note, served(folder) as server:
        yield Place(server=server, folder=folder)
        note(server)
        server.end(signal.SIGINT)


@pytest.fixture
async def client(place: Place, anyio_backend: str) -> AsyncIterator[Client]:
    """The operator's; what it leaves running is ended."""
    async with client_of(place.server) as client:
        yield client
        for one in (await client.get("/v1/sessions?status=running")).json()["sessions"]:
            await client.drop(one["id"])


def upgrade(client: Client, path: str) -> bytes:
    """The request for a WebSocket, as it goes over the wire."""
    lines = [
        f"GET {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {client.key}", "Connection: Upgrade",
        "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


def raw(client: Client, *, receive_bytes: int = 0) -> socket.socket:
    """A blocking connection to the server, with a deadline."""
    parts = urlsplit(client.base)
    one = socket.socket()
    if receive_bytes:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    one.settimeout(60)
    one.connect((parts.hostname, parts.port))
    return one


def opened(client: Client, path: str, *, receive_bytes: int = 0) -> socket.socket:
    """A WebSocket, upgraded, from which nothing has been read but the answer's head."""
    one = raw(client, receive_bytes=receive_bytes)
    one.sendall(upgrade(client, path))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += one.recv(1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return one


def masked(payload: bytes, opcode: int = 2) -> bytes:
    """A client's WebSocket frame. A mask of zeros is one, too."""
    size = len(payload)
    head = struct.pack("!BB", 0x80 | opcode, 0x80 | (size if size < 126 else 126 if size < 65536 else 127))
    length = b"" if size < 126 else struct.pack("!H", size) if size < 65536 else struct.pack("!Q", size)
    return head + length + bytes(4) + payload


async def is_served(client: Client, session: str) -> None:
    """Somebody else's exec is answered."""
    async with asyncio.timeout(20):
        heard = await client.hear(session, "exec?cmd=echo&cmd=served")
    assert (heard.stdout, heard.exits) == (b"served\n", [0])


@pytest.mark.parametrize("reads", [False, True] if LONG else [True])
async def test_a_client_that_reads_next_to_nothing_of_a_gigabyte_holds_up_nobody(
    place: Place, client: Client, reads: bool
) -> None:
    """The process ends, memory stays flat, others are served; and in the end it is told how much it has missed."""
    other = await client.start(["cat"])
    held = reset_peak(*place.pids)
    session = await client.start(f"head -c {FLOOD_BYTES} /dev/zero; echo end >&2")
    slow = await asyncio.to_thread(opened, client, f"/v1/sessions/{session}/attach", receive_bytes=4096)
    with contextlib.closing(slow):
        async with asyncio.timeout(60):
            while (await client.read(session))["status"] == "running":
                if reads:
                    assert await asyncio.to_thread(slow.recv, 1)
                await is_served(client, other)
                await asyncio.sleep(0.1)
        assert (await client.read(session))["exitCode"] == 0
        assert peak_memory(*place.pids) < held + GROWTH
        received = await asyncio.to_thread(_to_the_end, slow)
    assert b"are lost: more was printed than is kept" in received
    assert b"end\n" in received
    assert encode(Frame(type=FrameType.EXIT, exit_code=0)) in received[-20:]
    assert len(received) < GROWTH
    assert peak_memory(*place.pids) < held + GROWTH


def _to_the_end(one: socket.socket) -> bytes:
    """Everything that comes until the server closes; only what is not zero is kept whole."""
    found = bytearray()
    while chunk := one.recv(MIB):
        found += chunk
    return bytes(found)


async def test_a_client_that_keeps_up_gets_each_of_a_gigabyte_s_bytes(place: Place, client: Client) -> None:
    """Nothing is lost however fast the process is; and memory stays flat here, too."""
    size = FLOOD_BYTES if LONG else FLOOD_BYTES // 4
    held = reset_peak(*place.pids)
    session = await client.start(f"read x; head -c {size} /dev/zero; read x", resources={"cpuMillis": 2000})
    got = 0
    async with client.connect(session, "attach") as connection, asyncio.timeout(60):
        await connection.send(stdin(b"go\n"))
        while got < size:
            message = await connection.recv()
            assert message[0] == FrameType.STDOUT, message[:100]
            got += len(message) - 5
    assert got == size
    assert peak_memory(*place.pids) < held + GROWTH


async def test_input_that_nobody_reads_stays_with_the_client(place: Place, client: Client) -> None:
    """A gigabyte is offered to a process that reads none of it: little of it is taken, and others are served."""
    other = await client.start(["cat"])
    session = await client.start("sleep 1000")
    held = reset_peak(*place.pids)
    message = masked(stdin(b"x" * MIB))
    sent = 0
    with contextlib.closing(await asyncio.to_thread(opened, client, f"/v1/sessions/{session}/attach")) as flood:
        flood.setblocking(False)
        rest = memoryview(message)
        while sent < FLOOD_BYTES:
            if not (await asyncio.to_thread(select.select, [], [flood], [], 1.0))[1]:
                break  # nobody takes more
            with contextlib.suppress(BlockingIOError):
                size = flood.send(rest)
                sent += size
                rest = rest[size:] or memoryview(message)
        assert sent < GROWTH
        await is_served(client, other)
        assert peak_memory(*place.pids) < held + GROWTH
    await is_served(client, session)
    assert (await client.read(session))["status"] == "running"


async def test_a_gigabyte_of_input_goes_through_a_process_that_reads_slowly(place: Place, client: Client) -> None:
    size = FLOOD_BYTES if LONG else FLOOD_BYTES // 8
    held = reset_peak(*place.pids)
    session = await client.start("cat | wc -c", resources={"cpuMillis": 500})
    async with client.connect(session, "attach") as connection, asyncio.timeout(90):
        for _ in range(size // MIB):
            await connection.send(stdin(b"x" * MIB))
        await connection.send(b"\x06")
        heard = Heard()
        await until_heard(connection, heard, b"\n")
    assert int(heard.stdout) == size
    assert peak_memory(*place.pids) < held + GROWTH


MOMENTS = ("connected", "half a request", "requested", "answered", "after some output", "after a message")
MARK = "sleep 5823.7"


def drop(client: Client, session: str, moment: str, path: str, *, reset: bool) -> None:
    """Connect, and go away at that moment."""
    one = raw(client)
    try:
        request = upgrade(client, f"/v1/sessions/{session}/{path}")
        if moment == "half a request":
            one.sendall(request[: len(request) // 2])
        elif moment != "connected":
            one.sendall(request)
        if moment in MOMENTS[3:]:
            assert one.recv(12).startswith(b"HTTP/1.1 101")
        if moment in MOMENTS[4:]:
            assert one.recv(64)
        if moment in MOMENTS[5:]:
            one.sendall(masked(stdin(b"hello\n")))
    finally:
        if reset:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()


async def test_a_thousand_connections_that_are_dropped_leave_no_descriptor(place: Place, client: Client) -> None:
    """At whatever moment they go: what they started is killed, and the session takes the next one."""
    count = 1000
    talker = await client.start("while :; do echo talk; sleep 1; done")
    execution = f"exec?cmd=sh&cmd=-c&cmd=echo%20up;exec%20{MARK.replace(' ', '%20')}"
    await asyncio.gather(*(is_served(client, talker) for _ in range(10)))  # what is made once is there
    before = place.open_descriptors()
    chance = random.Random(4)
    places = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        moment, path = MOMENTS[number % 6], ("attach", execution)[number // 6 % 2]
        async with places:
            await asyncio.to_thread(drop, client, talker, moment, path, reset=chance.random() < 0.5)

    async with asyncio.timeout(80):
        await asyncio.gather(*map(one, range(count)))
    await _settles(lambda: not processes_like(MARK))
    await _settles(lambda: _within(place.open_descriptors(), before))
    await is_served(client, talker)
    assert (await client.read(talker))["status"] == "running"


def _within(now: tuple[int, ...], before: tuple[int, ...], spare: int = SPARE_DESCRIPTORS) -> bool:
    return all(one <= other + spare for one, other in zip(now, before, strict=True))


async def _settles(fact: Callable[[], bool], within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not fact():  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.05)


async def test_two_hundred_creations_and_stops_at_once_leave_nothing(place: Place, client: Client) -> None:
    """No process, no control group, no descriptor; each session is recorded as what became of it."""
    count = 200
    kinds = [
        (["sleep", "5824"], "stopped"),
        (["sleep", "5824"], "killed"),
        (["sh", "-c", "exit 3"], "failed"),
        (["true"], "stopped"),
    ]

    async def one(number: int) -> tuple[str, str]:
        command, end = kinds[number % 4]
        name = await client.start(command)
        if number % 4 == 0:
            assert (await client.post(f"/v1/sessions/{name}/stop")).status_code == 200
        elif number % 4 == 1:
            await client.drop(name)
        return name, end

    places = asyncio.Semaphore(50)

    async def bounded(number: int) -> tuple[str, str]:
        async with places:
            return await one(number)

    async def burst() -> list[tuple[str, str]]:
        async with asyncio.timeout(80):
            made = await asyncio.gather(*map(bounded, range(count)))
        for name, end in made:
            await becomes_so(client, name, end)
        assert not (await client.get("/v1/sessions?status=running")).json()["sessions"]
        for name, _ in made:
            await client.drop(name)  # and the output of those that ended by themselves
        return made

    await burst()  # so many connections are open now as such a burst brings about
    before = place.open_descriptors()
    await burst()
    # Each cell that is kept ready has ten, and how many those are follows the demand; a leak would be one for each.
    await _settles(lambda: _within(place.open_descriptors(), before, spare=count // 2))
    await _settles(lambda: not processes_like("sleep 5824"))


def messages() -> st.SearchStrategy[bytes]:
    """What is no frame, or has no effect when a client sends it."""
    heads = st.integers(0, 9), st.integers(0, 1 << 32)
    near = st.builds(
        lambda kind, size, data: struct.pack(">BI", kind, size % (1 << 32)) + data, *heads, st.binary(max_size=64)
    )
    to_clients = st.builds(
        lambda kind, data: encode(Frame(type=kind, data=data)),
        st.sampled_from([FrameType.STDOUT, FrameType.STDERR, FrameType.ERROR]),
        st.binary(max_size=100),
    )
    return (st.binary(max_size=64) | near | to_clients).filter(_does_nothing)


def _does_nothing(message: bytes) -> bool:
    try:
        return decode(message).type not in (FrameType.STDIN, FrameType.STDIN_CLOSE)
    except BadFrame:
        return True


async def test_no_message_harms_a_connection_or_its_session(client: Client) -> None:
    """Each that is no frame is answered with an Error, and the next input arrives as ever."""
    session = await client.start(["cat"])
    url = f"{client.base.replace('http', 'ws', 1)}/v1/sessions/{session}/attach"

    def talk() -> None:
        with connect_blocking(
            url, additional_headers={"Authorization": f"Bearer {KEY}"}, compression=None, proxy=None
        ) as connection:
            number = 0

            @settings(max_examples=1000 if LONG else 200, deadline=None, suppress_health_check=list(HealthCheck))
            @given(sent=st.lists(messages() | st.text(max_size=20).filter(lambda t: _does_nothing(t.encode()))))
            def check(sent: list[bytes | str]) -> None:
                nonlocal number
                bad = 0
                for message in sent:
                    connection.send(message)
                    bad += _is_bad(message if isinstance(message, bytes) else message.encode())
                number += 1
                line = f"input {number}\n".encode()
                connection.send(stdin(line))
                errors, echoed = 0, b""
                while errors < bad or len(echoed) < len(line):
                    answer = decode(connection.recv(20))
                    assert answer.type in (FrameType.STDOUT, FrameType.ERROR)
                    errors += answer.type is FrameType.ERROR
                    echoed += answer.data if answer.type is FrameType.STDOUT else b""
                assert (errors, echoed) == (bad, line)

            check()

    await asyncio.to_thread(talk)
    assert (await client.read(session))["status"] == "running"


def _is_bad(message: bytes) -> bool:
    try:
        decode(message)
    except BadFrame:
        return True
    return False


@pytest.mark.parametrize(
    "junk",
    [
        b"\x82\x05hello",  # not masked
        b"\x83\x80\x00\x00\x00\x00",  # an opcode that there is not
        b"\xf2\x80\x00\x00\x00\x00",  # reserved bits
        b"\x89\xfe\x01\x00" + bytes(4 + 256),  # a ping that is too long
        b"\x80\x80\x00\x00\x00\x00",  # goes on what never began
        b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(4),  # more than there are bytes in the world
        b"\x82\xff\x00\x00\x00\x00\x40\x00\x00\x00" + bytes(4),  # a gigabyte
        b"\x81\x82\x00\x00\x00\x00\xff\xfe",  # text that is none
        os.urandom(4096),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_websocket_ends_the_connection_alone(client: Client, junk: bytes) -> None:
    session = await client.start(["cat"])
    one = await asyncio.to_thread(opened, client, f"/v1/sessions/{session}/attach")
    with contextlib.closing(one):
        one.sendall(junk)
        one.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            await asyncio.to_thread(_to_the_end, one)
    await is_served(client, session)
    async with client.connect(session, "attach") as connection:
        await connection.send(stdin(b"as ever\n"))
        await until_heard(connection, Heard(), b"as ever\n")


async def test_a_message_longer_than_any_frame_closes_the_connection(place: Place, client: Client) -> None:
    """With 1009; what is sent of it is not kept."""
    session = await client.start(["cat"])
    held = reset_peak(*place.pids)
    async with client.connect(session, "attach") as connection:
        with contextlib.suppress(websockets.ConnectionClosed):  # in the middle of it
            await connection.send(b"\x01" + bytes(1 << 25))
        heard = Heard()
        await hear_until_cut(connection, heard)
    assert heard.close_code in (1009, 1006), "the reset may overtake the reason"
    assert peak_memory(*place.pids) < held + GROWTH
    await is_served(client, session)
