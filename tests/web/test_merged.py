"""The portal in a whole server: behind its guard, beside its other APIs."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.app.serving import Server, serving
from tests.web.conftest import Browser

pytestmark = pytest.mark.anyio
KEY = "sk_" + "b2" * 32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("merged"), STOCKADE_API_KEY=KEY) as server:
        yield server
        server.end(2)  # as by Ctrl-C: nothing that lives is left


@pytest.fixture
async def browser(server: Server) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        browser = Browser(http=http)
        assert (await browser.register()).status_code == 201
        yield browser


async def test_each_header_of_a_page_is_there_once(browser: Browser) -> None:
    for path in ("/", "/app/jobs", "/api/session"):
        response = await browser.get(path)
        for name in ("content-security-policy", "x-content-type-options", "referrer-policy", "x-frame-options"):
            assert len(response.headers.get_list(name)) == 1, (path, name)
    assert "script-src 'self'" in (await browser.get("/")).headers["content-security-policy"]
    assert "default-src 'none'" in (await browser.get("/health")).headers["content-security-policy"]


async def test_a_long_file_passes_the_guard(browser: Browser) -> None:
    made = await browser.post("/api/sandboxes", {})
    assert made.status_code == 201, made.text
    path = f"/api/sandboxes/{made.json()['id']}"
    content = os.urandom(10 << 20)
    put = await browser.ask("PUT", f"{path}/files/content?path=/tmp/x", content=content)
    assert put.status_code == 204, put.text
    assert (await browser.get(f"{path}/files/content?path=/tmp/x")).content == content
    assert (await browser.post(f"{path}/kill")).status_code == 200


async def test_a_job_is_run(browser: Browser) -> None:
    job = await browser.run("print(6 * 7)")
    assert (await browser.ended(job["id"]))["result"]["stdout"] == "42\n"


async def test_the_portal_is_no_part_of_the_documented_api(browser: Browser) -> None:
    paths = (await browser.get("/openapi.json")).json()["paths"]
    assert "/v1/jobs" in paths
    assert not [path for path in paths if path == "/" or path.startswith(("/api/session", "/api/jobs", "/app"))]


def test_without_the_portal_its_paths_are_not_there(tmp_path: Path) -> None:
    with serving(tmp_path, STOCKADE_API_KEY=KEY, STOCKADE_PORTAL_ENABLED="false") as server:
        for path in ("/", "/app", "/api/meta", "/api/session"):
            assert httpx.get(server.url + path, trust_env=False, timeout=60).status_code == 404, path
