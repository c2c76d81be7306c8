"""Sandboxes over the portal's API: life, files, terminal; and none of others."""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import websockets

from stockade.config_ports import PortsConfig
from stockade.web.sandboxes import urls_of
from tests.store.databases import a_sandbox
from tests.web.conftest import START_S, Browser, Portal

pytestmark = pytest.mark.anyio
MIB = 1 << 20


@asynccontextmanager
async def a_living(browser: Browser, **body: Any) -> AsyncIterator[str]:
    """The path of a sandbox that lives during the block."""
    response = await browser.post("/api/sandboxes", body)
    assert response.status_code == 201, response.text
    path = f"/api/sandboxes/{response.json()['id']}"
    try:
        yield path
    finally:
        await browser.post(f"{path}/kill")


async def test_a_sandbox_is_made_shown_extended_and_stopped(served: Portal) -> None:
    async with served.user() as browser, a_living(browser, timeout_s=50, memory_bytes=64 * MIB) as path:
        found = (await browser.get(path)).json()
        assert found["state"] == "running"
        assert found["image"] == "host"
        assert found["command"] == []
        assert found["limits"]["wall_s"] == 50
        assert found["limits"]["memory_bytes"] == 64 * MIB
        assert found["network"] == {"mode": "none"}
        assert found["ports"] == []
        listed = (await browser.get("/api/sandboxes", params={"state": "living"})).json()["sandboxes"]
        assert [one["id"] for one in listed] == [found["id"]]
        extended = (await browser.post(f"{path}/extend", {"seconds": 20})).json()
        assert extended["deadlineAt"] < found["deadlineAt"]
        stopped = (await browser.post(f"{path}/stop")).json()
        assert (stopped["state"], stopped["endedBy"]) == ("ended", "stop")
        assert (await browser.post(f"{path}/stop")).status_code == 409
        assert (await browser.get("/api/sandboxes", params={"state": "living"})).json()["sandboxes"] == []
        assert len((await browser.get("/api/sandboxes", params={"state": "ended"})).json()["sandboxes"]) == 1


async def test_what_nobody_may_have_is_refused_with_the_field(served: Portal) -> None:
    async with served.user() as browser:
        for body, field in (
            ({"timeout_s": 1e8}, "timeout_s"),
            ({"memory_bytes": 1 << 50}, "memory_bytes"),
            ({"ports": [80]}, "ports"),
            ({"network": "all"}, "network"),
            ({"command": ["a\0"]}, "command"),
        ):
            response = await browser.post("/api/sandboxes", body)
            assert (response.status_code, response.json().get("field")) == (400, field), response.text
        assert (await browser.post("/api/sandboxes", {"image": "nothing"})).status_code == 400


async def test_sandboxes_of_all_keys_of_the_account_are_shown(served: Portal) -> None:
    async with served.user() as browser:
        secret = (await browser.post("/api/keys", {"name": "ci"})).json()["secret"]
        async with httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=60) as http:
            headers = {"Authorization": f"Bearer {secret}"}
            body = {"image": "host", "command": ["sleep", "600"], "network": "none", "resources": {"timeoutMs": 60000}}
            made = await http.post("/v1/sessions", json=body, headers=headers)
            assert made.status_code == 201, made.text
            path = f"/api/sandboxes/{made.json()['id']}"
            assert (await browser.get(path)).json()["command"] == ["sleep", "600"]
            assert len((await browser.get("/api/sandboxes")).json()["sandboxes"]) == 1
            assert (await browser.post(f"{path}/kill")).json()["endedBy"] == "kill"


async def test_another_accounts_sandbox_is_not_there(served: Portal) -> None:
    async with served.user() as ada, served.user() as bob, a_living(ada) as path:
        for method, where in (
            ("GET", path),
            ("POST", f"{path}/stop"),
            ("POST", f"{path}/kill"),
            ("POST", f"{path}/extend"),
            ("GET", f"{path}/logs"),
            ("GET", f"{path}/files?path=/tmp"),
            ("DELETE", f"{path}/files?path=/tmp/x"),
            ("GET", f"{path}/files/content?path=/etc/passwd"),
            ("PUT", f"{path}/files/content?path=/tmp/x"),
        ):
            body = {"seconds": 9} if where.endswith("extend") else None
            assert (await bob.ask(method, where, json=body)).status_code == 404, where
        assert await refused(bob, f"{path}/terminal") == (404, "not_found")
        assert (await bob.get("/api/sandboxes")).json()["sandboxes"] == []
        assert (await ada.get(path)).json()["state"] == "running"


async def test_the_main_processs_output_is_shown(served: Portal) -> None:
    command = ["sh", "-c", "echo out; echo err >&2; exec sleep 600"]
    async with served.user() as browser, a_living(browser, command=command) as path:
        async with asyncio.timeout(START_S):
            while not (await browser.get(f"{path}/logs", params={"stream": "stderr"})).text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        response = await browser.get(f"{path}/logs")
        assert response.text == "out\n"
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert "sandbox" in response.headers["content-security-policy"]
        assert (await browser.get(f"{path}/logs", params={"stream": "both"})).status_code == 400


