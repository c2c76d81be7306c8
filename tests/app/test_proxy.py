"""The proxy in front of a real server's connections; local services stand for what sandboxes serve."""

import asyncio
import contextlib
import hashlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.typing import Subprotocol

from stockade.app.connections import connection
from stockade.app.proxy import Proxy
from stockade.engine.ports import Ports
from stockade.model import Network, NetworkMode, Port, Protocol
from stockade.wire.websockets import WebSocketConnection
from tests.engine.inside import Inside, descriptors, until

pytestmark = pytest.mark.anyio
MIB = 1 << 20
BOX = "sess_0a1b2c3d4e5f"


@dataclass(kw_only=True)
class Setting:
    """A server with one sandbox that exposes 8080."""

    inside: Inside
    ports: Ports
    address: int
    proxy: Proxy

    @property
    def host(self) -> str:
        return f"8080-{BOX}.localhost:{self.address}"

    @property
    def path(self) -> str:
        return f"/sandboxes/{BOX}/ports/8080"

    def client(self, **more: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.address}", trust_env=False, timeout=30, **more)

    def websocket(self, path: str = "/", **more: Any) -> connect:
        uri = f"ws://{self.host}{path}"
        return connect(uri, host="127.0.0.1", port=self.address, proxy=None, max_size=None, **more)

    @contextlib.asynccontextmanager
    async def app(self, app: ASGIApp) -> AsyncIterator[None]:
        """Serve *app* inside."""
        async with listening(app, ws="none") as port:
            self.inside.targets[BOX, 8080, Protocol.TCP] = port
            yield
            del self.inside.targets[BOX, 8080, Protocol.TCP]

    @contextlib.asynccontextmanager
    async def answering(
        self, handler: Callable[[ServerConnection], Awaitable[None]], **more: Any
    ) -> AsyncIterator[None]:
        """Serve WebSockets inside."""
        async with serve(handler, "127.0.0.1", 0, **more) as server:
            self.inside.targets[BOX, 8080, Protocol.TCP] = port_of(server)
            yield
            del self.inside.targets[BOX, 8080, Protocol.TCP]

    def raw(self, handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]) -> Any:
        return self.inside.serving(handler, name=BOX)


def port_of(server: WebSocketServer) -> int:
    port: int = next(iter(server.sockets)).getsockname()[1]
    return port


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, **more: Any) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, server_header=False, **more)
        )
        task = asyncio.create_task(server.serve([listener]))
        try:
            await until(lambda: server.started)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await task


async def own_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands for the server's own application."""
    await PlainTextResponse("ours", 418)(scope, receive, send)


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def setting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    monkeypatch.setattr(uvicorn.Server, "capture_signals", lambda _: contextlib.nullcontext())
    inside = Inside()
    ports = Ports(inside, first=23000, last=23999)
    async with ports.running():
        await ports.assign(BOX, Network(mode=NetworkMode.EXPOSED, ports=(Port(container=8080),)))
        proxy = Proxy(app=own_app, ports=ports, hosts=frozenset({"localhost"}), answer_s=20.0)
        async with listening(proxy, http=connection(30.0), **WebSocketConnection.settings()) as address:
            yield Setting(inside=inside, ports=ports, address=address, proxy=proxy)


