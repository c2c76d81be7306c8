"""The whole merged server in this process, as others than this machine reach it: every dialect, the portal, the proxy
of exposed ports; and people in it, of whom one has something of everything.
"""

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from fastapi.routing import iter_route_contexts
from starlette.routing import WebSocketRoute

from stockade.accounts import Accounts
from stockade.accounts.sessions import csrf_token
from stockade.app.engine import build_engine
from stockade.app.http import Parts, create_app, dialect_settings, new_registry
from stockade.app.jobs import running_jobs
from stockade.app.proxy import Proxy
from stockade.app.records import open_records, prepare_records, with_sandboxes
from stockade.config import Config
from stockade.config_accounts import AccountsConfig, TierConfig, TiersConfig
from stockade.config_portal import PortalConfig
from stockade.config_users import UsersConfig
from stockade.engine import Engine
from stockade.engine.image_layouts import DockerArchive
from stockade.model.users import Role, User
from stockade.settings import construct
from tests.engine.image_fakes import docker_archive, layer, made
from tests.web.conftest import answering

__all__ = ["PASSWORD", "WITHIN_S", "Asker", "Merged", "Things", "merged", "things_of", "words_of"]

PUBLIC_HOST = "203.0.113.1"
"""What the application takes for its address: one that others reach. It listens on this machine alone."""
PASSWORD = "correct horse battery"
WITHIN_S = 60.0
_ENOUGH = TierConfig(rate_limit_rps=100_000)
_VOLATILE = frozenset({"last_used_at", "used_at", "last_activity_at", "updated_at"})
"""Columns that say when somebody was here last."""


