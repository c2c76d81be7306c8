"""Exposed ports on this host's own sockets; `Inside` stands for the sandboxes."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from typing import cast

import pytest
import structlog

from stockade.engine import ports as ports_module
from stockade.engine.ports import Ports
from stockade.errors import Conflict, LimitExceeded, NotFound, Unavailable
from stockade.model import Network, NetworkMode, Port, Protocol
from tests.engine.inside import Inside, descriptors, until

pytestmark = pytest.mark.anyio
MIB = 1 << 20


def exposed(*containers: int, protocol: Protocol = Protocol.TCP) -> Network:
    return Network(mode=NetworkMode.EXPOSED, ports=tuple(Port(container=one, protocol=protocol) for one in containers))


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The server's loop, and the one that an embedded engine may find."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def inside() -> Inside:
    return Inside()


@pytest.fixture
async def ports(inside: Inside) -> AsyncIterator[Ports]:
    carrier = Ports(inside, first=21000, last=21999)
    async with carrier.running():
        yield carrier


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(MIB):
            writer.write(data)
            await writer.drain()
    writer.close()


async def refused(host_port: int) -> bool:
    """Whether a connection ends without a byte: refused by the kernel, reset or closed."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", host_port)
    except OSError:
        return True
    try:
        async with asyncio.timeout(30):
            return await reader.read(1) == b""
    except OSError:
        return True
    finally:
        writer.close()


async def test_assigned_ports_lead_inside(ports: Ports, inside: Inside) -> None:
    """Each port inside gets a port of the host of its own, which answers for it."""
    network = await ports.assign("box", exposed(8080, 9090))
    first, second = network.ports
    assert 21000 <= first.host <= 21999
    assert 21000 <= second.host <= 21999
    assert first.host != second.host
    async with inside.serving(echo):
        reader, writer = await asyncio.open_connection("127.0.0.1", first.host)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        assert await refused(second.host)


@pytest.mark.parametrize("mode", [NetworkMode.NONE, NetworkMode.OUTGOING])
async def test_other_modes_publish_nothing(ports: Ports, mode: NetworkMode) -> None:
    network = Network(mode=mode, ports=(Port(container=80),))
    assert await ports.assign("box", network) == network
    assert not ports.exposes("box", 80)


async def test_assigning_twice_is_a_conflict(ports: Ports) -> None:
    await ports.assign("box", exposed(80))
    with pytest.raises(Conflict):
        await ports.assign("box", exposed(81))


async def test_all_ports_or_none_are_taken(inside: Inside) -> None:
    """Where the range holds too few, those that were taken are let go again."""
    carrier = Ports(inside, first=22100, last=22102)
    async with carrier.running():
        before = descriptors()
        with pytest.raises(Unavailable, match="22100 to 22102"):
            await carrier.assign("box", exposed(1, 2, 3, 4))
        assert descriptors() == before
        assert len({one.host for one in (await carrier.assign("box", exposed(1, 2, 3))).ports}) == 3


async def test_a_port_that_somebody_else_has_is_passed_over(inside: Inside) -> None:
    with socket.create_server(("127.0.0.1", 22110)):
        carrier = Ports(inside, first=22110, last=22111)
        async with carrier.running():
            network = await carrier.assign("box", exposed(80))
            assert network.ports[0].host == 22111


async def test_a_port_comes_again_after_all_others(inside: Inside) -> None:
    """Who holds the link to a sandbox that has ended does not meet the next one's."""
    carrier = Ports(inside, first=22120, last=22129)
    async with carrier.running():
        seen = []
        for number in range(10):
            seen.append((await carrier.assign(f"box{number}", exposed(80))).ports[0].host)
            carrier.close(f"box{number}")
        assert sorted(seen) == list(range(22120, 22130))


async def test_a_connection_is_closed_while_nothing_listens_and_works_once_something_does(
    ports: Ports, inside: Inside
) -> None:
    network = await ports.assign("box", exposed(8080))
    assert await refused(network.ports[0].host)
    async with inside.serving(echo):
        reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
        writer.write(b"late")
        assert await reader.readexactly(4) == b"late"
        writer.close()