async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells what it was asked."""
    request = Request(scope, receive)
    digest, size = hashlib.sha256(), 0
    async for part in request.stream():
        digest.update(part)
        size += len(part)
    told = {
        "method": request.method,
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "headers": dict(request.headers),
        "size": size,
        "sha256": digest.hexdigest(),
    }
    response = JSONResponse(told, headers={"x-inside": "1"})
    response.set_cookie("a", "1", domain="localhost")
    response.set_cookie("b", "2")
    await response(scope, receive, send)


async def test_a_request_reaches_the_service_by_host_and_by_path(setting: Setting) -> None:
    """With path and query as they were sent, and without what is ours on the way."""
    async with setting.app(mirror), setting.client() as client:
        by_host = await client.get("/a%2Fb;c//d?x=1&y=%20", headers={"host": setting.host, "authorization": "Basic x"})
        by_path = await client.get(
            f"{setting.path}/a%2Fb;c//d?x=1&y=%20", headers={"authorization": "Bearer sk_x", "cookie": "c=d"}
        )
    for answer in (by_host, by_path):
        assert answer.status_code == 200
        assert answer.headers["x-inside"] == "1"
        assert answer.json()["raw_path"] == "/a%2Fb;c//d"
        assert answer.json()["query"] == "x=1&y=%20"
        assert "x-frame-options" not in answer.headers
    assert by_host.json()["headers"]["host"] == setting.host
    assert by_host.json()["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert by_host.json()["headers"]["x-forwarded-proto"] == "http"
    assert by_host.json()["headers"]["authorization"] == "Basic x"
    assert by_host.headers.get_list("set-cookie") == ["a=1; Path=/; SameSite=lax", "b=2; Path=/; SameSite=lax"]
    assert "content-security-policy" not in by_host.headers
    assert by_path.json()["headers"]["x-forwarded-prefix"] == setting.path
    assert "authorization" not in by_path.json()["headers"]
    assert "cookie" not in by_path.json()["headers"]
    assert "set-cookie" not in by_path.headers
    assert by_path.headers["content-security-policy"].startswith("sandbox ")


@pytest.mark.parametrize("host", [f"8080-{BOX.replace('_', '-')}.localhost", f"8080-{BOX.upper()}.LOCALHOST.:8080"])
async def test_a_host_may_be_spelt_as_browsers_and_resolvers_do(setting: Setting, host: str) -> None:
    async with setting.app(mirror), setting.client() as client:
        assert (await client.get("/", headers={"host": host})).headers.get("x-inside") == "1"


@pytest.mark.parametrize(
    "url", ["/", "/v1/sessions", "/sandboxes", "/sandboxes/x", f"/sandboxes/{BOX}/ports/x/", "/sandboxes/../ports/80/"]
)
async def test_all_else_is_the_servers_own(setting: Setting, url: str) -> None:
    async with setting.client() as client:
        assert (await client.get(url)).status_code == 418
        assert (await client.get(url, headers={"host": "localhost"})).status_code == 418
        assert (await client.get(url, headers={"host": "x.localhost"})).status_code == 418


async def test_by_path_a_name_of_somebody_elses_is_not_answered(setting: Setting) -> None:
    """A page that rebinds its own name to this address would else read what is served here."""
    async with setting.app(mirror), setting.client() as client:
        assert (await client.get(f"{setting.path}/", headers={"host": "evil.example"})).status_code == 421
        assert (await client.get(f"{setting.path}/", headers={"host": "localhost:1"})).status_code == 200


async def test_a_path_without_its_last_slash_is_redirected(setting: Setting) -> None:
    async with setting.app(mirror), setting.client() as client:
        answer = await client.get(f"{setting.path}?x=1")
        assert answer.status_code == 307
        assert answer.headers["location"] == f"{setting.path}/?x=1"


@pytest.mark.parametrize("sandbox_port", [f"{BOX}/ports/22", "sess_000000000000/ports/8080", f"{BOX}/ports/99999"])
async def test_what_is_not_exposed_is_not_found(setting: Setting, sandbox_port: str) -> None:
    async with setting.client() as client:
        answer = await client.post(f"/sandboxes/{sandbox_port}/", content=bytes(100_000))
    assert answer.status_code == 404
    assert answer.json()["error"] == "not_found"


async def test_a_service_that_is_not_there_yet_is_a_bad_gateway(setting: Setting) -> None:
    async with setting.client() as client:
        answer = await client.get("/", headers={"host": setting.host})
        assert answer.status_code == 502
        assert answer.json()["error"] == "port.unreachable"
        assert "nothing listens on port 8080" in answer.json()["message"]
        async with setting.app(mirror):
            assert (await client.get("/", headers={"host": setting.host})).status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 799 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    ],
)
async def test_what_is_no_answer_is_a_bad_gateway(setting: Setting, said: bytes) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with setting.raw(service), setting.client() as client:
        answer = await client.get("/", headers={"host": setting.host})
    assert answer.status_code == 502
    assert answer.json()["error"] == "port.bad_answer"


async def test_one_answer_is_all_that_a_service_can_say(setting: Setting) -> None:
    """What follows on the connection is not taken for the answer to another request."""

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" + b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with setting.raw(service), setting.client() as client:
        for _ in range(3):
            assert (await client.get("/", headers={"host": setting.host})).content == b"ok"
        assert (await client.get("/")).status_code == 418


async def test_a_service_that_does_not_answer_in_time_is_given_up(setting: Setting) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    object.__setattr__(setting.proxy, "answer_s", 0.2)
    async with setting.raw(service), setting.client() as client:
        answer = await client.get("/", headers={"host": setting.host})
    assert answer.status_code == 504
    assert answer.json()["error"] == "port.timeout"


async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    """And is no mistake of ours, that would fill the log whenever a tenant likes."""

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        writer.close()

    async with setting.raw(service), setting.client() as client:
        with pytest.raises(httpx.TransportError):
            await client.get("/", headers={"host": setting.host})
    assert not caplog.records


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_methods_pass(setting: Setting, method: str) -> None:
    async with setting.app(mirror), setting.client() as client:
        answer = await client.request(method, "/", headers={"host": setting.host})
        assert answer.status_code == 200
        assert answer.text == "" if method == "HEAD" else answer.json()["method"] == method


@pytest.mark.parametrize("status", [204, 304, 404, 500])
async def test_statuses_pass(setting: Setting, status: int) -> None:
    async def service(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(status_code=status)(scope, receive, send)

    async with setting.app(service), setting.client() as client:
        for _ in range(2):
            answer = await client.get("/", headers={"host": setting.host})
            assert answer.status_code == status
            assert answer.content == b""


async def test_an_answer_without_a_length_ends_with_its_connection(setting: Setting) -> None:
    """HTTP/1.0, as many small servers speak it."""

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nhello")
        writer.close()

    async with setting.raw(service), setting.client() as client:
        assert (await client.get("/", headers={"host": setting.host})).text == "hello"


async def zeros(size: int) -> AsyncIterator[bytes]:
    part = bytes(MIB)
    for _ in range(size // MIB):
        yield part


@pytest.mark.parametrize("told", [True, False], ids=["length", "chunked"])
async def test_100_mb_pass_each_way_without_being_kept(setting: Setting, told: bool) -> None:
    size = 100 * MIB

    async def service(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await mirror(scope, receive, send)
        else:
            headers = {"content-length": str(size)} if told else {}
            await StreamingResponse(zeros(size), headers=headers)(scope, receive, send)

    async with setting.app(service), setting.client() as client:
        await client.get("/", headers={"host": setting.host})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        headers = {"host": setting.host} | ({"content-length": str(size)} if told else {})
        sent = await client.post("/", content=zeros(size), headers=headers)
        assert sent.json()["size"] == size
        got = 0
        async with client.stream("GET", "/", headers={"host": setting.host}) as answer:
            async for part in answer.aiter_raw():
                got += len(part)
        assert got == size
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


async def test_a_body_passes_unchanged(setting: Setting) -> None:
    body = os.urandom(3 * MIB + 17)
    async with setting.app(mirror), setting.client() as client:
        answer = await client.put("/", content=body, headers={"host": setting.host, "expect": "100-continue"})
    assert answer.json()["sha256"] == hashlib.sha256(body).hexdigest()


async def test_events_arrive_as_they_are_sent(setting: Setting) -> None:
    """Server-sent events: none waits for the next one."""
    heard = asyncio.Event()

    async def events() -> AsyncIterator[str]:
        for number in range(3):
            yield f"data: {number}\n\n"
            await heard.wait()
            heard.clear()

    async def service(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)

    seen = []
    async with (
        asyncio.timeout(20),
        setting.app(service),
        setting.client() as client,
        client.stream("GET", "/", headers={"host": setting.host}) as answer,
    ):
        async for line in answer.aiter_lines():
            if line:
                seen.append(line)
                heard.set()
    assert seen == ["data: 0", "data: 1", "data: 2"]


async def test_a_client_that_leaves_ends_the_request_inside(setting: Setting) -> None:
    left = asyncio.Event()

    async def service(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with setting.app(service), setting.client() as client:
        async with client.stream("GET", "/", headers={"host": setting.host}) as answer:
            await anext(answer.aiter_raw())
        async with asyncio.timeout(30):
            await left.wait()


async def test_a_client_that_reads_nothing_stops_the_service(setting: Setting) -> None:
    produced = 0

    async def pour() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(1024):
            yield bytes(MIB)
            produced += MIB

    async def service(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(pour())(scope, receive, send)

    async with setting.app(service):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with socket.create_connection(("127.0.0.1", setting.address)) as client:
            client.sendall(f"GET / HTTP/1.1\r\nhost: {setting.host}\r\n\r\n".encode())
            stalled = -1
            while produced != stalled:
                stalled = produced
                await asyncio.sleep(0.3)
        assert 0 < produced < 64 * MIB
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


async def test_an_answer_before_the_end_of_an_upload_arrives(setting: Setting) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nno!")
        await writer.drain()
        writer.close()

    async with setting.raw(service), setting.client() as client:
        for _ in range(5):
            answer = await client.post("/", content=zeros(20 * MIB), headers={"host": setting.host})
            assert (answer.status_code, answer.text) == (413, "no!")


async def test_requests_and_leavers_leave_no_descriptor(setting: Setting) -> None:
    async with setting.app(mirror), setting.client() as client:
        await client.get("/", headers={"host": setting.host})
        before = descriptors()
        for number in range(200):
            await client.post("/", content=b"x" * number, headers={"host": setting.host})
            with socket.create_connection(("127.0.0.1", setting.address)) as one:
                one.sendall(f"POST / HTTP/1.1\r\nhost: {setting.host}\r\ncontent-length: 5\r\n\r\n12".encode())
        await until(lambda: descriptors() <= before)


async def echo(service: ServerConnection) -> None:
    async for message in service:
        await service.send(message)


@pytest.mark.parametrize(
    "message", ["text ☃", "", b"", b"\x00\xff", bytes(70_000), bytes(8 * MIB)], ids=lambda one: f"{type(one)}{len(one)}"
)
async def test_messages_pass_both_ways(setting: Setting, message: str | bytes) -> None:
    async with setting.answering(echo, max_size=None), setting.websocket() as client:
        await client.send(message)
        assert await client.recv() == message


async def test_messages_pass_by_path(setting: Setting) -> None:
    async with (
        setting.answering(echo),
        connect(f"ws://127.0.0.1:{setting.address}{setting.path}/x?y=1", proxy=None) as client,
    ):
        await client.send("a")
        assert await client.recv() == "a"


async def test_fragments_are_put_together(setting: Setting) -> None:
    async def service(one: ServerConnection) -> None:
        await one.send(["a", "b", "c"])
        await one.wait_closed()

    async with setting.answering(service), setting.websocket() as client:
        assert await client.recv() == "abc"


async def test_a_handshake_passes(setting: Setting) -> None:
    """Path, query, origin, subprotocols, cookies; and the answer's headers."""

    async def service(one: ServerConnection) -> None:
        assert one.request is not None
        headers = one.request.headers
        told = [one.request.path, headers["origin"], headers["host"], headers["cookie"], headers["x-forwarded-for"]]
        await one.send("|".join(told))

    def answer(_: ServerConnection, __: Any, response: Any) -> None:
        response.headers["x-inside"] = "1"

    subprotocols = [Subprotocol("one"), Subprotocol("two")]
    async with (
        setting.answering(service, subprotocols=[Subprotocol("two")], process_response=answer),
        setting.websocket(
            "/a%2Fb?x=1", subprotocols=subprotocols, origin="http://a.example", additional_headers={"cookie": "c=d"}
        ) as client,
    ):
        assert client.subprotocol == "two"
        assert client.response is not None
        assert client.response.headers["x-inside"] == "1"
        assert await client.recv() == f"/a%2Fb?x=1|http://a.example|{setting.host}|c=d|127.0.0.1"


