"""What surrounds the routes, on a store that a test can take away."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from stockade.app.http import Parts, create_app, new_registry
from stockade.config import Config, ServerConfig
from stockade.config_jobs import JobsConfig
from stockade.dialects.code_sandbox.access import Access
from stockade.dialects.code_sandbox.failures import Unauthorized
from stockade.dialects.code_sandbox.settings import CodeSandboxSettings
from stockade.engine import Engine
from stockade.engine.jobs import Jobs
from stockade.errors import Denied
from stockade.model import Actor
from stockade.model.jobs import Job
from tests.keys import OneKey
from tests.worker.fake_store import FakeStore

pytestmark = pytest.mark.anyio

KEY = "sk_" + "e7" * 32
PROGRAM = {"language": "python", "code": "print(1)"}


@dataclass(frozen=True, kw_only=True)
class Served:
    client: httpx.AsyncClient
    store: FakeStore

    async def execute(self, **headers: str) -> httpx.Response:
        return await self.client.post("/v1/execute", json=PROGRAM, headers=headers)

    async def submit(self, **headers: str) -> httpx.Response:
        return await self.client.post("/v1/jobs", json=PROGRAM, headers=headers)


Serve = Callable[..., Served]


@pytest.fixture
def serve(engine: Engine) -> Serve:
    """An application with settings of its own, and no worker."""

    def start(
        *,
        store: FakeStore | None = None,
        host: str = "127.0.0.1",
        jobs: JobsConfig | None = None,
        server: ServerConfig | None = None,
        keeps_jobs: bool = True,
        **settings: Any,
    ) -> Served:
        store = store or FakeStore()
        service = Jobs(store=store, runs=engine.runs, config=jobs or JobsConfig())
        config = Config(server=server or ServerConfig(), dialects={"code-sandbox": CodeSandboxSettings(**settings)})
        whole = replace(engine, jobs=service if keeps_jobs else None)
        parts = Parts(config=config, engine=whole, keys=OneKey(secret=KEY), registry=new_registry(engine))
        app = create_app(parts, host=host, only="code-sandbox")
        transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 1234))
        return Served(client=httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1"), store=store)

    return start


async def test_a_store_that_is_away_is_told_in_the_contract_s_words(serve: Serve) -> None:
    served = serve()
    job_id = (await served.execute()).json()["id"]
    served.store.is_away = True
    response = await served.execute()
    assert (response.status_code, response.json()) == (500, {"error": "execution failed"})
    response = await served.client.get(f"/v1/execute/{job_id}")
    assert (response.status_code, response.json()) == (500, {"error": "failed to load job"})
    response = await served.submit()
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert int(response.headers["retry-after"]) >= 1
    served.store.is_away = False
    assert (await served.client.get(f"/v1/execute/{job_id}")).json()["status"] == "queued"


class SlowStore(FakeStore):
    """Never answers."""

    async def add(self, jobs: Sequence[Job], **_: Any) -> None:
        await asyncio.Event().wait()

    async def get(self, job_id: str) -> Job | None:
        await asyncio.Event().wait()
        return None


async def test_a_store_that_never_answers_is_not_waited_for(serve: Serve) -> None:
    served = serve(store=SlowStore(), write_timeout_s=0.2)
    async with asyncio.timeout(30):
        response = await served.execute()
        assert (response.status_code, response.json()) == (500, {"error": "execution failed"})
        response = await served.client.get("/v1/execute/x")
        assert (response.status_code, response.json()) == (500, {"error": "failed to load job"})
        assert (await served.client.get("/v1/jobs/x?wait=1h")).status_code == 503


async def test_too_many_jobs_are_refused(serve: Serve) -> None:
    served = serve(jobs=JobsConfig(most_of_account=2))
    assert [(await served.execute()).status_code for _ in range(3)] == [202, 202, 429]
    response = await served.execute()
    assert response.json() == {"error": "too many jobs"}
    assert "retry-after" in response.headers
    assert (await served.submit()).json()["code"] == "jobs.too_many"


async def test_a_server_without_jobs_says_so(serve: Serve) -> None:
    served = serve(keeps_jobs=False)
    assert (await served.execute()).status_code == 503
    assert (await served.submit()).json()["code"] == "jobs.missing"
    assert (await served.client.post("/v1/execute", content=b"x")).status_code == 400


async def test_a_key_is_demanded_on_an_address_that_others_reach(serve: Serve) -> None:
    served = serve(host="192.0.2.1")
    response = await served.execute()
    assert (response.status_code, response.json()) == (401, {"error": "missing or invalid authorization header"})
    response = await served.submit()
    assert (response.status_code, response.json()["code"]) == (401, "auth.required")
    assert (await served.execute(**{"x-api-key": KEY})).status_code == 202
    assert (await served.submit(authorization=f"Bearer {KEY}")).status_code == 202
    assert (await served.execute(cookie=f"stockade_session={KEY}")).status_code == 401


async def test_an_open_server_ignores_stale_credentials_as_the_reference_does_and_our_routes_do_not(
    serve: Serve,
) -> None:
    served = serve()
    assert (await served.execute(authorization="Bearer stale")).status_code == 202
    assert (await served.execute(authorization="Basic x")).status_code == 202
    assert (await served.submit(authorization="Bearer stale")).json()["error"] == "invalid token"
    assert (await served.submit(authorization="Basic x")).status_code == 401
    (first, *_) = served.store.jobs.values()
    assert first.key_id == "anonymous:192.0.2.7"


async def test_a_token_s_refusal_is_told_as_it_is() -> None:
    async def expired(_token: str) -> Actor:
        raise Denied("token expired")

    async def known(_token: str) -> Actor:
        return Actor(id="k", account_id="a")

    def request(**headers: str) -> Any:
        from starlette.requests import Request

        raw = [(name.encode(), text.encode()) for name, text in headers.items()]
        return Request({"type": "http", "headers": raw, "client": ("192.0.2.7", 1)})

    access = Access(keys=OneKey(secret=KEY), token_actor=expired, is_open=False)
    with pytest.raises(Unauthorized, match="token expired"):
        await access.actor(request(authorization="Bearer a.b.c"))
    access = Access(keys=OneKey(secret=KEY), token_actor=known, is_open=False)
    assert (await access.actor(request(authorization="BEARER a.b.c"))).account_id == "a"
    assert (await access.actor(request(authorization=f"Bearer {KEY}"))).account_id == ""


async def test_a_trace_is_kept_with_the_job(serve: Serve) -> None:
    served = serve()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await served.execute(traceparent=trace)
    await served.submit(traceparent=trace)
    await served.execute(traceparent="nonsense")
    assert [job.trace for job in served.store.jobs.values()] == [trace, trace, ""]


async def test_whose_pages_may_read_is_the_operator_s_to_say(serve: Serve) -> None:
    header = "access-control-allow-origin"
    assert (await serve().execute()).headers[header] == "*"
    assert (await serve(cors_origin="https://example.org").execute()).headers[header] == "https://example.org"
    assert header not in (await serve(cors_origin="").execute()).headers
    server = ServerConfig(cors_enabled=True)
    assert header not in (await serve(server=server).execute()).headers
    named = await serve(server=server, cors_origin="https://example.org").execute()
    assert named.headers[header] == "https://example.org"


async def test_all_languages_can_be_opened_for_the_contract_s_route(serve: Serve) -> None:
    body = {"language": "bash", "code": "true"}
    assert (await serve().client.post("/v1/execute", json=body)).status_code == 501
    served = serve(all_languages=True)
    assert (await served.client.post("/v1/execute", json=body)).status_code == 202
    assert (await served.client.post("/v1/execute", json={**body, "language": "nope"})).status_code == 501


async def test_a_bug_is_told_to_nobody_but_the_log(serve: Serve) -> None:
    class Broken(FakeStore):
        async def get(self, job_id: str) -> Job | None:
            raise RuntimeError("secret inside")

    response = await serve(store=Broken()).client.get("/v1/execute/x")
    assert (response.status_code, response.json()) == (500, {"error": "internal error"})


async def test_every_answer_is_counted_by_its_route(serve: Serve) -> None:
    served = serve()
    await served.execute()
    await served.client.get("/v1/execute/x")
    await served.client.delete("/v1/execute/x")
    text = (await served.client.get("/metrics")).text
    for route, status in (("/v1/execute", 202), ("/v1/execute/{id}", 404), ("/v1/execute/{id}", 405)):
        assert f'stockade_code_sandbox_requests_total{{route="{route}",status="{status}"}} 1.0' in text