async def test_the_end_of_input_is_passed_on_and_output_goes_on(ports: Ports, inside: Inside) -> None:
    """Half-close: the service answers after it has seen the end of what it is sent."""

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = len(await reader.read())
        writer.write(b"%d" % total)
        writer.close()

    network = await ports.assign("box", exposed(8080))
    async with inside.serving(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
        for _ in range(64):
            writer.write(bytes(65536))
            await writer.drain()
        writer.write_eof()
        assert await reader.read() == b"4194304"
        writer.close()


async def test_a_reset_is_passed_on(ports: Ports, inside: Inside) -> None:
    """A service that breaks off is seen to: not taken for an orderly end."""

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    network = await ports.assign("box", exposed(8080))
    async with inside.serving(break_off):
        reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_an_answer_that_ends_an_upload_early_arrives(ports: Ports, inside: Inside) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1000)
        writer.write(b"too much")
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            while await reader.read(MIB):
                pass
        writer.close()

    network = await ports.assign("box", exposed(8080))
    async with inside.serving(refuse):
        reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
        writer.write(bytes(8 * MIB))
        assert await reader.read() == b"too much"
        await writer.drain()
        writer.close()


async def test_bytes_pass_unchanged_both_ways_at_once(ports: Ports, inside: Inside) -> None:
    network = await ports.assign("box", exposed(8080))
    sent = os.urandom(16 * MIB)
    async with inside.serving(echo):
        reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)

        async def upload() -> None:
            for at in range(0, len(sent), 100_003):
                writer.write(sent[at : at + 100_003])
                await writer.drain()
            writer.write_eof()

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(upload())
            got = group.create_task(reader.read())
        assert got.result() == sent
        writer.close()


async def test_a_client_that_reads_nothing_stops_the_service_instead_of_filling_memory(
    ports: Ports, inside: Inside
) -> None:
    produced = 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal produced
        with contextlib.suppress(ConnectionError):
            while produced < 2048 * MIB:
                writer.write(bytes(MIB))
                await writer.drain()
                produced += MIB
        writer.close()

    network = await ports.assign("box", exposed(8080))
    async with inside.serving(pour):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with socket.create_connection(("127.0.0.1", network.ports[0].host)):
            stalled = -1
            while produced != stalled:  # the kernel's buffers fill, and then it stands still
                stalled = produced
                await asyncio.sleep(0.3)
            assert 0 < produced < 64 * MIB
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 16 * 1024


async def test_a_thousand_connects_and_drops_leave_no_descriptor(ports: Ports, inside: Inside) -> None:
    network = await ports.assign("box", exposed(8080))
    async with inside.serving(echo):
        before = descriptors()
        for number in range(1000):
            with socket.socket() as one:
                one.setblocking(False)
                await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", network.ports[0].host))
                if number % 3 == 0:
                    await asyncio.get_running_loop().sock_sendall(one, b"x")
        await until(lambda: descriptors() <= before)


async def test_connections_beyond_the_bound_are_reset(inside: Inside) -> None:
    ports = Ports(inside, first=22180, last=22189, connections=3)
    async with ports.running(), inside.serving(echo):
        network = await ports.assign("box", exposed(8080))
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
                stack.callback(writer.close)
                writer.write(b"x")
                await reader.readexactly(1)
            assert await refused(network.ports[0].host)
            with pytest.raises(LimitExceeded):
                async with ports.connected("box", 8080):
                    pass
        assert inside.dials == 3
        async with asyncio.timeout(30):  # those that were closed are noticed in a moment
            while await refused_when_sent(network.ports[0].host):
                pass


