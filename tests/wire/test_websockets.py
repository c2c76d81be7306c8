"""WebSocket connections of the server, as a client sees them."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvicorn
import websockets
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from stockade.app.connections import connection
from stockade.wire import websockets as ours
from stockade.wire.websockets import MOST_WEBSOCKET_BYTES, WebSocketConnection

pytestmark = pytest.mark.anyio

WITHIN_S = 30.0


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            data = await socket.receive_bytes()
            await socket.send_bytes(len(data).to_bytes(4, "big"))


async def deny(socket: WebSocket) -> None:
    await socket.send_denial_response(JSONResponse({"error": "no"}, 409, headers={"X-Why": "because"}))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answering.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are pytest's


@pytest.fixture
async def base(anyio_backend: str) -> AsyncIterator[str]:
    app = Starlette(routes=[WebSocketRoute("/echo", echo), WebSocketRoute("/deny", deny)])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1234)
        config = uvicorn.Config(
            app, http=connection(30.0), lifespan="off", log_config=None, **WebSocketConnection.settings()
        )
        running = _Server(config)
        task = asyncio.create_task(running.serve([listener]))
        try:
            async with asyncio.timeout(WITHIN_S):
                await running.answering.wait()
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            await task


def connect(url: str, **options: Any) -> Any:
    return websockets.connect(url, compression=None, proxy=None, max_size=None, **options)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.01)


async def test_the_longest_message_is_taken_and_a_longer_one_closes(base: str) -> None:
    async with connect(f"{base}/echo") as one:
        await one.send(bytes(MOST_WEBSOCKET_BYTES))
        assert int.from_bytes(await one.recv(), "big") == MOST_WEBSOCKET_BYTES
        await one.send([bytes(1 << 20)] * 3)
        assert int.from_bytes(await one.recv(), "big") == 3 << 20
        with contextlib.suppress(websockets.ConnectionClosed):  # in the middle of it
            await one.send(bytes(MOST_WEBSOCKET_BYTES + 1))
        async with asyncio.timeout(WITHIN_S):
            await one.wait_closed()
        assert one.close_code == 1009


async def test_a_refusal_has_status_headers_and_body_and_is_not_logged(
    base: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(websockets.InvalidStatus) as caught:
        async with connect(f"{base}/deny?cmd=secret"):
            pass
    response = caught.value.response
    assert (response.status_code, json.loads(response.body)) == (409, {"error": "no"})
    assert response.headers["x-why"] == "because"
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "stockade.websockets" not in {one.name for one in caplog.records}


async def test_nothing_is_compressed(base: str) -> None:
    async with websockets.connect(f"{base}/echo", proxy=None) as one:
        assert one.protocol.extensions == []


async def test_pings_are_answered(base: str) -> None:
    async with connect(f"{base}/echo") as one:
        async with asyncio.timeout(WITHIN_S):
            await (await one.ping())


async def test_an_unfinished_message_is_counted_until_its_connection_ends(base: str) -> None:
    one = await connect(f"{base}/echo")
    one.transport.write(unfinished(4 << 20))
    await until(lambda: WebSocketConnection.held_by_all >= 4 << 20)
    one.transport.abort()
    await until(lambda: WebSocketConnection.held_by_all == 0)


async def test_who_sends_more_than_all_may_is_cut_off(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "MOST_HELD_BYTES", 6 << 20)
    async with connect(f"{base}/echo") as one, connect(f"{base}/echo") as other, connect(f"{base}/echo") as small:
        one.transport.write(unfinished(4 << 20))
        await until(lambda: WebSocketConnection.held_by_all >= 4 << 20)
        other.transport.write(unfinished(4 << 20))
        async with asyncio.timeout(WITHIN_S):
            await other.wait_closed()
        assert other.close_code == 1013
        await small.send(b"still served")
        assert int.from_bytes(await small.recv(), "big") == 12
        one.transport.abort()
    await until(lambda: WebSocketConnection.held_by_all == 0)


def unfinished(size: int) -> bytes:
    """The beginning of a masked binary message of 8 MiB (RFC 6455, section 5.2), with *size* bytes of it."""
    return b"\x82\xff" + (8 << 20).to_bytes(8, "big") + bytes(4) + bytes(size)
