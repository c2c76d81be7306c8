"""Relaying one connection, and asking name servers, on the loopback of the tests."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from stockade.warden import egress_dns as dns
from stockade.warden import egress_resolver
from stockade.warden.egress_relay import Relay, break_off, prepare
from stockade.warden.egress_resolver import Resolver
from tests.warden.test_egress_dns import answer, question, record

pytestmark = pytest.mark.anyio
WITHIN_S = 30.0


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection; the first is ours, prepared."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours = listener.accept()[0]
    prepare(ours, 64 << 10)
    for one in (ours, theirs):
        one.setblocking(False)
    return ours, theirs


class Line:
    """A relay with a program at one end and a server at the other."""

    def __init__(self) -> None:
        inner, self.program = pair()
        outer, self.server = pair()
        self.received = self.sent = self.ends = 0
        self.relay = Relay(inner, outer, count=self._count, ended=self._ended)

    def _count(self, received: int, sent: int) -> None:
        self.received += received
        self.sent += sent

    def _ended(self, relay: Relay) -> None:
        assert relay is self.relay
        self.ends += 1


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    line = Line()
    yield line
    line.relay.abort()
    line.program.close()
    line.server.close()
    assert line.ends == 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110  the kernel tells nobody
            await asyncio.sleep(0.005)


async def read(one: socket.socket, count: int = 100) -> bytes:
    async with asyncio.timeout(WITHIN_S):
        return await asyncio.get_running_loop().sock_recv(one, count)


async def test_both_ends_are_passed_on_one_after_the_other(line: Line) -> None:
    line.program.sendall(b"question")
    assert await read(line.server) == b"question"
    line.program.shutdown(socket.SHUT_WR)
    assert await read(line.server) == b""
    assert line.relay.awaits_the_other
    assert line.ends == 0
    line.server.sendall(b"answer")
    assert await read(line.program) == b"answer"
    line.server.close()
    assert await read(line.program) == b""
    await until(lambda: line.ends == 1)
    assert (line.received, line.sent) == (6, 8)


@pytest.mark.parametrize("who", ["program", "server"])
async def test_a_reset_is_passed_on(line: Line, who: str) -> None:
    one, other = (line.program, line.server) if who == "program" else (line.server, line.program)
    break_off(one)
    with pytest.raises(ConnectionResetError):
        await read(other)
    await until(lambda: line.ends == 1)


async def test_no_more_is_read_than_the_other_side_takes(line: Line) -> None:
    written = 0
    stalled = 0
    while stalled < 20:
        try:
            written += line.program.send(bytes(1 << 16))
            stalled = 0
        except BlockingIOError:
            stalled += 1
        await asyncio.sleep(0.005)
    assert line.sent < 8 << 20
    got = 0
    while got < written:
        got += len(await read(line.server, 1 << 20))
    line.program.sendall(b"and on")
    assert await read(line.server) == b"and on"


async def test_a_side_that_is_gone_while_we_wait_for_nothing_of_it_is_found(line: Line) -> None:
    """No event is asked for any more of a program that has ended its half."""
    line.program.shutdown(socket.SHUT_WR)
    await until(lambda: line.relay.awaits_the_other)
    assert not line.relay.is_dead
    break_off(line.program)
    await until(lambda: line.relay.is_dead)
    assert line.ends == 0


async def test_it_is_broken_off_once(line: Line) -> None:
    line.relay.abort()
    line.relay.abort()
    assert line.ends == 1
    with pytest.raises(ConnectionResetError):
        await read(line.program)


# ── name servers ─────────────────────────────────────────────────────────────────────────────────────────────────


class NameServer(asyncio.DatagramProtocol):
    """Gives every name one address; *wrong*: sends what is no answer first."""

    def __init__(self, address: str, *, wrong: bool = False) -> None:
        self.address, self.wrong = address, wrong

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, asker: object) -> None:
        query = dns.Query.parse(data)
        content = record(b"\xc0\x0c", 1, socket.inet_aton(self.address))
        if self.wrong:
            self.transport.sendto(b"noise", asker)
            self.transport.sendto(answer(query, content, number=query.id ^ 1), asker)
            self.transport.sendto(answer(dns.Query.parse(question("other.org")), content, number=query.id), asker)
        self.transport.sendto(answer(query, content, number=query.id), asker)


@contextlib.asynccontextmanager
async def name_server(address: str, port: int, host: str, *, wrong: bool = False) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: NameServer(address, wrong=wrong), local_addr=(host, port)
    )
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


async def asked(resolver: Resolver) -> list[tuple[int, int]]:
    query = dns.Query.parse(question("www.example.org"))
    data = await resolver.ask(query)
    return [] if data is None else dns.addresses(query, data)


async def test_what_is_no_answer_is_waited_past(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\n")
    async with name_server("1.2.3.4", 0, "127.0.0.1", wrong=True) as port:
        assert await asked(Resolver(str(path), port=port)) == [(0x01020304, 300)]


async def test_the_next_server_is_asked_when_one_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.3\nnameserver 127.0.0.2\n")
    async with name_server("1.2.3.4", 0, "127.0.0.2") as port:
        assert await asked(Resolver(str(path), port=port)) == [(0x01020304, 300)]


async def test_a_change_of_the_hosts_name_servers_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_resolver, "_LOOK_AGAIN_S", 0.0)
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\n")
    async with name_server("1.1.1.1", 0, "127.0.0.1") as port, name_server("2.2.2.2", port, "127.0.0.2"):
        resolver = Resolver(str(path), port=port)
        assert await asked(resolver) == [(0x01010101, 300)]
        path.with_suffix(".new").write_text("nameserver 127.0.0.2\n")
        os.rename(path.with_suffix(".new"), path)
        assert await asked(resolver) == [(0x02020202, 300)]
        path.unlink()
        assert await asked(resolver) == [(0x02020202, 300)]


async def test_a_long_answer_is_asked_for_by_stream(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\n")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = struct.unpack(">H", await reader.readexactly(2))[0]
        query = dns.Query.parse(await reader.readexactly(length))
        data = answer(query, *(record(b"\xc0\x0c", 1, bytes(4)) for _ in range(400)), number=query.id)
        for part in (struct.pack(">H", len(data)), data[:1000], data[1000:]):
            writer.write(part)
            await writer.drain()
        writer.close()

    class Cutting(NameServer):
        def datagram_received(self, data: bytes, asker: object) -> None:
            query = dns.Query.parse(data)
            self.transport.sendto(answer(query, number=query.id, flags=0x8380), asker)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Cutting(""), local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        assert len(await asked(Resolver(str(path), port=port))) == 400
    finally:
        transport.close()
        server.close()
        await server.wait_closed()
