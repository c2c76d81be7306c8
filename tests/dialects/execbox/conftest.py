"""The execbox dialect on a loopback port, over an engine in memory."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
import websockets
from fastapi import FastAPI

from stockade.app.connections import connection
from stockade.config import Config
from stockade.dialects.execbox.accounting import Accounting
from stockade.dialects.execbox.edge import Edge
from stockade.dialects.execbox.executor import ExecutorApi
from stockade.dialects.execbox.routes import make_router
from stockade.dialects.execbox.service import Sessions
from stockade.dialects.execbox.settings import ExecboxSettings
from stockade.engine import LimitPolicy
from stockade.model import Actor
from stockade.wire.rates import Concurrency, RateLimiter
from stockade.wire.websockets import WebSocketConnection
from tests.dialects.execbox.fakes import FakeSandboxes

START_S = 60.0
KEYS = {
    "key-a": Actor(id="a", account_id="a", tier="enterprise"),
    "key-b": Actor(id="b", account_id="b", tier="free", max_duration_s=60.0, max_memory_bytes=512 << 20),
}


@dataclass(kw_only=True)
class Keys:
    """The keys above; tests may add failures."""

    failure: BaseException | None = None

    async def verify(self, secret: str) -> Actor | None:
        if self.failure is not None:
            raise self.failure
        return KEYS.get(secret)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that answers, with what lies behind it."""

    client: httpx.AsyncClient
    sandboxes: FakeSandboxes
    port: int
    keys: Keys
    edge: Edge
    tasks: set[Any] = field(default_factory=set)

    async def create(self, key: str = "key-a", **members: Any) -> str:
        """The id of a new session."""
        body = {"image": "host", "command": ["cat"], **members}
        response = await self.client.post("/v1/sessions", json=body, headers={"Authorization": f"Bearer {key}"})
        assert response.status_code == 201, response.text
        name: str = response.json()["id"]
        return name

    def connect(self, path: str, key: str = "key-a", **options: Any) -> Any:
        """A WebSocket connection to *path*."""
        return websockets.connect(
            f"ws://127.0.0.1:{self.port}{path}",
            additional_headers={"Authorization": f"Bearer {key}"} if key else {},
            compression=None,
            proxy=None,
            max_size=1 << 25,
            **options,
        )


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


@asynccontextmanager
async def serving(*, accounts: Any = None, rps: int = 10_000, **settings: Any) -> AsyncIterator[Served]:
    """The dialect's routes; without *accounts*, those of accounts do not work, and the keys above are the only ones."""
    sandboxes, keys = FakeSandboxes(), Keys()
    of = ExecboxSettings(**settings)
    config = Config().sandbox
    edge = Edge(
        keys=accounts or keys,
        rates=RateLimiter(per_minute=60 * rps, burst=rps),
        public_rates=RateLimiter(per_minute=600, burst=10),
        streams=Concurrency(per_actor=of.streams_per_key),
        settings=of,
        body_timeout_s=5.0,
    )
    sessions = Sessions(
        sandboxes=sandboxes,
        limits=LimitPolicy(defaults=config.defaults, maximum=config.maximum),
        settings=of,
        image_cwd=lambda _name: "/home/user",
        executor_api=ExecutorApi(url=of.executor_url, server=Config().server, is_merged=True),
    )
    app = FastAPI()
    app.include_router(make_router(sessions, Accounting(accounts=accounts), edge))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = _Server(
            uvicorn.Config(
                app,
                http=connection(30.0),
                lifespan="off",
                log_config=None,
                access_log=False,
                **WebSocketConnection.settings(),
            )
        )
        task = asyncio.create_task(running.serve([listener]))
        try:
            async with asyncio.timeout(START_S):
                await running.answering.wait()
            port = listener.getsockname()[1]
            headers = {"Authorization": "Bearer key-a"}
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, headers=headers
            ) as client:
                yield Served(
                    client=client,
                    sandboxes=sandboxes,
                    port=port,
                    keys=keys,
                    edge=edge,
                    tasks=running.server_state.tasks,
                )
        finally:
            running.should_exit = True
            await task


@pytest.fixture
async def execbox(anyio_backend: str) -> AsyncIterator[Served]:
    """A server with default settings."""
    async with serving() as served:
        yield served
