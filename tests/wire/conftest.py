"""A small HTTP server whose answers a test chooses."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Answer = Callable[[Request], Awaitable[Response]]


class Upstream:
    """Somebody else's server; `requests` are the ones it saw."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.requests: list[Request] = []
        self.answers: dict[str, Answer] = {}

    def on(self, path: str, answer: Answer) -> str:
        """Answer *path* so; returns its URL."""
        self.answers[path] = answer
        return self.url + path

    def says(self, path: str, response: Callable[[], Response]) -> str:
        """Answer *path* with whatever *response* makes; returns its URL."""

        async def answer(_request: Request) -> Response:
            return response()

        return self.on(path, answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.requests.append(request)
        answer = self.answers.get(scope["path"])
        response = await answer(request) if answer else Response("no such page", status_code=404)
        await response(scope, receive, send)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answering.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
async def upstream(anyio_backend: str) -> AsyncIterator[Upstream]:
    """An HTTP server on a free loopback port."""
    upstream = Upstream()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream.port = listener.getsockname()[1]
        upstream.url = f"http://127.0.0.1:{upstream.port}"
        server = _Server(uvicorn.Config(upstream, lifespan="off", log_config=None, access_log=False))
        task = asyncio.create_task(server.serve([listener]))
        try:
            async with asyncio.timeout(30):
                await server.answering.wait()
            yield upstream
        finally:
            server.should_exit = True
            await task
