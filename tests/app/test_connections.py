"""What an answer looks like on its way to the client."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from stockade.app.connections import connection
from stockade.wire.clients import HANG_UP

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Wire(asyncio.Transport):
    """Keeps what is written, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


async def answered(sent: bytes, *parts: bytes, pause: bool = False) -> Wire:
    """What goes over the wire to a client that has *sent* a request to an application which answers in *parts*."""
    ended = asyncio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        length = str(sum(map(len, parts))).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        for number, part in enumerate(parts, 1):
            if pause:
                await asyncio.sleep(0.001)
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})
        ended.set()

    config = Config(app, lifespan="off", log_config=None, access_log=False)
    config.load()
    protocol = connection(10.0)(config, ServerState(), app_state={})
    wire = Wire()
    protocol.connection_made(wire)
    protocol.data_received(sent)
    async with asyncio.timeout(30):
        await ended.wait()
    await asyncio.sleep(0)
    protocol.connection_lost(None)
    return wire


@pytest.mark.anyio
async def test_head_and_body_go_out_in_one_piece() -> None:
    wire = await answered(GET, b"hello")
    (only,) = wire.pieces
    assert only.startswith(b"HTTP/1.1 200 OK\r\n")
    assert only.endswith(b"\r\n\r\nhello")


@pytest.mark.anyio
async def test_the_head_does_not_wait_for_a_body_that_comes_later() -> None:
    head, *body = (await answered(GET, b"one", b"two", pause=True)).pieces
    assert head.endswith(b"\r\n\r\n")
    assert b"".join(body) == b"onetwo"


@pytest.mark.anyio
async def test_a_large_answer_arrives_whole_and_in_order() -> None:
    parts = [bytes([65 + n]) * 100_000 for n in range(5)]
    assert b"".join((await answered(GET, *parts)).pieces).endswith(b"\r\n\r\n" + b"".join(parts))


@pytest.mark.anyio
async def test_an_answer_without_a_body_is_sent_and_a_connection_that_ends_gets_it_first() -> None:
    (head,) = (await answered(HEAD, b"hello")).pieces
    assert head.endswith(b"\r\n\r\n")
    wire = await answered(HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"hello")
    assert wire.closed
    assert len(wire.pieces) == 1


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_patience_with_a_client_that_has_left_is_no_error(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """An application may learn of it only after it has wished for patience, and after it wishes for no more."""
    patient: list[object] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        extension = scope["extensions"][HANG_UP]
        for has_left in (False, True):
            if has_left:
                await extension["left"]()
                await asyncio.sleep(0)
            for however_long in (True, False):
                extension["wait_for_reader"](however_long=however_long)
                patient.append((has_left, however_long))
        ended.set()

    async def leave() -> None:
        config = Config(app, lifespan="off", log_config=None, access_log=False)
        config.load()
        protocols = connection(10.0)
        server = await asyncio.get_running_loop().create_server(
            lambda: protocols(config, ServerState(), app_state={}), "127.0.0.1", 0
        )
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(GET)
            writer.close()
            async with asyncio.timeout(30):
                await ended.wait()

    with asyncio.Runner(loop_factory=loop) as runner:
        ended = asyncio.Event()
        runner.run(leave())
    assert patient == [(has_left, long) for has_left in (False, True) for long in (True, False)]