async def test_files_go_in_and_come_out_as_they_are(served: Portal) -> None:
    content = os.urandom(10 * MIB)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 100_000):
            yield content[at : at + 100_000]

    name = '/tmp/a b/ü";\n.bin'
    async with served.user() as browser, a_living(browser) as path:
        assert (await browser.post(f"{path}/files/directory", {"path": "/tmp/a b"})).status_code == 204
        put = await browser.ask("PUT", f"{path}/files/content", params={"path": name}, content=pieces())
        assert put.status_code == 204, put.text
        got = await browser.get(f"{path}/files/content", params={"path": name})
        assert hashlib.sha256(got.content).digest() == hashlib.sha256(content).digest()
        assert got.headers["content-type"] == "application/octet-stream"
        assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%BC%22%3B%0A.bin"
        assert "sandbox" in got.headers["content-security-policy"]
        assert got.headers["x-content-type-options"] == "nosniff"
        listed = (await browser.get(f"{path}/files", params={"path": "/tmp/a b"})).json()
        assert [(one["kind"], one["sizeBytes"]) for one in listed["entries"]] == [("file", 10 * MIB)]
        assert (await browser.ask("DELETE", f"{path}/files", params={"path": "/tmp/a b"})).status_code == 204
        assert (await browser.get(f"{path}/files", params={"path": "/tmp/a b"})).status_code == 404


async def test_paths_that_are_none_are_refused(served: Portal) -> None:
    async with served.user() as browser, a_living(browser) as path:
        for bad in ("", "relative", "/x\0y", "/" + "x" * 5000):
            assert (await browser.get(f"{path}/files/content", params={"path": bad})).status_code == 400, bad
        assert (await browser.get(f"{path}/files/content", params={"path": "/tmp"})).status_code == 400
        assert (await browser.get(f"{path}/files/content", params={"path": "/none"})).status_code == 404


