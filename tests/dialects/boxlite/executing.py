"""Routes of executions and files on a loopback port, over a real sandbox that stands for a box; and a client."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
import websockets
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from stockade.app.connections import connection
from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.config import Config
from stockade.dialects.boxlite import dialect
from stockade.dialects.boxlite.settings import BoxliteSettings
from stockade.engine.sandboxes import Sandboxes
from stockade.model import Actor, Box, BoxState, ExecSpec, Sandbox
from stockade.wire.dialect import Services
from stockade.wire.websockets import WebSocketConnection
from tests.dialects.boxlite.fakes import FakeBoxes
from tests.engine.live_fakes import ONE, limits, request
from tests.engine.live_fakes import Server as EngineServer

__all__ = ["KEY", "WITHIN_S", "Client", "Heard", "RunningBoxes", "Told", "backend", "client", "engine_of", "serving"]

UNENFORCED = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids")
START_S = 60.0
WITHIN_S = 60.0
KEY = "key-one"
_numbers = itertools.count(1)


class Keys:
    async def verify(self, presented: str) -> Actor | None:
        return replace(ONE, rate_limit_rps=None) if presented == KEY else None


@dataclass(kw_only=True)
class RunningBoxes(FakeBoxes):
    """Boxes in memory, of which each start is a real sandbox."""

    sandboxes: Sandboxes
    users: int = 0
    """Who is at one of them."""

    async def start(self, actor: Actor, box: Box) -> Box:
        if box.state is not BoxState.RUNNING:
            sandbox = await self.sandboxes.create(
                actor,
                request(
                    f"box-{next(_numbers)}",
                    command=(),
                    cwd="/tmp",
                    env=box.env,
                    dialect="boxlite",
                    limits=limits(wall_s=600.0),
                ),
            )
            if box.entrypoint or box.command:
                spec = ExecSpec(argv=(*box.entrypoint, *box.command))
                live = self.sandboxes.live_exec(sandbox, spec, keep=True)
                (await self.sandboxes.lives.backend.exec(sandbox.id, Box.MAIN, live)).close()
            box = self._put(box, state=BoxState.RUNNING, sandbox_id=sandbox.id)
        return box

    async def stop(self, actor: Actor, box: Box, *, grace_s: float | None = None) -> Box:
        if box.state is BoxState.RUNNING:
            assert box.sandbox_id is not None
            await self.sandboxes.stop(actor, box.sandbox_id, grace_s=0.01)
        return await super().stop(actor, box)

    async def remove(self, actor: Actor, box: Box, *, force: bool = False) -> None:
        await super().remove(actor, await self.stop(actor, box) if force else box)

    async def sandbox(self, actor: Actor, box: Box, *, start: bool = True) -> Sandbox:
        assert start
        box = await self.start(actor, self.rows[box.id])
        assert box.sandbox_id is not None
        return await self.sandboxes.get(actor, box.sandbox_id)

    @contextlib.contextmanager
    def using(self, box_id: str) -> Iterator[None]:
        assert box_id in self.rows
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1


@dataclass(kw_only=True)
class Told:
    """What a stream of events said."""

    stdout: str = ""
    stderr: str = ""
    order: list[str] = field(default_factory=list)
    exit: dict[str, Any] = field(default_factory=dict)

    def take(self, block: str) -> None:
        if not block or block.startswith(":"):
            return
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        kind, members = name.removeprefix("event: "), json.loads(data.removeprefix("data: "))
        assert not self.exit, "nothing may follow the exit"
        self.order.append(kind)
        if kind == "exit":
            self.exit = members
            return
        assert kind in ("stdout", "stderr")
        text = base64.b64decode(members["data"], validate=True).decode()  # strictly: clients drop what is no UTF-8
        setattr(self, kind, getattr(self, kind) + text)


@dataclass(kw_only=True)
class Heard:
    """What came over a WebSocket."""

    stdout: bytes = b""
    stderr: bytes = b""
    errors: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    close_code: int | None = None

    def hear(self, message: Any) -> None:
        if isinstance(message, bytes):
            assert message[0] in (1, 2)
            assert not self.exits
            if message[0] == 1:
                self.stdout += message[1:]
            else:
                self.stderr += message[1:]
            return
        told = json.loads(message)
        if told["type"] == "exit":
            self.exits.append(told["exit_code"])
        else:
            self.errors.append(told["message"])


@dataclass(kw_only=True)
class Client:
    """Asks about one box."""

    http: httpx.AsyncClient
    port: int
    boxes: RunningBoxes
    sandboxes: Sandboxes
    services: Services
    box_id: str
    """The box that it asks about."""

    @property
    def path(self) -> str:
        return f"/v1/default/boxes/{self.box_id}"

    @property
    def box(self) -> Box:
        return self.boxes.rows[self.box_id]

    async def stop(self) -> None:
        await self.boxes.stop(ONE, self.box)

    async def exec(self, command: str, *args: str, **members: Any) -> str:
        """Start an execution; its id."""
        body = {"command": command, "args": list(args), **members}
        response = await self.http.post(f"{self.path}/exec", json=body)
        assert response.status_code == 201, response.text
        id: str = response.json()["execution_id"]
        assert response.headers["location"].endswith(f"/executions/{id}")
        return id

    async def sh(self, script: str, **members: Any) -> str:
        return await self.exec("sh", "-c", script, **members)

    async def told(self, id: str) -> Told:
        """All that its stream of events says; the response ends by itself."""
        async with asyncio.timeout(WITHIN_S):
            response = await self.http.get(
                f"{self.path}/executions/{id}/output", headers={"Accept": "text/event-stream"}
            )
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.text.endswith("\n\n")
        told = Told()
        for block in response.text.split("\n\n"):
            told.take(block)
        assert told.exit
        return told

    async def run(self, command: str, *args: str, **members: Any) -> Told:
        return await self.told(await self.exec(command, *args, **members))

    async def post(self, id: str, what: str, **options: Any) -> httpx.Response:
        return await self.http.post(f"{self.path}/executions/{id}/{what}", **options)

    async def write(self, id: str, data: bytes, *, close: bool = False) -> httpx.Response:
        headers = {"Content-Type": "application/octet-stream", **({"X-Close-Stdin": "true"} if close else {})}
        return await self.post(id, "input", content=data, headers=headers)

    async def status(self, id: str) -> dict[str, Any]:
        response = await self.http.get(f"{self.path}/executions/{id}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def ended(self, id: str) -> dict[str, Any]:
        async with asyncio.timeout(WITHIN_S):
            while (found := await self.status(id))["status"] == "running":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return found

    def attach(self, id: str, query: str = "") -> Any:
        return self.connect(f"executions/{id}/attach{query}")

    def connect(self, what: str) -> Any:
        return websockets.connect(
            f"ws://127.0.0.1:{self.port}{self.path}/{what}",
            additional_headers={"Authorization": f"Bearer {KEY}"},
            compression=None,
            proxy=None,
            ping_interval=None,
        )

    async def refused(self, what: str) -> tuple[int, str]:
        """Status and code of a connection that is refused before the upgrade."""
        try:
            async with self.connect(what):
                raise AssertionError("the connection was accepted")
        except websockets.InvalidStatus as error:
            return error.response.status_code, json.loads(error.response.body)["code"]

    async def hear(self, socket: Any, heard: Heard | None = None, *, until: bytes | None = None) -> Heard:
        """What comes until the server closes, or standard output holds *until*."""
        heard = heard or Heard()
        async with asyncio.timeout(WITHIN_S):
            if until is not None:
                while until not in heard.stdout:
                    heard.hear(await socket.recv())
                return heard
            async for message in socket:
                heard.hear(message)
        heard.close_code = socket.close_code
        return heard


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


@contextlib.asynccontextmanager
async def serving(engine: EngineServer, *, rows: dict[str, Box] | None = None) -> AsyncIterator[Client]:
    """One server's life: on *engine*, whose backend outlives it, with one box: that of *rows*, or a new one."""
    async with engine.running() as sandboxes:
        boxes = RunningBoxes(sandboxes=sandboxes, rows=rows or {})
        parts: Any = SimpleNamespace(
            sandboxes=sandboxes, boxes=boxes, volumes=None, images=None, registries=None, archives=None
        )
        services = Services(
            engine=parts,
            keys=Keys(),
            settings=BoxliteSettings(),
            server=Config().server,
            registry=CollectorRegistry(),
            open_access=False,
        )
        app = FastAPI()
        app.include_router(dialect.router(services))
        assert dialect.listeners is not None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            options: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
            options |= WebSocketConnection.settings()
            running = _Server(uvicorn.Config(app, http=connection(30.0), **options))
            async with dialect.listeners(services):
                task = asyncio.create_task(running.serve([listener]))
                try:
                    async with asyncio.timeout(START_S):
                        await running.answering.wait()
                    port = listener.getsockname()[1]
                    async with httpx.AsyncClient(
                        base_url=f"http://127.0.0.1:{port}",
                        timeout=60,
                        trust_env=False,
                        headers={"Authorization": f"Bearer {KEY}"},
                    ) as http:
                        if not boxes.rows:
                            response = await http.post("/v1/boxes", json={"image": "host", "env": {"OF": "the box"}})
                            assert response.status_code == 201, response.text
                        yield Client(
                            http=http,
                            port=port,
                            boxes=boxes,
                            sandboxes=sandboxes,
                            services=services,
                            box_id=next(iter(boxes.rows)),
                        )
                finally:
                    running.should_exit = True
                    await task


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[NativeBackend]:
    options = BackendOptions(
        data_dir=tmp_path_factory.mktemp("data"), allow_unenforced=UNENFORCED if os.geteuid() else (), embedded=True
    )
    backend = NativeBackend(options)
    await backend.start()
    yield backend
    await backend.close()


@pytest.fixture(scope="module")
async def client(backend: NativeBackend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A client of a server with one box."""
    engine = engine_of(backend, tmp_path_factory)
    async with serving(engine) as client:
        yield client
        await client.stop()
        assert client.boxes.users == 0


def engine_of(backend: NativeBackend, tmp_path_factory: pytest.TempPathFactory) -> EngineServer:
    """What a server stands on, and what outlives it."""
    engine = EngineServer(tmp_path_factory.mktemp("images"), sweep_s=30.0, lost_after_s=5.0, answer_s=10.0)
    engine.backend = backend.sandboxing  # type: ignore[assignment]
    return engine
