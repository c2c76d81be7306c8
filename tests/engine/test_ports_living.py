"""Exposed ports of real sandboxes: dialled in their own network namespaces."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.responses import PlainTextResponse

from stockade import registry
from stockade.app.proxy import Proxy
from stockade.backends.base import BackendOptions
from stockade.backends.sandboxing import Sandboxing, Streams
from stockade.engine.ports import Ports
from stockade.model import Network, NetworkMode, Port, Protocol
from tests.backends.living import living, start
from tests.engine.inside import descriptors, until

pytestmark = pytest.mark.anyio
UNENFORCED = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids")

WEB = """
import http.server, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
socketserver.ThreadingTCPServer.request_queue_size = 128
server = socketserver.ThreadingTCPServer(("0.0.0.0", 8080), Handler)
print("up", flush=True)
server.serve_forever()
"""
DATAGRAMS = """
import socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("0.0.0.0", 5353))
print("up", flush=True)
while True:
    data, who = one.recvfrom(65536)
    one.sendto(data.upper(), who)
"""
ECHO = """
import asyncio, sys
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(echo, sys.argv[1], 9090, backlog=1024)
    print("up", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
LAST_WORDS = """
import socket
listener = socket.create_server(("0.0.0.0", 8080))
print("up", flush=True)
one, _ = listener.accept()
one.sendall(bytes(1 << 20))
one.close()
print("said", flush=True)
"""


@dataclass(kw_only=True)
class Exposing:
    """A sandbox with open ports."""

    sandboxing: Sandboxing
    ports: Ports
    name: str
    web: int
    datagrams: int
    streams: list[Streams] = field(default_factory=list)

    async def serve(self, program: str, *arguments: str) -> Streams:
        """Start *program* inside, and wait until it listens."""
        streams = await start(self.sandboxing, self.name, "python3", "-c", program, *arguments)
        self.streams.append(streams)
        output = await asyncio.wait_for(streams.read(0, 0), 20)
        assert output.stdout.data == b"up\n", output.stderr.data
        return streams

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(Proxy(app=PlainTextResponse("ours"), ports=self.ports))
        return httpx.AsyncClient(transport=transport, base_url=f"http://8080-{self.name}.localhost", trust_env=False)


@pytest.fixture(scope="module")
async def sandboxing(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Sandboxing]:
    allowed = UNENFORCED if os.geteuid() else ()
    options = BackendOptions(data_dir=tmp_path_factory.mktemp("data"), allow_unenforced=allowed, embedded=True)
    backend = registry.find("backends", "native").make(options)
    await backend.start()
    try:
        yield backend.sandboxing
    finally:
        await backend.close()


@pytest.fixture
async def exposing(sandboxing: Sandboxing) -> AsyncIterator[Exposing]:
    ports = Ports(sandboxing, first=24000, last=24999)
    async with ports.running(), living(sandboxing, processes=100) as name:
        wanted = (Port(container=8080), Port(container=5353, protocol=Protocol.UDP))
        network = await ports.assign(name, Network(mode=NetworkMode.EXPOSED, ports=wanted))
        web, datagrams = (one.host for one in network.ports)
        exposing = Exposing(sandboxing=sandboxing, ports=ports, name=name, web=web, datagrams=datagrams)
        yield exposing
        for one in exposing.streams:
            one.close()


async def test_a_service_answers_on_its_host_port_and_through_the_proxy(exposing: Exposing) -> None:
    async with httpx.AsyncClient(trust_env=False) as raw, exposing.client() as proxied:
        with pytest.raises(httpx.TransportError):
            await raw.get(f"http://127.0.0.1:{exposing.web}/early")
        assert (await proxied.get("/early")).status_code == 502
        await exposing.serve(WEB)
        assert (await raw.get(f"http://127.0.0.1:{exposing.web}/raw")).text == "/raw"
        assert (await proxied.get("/by/host?x=1")).text == "/by/host?x=1"
        by_path = f"http://localhost/sandboxes/{exposing.name}/ports/8080/by/path"
        assert (await proxied.get(by_path)).text == "/by/path"


async def test_many_connections_at_once(exposing: Exposing) -> None:
    await exposing.serve(WEB)
    before = descriptors()
    limits = httpx.Limits(max_connections=60)
    async with httpx.AsyncClient(trust_env=False, limits=limits, timeout=30) as client:
        answers = await asyncio.gather(
            *(client.get(f"http://127.0.0.1:{exposing.web}/{number}") for number in range(300))
        )
    assert [one.text for one in answers] == [f"/{number}" for number in range(300)]
    await until(lambda: descriptors() <= before)


@pytest.fixture
async def bound(sandboxing: Sandboxing) -> AsyncIterator[Exposing]:
    """A sandbox without a network whose port 9090 is bound; `web` leads there."""
    ports = Ports(sandboxing, first=24000, last=24999, bound=lambda _: 9090)
    async with ports.running(), living(sandboxing, processes=100, open_files=2000) as name:
        network = await ports.assign(name, Network(ports=(Port(container=Port.BOUND),)))
        web = network.ports[0].host
        exposing = Exposing(sandboxing=sandboxing, ports=ports, name=name, web=web, datagrams=0)
        yield exposing
        for one in exposing.streams:
            one.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0"])
async def test_a_bound_port_leads_to_a_service_on_either_loopback_address(bound: Exposing, address: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", bound.web)
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()
    await bound.serve(ECHO, address)
    reader, writer = await asyncio.open_connection("127.0.0.1", bound.web)
    writer.write(b"ping")
    writer.write_eof()
    async with asyncio.timeout(20):
        assert await reader.read() == b"ping"
    writer.close()


async def test_a_thousand_connections_through_a_bound_port(bound: Exposing) -> None:
    """All are open at once."""
    await bound.serve(ECHO, "127.0.0.1")
    before = descriptors()
    writers: list[asyncio.StreamWriter] = []

    async def join(number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", bound.web)
        writers.append(writer)
        writer.write(b"%08d" % number)
        assert await reader.readexactly(8) == b"%08d" % number
        return reader, writer

    async with asyncio.timeout(60):
        for reader, writer in await asyncio.gather(*map(join, range(1000))):
            writer.write(b"again")
            assert await reader.readexactly(5) == b"again"
    for writer in writers:
        writer.close()
    await until(lambda: descriptors() <= before)


async def test_datagrams_are_answered(exposing: Exposing) -> None:
    await exposing.serve(DATAGRAMS)
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            answered.set_result(data)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Client, remote_addr=("127.0.0.1", exposing.datagrams)
    )
    transport.sendto(b"hello")
    async with asyncio.timeout(20):
        assert await answered == b"HELLO"
    transport.close()


async def test_what_a_service_says_last_arrives_though_its_sandbox_has_ended(exposing: Exposing) -> None:
    streams = await exposing.serve(LAST_WORDS)
    reader, writer = await asyncio.open_connection("127.0.0.1", exposing.web, limit=1 << 10)
    output = await asyncio.wait_for(streams.read(len(b"up\n"), 0), 20)
    assert output.stdout.data == b"said\n"
    await exposing.sandboxing.remove(exposing.name)
    exposing.ports.close(exposing.name)
    got = 0
    while data := await asyncio.wait_for(reader.read(1 << 20), 20):
        got += len(data)
    assert got == 1 << 20
    writer.close()


async def test_connections_end_with_their_sandbox(exposing: Exposing) -> None:
    await exposing.serve(WEB)
    reader, writer = await asyncio.open_connection("127.0.0.1", exposing.web)
    writer.write(b"GET /x HTTP/1.0\r\n")
    async with exposing.client() as proxied:
        assert (await proxied.get("/")).status_code == 200
        await exposing.sandboxing.kill(exposing.name)
        try:
            assert await asyncio.wait_for(reader.read(), 20) == b""
        except ConnectionResetError:
            pass
        writer.close()
        assert (await proxied.get("/")).status_code == 502
        exposing.ports.close(exposing.name)
        assert (await proxied.get("/")).status_code == 404
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", exposing.web)