async def test_a_file_beyond_the_setting_is_refused_before_it_comes(
    served: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stockade.wire.bodies.DISCARD_TIMEOUT_S", 0.1)
    async with served.user() as browser, a_living(browser) as path:
        where = urlsplit(browser.url)
        head = [
            f"PUT {path}/files/content?path=/tmp/x HTTP/1.1",
            f"Host: {where.netloc}",
            f"Cookie: {browser.cookies()}",
            f"X-CSRF-Token: {browser.csrf}",
            f"Content-Length: {served.config.portal.upload_bytes + 1}",
        ]
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write("\r\n".join([*head, "", ""]).encode())
        async with asyncio.timeout(START_S):
            assert b"413" in await reader.readline()
        writer.close()
        assert (await browser.get(f"{path}/files/content?path=/tmp/x")).status_code == 404


async def test_a_file_beyond_the_disk_is_refused(served: Portal) -> None:
    async with served.user() as browser, a_living(browser, memory_bytes=32 * MIB) as path:
        response = await browser.ask("PUT", f"{path}/files/content?path=/tmp/x", content=b"\0" * (40 * MIB))
        assert response.status_code in (409, 413, 429, 503), response.text
        assert response.json()["message"]


def socket_url(browser: Browser, path: str) -> str:
    return f"{browser.url.replace('http', 'ws', 1)}{path}"


def terminal(browser: Browser, path: str, **headers: str) -> Any:
    origin = headers.pop("origin", browser.url)
    return websockets.connect(
        socket_url(browser, path),
        additional_headers={"Cookie": headers.pop("cookie", browser.cookies()), **headers},
        origin=origin or None,  # type: ignore[arg-type]
        compression=None,
        proxy=None,
        max_size=1 << 25,
    )


async def refused(browser: Browser, path: str, **headers: str) -> tuple[int, str]:
    """Status and code of a terminal that is not opened."""
    try:
        async with terminal(browser, path, **headers):
            raise AssertionError("it was opened")
    except websockets.InvalidStatus as error:
        return error.response.status_code, json.loads(error.response.body)["error"]


async def until(connection: Any, text: bytes) -> bytes:
    heard = b""
    async with asyncio.timeout(START_S):
        while text not in heard:
            message = await connection.recv()
            assert isinstance(message, bytes), message
            heard += message
    return heard


async def test_a_terminal_takes_what_is_typed_and_shows_what_is_printed(served: Portal) -> None:
    async with (
        served.user() as browser,
        a_living(browser) as path,
        terminal(browser, f"{path}/terminal?cols=91&rows=33") as connection,
    ):
        await connection.send(b"stty size; tty\r")
        assert b"33 91\r\n" in await until(connection, b"/dev/pts/")
        await connection.send(json.dumps({"resize": {"cols": 55, "rows": 11}}))
        await connection.send(b"stty size\r")
        await until(connection, b"11 55\r\n")
        await connection.send(b"exit 3\r")
        async with asyncio.timeout(START_S):
            while isinstance(message := await connection.recv(), bytes):
                pass
        assert json.loads(message) == {"exit": {"code": 3}}
        with pytest.raises(websockets.ConnectionClosedOK):
            await connection.recv()


async def test_nonsense_on_a_terminal_is_answered_and_harms_nothing(served: Portal) -> None:
    async with (
        served.user() as browser,
        a_living(browser) as path,
        terminal(browser, f"{path}/terminal") as connection,
    ):
        for text in ("", "x", "[]", '{"resize": {"cols": 0, "rows": 1}}', '{"resize": 1}', '{"odd": 1}'):
            await connection.send(text)
            async with asyncio.timeout(START_S):
                while isinstance(message := await connection.recv(), bytes):
                    pass
            assert "error" in json.loads(message), text
        await connection.send(b"echo $((6*7))\r")
        await until(connection, b"42\r\n")


async def test_a_shell_ends_with_its_page(served: Portal) -> None:
    async with served.user() as browser, a_living(browser) as path:
        async with terminal(browser, f"{path}/terminal") as connection:
            await connection.send(b"sleep 4242 & echo begun $!\r")
            await until(connection, b"begun ")
        async with terminal(browser, f"{path}/terminal") as connection, asyncio.timeout(START_S):
            while True:
                await connection.send(
                    b"cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 424[2]'; echo do''ne\r"
                )
                if b"\r0\r\n" in await until(connection, b"done\r\n"):
                    break
                await asyncio.sleep(0.1)


async def test_the_main_process_can_be_attached_to(served: Portal) -> None:
    command = ["sh", "-c", "echo hello; read line; echo got $line; exit 4"]
    async with (
        served.user() as browser,
        a_living(browser, command=command) as path,
        terminal(browser, f"{path}/terminal?attach=main") as connection,
    ):
        await until(connection, b"hello\n")
        await connection.send(json.dumps({"resize": {"cols": 55, "rows": 11}}))  # it has no terminal
        await connection.send(b"typed\n")
        await until(connection, b"got typed\n")
        assert json.loads(await connection.recv()) == {"exit": {"code": 4}}
    async with served.user() as browser, a_living(browser) as path:
        assert (await refused(browser, f"{path}/terminal?attach=main"))[0] == 409
        assert (await refused(browser, f"{path}/terminal?attach=other"))[0] == 400
        assert (await refused(browser, f"{path}/terminal?cols=x"))[0] == 400


@pytest.mark.parametrize("origin", ["", "null", "https://evil.example", "http://8000-x.localhost"])
async def test_a_terminal_is_for_pages_of_ours_only(served: Portal, origin: str) -> None:
    async with served.user() as browser, a_living(browser) as path:
        assert await refused(browser, f"{path}/terminal", origin=origin) == (403, "origin.refused")


async def test_a_terminal_needs_a_log_in_that_lasts(served: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.web.terminal.CHECK_S", 0.1)
    async with served.user() as browser, a_living(browser) as path, served.stranger() as other:
        assert await refused(browser, f"{path}/terminal", cookie="") == (401, "auth.required")
        headers = {"Authorization": f"Bearer {served.key}"}
        assert await refused(browser, f"{path}/terminal", cookie="", **headers) == (401, "auth.required")
        await other.log_in(browser.email)
        async with terminal(other, f"{path}/terminal") as connection:
            await connection.send(b"echo be''gun\r")
            await until(connection, b"begun\r\n")
            assert (await browser.ask("DELETE", "/api/sessions")).status_code == 204
            async with asyncio.timeout(START_S):
                with contextlib.suppress(websockets.ConnectionClosedError):
                    async for _ in connection:
                        pass
        assert connection.close_code == 4401


async def test_exposed_ports_have_an_address(served: Portal) -> None:
    async with served.user() as browser, a_living(browser, network="exposed", ports=[8000]) as path:
        found = (await browser.get(path)).json()
        (port,) = found["ports"]
        assert (port["port"], port["protocol"]) == (8000, "tcp")
        name = urlsplit(port["url"]).netloc
        assert name == f"8000-{found['id']}.localhost:{urlsplit(browser.url).port}"


@pytest.mark.parametrize(
    ("ports", "host", "url"),
    [
        (PortsConfig(), "localhost:8080", "https://80-sess-1.localhost:8080/"),
        (PortsConfig(), "box.example:8080", "/sandboxes/sess_1/ports/80/"),
        (PortsConfig(domain="box.example"), "box.example", "https://80-sess-1.box.example/"),
        (PortsConfig(domain="box.example"), "evil.example", "/sandboxes/sess_1/ports/80/"),
        (PortsConfig(domain="", by_path=False, host="::1"), "x", "http://[::1]:20001/"),
    ],
)
def test_ports_are_reached_by_a_host_of_their_own_where_there_is_one(ports: PortsConfig, host: str, url: str) -> None:
    from stockade.model import Network, NetworkMode, Port

    port = Port(container=80, host=20001)
    sandbox = a_sandbox(network=Network(mode=NetworkMode.EXPOSED, ports=(port,)))
    assert urls_of(sandbox, ports, host=host, scheme="https") == {port: url}
