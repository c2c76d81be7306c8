"""The portal's routes on a loopback port, over a real engine, real accounts and a real queue; beside them, the
dialects that know API keys.
"""

import asyncio
import contextlib
import itertools
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from stockade import registry
from stockade.accounts import Accounts
from stockade.app.connections import connection
from stockade.app.http import dialect_settings
from stockade.app.jobs import running_jobs
from stockade.app.records import Records, with_sandboxes
from stockade.config import Config
from stockade.engine import Engine
from stockade.settings import construct
from stockade.store import Database
from stockade.web import portal
from stockade.wire.dialect import Services
from stockade.wire.websockets import WebSocketConnection

START_S = 60.0
PASSWORD = "correct horse battery"
SCRIPT = "console.log('portal');\n" * 40
INDEX = """<!doctype html>
<html><head><meta name="csp-nonce" content="" /><script type="module" src="/assets/index-Ab12Cd34.js"></script></head>
<body></body></html>
"""
_numbers = itertools.count()


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
async def answering(app: Any) -> AsyncIterator[str]:
    """The URL at which *app* answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(
            uvicorn.Config(
                app,
                http=connection(30.0),
                lifespan="off",
                log_config=None,
                access_log=False,
                **WebSocketConnection.settings(),
            )
        )
        task = asyncio.create_task(server.serve([listener]))
        try:
            async with asyncio.timeout(START_S):
                await server.answering.wait()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            await task


@dataclass(kw_only=True)
class Browser:
    """Somebody's: it keeps cookies, and the token that a page has been given."""

    http: httpx.AsyncClient
    csrf: str = ""
    email: str = ""

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"X-CSRF-Token": self.csrf, "Origin": self.url, **options.pop("headers", {})}
        return await self.http.request(
            method, path, headers={name: value for name, value in headers.items() if value is not None}, **options
        )

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.ask("POST", path, json=json, **options)

    async def arrive(self) -> dict[str, Any]:
        """Open a page before a log-in."""
        found: dict[str, Any] = (await self.get("/api/meta")).raise_for_status().json()
        self.csrf = found["csrf"]
        return found

    async def register(self, **members: Any) -> httpx.Response:
        await self.arrive()
        self.email = members.pop("email", f"ada{next(_numbers)}@example.org")
        body = {"name": "Ada", "email": self.email, "password": PASSWORD, **members}
        return self._remember(await self.post("/api/register", body))

    async def log_in(self, email: str = "", password: str = PASSWORD) -> httpx.Response:
        await self.arrive()
        return self._remember(await self.post("/api/session", {"email": email or self.email, "password": password}))

    async def run(self, code: str, **members: Any) -> dict[str, Any]:
        """A job that was submitted."""
        response = await self.post("/api/jobs", {"language": "python", "code": code, **members})
        assert response.status_code == 202, response.text
        found: dict[str, Any] = response.json()
        return found

    async def ended(self, job_id: str) -> dict[str, Any]:
        async with asyncio.timeout(START_S):
            while True:
                found: dict[str, Any] = (await self.get(f"/api/jobs/{job_id}")).raise_for_status().json()
                if "endedAt" in found:
                    return found
                await asyncio.sleep(0.05)

    def cookies(self) -> str:
        """What it would send."""
        return "; ".join(f"{one.name}={one.value}" for one in self.http.cookies.jar)

    def _remember(self, response: httpx.Response) -> httpx.Response:
        if response.status_code < 300:
            self.csrf = response.json()["csrf"]
        return response


@dataclass(frozen=True, kw_only=True)
class Portal:
    """A portal that answers, and what lies behind it."""

    url: str
    accounts: Accounts
    engine: Engine
    key: str
    """The operator's API key."""
    config: Config
    assets: Path

    @asynccontextmanager
    async def stranger(self, **options: Any) -> AsyncIterator[Browser]:
        """A browser that has not been here."""
        async with httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False, **options) as http:
            yield Browser(http=http)

    @asynccontextmanager
    async def user(self, **members: Any) -> AsyncIterator[Browser]:
        """The browser of somebody who has registered just now."""
        async with self.stranger() as browser:
            response = await browser.register(**members)
            assert response.status_code == 201, response.text
            yield browser


@asynccontextmanager
async def serving(config: Config, engine: Engine, folder: Path, *, assets: Path) -> AsyncIterator[Portal]:
    """A portal over *engine*, whose other parts are made here."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(await Database.open(folder / "portal.db"))
        accounts = Accounts.on(database, config.accounts, users=config.users, secret="s" * 64, open_access=True)
        stack.push_async_callback(accounts.close)
        key = await accounts.operation.ensure_admin()
        assert key is not None
        records = Records(database=database, accounts=accounts, server_id="portal")
        engine = await stack.enter_async_context(with_sandboxes(config, engine, records))
        if engine.sandboxes is not None:
            stack.push_async_callback(engine.sandboxes.end_all)
        jobs = await stack.enter_async_context(running_jobs(config, engine, records))
        engine = replace(engine, jobs=jobs)
        names = ("execbox", "isobox", "code-sandbox")
        settings = dialect_settings(names)

        def services(name: str) -> Services:
            cls = settings.get(name)
            return Services(
                engine=engine,
                keys=accounts,
                accounts=accounts,
                settings=None if cls is None else construct(cls, {}, f"dialects.{name}"),
                server=config.server,
                registry=metrics,
                open_access=False,
            )

        metrics = CollectorRegistry()
        app = FastAPI(redirect_slashes=False)
        for name in names:
            app.include_router(registry.find("dialects", name).router(services(name)))
        app.include_router(portal(services(""), config, assets=assets))
        url = await stack.enter_async_context(answering(app))
        yield Portal(url=url, accounts=accounts, engine=engine, key=key, config=config, assets=assets)


def build(folder: Path) -> Path:
    """A directory as the build of the front end leaves it, with things that no build would leave."""
    assets = folder / "assets"
    (assets / "assets").mkdir(parents=True)
    (assets / "index.html").write_text(INDEX)
    (assets / "assets" / "index-Ab12Cd34.js").write_text(SCRIPT)
    (assets / "assets" / "index-Ab12Cd34.js.br").write_bytes(b"as brotli")
    (assets / "assets" / "index-Ab12Cd34.js.gz").write_bytes(b"as gzip")
    (assets / "assets" / "plain.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "secret.js").write_text("secret")
    (assets / "assets" / "link-Ab12Cd34.js").symlink_to(folder / "secret.js")
    (assets / "assets" / "folder").symlink_to(folder)
    return assets


@pytest.fixture(scope="session")
async def served(
    config: Config, engine: Engine, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Portal]:
    """One for all tests: each has users of its own."""
    folder = tmp_path_factory.mktemp("portal")
    async with serving(config, engine, folder, assets=build(folder)) as found:
        yield found


def nonce_of(page: str) -> str:
    """The nonce that a page has been given."""
    match = re.search(r'name="csp-nonce" content="([^"]+)"', page)
    assert match, page
    return match[1]
