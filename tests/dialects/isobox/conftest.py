"""The isobox dialect, alone on a loopback port, on a real engine."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from stockade.app.http import Parts, create_app, new_registry
from stockade.config import Config, ServerConfig
from stockade.dialects.isobox import dialect
from stockade.dialects.isobox.settings import IsoboxSettings
from stockade.engine import Engine
from stockade.wire.dialect import Services
from tests.keys import OneKey

START_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that answers, and a client of it."""

    client: httpx.AsyncClient
    engine: Engine
    services: Services

    async def execute(self, path: str = "/execute", **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def python(self, code: str, **members: Any) -> dict[str, Any]:
        """The answer to a Python program, which must be a 200."""
        response = await self.execute(language="python", code=code, **members)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


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


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def _serving(
    engine: Engine, *, keys: OneKey | None = None, server: ServerConfig | None = None, **settings: Any
) -> AsyncIterator[Served]:
    server = server or ServerConfig()
    config = Config(server=server, dialects={"isobox": IsoboxSettings(**settings)})
    parts = Parts(config=config, engine=engine, keys=keys or OneKey(), registry=new_registry(engine))
    services = Services(
        engine=engine,
        keys=parts.keys,
        settings=config.dialects["isobox"],
        server=server,
        registry=parts.registry,
        open_access=True,
    )
    app = create_app(parts, host="127.0.0.1", only="isobox")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = _Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
        assert dialect.listeners is not None
        async with dialect.listeners(services):
            task = asyncio.create_task(running.serve([listener]))
            try:
                async with asyncio.timeout(START_S):
                    await running.answering.wait()
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
                    yield Served(client=client, engine=engine, services=services)
            finally:
                running.should_exit = True
                await task


@pytest.fixture
def serve(engine: Engine) -> Serve:
    """Starts a server with settings of its own: `async with serve(api_keys=("k",)) as isobox:`"""

    def start(**settings: Any) -> AbstractAsyncContextManager[Served]:
        return _serving(engine, **settings)

    return start


@pytest.fixture(scope="session")
async def isobox(engine: Engine) -> AsyncIterator[Served]:
    """A server with default settings and no keys."""
    async with _serving(engine) as served:
        yield served