async def test_the_services_close_code_reaches_the_client(setting: Setting) -> None:
    async def service(one: ServerConnection) -> None:
        await one.close(4001, "so it is")

    async with setting.answering(service), setting.websocket() as client:
        with pytest.raises(ConnectionClosedError) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "so it is")


async def test_the_clients_close_code_reaches_the_service(setting: Setting) -> None:
    closed: asyncio.Future[tuple[int | None, str | None]] = asyncio.get_running_loop().create_future()

    async def service(one: ServerConnection) -> None:
        await one.wait_closed()
        closed.set_result((one.close_code, one.close_reason))

    async with setting.answering(service):
        async with setting.websocket() as client:
            await client.close(4002, "enough")
        async with asyncio.timeout(30):
            assert await closed == (4002, "enough")


async def test_a_service_that_breaks_off_is_a_bad_gateway(setting: Setting) -> None:
    async def service(one: ServerConnection) -> None:
        one.transport.abort()

    async with setting.answering(service), setting.websocket() as client:
        with pytest.raises(ConnectionClosedError) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1014


async def test_a_refused_handshake_passes_with_its_answer(setting: Setting) -> None:
    async def service(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"why": "log in"}, 401, headers={"www-authenticate": "Basic"})(scope, receive, send)

    async with setting.app(service):
        with pytest.raises(InvalidStatus) as refused:
            async with setting.websocket():
                pass
    assert refused.value.response.status_code == 401
    assert refused.value.response.headers["www-authenticate"] == "Basic"
    assert refused.value.response.body == b'{"why":"log in"}'


