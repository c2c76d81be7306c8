"""The port of the host that leads to whichever port of a sandbox is bound."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from stockade.engine.ports import PROBE_S, Ports
from stockade.errors import NotFound, Unavailable
from stockade.model import Network, NetworkMode, Port
from tests.engine.inside import Inside, descriptors, until

pytestmark = pytest.mark.anyio
MIB = 1 << 20
BOUND = Port(container=Port.BOUND)


class Carrier:
    """Ports, and which one is bound."""

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        self.bound: int | None = None
        self.ports = Ports(inside, first=25000, last=25999, bound=lambda name: self.bound if name == "box" else None)
        self.host_port = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.host_port)

    async def says(self, data: bytes = b"ping") -> bytes:
        """What a new connection answers to *data* before it is closed."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            writer.write_eof()
            async with asyncio.timeout(30):
                return await reader.read()
        except OSError:  # what it sent came too late to be read
            return b""
        finally:
            writer.close()


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def carrier(anyio_backend: str) -> AsyncIterator[Carrier]:
    carrier = Carrier(Inside())
    async with carrier.ports.running():
        network = await carrier.ports.assign("box", Network(ports=(BOUND,)))
        carrier.host_port = network.ports[0].host
        await carrier.says()  # with its first connection, uvloop opens a descriptor for itself
        yield carrier


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(MIB):
            writer.write(data)
            await writer.drain()
    writer.close()


async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"%d" % len(await reader.read()))
    writer.close()


@pytest.mark.parametrize("mode", NetworkMode)
async def test_it_is_open_in_every_mode_and_others_only_where_they_are_exposed(mode: NetworkMode) -> None:
    ports = Ports(Inside(), first=26000, last=26009)
    async with ports.running():
        asked = Network(mode=mode, ports=(Port(container=80), BOUND))
        web, bound = (await ports.assign("box", asked)).ports
        assert 26000 <= bound.host <= 26009
        assert bool(web.host) is (mode is NetworkMode.EXPOSED) is ports.exposes("box", 80)


async def test_it_has_no_address_in_http(carrier: Carrier) -> None:
    carrier.bound = 8080
    assert not carrier.ports.exposes("box", Port.BOUND)
    with pytest.raises(NotFound):
        async with carrier.ports.connected("box", Port.BOUND):
            pass


@pytest.mark.parametrize("sends", [b"", b"hello", bytes(300_000)])
async def test_while_nothing_is_bound_connections_are_accepted_and_closed_without_a_word(
    carrier: Carrier, sends: bytes
) -> None:
    before = descriptors()
    async with carrier.inside.serving(echo):
        reader, writer = await carrier.connect()
        began = asyncio.get_running_loop().time()
        writer.write(sends)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):  # of what it sent too late to be read
                assert await reader.read() == b""
        if not sends:
            assert (
                asyncio.get_running_loop().time() - began >= PROBE_S * 0.9
            )  # who looks whether it answers sees it open
        writer.close()
    assert carrier.inside.dials == 0
    await until(lambda: descriptors() <= before)


async def test_a_client_that_only_waits_meets_an_orderly_end(carrier: Carrier) -> None:
    for carrier.bound in (None, 8080):
        reader, writer = await carrier.connect()
        writer.write(b"hello")
        async with asyncio.timeout(30):
            assert await reader.read() == b""  # no ConnectionResetError
        writer.close()


async def test_a_service_that_comes_later_is_reached_without_another_bind(carrier: Carrier) -> None:
    carrier.bound = 8080
    assert await carrier.says() == b""
    async with carrier.inside.serving(echo):
        assert await carrier.says() == b"ping"
    assert await carrier.says() == b""


async def test_a_connection_that_came_before_a_bind_is_not_taken_in_by_it(carrier: Carrier) -> None:
    async with carrier.inside.serving(echo):
        reader, writer = await carrier.connect()
        await until(lambda: carrier.ports._connections == 1)
        carrier.bound = 8080
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