async def refused_when_sent(host_port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", host_port)
    except ConnectionResetError:  # before it was even known to be open
        return True
    try:
        writer.write(b"x")
        return await reader.read(1) != b"x"
    except OSError:
        return True
    finally:
        writer.close()


async def test_few_dials_go_on_at_once_for_one_sandbox(ports: Ports, inside: Inside) -> None:
    """A flood of connections is not passed on as a flood of requests to the backend."""
    network = await ports.assign("box", exposed(8080))
    inside.gate = asyncio.Event()
    async with inside.serving(echo), contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
            stack.callback(writer.close)
        await until(lambda: inside.dials == 16)
        await asyncio.sleep(0)
        assert inside.dials == 16
        inside.gate.set()
        await until(lambda: inside.dials == 100)


async def test_an_idle_connection_is_closed(inside: Inside) -> None:
    carrier = Ports(inside, first=22130, last=22139, idle_s=0.2)
    async with carrier.running(), inside.serving(echo):
        network = await carrier.assign("box", exposed(8080))
        reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
        writer.write(b"x")
        await reader.readexactly(1)
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(30):
                await reader.read()
        writer.close()


async def test_ports_stay_the_same_over_a_restart(inside: Inside) -> None:
    async with inside.serving(echo):
        first = Ports(inside, first=22140, last=22149)
        async with first.running():
            network = await first.assign("box", exposed(8080, 9090))
            assert not await refused_when_sent(network.ports[0].host)
        assert await refused(network.ports[0].host)
        second = Ports(inside, first=22140, last=22149)
        async with second.running():
            second.open("box", network)
            second.open("box", network)
            assert not await refused_when_sent(network.ports[0].host)
            others = await second.assign("other", exposed(*range(1, 9)))
            assert not {one.host for one in others.ports} & {one.host for one in network.ports}


async def test_a_port_taken_during_a_restart_is_reclaimed_when_it_is_free(inside: Inside) -> None:
    network = Network(mode=NetworkMode.EXPOSED, ports=(Port(container=8080, host=22150),))
    carrier = Ports(inside, first=22150, last=22159)
    async with carrier.running(), inside.serving(echo):
        with socket.create_server(("127.0.0.1", 22150)):
            carrier.open("box", network)
        async with asyncio.timeout(30):
            while True:
                try:
                    if not await refused_when_sent(22150):
                        break
                except OSError:
                    await asyncio.sleep(0.05)


async def test_closing_refuses_new_connections_and_lets_the_last_words_through(ports: Ports, inside: Inside) -> None:
    answer = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        await answer.wait()
        writer.write(b"last words")
        writer.close()

    network = await ports.assign("box", exposed(8080))
    async with inside.serving(late):
        reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
        writer.write(b"x")
        await until(lambda: inside.dials == 1)
        await asyncio.sleep(0.05)
        ports.close("box")
        ports.close("box")
        assert not ports.exposes("box", 8080)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", network.ports[0].host)
        answer.set()
        assert await reader.read() == b"last words"
        writer.close()


async def test_closing_while_a_connection_is_made_refuses_it(ports: Ports, inside: Inside) -> None:
    network = await ports.assign("box", exposed(8080))
    inside.gate = asyncio.Event()
    async with inside.serving(echo):
        before = descriptors()
        reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
        await until(lambda: inside.dials == 1)
        ports.close("box")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        inside.gate.set()
        await until(lambda: descriptors() <= before)


async def test_a_protocol_speaker_gets_a_connection_to_exposed_ports_only(ports: Ports, inside: Inside) -> None:
    await ports.assign("box", exposed(8080))
    with pytest.raises(NotFound):
        async with ports.connected("box", 22):
            pass
    with pytest.raises(NotFound):
        async with ports.connected("other", 8080):
            pass
    with pytest.raises(Unavailable):
        async with ports.connected("box", 8080):
            pass
    async with inside.serving(echo):
        async with ports.connected("box", 8080) as connection:
            await asyncio.get_running_loop().sock_sendall(connection, b"x")
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b"x"
        assert connection.fileno() == -1


async def test_a_sandbox_that_takes_no_connection_is_given_up(
    ports: Ports, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports_module, "DIAL_S", 0.1)
    inside.gate = asyncio.Event()
    network = await ports.assign("box", exposed(8080))
    with pytest.raises(TimeoutError):
        async with ports.connected("box", 8080):
            pass
    assert await refused(network.ports[0].host)


class Answers(asyncio.DatagramProtocol):
    """Sends each datagram back with the sender's port before it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(b"%d:" % addr[1] + data, addr)


@contextlib.asynccontextmanager
async def answering(inside: Inside) -> AsyncIterator[None]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Answers, local_addr=("127.0.0.1", 0))
    inside.targets["box", 53, Protocol.UDP] = transport.get_extra_info("sockname")[1]
    try:
        yield
    finally:
        transport.close()


async def exchange(client: socket.socket, data: bytes, host_port: int) -> bytes:
    loop = asyncio.get_running_loop()
    client.sendto(data, ("127.0.0.1", host_port))
    async with asyncio.timeout(30):
        return await loop.sock_recv(client, 65536)


@contextlib.contextmanager
def udp_client() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        one.bind(("127.0.0.1", 0))
        yield one


async def test_datagrams_find_their_way_there_and_back(ports: Ports, inside: Inside) -> None:
    """Each client has a way of its own; answers of the one do not reach the other."""
    network = await ports.assign("box", exposed(53, protocol=Protocol.UDP))
    async with answering(inside):
        with udp_client() as one, udp_client() as other:
            first = await exchange(one, b"a" * 9000, network.ports[0].host)
            second = await exchange(other, b"b", network.ports[0].host)
            again = await exchange(one, b"c", network.ports[0].host)
    assert first.partition(b":")[2] == b"a" * 9000
    assert second.partition(b":")[2] == b"b"
    assert first.partition(b":")[0] == again.partition(b":")[0] != second.partition(b":")[0]
    assert inside.dials == 2


async def test_idle_datagram_clients_are_let_go(ports: Ports, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.engine.datagrams.IDLE_S", 0.0)
    monkeypatch.setattr(ports_module, "_SWEEP_S", 0.05)
    carrier = Ports(inside, first=22160, last=22169)
    async with carrier.running(), answering(inside):
        network = await carrier.assign("box", exposed(53, protocol=Protocol.UDP))
        before = descriptors()
        with udp_client() as one:
            await exchange(one, b"a", network.ports[0].host)
            await until(lambda: descriptors() == before + 1)  # the client's own


async def test_datagram_clients_are_bounded(ports: Ports, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.engine.datagrams.MOST_CLIENTS", 2)
    network = await ports.assign("box", exposed(53, protocol=Protocol.UDP))
    async with answering(inside):
        with contextlib.ExitStack() as stack:
            one, two, three = (stack.enter_context(udp_client()) for _ in range(3))
            await exchange(one, b"a", network.ports[0].host)
            await exchange(two, b"a", network.ports[0].host)
            three.sendto(b"a", ("127.0.0.1", network.ports[0].host))
            await exchange(one, b"a", network.ports[0].host)
            assert inside.dials == 2


async def test_the_end_lets_go_of_everything(inside: Inside) -> None:
    """Relays, datagrams and connections that are still being made."""
    async with inside.serving(echo), answering(inside):
        inside.targets["boxes", 53, Protocol.UDP] = inside.targets["box", 53, Protocol.UDP]
        _, first = await asyncio.open_connection("127.0.0.1", inside.targets["box", 8080, Protocol.TCP])
        before = descriptors()
        carrier = Ports(inside, first=22170, last=22179)
        async with carrier.running():
            network = await carrier.assign("box", exposed(8080))
            udp = await carrier.assign("boxes", exposed(53, protocol=Protocol.UDP))
            reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
            writer.write(b"x")
            await reader.readexactly(1)
            with udp_client() as one:
                await exchange(one, b"a", udp.ports[0].host)
            inside.gate = asyncio.Event()
            _, waiting = await asyncio.open_connection("127.0.0.1", network.ports[0].host)
            await until(lambda: inside.dials == 3)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        waiting.close()
        await until(lambda: descriptors() <= before)
        first.close()


async def test_without_descriptors_connections_wait_until_there_are_some(ports: Ports, inside: Inside) -> None:
    network = await ports.assign("box", exposed(8080))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loop = asyncio.get_running_loop()
    with structlog.testing.capture_logs() as logged, socket.socket() as client:
        client.setblocking(False)
        async with inside.serving(echo):
            next_free = os.dup(0)
            os.close(next_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, hard))
            try:
                await loop.sock_connect(client, ("127.0.0.1", network.ports[0].host))
                await loop.sock_sendall(client, b"x")
                await until(lambda: any(one["event"] == "ports.accept_failed" for one in logged))
                assert inside.dials == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            async with asyncio.timeout(30):
                assert await loop.sock_recv(client, 1) == b"x"
