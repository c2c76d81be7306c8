"""Pages and assets: headers, compression, and paths that lead nowhere."""

import asyncio
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from stockade.web.pages import Bundle
from stockade.web.security import path_of_ours
from tests.web.conftest import SCRIPT, Portal, build, nonce_of

pytestmark = pytest.mark.anyio
PAGES = ["/", "/register", "/login", "/forgot", "/reset", "/verify", "/app", "/app/", "/app/jobs/1", "/app/play"]
ASSET = "/assets/index-Ab12Cd34.js"


@pytest.mark.parametrize("path", PAGES)
async def test_every_page_comes_with_a_strict_policy(served: Portal, path: str) -> None:
    async with served.stranger() as browser:
        response = await browser.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["cache-control"] == "no-cache"
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["style-src"] == f"'self' 'nonce-{nonce_of(response.text)}'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "same-origin"
    assert response.headers["cross-origin-opener-policy"] == "same-origin"


async def test_each_page_has_another_nonce(served: Portal) -> None:
    async with served.stranger() as browser:
        assert nonce_of((await browser.get("/")).text) != nonce_of((await browser.get("/")).text)


async def test_unknown_paths_are_the_servers_404(served: Portal) -> None:
    async with served.stranger() as browser:
        for path in ("/nothing", "/application", "/login/x", "/api/nothing", "/assets", "/assets/"):
            assert (await browser.get(path)).status_code == 404, path


@pytest.mark.parametrize(
    ("accepted", "coding", "content"),
    [
        ("gzip, deflate, br", "br", b"as brotli"),
        ("gzip", "gzip", b"as gzip"),
        ("br;q=0, gzip;q=0.5", "gzip", b"as gzip"),
        ("identity", "", SCRIPT.encode()),
    ],
)
async def test_assets_are_sent_as_compressed_as_the_browser_takes_them(
    served: Portal, accepted: str, coding: str, content: bytes
) -> None:
    status, headers, body = await asyncio.to_thread(raw, served.url, ASSET, f"Accept-Encoding: {accepted}")
    assert status == 200
    assert headers.get("content-encoding", "") == coding
    assert body == content
    assert headers["vary"] == "Accept-Encoding"
    assert headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in headers["cache-control"]


async def test_what_has_no_hash_in_its_name_is_asked_for_again(served: Portal) -> None:
    async with served.stranger() as browser:
        first = await browser.get("/assets/plain.svg")
        assert first.headers["cache-control"] == "no-cache"
        assert "sandbox" in first.headers["content-security-policy"]
        again = await browser.get("/assets/plain.svg", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../secret.js",
        "/assets/..%2fsecret.js",
        "/assets/%2e%2e/secret.js",
        "/assets/%2e%2e%2fsecret.js",
        "/assets/..\\secret.js",
        "/assets//etc/passwd",
        "/assets/%2fetc%2fpasswd",
        "/assets/./index-Ab12Cd34.js",
        "/assets/link-Ab12Cd34.js",
        "/assets/folder/secret.js",
        "/assets/index-Ab12Cd34.js%00.svg",
        "/assets/index-Ab12Cd34.js.br",
        "/assets/index.html",
        "/assets/",
    ],
)
async def test_no_path_leads_out_of_the_assets(served: Portal, path: str) -> None:
    status, _, body = await asyncio.to_thread(raw, served.url, path)
    assert status == 404
    assert b"secret" not in body.replace(b"secret.js", b"")


def raw(url: str, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    """Ask for exactly *path*: clients tidy paths up."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=30) as connection:
        lines = [f"GET {path} HTTP/1.1", f"Host: {where.netloc}", "Connection: close", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    found = dict(line.lower().split(": ", 1) if ": " in line else (line, "") for line in rest)
    found |= {name: line.split(": ", 1)[1] for line in rest if (name := line.split(": ")[0].lower()) == "vary"}
    return int(first.split()[1]), found, body


async def test_without_a_build_a_page_says_how_to_make_one(tmp_path: Path) -> None:
    assert await Bundle(directory=tmp_path).index("n") is None
    assert await Bundle(directory=tmp_path).asset("assets/x.js") is None


async def test_another_build_is_noticed(tmp_path: Path) -> None:
    assets = build(tmp_path)
    bundle = Bundle(directory=assets)
    assert await bundle.asset("assets/new-Zz12Zz12.js") is None
    (assets / "assets" / "new-Zz12Zz12.js").write_text("new")
    (assets / "index.html").write_text("<html><head></head></html>")
    os.utime(assets / "index.html", ns=(1, 1))
    found = await bundle.asset("assets/new-Zz12Zz12.js")
    assert found is not None
    assert found.content == b"new"
    assert nonce_of(await bundle.index("n") or "") == "n"


@pytest.mark.parametrize("path", ["/app", "/app/jobs", "/app/jobs?state=failed", "/app/play#code=abc"])
def test_after_a_log_in_one_goes_on_to_pages_of_ours(path: str) -> None:
    assert path_of_ours(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "/app//evil.example",
        "/app/../..//evil.example",
        "/app\\..\\evil",
        "/app\n",
        "/\tapp",
        "javascript:alert(1)",
        "/api/session",
        "/application",
        "/sandboxes/x/ports/80/",
        "/app/" + "x" * 3000,
    ],
)
def test_and_to_no_others(path: str) -> None:
    assert path_of_ours(path) == "/app"