async def test_open_connections_stay_where_they_lead_when_the_bound_port_changes(carrier: Carrier) -> None:
    async def name(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            writer.write(b"new")
        writer.close()

    async with carrier.inside.serving(echo), carrier.inside.serving(name, port=9090):
        carrier.bound = 8080
        reader, writer = await carrier.connect()
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        carrier.bound = 9090
        assert await carrier.says() == b"new"
        carrier.bound = None
        assert await carrier.says() == b""
        writer.write(b"2")
        assert await reader.readexactly(1) == b"2"
        writer.close()


async def test_an_answer_after_the_end_of_input_arrives(carrier: Carrier) -> None:
    carrier.bound = 8080
    async with carrier.inside.serving(count):
        assert await carrier.says(bytes(4 * MIB)) == b"%d" % (4 * MIB)


async def test_the_client_may_go_on_after_the_service_has_said_its_last(carrier: Carrier) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def end_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        got.set_result(await reader.read())
        writer.close()

    carrier.bound = 8080
    async with carrier.inside.serving(end_first):
        reader, writer = await carrier.connect()
        assert await reader.read() == b"bye"
        writer.write(b"and on")
        writer.write_eof()
        assert await asyncio.wait_for(got, 30) == b"and on"
        writer.close()


async def test_a_service_that_dies_ends_its_connections(carrier: Carrier) -> None:
    taken: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)
        await reader.read()

    carrier.bound = 8080
    async with carrier.inside.serving(take):
        reader, writer = await carrier.connect()
        await until(lambda: len(taken) == 1)
        taken[0].transport.abort()
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()


async def test_a_thousand_connections_at_once_all_work(carrier: Carrier) -> None:
    """All are open at the same time, and each has its own bytes."""
    carrier.bound = 8080
    async with carrier.inside.serving(echo):
        before = descriptors()
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(60):

            async def join(number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                reader, writer = await carrier.connect()
                stack.callback(writer.close)
                writer.write(b"%08d" % number)
                assert await reader.readexactly(8) == b"%08d" % number
                return reader, writer

            opened = await asyncio.gather(*map(join, range(1000)))
            assert carrier.ports._connections == 1000
            for reader, writer in opened:
                writer.write(b"again")
                assert await reader.readexactly(5) == b"again"
        await until(lambda: descriptors() <= before)


async def test_a_client_that_never_reads_holds_nobody_up(carrier: Carrier) -> None:
    poured = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal poured
        if await reader.readexactly(1) == b"p":
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(bytes(MIB))
                    await writer.drain()
                    poured += MIB
        else:
            writer.write(b"x")
        writer.close()

    carrier.bound = 8080
    async with carrier.inside.serving(pour):
        with socket.create_connection(("127.0.0.1", carrier.host_port)) as idle:
            idle.sendall(b"p")
            stalled = -1
            while poured != stalled or not poured:
                stalled = poured
                await asyncio.sleep(0.2)
            for _ in range(20):
                assert await carrier.says(b"q") == b"x"
            assert poured == stalled


async def test_a_named_port_of_the_host_is_the_one_that_is_opened(carrier: Carrier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        number: int = other.getsockname()[1]
        before = descriptors()
        with pytest.raises(Unavailable, match=f"port {number}: it is in use"):
            await carrier.ports.assign("two", Network(ports=(Port(container=0, host=number), Port(container=80))))
        assert descriptors() == before
    network = Network(mode=NetworkMode.EXPOSED, ports=(Port(container=80), Port(container=0, host=number)))
    web, bound = (await carrier.ports.assign("two", network)).ports
    assert bound.host == number
    assert 25000 <= web.host <= 25999
    _, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.close()


async def test_it_is_the_same_after_a_restart_in_every_mode(carrier: Carrier) -> None:
    network = Network(ports=(Port(container=0, host=26010),))
    carrier.bound = 8080
    for _ in range(2):
        again = Carrier(carrier.inside)
        again.bound, again.host_port = 8080, 26010
        async with again.ports.running(), carrier.inside.serving(echo):
            again.ports.open("box", network)
            assert await again.says() == b"ping"


async def test_a_connection_to_itself_is_no_service(carrier: Carrier) -> None:
    """Who dials a port without a listener may be given the port itself as its own, and meet itself."""

    async def dial(name: str, port: int, protocol: object) -> socket.socket:
        one = socket.socket()
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, one.getsockname())
        return one

    carrier.inside.dial = dial  # type: ignore[method-assign]
    carrier.bound = 8080
    before = descriptors()
    assert await carrier.says() == b""
    await until(lambda: descriptors() <= before)


async def test_connections_end_with_their_sandbox(carrier: Carrier) -> None:
    before = descriptors()
    _, waiting = await carrier.connect()
    carrier.bound = 8080
    carrier.inside.gate = asyncio.Event()
    reader, writer = await carrier.connect()
    await until(lambda: carrier.inside.dials == 1)
    carrier.ports.close("box")
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await carrier.connect()
    for one in (writer, waiting):
        one.close()
    carrier.inside.gate.set()
    await until(lambda: descriptors() <= before - 1 and carrier.ports._connections == 0)
