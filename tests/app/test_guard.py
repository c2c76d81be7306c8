"""What the outermost layer refuses, and what it adds."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from stockade.app.guard import Guard


def guarded(app: ASGIApp | None = None, **options: Any) -> httpx.AsyncClient:
    options = {"open_access": True, "trusted": (), "host": "127.0.0.1", "origins": frozenset()} | options
    guard = Guard(
        app=app or echo(),
        max_body_bytes=100,
        open_access=options["open_access"],
        hosts=Guard.names(options["host"], options["trusted"], open_access=options["open_access"]),
        origins=options["origins"],
    )
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(guard, raise_app_exceptions=False), base_url="http://localhost:80"
    )


def echo() -> FastAPI:
    app = FastAPI()

    @app.post("/")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.get("/crash")
    async def crash() -> None:
        raise RuntimeError("a secret")

    return app


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080", "192.0.2.7", "LOCALHOST:1"])
async def test_an_address_or_localhost_in_host_is_answered(host: str) -> None:
    async with guarded() as client:
        assert (await client.post("/", headers={"host": host})).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"])
async def test_a_rebound_name_is_refused_where_no_key_is_needed(host: str) -> None:
    async with guarded() as client:
        answer = await client.post("/", headers={"host": host})
        assert answer.status_code == 421
        assert "server.trusted_hosts" in answer.json()["message"]
    async with guarded(trusted=("evil.example",)) as client:
        assert (await client.post("/", headers={"host": "evil.example"})).status_code == 200
    async with guarded(open_access=False, host="0.0.0.0") as client:
        assert (await client.post("/", headers={"host": host})).status_code == 200


@pytest.mark.anyio
async def test_trusted_hosts_also_bind_where_keys_are_needed() -> None:
    async with guarded(open_access=False, host="0.0.0.0", trusted=("api.example",)) as client:
        assert (await client.post("/", headers={"host": "api.example"})).status_code == 200
        assert (await client.post("/", headers={"host": "other.example"})).status_code == 421
    async with guarded(open_access=False, host="0.0.0.0", trusted=("*",)) as client:
        assert (await client.post("/", headers={"host": "other.example"})).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:81", "http://localhost:80.evil.example"]
)
async def test_another_origin_is_refused_where_no_key_is_needed(origin: str) -> None:
    headers = {"origin": origin, "host": "localhost:80"}
    async with guarded() as client:
        assert (await client.post("/", headers=headers)).status_code == 403
    async with guarded(open_access=False) as client:
        assert (await client.post("/", headers=headers)).status_code == 200
    async with guarded(origins=frozenset([origin])) as client:
        assert (await client.post("/", headers=headers)).status_code == 200


@pytest.mark.anyio
async def test_the_server_s_own_pages_may_call_it() -> None:
    async with guarded() as client:
        headers = {"origin": "http://localhost:80", "host": "localhost:80"}
        assert (await client.post("/", headers=headers)).status_code == 200


@pytest.mark.anyio
async def test_a_body_within_the_limit_passes_and_one_beyond_is_refused() -> None:
    async with guarded() as client:
        assert (await client.post("/", content=b"x" * 100)).json() == 100
        assert (await client.post("/", content=b"x" * 101)).status_code == 413
        assert (await client.post("/", headers={"content-length": "9" * 40}, content=b"")).status_code == 413


@pytest.mark.anyio
async def test_a_body_that_announces_no_length_is_counted() -> None:
    async def parts() -> Any:
        for _ in range(11):
            yield b"x" * 10

    async with guarded() as client:
        assert (await client.post("/", content=parts())).status_code == 413


@pytest.mark.anyio
async def test_every_answer_carries_security_headers() -> None:
    async with guarded() as client:
        for answer in (await client.post("/"), await client.post("/", headers={"host": "evil.example"})):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.anyio
async def test_a_crash_is_answered_without_its_message(capfd: pytest.CaptureFixture[str]) -> None:
    async with guarded() as client:
        answer = await client.get("/crash")
    assert answer.status_code == 500
    assert "a secret" not in answer.text


@pytest.mark.anyio
async def test_what_a_page_asks_for_without_an_origin_is_refused_where_no_key_is_needed() -> None:
    """As `no-cors` requests are: pictures, scripts, and what a script sends without wishing to read the answer."""
    for site in ("cross-site", "same-site"):
        headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        async with guarded() as client:
            assert (await client.post("/", headers=headers)).status_code == 403
            # By a link one may come.
            assert (await client.post("/", headers={**headers, "sec-fetch-mode": "navigate"})).status_code == 200
        async with guarded(open_access=False) as client:
            assert (await client.post("/", headers=headers)).status_code == 200
    async with guarded() as client:
        own = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
        assert (await client.post("/", headers=own)).status_code == 200


@pytest.mark.anyio
async def test_who_waits_to_be_told_to_go_on_is_refused_at_once() -> None:
    async with guarded() as client:
        answer = await client.post("/", headers={"expect": "100-continue", "content-length": "999"}, content=b"")
        assert answer.status_code == 413
