"""Routes that are answered without the framework's layers: to clients they are routes like any other."""

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from stockade.app.guard import Guard
from stockade.app.http import Direct
from stockade.wire.routes import DirectRoute

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[DirectRoute, APIRoute])
def client(request: pytest.FixtureRequest) -> httpx.AsyncClient:
    """Of the same handlers, called by us and by the framework."""
    app = FastAPI()
    kind: type[APIRoute] = request.param

    async def echo(request: Request) -> Response:
        return Response(await request.body(), headers={"x-route": request.scope["route"].path})

    async def crash(request: Request) -> Response:
        raise RuntimeError("a secret")

    app.router.route_class = kind
    app.post("/echo", response_class=Response)(echo)
    app.post("/crash", response_class=Response)(crash)
    found = [route for route in app.router.routes if isinstance(route, DirectRoute)]
    assert bool(found) == (kind is DirectRoute)
    direct = Direct(app=app, routes={("POST", route.path): route for route in found})
    guard = Guard(app=direct, max_body_bytes=100, open_access=True, hosts=None)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(guard, raise_app_exceptions=False), base_url="http://localhost"
    )


async def test_a_handler_answers_and_knows_its_route(client: httpx.AsyncClient) -> None:
    answer = await client.post("/echo?x=1", content=b"hello")
    assert (answer.status_code, answer.content, answer.headers["x-route"]) == (200, b"hello", "/echo")
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_another_method_or_path_is_the_framework_s(client: httpx.AsyncClient) -> None:
    assert (await client.get("/echo")).status_code == 405
    assert (await client.post("/nowhere")).status_code == 404


async def test_it_is_documented(client: httpx.AsyncClient) -> None:
    assert set((await client.get("/openapi.json")).json()["paths"]) == {"/echo", "/crash"}


async def test_a_crash_is_a_500_that_gives_nothing_away(client: httpx.AsyncClient) -> None:
    answer = await client.post("/crash")
    assert answer.status_code == 500
    assert "secret" not in answer.text