@dataclass(frozen=True, kw_only=True)
class Asker:
    """What somebody shows, at each door."""

    name: str
    key: str = ""
    """As an API key."""
    session: str = ""
    """As the portal's cookie."""
    secret: str = ""
    """As the secret of a sandbox."""
    token: str = ""
    """Where only a token of `/v1/auth` counts."""

    def headers(self, door: str, url: str) -> dict[str, str]:
        """Those of a request to a path behind *door*: `key`, `session`, `secret`, `token`, or `open`, where all is
        shown.
        """
        shown: dict[str, str] = {}
        presented = {"secret": self.secret, "token": self.token or self.key}.get(door, self.key)
        if door != "session" and presented:
            shown |= {"Authorization": f"Bearer {presented}", "X-API-Key": presented}
        if door in ("session", "open"):
            shown["Origin"] = url
            if self.session:
                shown |= {"Cookie": f"stockade_session={self.session}", "X-CSRF-Token": csrf_token(self.session)}
        return shown


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The server, answering."""

    url: str
    http: httpx.AsyncClient
    config: Config
    engine: Engine
    accounts: Accounts
    operator_key: str
    routes: tuple[tuple[str, str], ...]
    """Method and path of every route; `WEBSOCKET` is a method here."""

    async def ask(self, asker: Asker, method: str, path: str, *, door: str = "key", **options: Any) -> httpx.Response:
        headers = asker.headers(door, self.url) | options.pop("headers", {})
        return await self.http.request(method, path, headers=headers, **options)

    async def user(self, name: str, *, role: Role = Role.USER) -> User:
        return await self.accounts.users.create(
            name=name, email=f"{name}@example.org", password=PASSWORD, role=role, tier="pro"
        )

    async def asker(self, name: str, user: User) -> Asker:
        """*user* with another key, and a log-in, of theirs."""
        actor = await self.accounts.users.actor(user)
        key = (await self.accounts.keys.create(actor, name=f"{name}'s key")).secret
        session, _ = await self.accounts.sessions.begin(user, address="192.0.2.1", agent=name)
        return Asker(name=name, key=key, session=session, token=self.accounts.tokens.issue(user))

    def facts(self, words: tuple[str, ...]) -> frozenset[str]:
        """All rows of the database in which one of *words* stands, but for who was here last."""
        path = self.config.data_dir / "state" / "stockade.db"
        found: set[str] = set()
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
            for table in tables:
                cursor = database.execute(f"select * from {table}")
                names = [column[0] for column in cursor.description]
                for row in cursor:
                    kept = {one: value for one, value in zip(names, row, strict=True) if one not in _VOLATILE}
                    text = f"{table}: {kept}"
                    if any(word in text for word in words):
                        found.add(text)
        return frozenset(found)


@asynccontextmanager
async def merged(folder: Path, settings: Mapping[str, object] = MappingProxyType({})) -> AsyncIterator[Merged]:
    """A server with its data in *folder*, and generous rates: who may do what is to be seen, not how often.

    Args:
        settings: of dialects, by their whole names.
    """
    tiers = TiersConfig(**dict.fromkeys(("free", "starter", "pro", "enterprise"), _ENOUGH))
    generous = {"dialects.executor.wrong_secrets_per_s": 0, **settings}
    config = Config(
        data_dir=folder,
        accounts=AccountsConfig(tiers=tiers, waitlist=True),
        portal=PortalConfig(requests_per_s=100_000),
        users=UsersConfig(sign_up="open"),
        dialects={
            name: None if cls is None else construct(cls, generous, f"dialects.{name}")
            for name, cls in dialect_settings().items()
        },
    )
    async with AsyncExitStack() as stack:
        runs = await stack.enter_async_context(build_engine(config, embedded=True))
        operator_key = await prepare_records(config)
        assert operator_key is not None
        records = await stack.enter_async_context(open_records(config))
        engine = await stack.enter_async_context(with_sandboxes(config, runs, records))
        assert engine.sandboxes is not None
        assert engine.ports is not None
        stack.push_async_callback(engine.sandboxes.end_all)
        metrics = new_registry(engine)
        engine = replace(engine, jobs=await stack.enter_async_context(running_jobs(config, engine, records)))
        parts = Parts(
            config=config,
            engine=engine,
            keys=records.accounts,
            accounts=records.accounts,
            database=records.database,
            registry=metrics,
        )
        app = create_app(parts, host=PUBLIC_HOST)
        assert engine.ports is not None
        proxied = Proxy(
            app=app,
            ports=engine.ports,
            domain=config.ports.domain,
            by_path=config.ports.by_path,
            hosts=None,
            answer_s=config.ports.answer_s,
            idle_s=config.ports.idle_s,
        )
        url = await stack.enter_async_context(answering(proxied))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=WITHIN_S, trust_env=False))
        yield Merged(
            url=url,
            http=http,
            config=config,
            engine=engine,
            accounts=records.accounts,
            operator_key=operator_key,
            routes=tuple(_routes(app)),
        )


def _routes(app: Any) -> Iterator[tuple[str, str]]:
    while not hasattr(app, "openapi"):  # what stands before the framework
        app = next(getattr(app, name) for name in ("app", "_app") if hasattr(app, name))
    for route in iter_route_contexts(app.routes):
        assert route.path is not None
        if isinstance(route.original_route, WebSocketRoute):
            yield "WEBSOCKET", route.path
        else:
            for method in sorted(route.methods or ("GET",)):  # what is mounted has none of its own
                yield method, route.path


@dataclass(frozen=True, kw_only=True)
class Things:
    """What somebody has: for each parameter of a path, what it is to be."""

    ids: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    """Ids, names and texts that nobody else is to see."""
    sandbox_secret: str = ""
    dead_secret: str = ""
    """Of a sandbox that was killed."""
    batch: str = ""
    reset: str = ""
    """A token to choose another password by."""


def words_of(user: User, ids: dict[str, str], *more: str) -> tuple[str, ...]:
    """*ids* that cannot be met by chance, and whose they are."""
    return tuple({user.id, user.account_id, user.email, *more, *(one for one in ids.values() if len(one) > 8)})


async def things_of(server: Merged, asker: Asker, user: User, folder: Path) -> Things:
    """Make one of everything for *asker*."""
    canary = f"{asker.name}-canary-{secrets.token_hex(8)}"

    async def made_by(method: str, path: str, **options: Any) -> Any:
        response = await server.ask(asker, method, path, **options)
        assert response.is_success, (path, response.status_code, response.text)
        return response.json() if response.content else None

    async def session(**members: Any) -> dict[str, Any]:
        body = {"image": "host", "command": ["sh", "-c", f"echo {canary}; exec sleep 600"], "network": "none"}
        limits = {"cpuMillis": 500, "memoryMB": 128, "timeoutMs": 300_000}
        found: dict[str, Any] = await made_by("POST", "/v1/sessions", json=body | {"resources": limits} | members)
        return found

    exposed = {"network": "exposed", "ports": [{"container": 8080}]}
    first, second, dead = [await session(executor=True, **more) for more in (exposed, {}, {})]
    await made_by("DELETE", f"/v1/sessions/{dead['id']}")
    holder = replace(asker, secret=first["executor"]["secret"])
    started = await server.ask(
        holder, "POST", "/koyeb-sandbox/start_process", door="secret", json={"cmd": f"echo {canary}; sleep 600"}
    )
    assert started.status_code == 201, started.text
    written = {"path": "/tmp/kept", "content": canary}
    assert (await server.ask(holder, "POST", "/koyeb-sandbox/write_file", door="secret", json=written)).is_success

    members = {"name": canary, "image": "host", "cpus": 1, "memory_mib": 128, "cmd": ["sleep", "600"]}
    box = (await made_by("POST", "/v1/boxes", json=members))["box_id"]
    short = (await made_by("POST", f"/v1/boxes/{box}/exec", json={"command": "true"}))["execution_id"]
    asked = {"command": "sh", "args": ["-c", f"echo {canary}; exec sleep 600"]}
    execution = (await made_by("POST", f"/v1/boxes/{box}/exec", json=asked))["execution_id"]
    await made_by("POST", f"/v1/boxes/{box}/snapshots", json={"name": f"{canary}-snapshot"})
    volume = (await made_by("POST", "/v1/volumes", json={"name": f"{canary}-volume"}))["id"]
    login = {"registry_host": "registry.example.org", "username": canary, "password": f"{canary}-password"}
    registry = (await made_by("POST", "/v1/images/registries", json=login))["id"]
    image = f"registry.example.org/{canary}:1"
    assert server.engine.images is not None
    archive = DockerArchive(
        docker_archive(
            folder / f"{asker.name}.tar", made(layer({"etc": None, "etc/mark": canary.encode()})), tags=(image,)
        )
    )
    try:
        await server.engine.images.add(archive, reference=image, account_id=user.account_id)
    finally:
        await archive.close()
    await made_by("POST", f"/v1/images/{_segment(image)}/aliases", json={"alias": f"{canary}-alias"})

    job = {"language": "python", "code": f"print('{canary}')", "labels": {"of": canary}}
    waiting = await made_by("POST", "/v1/jobs/batch", json={"jobs": [job | {"delay": "1h"}] * 2})
    ended = [(await made_by("POST", "/v1/jobs", json=job))["id"] for _ in range(2)]
    async with asyncio.timeout(WITHIN_S):
        for one in ended:
            while "completedAt" not in (found := await made_by("GET", f"/v1/jobs/{one}?wait=10s")):
                assert found["status"] in ("queued", "running"), found
    keys = [(await made_by("POST", "/v1/account/keys", json={"name": f"{canary}-{n}"}))["id"] for n in range(2)]
    _, log_in = await server.accounts.sessions.begin(user, address="192.0.2.7", agent=canary)
    ids = {
        "session_id": first["id"],
        "sandbox_id": second["id"],
        "box_id": box,
        "execution_id": execution,
        "ended_execution": short,
        "process_id": started.json()["id"],
        "name": f"{canary}-snapshot",
        "image": image,
        "alias": f"{canary}-alias",
        "registry": registry,
        "volume_id": volume,
        "id": ended[0],
        "job_id": ended[1],
        "key_id": keys[0],
        "key_id_2": keys[1],
        "log_in": log_in.id,
        "user_id": user.id,
        "waiting": waiting["jobs"][0]["id"],
    }
    return Things(
        ids=ids,
        words=words_of(user, ids, canary, waiting["batchId"]),
        sandbox_secret=first["executor"]["secret"],
        dead_secret=dead["executor"]["secret"],
        batch=waiting["batchId"],
        reset=await server.accounts.users.reset_token(user.id),
    )


def _segment(text: str) -> str:
    return text.replace("/", "%2F").replace(":", "%3A")
