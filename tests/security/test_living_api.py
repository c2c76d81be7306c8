"""What one with another key, or none, may try on a whole server: foreign sessions, browsers, odd requests."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import websockets

from tests.app.serving import Server
from tests.dialects.execbox.serving import Client, client_of, platform, rest, stdin

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has one user id and few limits"),
]
SERVE = "cd /tmp; echo secret > index.html; python3 -m http.server 8080 --bind 127.0.0.1 2>/dev/null & sleep 600"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with platform(tmp_path_factory.mktemp("server"), STOCKADE_ACCOUNTS_TIERS_FREE_RATE_LIMIT_RPS="1000") as server:
        yield server


@pytest.fixture
async def owner(server: Server) -> AsyncIterator[Client]:
    async with client_of(server) as client:
        yield client


async def test_a_foreign_session_is_not_there(owner: Client) -> None:
    """Whatever is asked of it, the answer is that of one that never was."""
    session = await owner.start(SERVE, network="exposed", ports=[{"container": 8080}])
    stranger = await owner.stranger()
    asked = [
        ("GET", ""), ("DELETE", ""), ("POST", "/stop"), ("POST", "/extend"), ("GET", "/url"), ("GET", "/stats"),
        ("GET", "/logs"), ("GET", "/attach"), ("GET", "/exec?cmd=id"), ("GET", "/files?path=/etc/passwd"),
        ("GET", "/files?path=/&list=true"), ("POST", "/files?path=/tmp/x"), ("DELETE", "/files?path=/tmp/x"),
    ]  # fmt: skip
    missing = "sess_" + "0" * (len(session) - 5)
    for method, path in asked:
        answers = []
        for name in (session, missing):
            body = {"json": {"duration": 60}} if path == "/extend" else {}
            one = await stranger.ask(method, f"/v1/sessions/{name}{path}", **body)
            answers.append((one.status_code, one.text.replace(name, "")))
        assert answers[0] == answers[1], (method, path)
        assert answers[0][0] in (400, 404), (method, path, answers[0])
    for what in ("attach", "exec?cmd=id"):
        assert (await stranger.refused(session, what))[0] == 404
    assert session not in (await stranger.get("/v1/sessions")).text
    assert (await owner.read(session))["status"] == "running"
    await owner.drop(session)


async def test_ids_cannot_be_guessed(owner: Client) -> None:
    sessions = [await owner.start(["true"]) for _ in range(8)]
    bodies = [one.partition("_")[2] for one in sessions]
    assert len(set(bodies)) == 8
    assert all(len(body) >= 12 and int(body, 16) >= 0 for body in bodies)
    for column in range(12):  # no counter, no clock
        assert len({body[column] for body in bodies}) > 1
    await owner.drop(*sessions)


async def test_a_page_in_a_browser_opens_no_session(owner: Client) -> None:
    """It can open a WebSocket to any address, with cookies, a query and subprotocols, and set no header."""
    session = await owner.start(["cat"])
    base = owner.base.replace("http", "ws", 1)
    for query in (
        "",
        f"?token={owner.key}",
        f"?access_token={owner.key}",
        f"?api_key={owner.key}",
        f"?key={owner.key}",
    ):
        for headers in (
            {"Origin": "https://evil.example"},
            {"Cookie": f"token={owner.key}; Authorization=Bearer {owner.key}", "Origin": "https://evil.example"},
            {"Sec-WebSocket-Protocol": f"bearer, {owner.key}"},
        ):
            for what in ("attach", "exec"):
                with pytest.raises(websockets.InvalidStatus) as refused:
                    async with websockets.connect(
                        f"{base}/v1/sessions/{session}/{what}{query}", additional_headers=headers, proxy=None
                    ):
                        pass
                assert refused.value.response.status_code in (401, 403)
    await owner.drop(session)


async def test_odd_processes_are_refused_or_run(owner: Client) -> None:
    session = await owner.start(["sleep", "600"])
    for query in ("cmd=a%00b", "cmd=true&env=X", "cmd=true&env==x", "cmd=true&env=A%00=x",
                  "cmd=true&user=0", "cmd=true&rows=-1&tty=1", "cmd=true&rows=99999999&tty=true", "cmd="):  # fmt: skip
        status, _ = await owner.refused(session, f"exec?{query}")
        assert status == 400, query
    assert (await owner.hear(session, "exec?cmd=printenv&cmd=A&env=A=b=c")).stdout == b"b=c\n"
    assert (await owner.hear(session, "exec?cmd=echo&cmd=%24(id)%3B%60id%60")).stdout == b"$(id);`id`\n"
    long = await owner.post("/v1/sessions", json={"image": "host", "command": ["echo", "x" * (3 << 20)]})
    assert long.status_code in (400, 413)
    many = await owner.post("/v1/sessions", json={"image": "host", "command": ["true"] * 60000})
    assert many.status_code in (201, 400, 413)
    if many.status_code == 201:
        await owner.drop(many.json()["id"])
    assert (await owner.read(session))["status"] == "running"
    await owner.drop(session)


async def test_paths_lead_nowhere_else(owner: Client, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    session = await owner.start(["sleep", "600"])
    for path in (f"{secret}", f"../../../../..{secret}", f"/proc/self/root{secret}", f"/proc/1/root{secret}", "/a\0b",
                 f"/home/user/../..{secret}", "/etc/shadow", "/proc/1/environ", "/proc/self/environ"):  # fmt: skip
        for more in ({}, {"list": "true"}, {"archive": "tar"}):
            answer = await owner.get(f"/v1/sessions/{session}/files", params={"path": path, **more})
            assert b"the host's" not in answer.content, (path, more)
        put = await owner.post(f"/v1/sessions/{session}/files", params={"path": f"{path}/x"}, content=b"x")
        assert put.status_code in (200, 201, 204, 400, 403, 404, 405, 409)
    for name in ("..", "%2e%2e", f"..%2f{session}", f"{session}%2f..%2f{session}", f"{session}%00"):
        assert (await owner.get(f"/v1/sessions/{name}/files?path=/etc/passwd")).status_code in (307, 400, 404)
    assert secret.read_text() == "the host's"
    assert list(tmp_path.iterdir()) == [secret]
    await owner.drop(session)


async def test_a_flood_of_tiny_messages_arrives(owner: Client) -> None:
    session = await owner.start(["sleep", "600"])
    async with owner.connect(session, "exec?cmd=sh&cmd=-c&cmd=head%20-c%204000%20%7C%20wc%20-c") as connection:
        for _ in range(4000):
            await connection.send(stdin(b"x"))
        assert (await rest(connection)).stdout.strip() == b"4000"
    for message in (b"", b"\xff", b"\x07", b"\x00" * 70000, "text"):
        async with owner.connect(session, "exec?cmd=cat") as connection:
            await connection.send(message)
            await connection.send(stdin(b"x"))
            await connection.close()
    assert (await owner.hear(session, "exec?cmd=echo&cmd=yes")).stdout == b"yes\n"
    await owner.drop(session)


async def test_only_listed_ports_are_exposed_and_nothing_is_smuggled(owner: Client) -> None:
    session = await owner.start(SERVE, network="exposed", ports=[{"container": 8080}])
    place = urlsplit(owner.base)
    assert place.hostname is not None

    def asked(raw: bytes) -> bytes:
        with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while part := connection.recv(65536):
                found += part
            return found

    async def status(path: str) -> int:
        return (await owner.http.get(path)).status_code

    base = f"/sandboxes/{session}/ports"
    async with asyncio.timeout(20):
        while await status(f"{base}/8080/") != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for port in ("8081", "22", "0", "1", "65536", "99999", "8080%2f..", "-1"):
        assert await status(f"{base}/{port}/") == 404, port
    own = b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\n\r\n"
    for framing in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"X: a\r\n\tb\r\n",
        b"X: a\x00b\r\n",
    ):
        raw = b"POST " + base.encode() + b"/8080/ HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n0\r\n\r\n" + own
        answer = await asyncio.to_thread(asked, raw)
        assert b'sessions":' not in answer, framing
        assert answer.count(b"HTTP/1.1 200") <= 1
    await owner.drop(session)
    assert await status(f"{base}/8080/") == 404


async def test_one_sandbox_reaches_no_other_and_not_the_server(owner: Client) -> None:
    """Not by its address, not by the host's port that leads there, not by loopback; the server's own API neither."""
    session = await owner.start(SERVE, network="exposed", ports=[{"container": 8080}])
    detail = await owner.read(session)
    host_port = detail["network"]["ports"]["8080"]["hostPort"]
    api = urlsplit(owner.base).port
    probe = f"""
import socket
addresses = {{"127.0.0.1", "10.0.2.2", "10.0.2.3", "10.0.2.15", "169.254.169.254", "192.168.0.1", "0.0.0.0", "::1"}}
addresses |= set({[info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)]!r})
for address in addresses:
    for port in (8080, {host_port}, {api}):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as one:
            one.settimeout(5)
            try:
                one.connect((address, port))
                one.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                if one.recv(10):
                    print("reached", address, port)
            except OSError:
                pass
print("done")
"""
    for network in ("none", "outgoing", "exposed"):
        other = await owner.start(["sleep", "600"], network=network)
        async with owner.connect(other, "exec?cmd=python3&cmd=-&user=root") as connection:
            await connection.send(stdin(probe.encode()))
            await connection.send(b"\x06")
            heard = await rest(connection)
            assert (heard.stdout, heard.stderr) == (b"done\n", b""), network
        await owner.drop(other)
    await owner.drop(session)
