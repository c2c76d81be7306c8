"""The numbered cases of execbox's protocol, against a whole server with real sandboxes."""

import asyncio
import base64
import http.client
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from stockade.wire.frames import FrameType
from tests.app.serving import Server
from tests.dialects.execbox.serving import KEY, Client, Heard, client_of, platform, rest, stdin, until_heard

pytestmark = pytest.mark.anyio

UNKNOWN = "sess_000000000000"
MARK = "stockade-conformance"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with platform(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
async def a(server: Server, anyio_backend: str) -> AsyncIterator[Client]:
    """The operator's client. Whatever it leaves running is ended."""
    async with client_of(server) as client:
        yield client
        for one in (await client.get("/v1/sessions?status=running")).json()["sessions"]:
            await client.drop(one["id"])


@pytest.fixture
async def b(a: Client) -> Client:
    """Somebody else, in the tier free."""
    return await a.stranger()


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json().get("code", "")


def processes_with(mark: str) -> list[str]:
    """Processes of this host whose command line holds *mark*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if mark.encode() in line:
            found.append(str(path))
    return found


async def test_case_01_health_needs_no_key(a: Client) -> None:
    response = await a.http.get("/health")
    assert response.status_code == 200
    assert response.json()["status"] == "ok"


async def test_case_02_without_a_key(a: Client) -> None:
    response = await a.http.get("/v1/sessions")
    assert code(response) == (401, "UNAUTHORIZED")
    assert response.json()["error"]
    assert response.headers["content-type"].startswith("application/json")


async def test_case_03_all_bad_keys_look_the_same(a: Client) -> None:
    place = urlsplit(a.base)
    for value in ("Basic x", "Bearer", "Bearer ", "Bearer sk_" + "0" * 64):
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        await asyncio.to_thread(connection.request, "GET", "/v1/sessions", headers={"Authorization": value})
        response = await asyncio.to_thread(connection.getresponse)
        assert response.status == 401
        assert b'"UNAUTHORIZED"' in response.read()
        connection.close()


@pytest.mark.parametrize("body", [b"{}", b"{not json", b""])
async def test_case_04_a_body_that_is_wrong(a: Client, body: bytes) -> None:
    response = await a.post("/v1/sessions", content=body, headers={"Content-Type": "application/json"})
    assert code(response) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(
    "members",
    [
        {"image": ""},
        {"network": "bridge"},
        {"resources": {"memoryMB": 1}},
        {"network": "exposed", "ports": [{"container": 70000}]},
        {"network": "exposed", "ports": [{"container": 80, "protocol": "icmp"}]},
        {"command": "ls"},
    ],
)
async def test_case_05_a_member_that_is_wrong(b: Client, members: dict[str, Any]) -> None:
    response = await b.post("/v1/sessions", json={"image": "host", "command": ["true"], **members})
    assert code(response) == (400, "BAD_REQUEST")
    assert (await b.get("/v1/sessions")).json() == {"sessions": []}


async def test_case_06_a_new_session(a: Client) -> None:
    response = await a.post("/v1/sessions", json={"image": "host", "command": ["true"]})
    assert response.status_code == 201
    answer = response.json()
    assert re.fullmatch(r"sess_[0-9a-f]{12}", answer["id"])
    assert answer["status"] == "running"
    assert answer["createdAt"].endswith("Z")
    assert datetime.fromisoformat(answer["createdAt"])
    assert "network" not in answer


@pytest.mark.parametrize(
    "members",
    [{"extra": 1}, {"resources": {"computePower": 2}}, {"resources": {"timeout": "30s"}}, {"setup": None}],
)
async def test_case_07_members_that_are_let_pass(a: Client, members: dict[str, Any]) -> None:
    await a.drop(await a.start(["true"], **members))


ROUTES = "cat /proc/net/route"
DEFAULT_ROUTE = re.compile(rb"^\S+\t00000000\t", re.MULTILINE)


async def test_case_08_outgoing_is_the_default(a: Client) -> None:
    response = await a.post("/v1/sessions", json={"image": "host", "command": ["sh", "-c", ROUTES]})
    assert response.status_code == 201, response.text
    session = response.json()["id"]
    assert DEFAULT_ROUTE.search((await a.hear(session)).stdout)
    assert "network" not in await a.read(session)


async def test_case_09_a_session_that_runs(a: Client) -> None:
    session = await a.start(["sleep", "300"])
    found = await a.read(session)
    assert (found["id"], found["status"], found["image"]) == (session, "running", "host")
    assert found["createdAt"]
    assert "endedAt" not in found
    assert "exitCode" not in found


async def test_case_10_an_end_with_zero(a: Client) -> None:
    found = await a.ended(await a.start("exit 0"))
    assert (found["status"], found["exitCode"]) == ("stopped", 0)
    assert found["endedAt"]


async def test_case_11_an_end_with_another_code(a: Client) -> None:
    found = await a.ended(await a.start("exit 42"))
    assert (found["status"], found["exitCode"]) == ("failed", 42)


async def test_case_12_unknown_sessions(a: Client) -> None:
    for method, path in (
        ("GET", ""), ("POST", "/stop"), ("DELETE", ""), ("GET", "/files?path=/a"), ("POST", "/files?path=/a"),
        ("GET", "/url?port=80"),
    ):  # fmt: skip
        assert code(await a.ask(method, f"/v1/sessions/{UNKNOWN}{path}")) == (404, "NOT_FOUND")
    assert await a.refused(UNKNOWN, "attach") == (404, "NOT_FOUND")
    assert await a.refused(UNKNOWN, "exec?cmd=id") == (404, "NOT_FOUND")


async def test_case_13_sessions_of_others(a: Client, b: Client) -> None:
    session = await a.start(["sleep", "300"])
    for method, path in (("GET", ""), ("POST", "/stop"), ("DELETE", "")):
        assert code(await b.ask(method, f"/v1/sessions/{session}{path}")) == (404, "NOT_FOUND")
    assert await b.refused(session, "attach") == (404, "NOT_FOUND")
    assert (await a.read(session))["status"] == "running"


async def test_case_14_the_list_of_a_key(a: Client, b: Client) -> None:
    older, newer = [await a.start(["sleep", "300"]) for _ in range(2)]
    listed = [one["id"] for one in (await a.get("/v1/sessions")).json()["sessions"]]
    assert listed[:2] == [newer, older]
    assert (await b.get("/v1/sessions")).json()["sessions"] == []


async def test_case_15_the_list_is_filtered(a: Client) -> None:
    running = await a.start(["sleep", "300"])
    stopped = await a.start("exit 0")
    await a.ended(stopped)

    async def ids(status: str) -> list[str]:
        return [one["id"] for one in (await a.get(f"/v1/sessions?status={status}")).json()["sessions"]]

    assert await ids("running") == [running]
    assert stopped in await ids("stopped")
    assert running not in await ids("stopped")
    assert code(await a.get("/v1/sessions?status=nonsense")) == (400, "BAD_REQUEST")


async def test_case_16_an_empty_list(b: Client) -> None:
    assert (await b.get("/v1/sessions")).json() == {"sessions": []}


async def test_case_17_stop(a: Client) -> None:
    session = await a.start(["sleep", "300"])
    response = await a.post(f"/v1/sessions/{session}/stop")
    assert (response.status_code, response.json()) == (200, {"status": "stopped"})
    found = await a.read(session)
    assert (found["status"], found["exitCode"]) == ("stopped", 143)
    assert found["endedAt"]
    assert code(await a.post(f"/v1/sessions/{session}/stop")) == (409, "CONFLICT")


async def test_case_18_stop_is_graceful(a: Client) -> None:
    trap = "trap 'echo trapped; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    session = await a.start(trap)
    async with a.connect(session, "attach") as connection:
        heard = Heard()
        await until_heard(connection, heard, b"ready\n")
        assert (await a.post(f"/v1/sessions/{session}/stop")).status_code == 200
        await rest(connection, heard)
    assert heard.stdout == b"ready\ntrapped\n"
    assert heard.exits == [0]


async def test_case_19_kill(a: Client) -> None:
    mark = f"{MARK}-{time.monotonic_ns()}"
    session = await a.start(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done", mark])
    async with a.connect(session, "attach") as connection:
        await until_heard(connection, Heard(), b"ready\n")
    assert processes_with(mark)
    response = await a.ask("DELETE", f"/v1/sessions/{session}")
    assert (response.status_code, response.json()) == (200, {"status": "killed"})
    assert (await a.read(session))["status"] == "killed"
    async with asyncio.timeout(30):
        while processes_with(mark):  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.05)


async def test_case_20_kill_after_the_end(a: Client) -> None:
    session = await a.start("exit 3")
    ended = await a.ended(session)
    for _ in range(2):
        response = await a.ask("DELETE", f"/v1/sessions/{session}")
        assert (response.status_code, response.json()) == (200, {"status": "killed"})
    found = await a.read(session)
    assert (found["status"], found["exitCode"], found["endedAt"]) == ("killed", 3, ended["endedAt"])


async def test_case_21_stop_after_the_end(a: Client) -> None:
    session = await a.start("exit 0")
    await a.ended(session)
    assert code(await a.post(f"/v1/sessions/{session}/stop")) == (409, "CONFLICT")


async def test_case_22_the_time_limit(a: Client) -> None:
    found = await a.ended(await a.start(["sleep", "60"], resources={"timeoutMs": 1000}), 5)
    assert (found["status"], found["exitCode"]) == ("killed", 137)


async def test_case_23_environment_and_working_directory(a: Client) -> None:
    heard = await a.hear(await a.start("echo $V; pwd", env={"V": "x1"}, workDir="/tmp"))
    assert heard.stdout == b"x1\n/tmp\n"


async def test_case_24_attach(a: Client) -> None:
    heard = await a.hear(await a.start("sleep 1; echo out; echo err >&2; exit 5"))
    assert (heard.stdout, heard.stderr, heard.exits) == (b"out\n", b"err\n", [5])
    assert heard.last is not None
    assert heard.last.type is FrameType.EXIT
    assert heard.close_code == 1000


async def test_case_25_attach_after_the_end(a: Client) -> None:
    session = await a.start("echo hello world")
    await a.ended(session)
    heard = await a.hear(session)
    assert (heard.stdout, heard.exits) == (b"hello world\n", [0])


async def test_case_26_input_and_its_end(a: Client) -> None:
    heard = await a.hear(await a.start(["cat"]), "attach", bytes.fromhex("01000000036f6b0a"), b"\x06")
    assert (heard.stdout, heard.exits) == (b"ok\n", [0])


async def test_case_27_messages_that_are_no_frames(a: Client) -> None:
    async with a.connect(await a.start(["cat"]), "attach") as connection:
        heard = Heard()
        for number, message in enumerate((b"", b"\x07", bytes.fromhex("01000000056f6b"), b"\x06\x00"), 1):
            await connection.send(message)
            heard.hear(await connection.recv())
            assert len(heard.errors) == number
        await connection.send(stdin(b"still\n"))
        await until_heard(connection, heard, b"still\n")


async def test_case_28_frames_without_effect(a: Client) -> None:
    async with a.connect(await a.start(["cat"]), "attach") as connection:
        heard = Heard()
        await connection.send(stdin(b""))
        await connection.send(bytes.fromhex("02000000017a"))
        await connection.send(stdin(b"on\n"))
        await connection.send(b"\x06")
        await rest(connection, heard)
    assert (heard.stdout, heard.errors, heard.exits) == (b"on\n", [], [0])


async def test_case_29_much_output(a: Client) -> None:
    program = "import sys; sys.stdout.write(''.join(f'{n:07d}\\n' for n in range(12800)))"
    heard = await a.hear(await a.start(["python3", "-c", program]))
    assert heard.stdout == "".join(f"{n:07d}\n" for n in range(12800)).encode()
    assert len(heard.stdout) == 102_400


async def test_case_30_every_byte(a: Client) -> None:
    data = bytes(range(256)) * 16
    heard = await a.hear(await a.start(["cat"]), "attach", stdin(data), b"\x06")
    assert heard.stdout == data


async def test_case_31_two_clients(a: Client) -> None:
    session = await a.start("read x; seq 1 5000; exit 4")
    async with a.connect(session, "attach") as one, a.connect(session, "attach") as other:
        await one.send(stdin(b"go\n"))
        for heard in await asyncio.gather(rest(one), rest(other)):
            assert heard.stdout == b"".join(b"%d\n" % n for n in range(1, 5001))
            assert heard.exits == [4]


async def test_case_32_a_client_that_leaves(a: Client) -> None:
    session = await a.start(["cat"])
    for how in ("close", "abort"):
        async with a.connect(session, "attach") as connection:
            if how == "abort":
                connection.transport.abort()
        assert (await a.read(session))["status"] == "running"
    heard = await a.hear(session, "attach", stdin(b"again\n"), b"\x06")
    assert (heard.stdout, heard.exits) == (b"again\n", [0])


async def test_case_33_refusals_of_attach(a: Client) -> None:
    running, stopped, deleted = [await a.start(["sleep", "300"]) for _ in range(3)]
    await a.post(f"/v1/sessions/{stopped}/stop")
    await a.drop(deleted)
    assert await a.refused(stopped, "attach") == (409, "CONFLICT")
    assert await a.refused(deleted, "attach") == (409, "CONFLICT")
    assert await a.refused(running, "attach?protocol=json") == (400, "BAD_REQUEST")
    assert await a.refused(running, "attach", key="nobody's") == (401, "UNAUTHORIZED")
    async with a.connect(running, "attach"):
        pass


async def test_case_34_exec(a: Client) -> None:
    session = await a.start(["sleep", "300"])
    heard = await a.hear(session, "exec?cmd=id")
    assert heard.stdout.startswith(b"uid=")
    assert heard.exits == [0]
    assert (await a.hear(session, "exec?cmd=sh&cmd=-c&cmd=exit%207")).exits == [7]
    assert (await a.read(session))["status"] == "running"
    assert await a.refused(session, "exec") == (400, "BAD_REQUEST")
    missing = await a.hear(session, "exec?cmd=no-such-program")
    assert missing.exits == [127]
    assert len(missing.errors) == 1
    await a.post(f"/v1/sessions/{session}/stop")
    assert await a.refused(session, "exec?cmd=id") == (409, "CONFLICT")


async def test_case_35_exec_elsewhere_and_with_input(a: Client) -> None:
    session = await a.start(["sleep", "300"])
    assert (await a.hear(session, "exec?workdir=/tmp&cmd=pwd")).stdout == b"/tmp\n"
    heard = await a.hear(session, "exec?cmd=cat", stdin(b"echo\n"), b"\x06")
    assert (heard.stdout, heard.exits) == (b"echo\n", [0])


async def test_case_36_a_file_goes_up_and_comes_down(a: Client) -> None:
    session = await a.start(["sleep", "300"])
    url = f"/v1/sessions/{session}/files?path=/tmp/a/b.bin"
    response = await a.post(url, content=b"\x00\xff\n", headers={"Content-Type": "application/octet-stream"})
    assert (response.status_code, response.json()) == (201, {"path": "/tmp/a/b.bin", "size": 3})
    response = await a.get(url)
    assert (response.content, response.headers["content-type"]) == (b"\x00\xff\n", "application/octet-stream")
    assert (await a.hear(session, "exec?cmd=cat&cmd=/tmp/a/b.bin")).stdout == b"\x00\xff\n"


async def test_case_36_files_may_be_larger_than_other_bodies(a: Client) -> None:
    session = await a.start(["sleep", "300"])
    url = f"/v1/sessions/{session}/files?path=/tmp/large"
    data = bytes(range(256)) * (80 << 10)
    assert (await a.post(url, content=data)).json() == {"path": "/tmp/large", "size": len(data)}
    assert (await a.get(url)).content == data
    part = await a.get(url, headers={"Range": "bytes=255-257"})
    assert (part.status_code, part.content) == (206, b"\xff\x00\x01")


async def test_case_37_wrong_uses_of_files(a: Client) -> None:
    session = await a.start(["sleep", "300"])
    url = f"/v1/sessions/{session}/files"
    assert code(await a.get(f"{url}?path=/tmp/missing")) == (404, "NOT_FOUND")
    assert code(await a.get(url)) == (400, "BAD_REQUEST")
    assert code(await a.post(url, content=b"x")) == (400, "BAD_REQUEST")
    assert code(await a.get(f"{url}?path=/tmp")) == (400, "BAD_REQUEST")


async def test_case_38_a_directory(a: Client) -> None:
    session = await a.start(["sleep", "300"])
    url = f"/v1/sessions/{session}/files"
    assert (await a.post(f"{url}?path=/tmp/a/b.bin", content=b"abc")).status_code == 201
    assert (await a.get(f"{url}?path=/tmp/a&list=true")).json() == {
        "path": "/tmp/a",
        "entries": [{"name": "b.bin", "size": 3, "isDir": False, "mode": 420}],
    }
    above = (await a.get(f"{url}?path=/tmp&list=true")).json()["entries"]
    found = next(one for one in above if one["name"] == "a")
    assert (found["isDir"], found["size"]) == (True, 0)


async def test_case_39_links_lead_nowhere_outside(a: Client, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's own")
    # Of what is outside, only what the sandbox itself cannot see proves anything.
    links = f"ln -s {secret} /tmp/file; ln -s / /tmp/root; ln -s {tmp_path} /tmp/folder; echo made; sleep 300"
    session = await a.start(links)
    async with a.connect(session, "attach") as connection:
        await until_heard(connection, Heard(), b"made\n")
    url = f"/v1/sessions/{session}/files"
    paths = ("/tmp/file", "/tmp/folder/secret", f"/tmp/root{secret}", f"/tmp/../../../../{secret}", str(secret))
    for path in paths:
        response = await a.get(f"{url}?path={path}")
        assert response.status_code in (403, 404), path
    for path in paths:
        await a.post(f"{url}?path={path}", content=b"overwritten")
        assert b"the host's own" not in (await a.get(f"{url}?path={path}")).content
    assert secret.read_text() == "the host's own"
    assert [one.name for one in tmp_path.iterdir()] == ["secret"]


SERVE = "python3 -m http.server 8080 --bind 0.0.0.0"


async def test_case_40_an_exposed_port(a: Client) -> None:
    created = await a.create(SERVE, network="exposed", ports=[{"container": 8080, "protocol": "tcp"}])
    network = created["network"]
    assert network["mode"] == "exposed"
    port = network["ports"]["8080"]
    assert port["hostPort"] > 0
    assert port["url"] == f"http://{network['host']}:{port['hostPort']}"
    assert (await fetched(port["url"])).status_code == 200
    assert (await a.read(created["id"]))["network"] == network


async def fetched(url: str) -> httpx.Response:
    """The answer at *url* once somebody listens there."""
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client, asyncio.timeout(20):
        while True:
            try:
                return await client.get(url)
            except httpx.TransportError:
                await asyncio.sleep(0.1)


async def test_case_41_the_url_of_a_port(a: Client) -> None:
    created = await a.create(["sleep", "300"], network="exposed", ports=[{"container": 8080}])
    port = created["network"]["ports"]["8080"]
    url = f"/v1/sessions/{created['id']}/url"
    assert (await a.get(f"{url}?port=8080")).json() == {
        "containerPort": 8080, "hostPort": port["hostPort"], "url": port["url"], "protocol": "tcp",
    }  # fmt: skip
    assert code(await a.get(f"{url}?port=9999")) == (404, "NOT_FOUND")
    assert code(await a.get(f"{url}?port=abc")) == (400, "BAD_REQUEST")
    assert code(await a.get(url)) == (400, "BAD_REQUEST")


async def test_case_42_no_network(a: Client) -> None:
    connect = (
        "import socket\n"
        "try: socket.create_connection(('1.1.1.1', 53), 3)\n"
        "except OSError as error: print('no:', error.errno)\n"
        "else: print('connected')"
    )
    heard = await a.hear(await a.start(["python3", "-c", connect], network="none"))
    assert heard.stdout.startswith(b"no:")
    published = await a.create(["sleep", "300"], network="outgoing", ports=[{"container": 8080}])
    assert "network" not in published
    assert "network" not in await a.read(published["id"])


async def test_case_43_setup_is_built_once(a: Client) -> None:
    # What /proc/sys/kernel/random/uuid says differs each time: the same answer twice was built once.
    setup = ["mkdir -p /opt", "cat /proc/sys/kernel/random/uuid > /opt/mark"]
    first = (await a.hear(await a.start(["cat", "/opt/mark"], setup=setup))).stdout
    assert len(first) == 37
    assert (await a.hear(await a.start(["cat", "/opt/mark"], setup=setup))).stdout == first
    changed = await a.hear(await a.start(["cat", "/opt/mark"], setup=[*setup, "true"]))
    assert changed.stdout != first
    plain = await a.start(["cat", "/opt/mark"], setup=["mkdir -p /opt", "echo built > /opt/mark"])
    assert (await a.hear(plain)).stdout == b"built\n"


async def test_case_44_files_are_built_in(a: Client) -> None:
    data = bytes(range(256))
    files = [
        {"path": "/opt/text", "content": "grüße\n", "encoding": "utf8"},
        {"path": "/opt/bytes", "content": base64.b64encode(data).decode(), "encoding": "base64"},
    ]
    heard = await a.hear(await a.start(["cat", "/opt/text", "/opt/bytes"], files=files))
    assert heard.stdout == "grüße\n".encode() + data
    for members in ({"files": [{"path": "/a", "content": "!", "encoding": "base64"}]}, {"setup": ["FROM scratch"]}):
        response = await a.post("/v1/sessions", json={"image": "host", "command": ["true"], **members})
        assert code(response) == (400, "BAD_REQUEST")


async def test_case_44_files_come_in_a_body_of_up_to_16_mib(a: Client) -> None:
    files = [{"path": "/opt/large", "content": "x" * (6 << 20)}]
    heard = await a.hear(await a.start(["wc", "-c", "/opt/large"], files=files))
    assert heard.stdout.split()[0] == str(6 << 20).encode()
    too_large = {"image": "host", "files": [{"path": "/opt/large", "content": "x" * (17 << 20)}]}
    assert code(await a.post("/v1/sessions", json=too_large)) == (413, "PAYLOAD_TOO_LARGE")


async def test_case_44_a_failed_build_shows_the_end_of_its_log(a: Client) -> None:
    body = {"image": "host", "command": ["true"], "setup": ["echo this went wrong >&2; exit 9"]}
    response = await a.post("/v1/sessions", json=body)
    assert code(response) == (400, "BAD_REQUEST")
    assert "this went wrong" in response.text


async def test_case_45_the_rate_of_a_key(a: Client, b: Client) -> None:
    answers = await asyncio.gather(*(b.get("/v1/sessions") for _ in range(30)))
    refused = [one for one in answers if one.status_code == 429]
    assert refused
    for one in refused:
        assert code(one) == (429, "RATE_LIMIT_EXCEEDED")
        assert int(one.headers["retry-after"]) >= 1
    assert (await a.get("/v1/sessions")).status_code == 200
    async with asyncio.timeout(30):
        while (await b.get("/v1/sessions")).status_code == 429:  # noqa: ASYNC110  # the very question
            await asyncio.sleep(0.25)


async def patient(client: Client, command: list[str]) -> httpx.Response:
    """The answer to a create request that is not refused for its rate."""
    while True:
        body = {"image": "host", "command": command, "network": "none"}
        response = await client.post("/v1/sessions", json=body)
        if code(response) != (429, "RATE_LIMIT_EXCEEDED"):
            return response
        await asyncio.sleep(0.2)


async def test_case_46_quotas(b: Client) -> None:
    sleepers = [await patient(b, ["sleep", "50"]) for _ in range(5)]
    assert [one.status_code for one in sleepers] == [201] * 5
    assert code(await patient(b, ["true"])) == (429, "QUOTA_EXCEEDED")
    await b.drop(sleepers[0].json()["id"])
    assert (await patient(b, ["true"])).status_code == 201
    for one in sleepers[1:]:
        await asyncio.sleep(0.1)  # within the rate
        await b.drop(one.json()["id"])
    for _ in range(4):
        assert (await patient(b, ["true"])).status_code == 201
    refused = await patient(b, ["true"])
    assert code(refused) == (429, "QUOTA_EXCEEDED")
    assert "10/10" in refused.json()["error"]


async def test_case_46_parallel_creates_never_exceed_the_limit(a: Client) -> None:
    c = await a.stranger()
    answers = await asyncio.gather(*(patient(c, ["sleep", "30"]) for _ in range(50)))
    counted = Counter(one.status_code for one in answers)
    assert counted == {201: 5, 429: 45}
    for one in answers:
        if one.status_code == 201:
            await asyncio.sleep(0.2)  # within the rate
            await c.drop(one.json()["id"])


async def test_case_47_usage(a: Client, b: Client) -> None:
    for _ in range(2):
        await b.start(["true"])
    found = (await b.get("/v1/account/usage")).json()
    assert (found["sessions_today"], found["quota_used"], found["quota_remaining"]) == (2, 2, 8)
    assert found["daily_limit"] == 10
    admin = (await a.get("/v1/account/usage")).json()
    assert (admin["daily_limit"], admin["concurrent_limit"], admin["quota_remaining"]) == (-1, -1, -1)


async def test_case_48_keys(a: Client, b: Client) -> None:
    made = await b.post("/v1/account/keys", json={"name": "ci"})
    assert made.status_code == 201
    key = made.json()
    assert re.fullmatch(r"sk_[0-9a-f]{64}", key["key"])
    assert key["key_preview"] == f"{key['key'][:7]}...{key['key'][-4:]}"
    assert all("key" not in one for one in (await b.get("/v1/account/keys")).json()["keys"])
    own = {"Authorization": f"Bearer {key['key']}"}
    assert (await a.http.get("/v1/account", headers=own)).status_code == 200
    path = f"/v1/account/keys/{key['id']}"
    assert (await a.get(path)).status_code == 404
    rotated = (await b.post(f"{path}/rotate")).json()["key"]
    assert (await a.http.get("/v1/account", headers=own)).status_code == 401
    own = {"Authorization": f"Bearer {rotated}"}
    assert (await a.http.get("/v1/account", headers=own)).status_code == 200
    assert code(await b.ask("PUT", path, json={})) == (400, "BAD_REQUEST")
    assert (await b.ask("DELETE", path)).status_code == 204


async def test_case_48_keys_that_are_refused(a: Client) -> None:
    b = await a.stranger()
    primary = (await b.get("/v1/account")).json()["api_key_id"]
    assert code(await b.ask("DELETE", f"/v1/account/keys/{primary}")) == (400, "BAD_REQUEST")
    assert code(await b.post("/v1/account/keys", json={"name": "x" * 101})) == (400, "BAD_REQUEST")
    made = (await b.post("/v1/account/keys", json={"name": "old", "expires_at": "2020-01-01T00:00:00Z"})).json()
    expired = {"Authorization": f"Bearer {made['key']}"}
    assert (await a.http.get("/v1/account", headers=expired)).status_code == 401
    gone = {"Authorization": f"Bearer {(await b.post('/v1/account/keys', json={'name': 'gone'})).json()['key']}"}
    listed = (await b.get("/v1/account/keys")).json()["keys"]
    assert (await b.ask("DELETE", f"/v1/account/keys/{listed[-1]['id']}")).status_code == 204
    assert (await a.http.get("/v1/account", headers=gone)).status_code == 401


async def test_case_49_public_endpoints(a: Client) -> None:
    joined = await a.http.post("/v1/waitlist", json={"email": "dev@example.org"})
    assert joined.status_code == 201
    answer = joined.json()
    assert answer["tier"] == "free"
    headers = {"Authorization": f"Bearer {answer['key']}"}
    assert (await a.http.get("/v1/account", headers=headers)).json()["api_key_id"] == answer["id"]
    for wrong in ({}, {"email": "nobody"}):
        assert code(await a.http.post("/v1/waitlist", json=wrong)) == (400, "BAD_REQUEST")
    asked = await a.http.post("/v1/quota-requests", json={"email": "dev@example.org"})
    assert (asked.status_code, asked.json()["status"]) == (201, "pending")
    assert code(await a.http.post("/v1/quota-requests", json={})) == (400, "BAD_REQUEST")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_case_50_a_restart(tmp_path: Path, anyio_backend: str, how: signal.Signals) -> None:
    mark = f"{MARK}-{time.monotonic_ns()}"
    with platform(tmp_path) as before:
        async with client_of(before) as client:
            session = await client.start(["sh", "-c", "echo before; cat", mark])
            async with client.connect(session, "attach") as connection:
                await until_heard(connection, Heard(), b"before\n")
        await asyncio.to_thread(before.end, how)
        with platform(tmp_path) as after:
            async with client_of(after) as client:
                found = await client.read(session)
                if found["status"] == "running":
                    heard = await client.hear(session, "attach", stdin(b"after\n"), b"\x06")
                    assert (heard.stdout, heard.exits) == (b"before\nafter\n", [0])
                else:
                    assert found["status"] in ("stopped", "failed", "killed")
                    assert found["endedAt"]
                await client.drop(session)
                async with asyncio.timeout(30):
                    while processes_with(mark):  # noqa: ASYNC110  # nothing tells us
                        await asyncio.sleep(0.05)


async def test_the_key_of_these_tests_is_the_operators(a: Client) -> None:
    assert a.key == KEY
    assert (await a.get("/v1/account")).json()["tier"] == "enterprise"
