"""The whole dialect on a loopback port, over boxes in memory."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from stockade.app.connections import connection
from stockade.config import Config
from stockade.dialects.boxlite import dialect
from stockade.dialects.boxlite.settings import BoxliteSettings
from stockade.engine import LimitPolicy
from stockade.errors import NotFound
from stockade.model import Actor, Protocol, Usage
from stockade.wire.dialect import Services
from stockade.wire.websockets import WebSocketConnection
from tests.dialects.boxlite.fakes import FakeArchives, FakeBoxes, FakeImages, FakeRegistries, FakeVolumes

__all__ = ["KEYS", "Served", "serving"]

START_S = 60.0
KEYS = {
    "key-a": Actor(id="a", account_id="a", tier="", is_admin=True),
    "key-b": Actor(id="b", account_id="b", tier="", max_memory_bytes=256 << 20),
    "key-slow": Actor(id="slow", account_id="a", rate_limit_rps=5),
}


class Keys:
    async def verify(self, presented: str) -> Actor | None:
        return KEYS.get(presented)


@dataclass(kw_only=True)
class Inside:
    """What runs in boxes: one service, which says everything back."""

    ports: set[int]

    server: asyncio.Server | None = None

    async def dial(self, name: str, port: int, protocol: Protocol) -> socket.socket:
        if port not in self.ports:
            raise NotFound(f"sandbox {name} is not here")
        assert self.server is not None
        loop = asyncio.get_running_loop()
        ours = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        ours.setblocking(False)
        await loop.sock_connect(ours, self.server.sockets[0].getsockname())
        return ours

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that answers, with what lies behind it."""

    client: httpx.AsyncClient
    boxes: FakeBoxes
    volumes: FakeVolumes
    images: FakeImages
    inside: Inside
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def forget(self) -> None:
        """Boxes, volumes and images are as at the beginning."""
        self.boxes.__init__()  # type: ignore[misc]
        self.volumes.__init__(boxes=self.boxes)  # type: ignore[misc]
        self.images.__init__()  # type: ignore[misc]

    async def create(self, key: str = "key-a", **members: Any) -> dict[str, Any]:
        """A new box."""
        response = await self.client.post(
            "/v1/default/boxes", json={"image": "host", **members}, headers={"Authorization": f"Bearer {key}"}
        )
        assert response.status_code == 201, response.text
        found: dict[str, Any] = response.json()
        return found


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


async def _usage(_actor: Actor, _sandbox_id: str) -> Any:
    usage = Usage(wall_s=2.0, cpu_user_s=0.5, cpu_system_s=0.5, memory_peak_bytes=1 << 20, bytes_in=20, bytes_out=10)
    return SimpleNamespace(usage=usage, memory_bytes=4096)


@asynccontextmanager
async def serving(*, open_access: bool = False, **settings: Any) -> AsyncIterator[Served]:
    """All routes of the dialect, with the keys above."""
    boxes, inside = FakeBoxes(), Inside(ports={8000})
    config = Config()
    volumes, images = FakeVolumes(boxes=boxes), FakeImages()
    sandboxes = SimpleNamespace(
        lives=SimpleNamespace(backend=inside, ids=()),
        limits=LimitPolicy(defaults=config.sandbox.defaults, maximum=config.sandbox.maximum),
        usage=_usage,
    )
    engine: Any = SimpleNamespace(
        sandboxes=sandboxes,
        processes=SimpleNamespace(),
        boxes=boxes,
        volumes=volumes,
        images=images,
        registries=FakeRegistries(),
        archives=FakeArchives(boxes=boxes),
    )
    keys: Any = Keys()
    services = Services(
        engine=engine,
        keys=keys,
        settings=BoxliteSettings(**settings),
        server=config.server,
        registry=CollectorRegistry(),
        open_access=open_access,
    )
    app = FastAPI()
    app.include_router(dialect.router(services))
    assert dialect.listeners is not None
    inside.server = await asyncio.start_server(inside.echo, "127.0.0.1", 0)
    with contextlib.closing(inside.server), socket.create_server(("127.0.0.1", 0)) as listener:
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
        async with dialect.listeners(services):
            task = asyncio.create_task(running.serve([listener]))
            try:
                async with asyncio.timeout(START_S):
                    await running.answering.wait()
                port = listener.getsockname()[1]
                headers = {} if open_access else {"Authorization": "Bearer key-a"}
                async with httpx.AsyncClient(
                    base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, headers=headers
                ) as client:
                    yield Served(client=client, boxes=boxes, volumes=volumes, images=images, inside=inside, port=port)
            finally:
                running.should_exit = True
                await task