async def test_without_a_service_a_handshake_is_refused(setting: Setting) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with setting.websocket():
            pass
    assert refused.value.response.status_code == 502
    setting.ports.close(BOX)
    with pytest.raises(InvalidStatus) as refused:
        async with setting.websocket():
            pass
    assert refused.value.response.status_code == 404


async def test_a_client_that_takes_no_messages_stops_the_service(setting: Setting) -> None:
    sent = 0

    async def service(one: ServerConnection) -> None:
        nonlocal sent
        for _ in range(1024):
            await one.send(bytes(MIB))
            sent += 1

    async with setting.answering(service):
        client: ClientConnection = await setting.websocket(max_queue=1)
        stalled = -1
        while sent != stalled:
            stalled = sent
            await asyncio.sleep(0.3)
        assert 0 < sent < 64
        client.transport.abort()


async def test_all_messages_on_their_way_are_bounded_together(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stockade.wire.proxy_websockets.MOST_HELD_BYTES", 4 * MIB)

    async def service(one: ServerConnection) -> None:
        await one.send(bytes(8 * MIB))
        await one.wait_closed()

    async with setting.answering(service), setting.websocket() as client:
        with pytest.raises(ConnectionClosedError):
            await client.recv()
    async with setting.answering(echo), setting.websocket() as client:
        await client.send("small")
        assert await client.recv() == "small"


async def test_websockets_that_are_dropped_leave_no_descriptor(setting: Setting) -> None:
    async with setting.answering(echo):
        async with setting.websocket() as client:
            await client.send("x")
            await client.recv()
        before = descriptors()
        for number in range(100):
            one = await setting.websocket()
            if number % 2:
                await one.send("x")
            one.transport.abort()
        await until(lambda: descriptors() <= before + 1)
