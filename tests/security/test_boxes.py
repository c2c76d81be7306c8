"""What one with another key, or none, may try on a whole server with boxes: foreign boxes, odd names, forged files."""

import asyncio
import io
import json
import os
import re
import socket
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest
import websockets

from tests.app.serving import Server
from tests.dialects.boxlite.platform import KEY, Client, client_of, platform, tar_of

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has one user id and few limits"),
]
SECRET = "hunter2-" + "f" * 24
ENABLED = {"mode": "enabled"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    free = "STOCKADE_ACCOUNTS_TIERS_FREE_"
    settings = {f"{free}RATE_LIMIT_RPS": "1000", f"{free}DAILY_SANDBOXES": "500"}
    with platform(folder, STOCKADE_ACCOUNTS_WAITLIST="true", **settings) as server:
        yield server


@pytest.fixture
async def owner(server: Server, anyio_backend: str) -> AsyncIterator[Client]:
    async with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def foreign_key(server: Server) -> str:
    """The key of another account, tier free."""
    made = httpx.post(f"{server.url}/v1/waitlist", json={"email": "dev@example.org"}, timeout=60, trust_env=False)
    assert made.status_code == 201, made.text
    key: str = made.json()["key"]
    return key


@pytest.fixture
async def stranger(server: Server, foreign_key: str, anyio_backend: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {foreign_key}"}
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False, headers=headers) as http:
        yield Client(http=http, base=server.url)


def asked_of(box: str, execution: str) -> list[tuple[str, str, object]]:
    """Everything that can be asked of a box."""
    bare = [
        ("GET", ""), ("HEAD", ""), ("POST", "start"), ("POST", "stop"), ("POST", "pause"), ("POST", "resume"),
        ("GET", "metrics"), ("GET", "snapshots"), ("GET", "snapshots/kept"), ("POST", "snapshots/kept/restore"),
        ("DELETE", "snapshots/kept"), ("POST", "export"), ("GET", "executions"), ("GET", f"executions/{execution}"),
        ("GET", f"executions/{execution}/output"), ("DELETE", f"executions/{execution}"),
        ("GET", "files?path=/etc/hostname"), ("PUT", "files?path=/tmp/"), ("POST", "network/tunnel?port=80"),
        ("DELETE", "network/tunnel?port=80"), ("DELETE", "?force=true"),
    ]  # fmt: skip
    bodies = [
        ("POST", "exec", {"command": "true"}), ("POST", "snapshots", {"name": "x"}), ("POST", "clone", {}),
        ("POST", "clone", {"snapshot": "kept"}), ("POST", "fork", {"count": 1}),
        ("POST", f"executions/{execution}/signal", {"signal": 9}),
        ("POST", f"executions/{execution}/resize", {"cols": 9, "rows": 9}),
        ("PUT", "network/outbound", {"mode": "disabled"}), ("PUT", "network/inbound", {"mode": "disabled"}),
    ]  # fmt: skip
    return [*((method, what, None) for method, what in bare), *bodies]


async def test_a_foreign_box_is_not_there(owner: Client, stranger: Client) -> None:
    """By its id or its name, below any slot: whatever is asked of it, the answer is that of one that never was."""
    box = await owner.create(name="mine", network=ENABLED)
    made = await owner.post(box, "exec", {"command": "sleep", "args": ["600"]}, status=201)
    execution = made["execution_id"]
    await owner.post(box, "snapshots", {"name": "kept"}, status=201)
    missing = "01" + "0" * 24
    for slot in ("/v1", "/v1/default", "/v1/a/b"):
        one = replace(stranger, slot=slot)
        for method, what, body in asked_of(box, execution):
            answers = []
            for name in (box, "mine", missing):
                path = one.box(name, what).replace("/?", "?")
                answer = await one.http.request(method, path, json=body)
                text = answer.text.replace(name, "").replace(answer.headers["x-request-id"], "")
                answers.append((answer.status_code, re.sub(r'"request_id":"[^"]*"', "", text)))
            assert answers[0] == answers[1] == answers[2], (method, what)
            assert answers[0][0] == 404, (method, what, answers)
    base = stranger.base.replace("http", "ws", 1)
    headers = {"Authorization": stranger.http.headers["Authorization"]}
    for what in ("attach", f"executions/{execution}/attach"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with websockets.connect(f"{base}{stranger.box(box, what)}", additional_headers=headers, proxy=None):
                pass
        assert refused.value.response.status_code == 404
    assert box not in (await stranger.http.get(f"{stranger.slot}/boxes")).text
    assert (await stranger.http.get(f"{stranger.slot}/metrics")).json()["num_running_boxes"] == 0
    # A name is each account's own.
    other = await stranger.create(name="mine")
    assert (await owner.http.get(owner.box("mine"))).json()["box_id"] == box
    # Nor does one of one's own boxes lead to another's executions and snapshots.
    await stranger.post(other, "start")
    for method, what in (("GET", f"executions/{execution}"), ("GET", f"executions/{execution}/output"),
                         ("DELETE", f"executions/{execution}"), ("GET", "snapshots/kept")):  # fmt: skip
        assert (await stranger.http.request(method, stranger.box(other, what))).status_code == 404
    assert (await owner.http.get(owner.box(box, f"executions/{execution}"))).json()["status"] == "running"
    await stranger.drop(other)
    await owner.drop(box)


async def test_a_foreign_volume_is_not_there(owner: Client, stranger: Client) -> None:
    made = await owner.http.post("/v1/volumes", json={"name": "data"})
    assert made.status_code == 201, made.text
    volume = made.json()["id"]
    for name in (volume, "data"):
        assert (await stranger.http.get(f"/v1/volumes/{name}")).status_code == 404
        assert (await stranger.http.delete(f"/v1/volumes/{name}")).status_code == 404
        mounts = [{"managed_volume": name, "guest_path": "/data"}]
        refused = await stranger.http.post("/v1/default/boxes", json={"image": "host", "volumes": mounts})
        assert refused.status_code == 404, refused.text
    assert volume not in (await stranger.http.get("/v1/volumes")).text
    assert (await owner.http.delete(f"/v1/volumes/{volume}")).status_code == 204


async def test_nobody_without_a_good_key_is_answered(server: Server, owner: Client) -> None:
    """A server on this host alone has boxes for who shows no key, too: those have none of what others have."""
    box = await owner.create(name="locked")
    of_box = [(method, owner.box(box, what).replace("/?", "?"), body) for method, what, body in asked_of(box, "x")]
    others = [("GET", "/v1/me"), ("GET", "/v1/default/boxes"), ("POST", "/v1/boxes"), ("POST", "/v1/boxes/import"),
              ("GET", "/v1/images"), ("POST", "/v1/images/pull"), ("GET", "/v1/images/registries"),
              ("GET", "/v1/volumes"),
              ("GET", "/v1/default/metrics"), ("POST", "/v1/images/import"), ("GET", "/v1/a/b/c/boxes")]  # fmt: skip
    async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as http:
        for headers in ({"Authorization": "Bearer x"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY},
                        {"Authorization": f"Bearer {KEY} x"}, {"Authorization": "Bearer " + "k" * 8000}):  # fmt: skip
            for method, path in (*others, *(one[:2] for one in of_box)):
                assert (await http.request(method, path, headers=headers)).status_code == 401, (method, path, headers)
        for headers in ({}, {"Cookie": f"token={KEY}; Authorization=Bearer {KEY}"}, {"Proxy-Authorization": KEY}):
            for method, path, body in of_box:
                answer = await http.request(method, path, headers=headers, json=body)
                assert answer.status_code == 404, (method, path, answer.text)
            assert box not in (await http.get("/v1/boxes", headers=headers)).text
        for body in ("", "grant_type=client_credentials", "grant_type=client_credentials&client_secret=x",
                     f"grant_type=password&client_secret={KEY}", f"client_secret={KEY}", "=&=&=", "a" * 100_000,
                     f"grant_type=client_credentials&client_secret={KEY}&client_secret=x"):  # fmt: skip
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = await http.post("/v1/oauth/tokens", content=body, headers=kind)
            assert answer.status_code in (400, 401, 413), (body[:80], answer.text)
            assert KEY not in answer.text
    assert (await owner.http.get(owner.box(box))).status_code == 200
    await owner.drop(box)


async def test_odd_paths_lead_to_nobody_elses(owner: Client, stranger: Client) -> None:
    box = await owner.create(name="odd")
    host, _, port = urlsplit(stranger.base).netloc.partition(":")
    auth = stranger.http.headers["Authorization"]
    for path in (f"/v1/a/../boxes/{box}", f"/v1/%2e%2e/boxes/{box}", f"/v1//boxes/{box}", f"/v1/boxes//{box}",
                 f"/v1/boxes/{box}%2fexport", f"/v1/boxes/{box}%2f..%2f{box}", f"/v1/boxes/x%2f..%2f{box}",
                 f"/v1/boxes/{box}%00", f"/v1/boxes/{box};x", f"/v1/boxes/%0d%0aX:1/{box}", f"//v1/boxes/{box}",
                 f"/V1/boxes/{box}", f"/v1/boxes/boxes/{box}", f"/v1/images/boxes/{box}", f"/v1/sessions/boxes/{box}",
                 f"/v1/boxes/{box}/executions/..%2f..%2fexport", f"/v1/{'a/' * 2000}boxes/{box}",
                 "/v1/boxes/" + "%ff" * 40, "/v1/boxes/%ed%a0%bd%ed%b8%80", "/v1/boxes/%f0%9f%98%80"):  # fmt: skip
        reader, writer = await asyncio.open_connection(host, int(port))
        said = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: {auth}\r\nConnection: close\r\n\r\n"
        writer.write(said.encode())
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        head = answer.split(b"\r\n\r\n")[0]
        assert int(head.split()[1]) in (400, 404, 405, 414, 431), (path, head)
        assert b"X:1" not in head
    for slot in ("/v1/a%0d%0aSet-Cookie:%20x", "/v1/%ff", "/v1/a%20b", "/v1/..%2f..", "/v1/%E4%BD%A0"):
        made = await stranger.http.post(f"{slot}/boxes", json={"image": "host"})
        assert made.status_code in (201, 404), (slot, made.text)
        assert "set-cookie" not in made.headers
        if made.status_code == 201:
            one = made.json()["box_id"]
            run = await stranger.http.post(f"{slot}/boxes/{one}/exec", json={"command": "true"})
            assert run.status_code == 201, (slot, run.text)
            assert run.headers["location"].startswith(made.headers["location"])
            await stranger.drop(one)
    for name in ("../x", "a/b", "..", ".", "a b", "x" * 129, "\u202e", "a\nb", "-rf", "01" + "0" * 24, box, ""):
        for path, body in ((f"{stranger.slot}/boxes", {"image": "host", "name": name}),
                           ("/v1/volumes", {"name": name}),):  # fmt: skip
            refused = await stranger.http.post(path, json=body)
            assert refused.status_code in (400, 422), (name, refused.text)
    await owner.drop(box)


@pytest.mark.parametrize(
    "members",
    [
        {"user": "65535:0"}, {"user": "-1"}, {"user": "0:65536"}, {"user": "99999999999"}, {"user": "0:0:0"},
        {"user": "root\n"}, {"user": "\u0661:0"}, {"env": {"A\0": "b"}}, {"env": {"A=B": "c"}},
        {"working_dir": "relative"}, {"working_dir": "/a/../../x\0"}, {"disk_size_gb": 10**9}, {"disk_size_gb": -1},
        {"memory_mib": 10**9}, {"memory_mib": 0}, {"cpus": 0}, {"cpus": 10**9}, {"image": "../../etc"},
        {"image": "sha256:" + "0" * 64}, {"image": "host@sha256:" + "0" * 64}, {"image": "/var/lib/x"},
        {"image": "file:///etc"}, {"image": "localhost:1/x\r\nX: y"}, {"image": ""}, {"image": "a" * 5000},
    ],
)  # fmt: skip
async def test_odd_wishes_are_refused(stranger: Client, members: dict[str, object]) -> None:
    refused = await stranger.http.post(f"{stranger.slot}/boxes", json={"image": "host", **members})
    if refused.status_code == 201:  # taken as something that can be
        shown = refused.json()
        await stranger.drop(shown["box_id"])
        assert set(members) <= {"cpus", "disk_size_gb", "working_dir"}, members
    else:
        assert 400 <= refused.status_code < 500, refused.text


async def test_no_service_of_the_host_is_reached_by_a_tunnel(server: Server, owner: Client) -> None:
    """Its name for the destination counts for nothing: a tunnel leads to one port of one box."""
    box = await owner.create(network=ENABLED, entrypoint=[], cmd=[])
    serve = "cd /tmp; echo inside > index.html; exec python3 -m http.server 8080 --bind 127.0.0.1"
    await owner.post(box, "exec", {"command": "sh", "args": ["-c", serve]}, status=201)
    own = urlsplit(server.url).port
    assert own is not None
    tunnel = await owner.post(box, "network/tunnel?port=8080")
    outside = urlsplit(tunnel["uri"])
    for target in ("127.0.0.1:8080", f"127.0.0.1:{own}", "169.254.169.254:80", "[::1]:22", "x" * 9000):
        for _ in range(200):
            reader, writer = await asyncio.open_connection(outside.hostname, outside.port)
            said = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\nGET / HTTP/1.0\r\n\r\n"
            writer.write(said.encode())
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            if b"502" not in answer[:20]:  # it listens by now
                break
            await asyncio.sleep(0.05)
        assert b"inside" in answer or answer.startswith(b"HTTP/1.1 431"), (target[:50], answer)
    # The server's own port is the box's own, which nobody listens on.
    other = urlsplit((await owner.post(box, f"network/tunnel?port={own}"))["uri"])
    reader, writer = await asyncio.open_connection(other.hostname, other.port)
    writer.write(b"GET /v1/config HTTP/1.0\r\n\r\n")
    assert b"capabilities" not in await asyncio.wait_for(reader.read(), 30)
    writer.close()
    await owner.drop(box)
    with socket.socket() as late:
        assert late.connect_ex((outside.hostname, outside.port))


async def test_secrets_are_in_no_answer_no_file_and_no_log(server: Server, owner: Client) -> None:
    rule = {"name": "token", "value": SECRET, "hosts": ["api.example.com"]}
    made = await owner.http.post(
        f"{owner.slot}/boxes", json={"image": "host", "name": "holder", "network": ENABLED, "secrets": [rule]}
    )
    assert made.status_code == 201, made.text
    box = made.json()["box_id"]
    texts = [made.text]
    look = "env; cat /proc/self/mountinfo /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'"
    seen = await owner.run(box, look)
    assert SECRET not in seen
    for what in ("", "metrics", "executions", "snapshots"):
        texts.append((await owner.http.get(owner.box(box, what).rstrip("/"))).text)
    export = await owner.http.post(owner.box(box, "export"))
    assert export.status_code == 200
    wrong = await owner.http.post(
        f"{owner.slot}/boxes", json={"image": "host", "secrets": [{**rule, "name": "no good"}, {**rule, "x": SECRET}]}
    )
    registry = {"registry_host": "registry.example.com", "username": "ci", "password": SECRET}
    kept = await owner.http.post("/v1/images/registries", json=registry)
    assert kept.status_code == 201, kept.text
    texts += [wrong.text, kept.text, (await owner.http.get("/v1/images/registries")).text]
    assert SECRET not in "".join(texts)
    assert SECRET.encode() not in export.content
    assert SECRET not in "".join(server.log)
    for path in server.data_dir.rglob("*"):
        if path.is_file() and path.name != "disks.img":
            assert SECRET.encode() not in path.read_bytes(), path
    await owner.drop(box)


async def test_one_who_is_not_the_operator_changes_nothing_of_everybodys(stranger: Client) -> None:
    for method, path, body in (
        ("POST", "/v1/images/prune", {}), ("POST", "/v1/images/import?reference=evil", None),
        ("DELETE", "/v1/images/host", None), ("POST", "/v1/images/host/aliases", {"alias": "alpine:latest"}),
        ("POST", "/v1/images/host/aliases", {"alias": "host"}), ("DELETE", "/v1/images/host/aliases/host", None),
    ):  # fmt: skip
        answer = await stranger.http.request(method, path, json=body)
        assert answer.status_code in (400, 403, 404, 409, 422), (path, answer.text)
    listed = (await stranger.http.get("/v1/images")).json()["images"]
    assert listed == [] or all(one.get("reference") == "host" for one in listed)


@pytest.mark.parametrize(
    "registry",
    ["127.0.0.1:1", "localhost:1", "169.254.169.254", "[::1]:80", "10.0.0.1", "0.0.0.0", "2130706433", "0x7f.1",
     "metadata.google.internal", "localtest.invalid"],
)  # fmt: skip
async def test_a_pull_asks_no_machine_of_the_operators(server: Server, stranger: Client, registry: str) -> None:
    answer = await stranger.http.post("/v1/images/pull", json={"reference": f"{registry}/x/y:1"})
    assert 400 <= answer.status_code < 500, answer.text
    assert "refused" not in answer.text.lower() or "connect" not in answer.text.lower(), answer.text


async def test_what_is_no_export_makes_no_box(owner: Client) -> None:
    box = await owner.create()
    good = (await owner.http.post(owner.box(box, "export"))).content
    at = good.index(b"{")
    length = int.from_bytes(good[at - 4 : at], "little")
    head = json.loads(good[at : at + length])

    def forged(**changes: object) -> bytes:
        """Another header; what follows, and so the last digest, stays."""
        text = json.dumps({**head, **changes}).encode()
        return good[: at - 4] + len(text).to_bytes(4, "little") + text + good[at + length :]

    image = {"reference": "x", "digest": "sha256:" + "0" * 64}
    tries = [
        b"", b"\0" * 64, b"stockade box 1\n", good[:-1], good[:-40], good[: len(good) // 2], good + b"x",
        good[:100] + bytes([good[100] ^ 1]) + good[101:], tar_of({"a": b"b"}), b"stockade box 1\nH\xff\xff\xff\xff",
        forged(image=image), forged(image={"reference": "host", "digest": "../../etc"}), forged(image=None),
        forged(box={**head["box"], "limits": {**head["box"]["limits"], "disk_bytes": 1 << 60}}),
        forged(box={**head["box"], "user": "-1"}), forged(box={**head["box"], "env": {"A\0": "b"}}),
        forged(box={**head["box"], "limits": {**head["box"]["limits"], "memory_bytes": -5}}),
        forged(box={**head["box"], "cwd": "no/where"}), forged(box={**head["box"], "drop_capabilities": ["X"]}),
        forged(box={**head["box"], "auto_stop_s": -1}),
    ]  # fmt: skip
    for number, content in enumerate(tries):
        answer = await owner.http.post("/v1/boxes/import", params={"name": f"forged{number}"}, content=content)
        assert 400 <= answer.status_code < 500, (number, answer.text)
    assert [one["box_id"] for one in (await owner.http.get(f"{owner.slot}/boxes")).json()["boxes"]] == [box]
    await owner.drop(box)


async def test_boxes_count_like_all_that_runs(stranger: Client) -> None:
    """Whichever way one comes to run: started, used, forked, resumed. A pause frees no place."""
    boxes = [await stranger.create(name=f"many{number}") for number in range(7)]
    started = 0
    for box in boxes:
        answer = await stranger.http.post(stranger.box(box, "start"))
        started += answer.status_code == 200
        assert answer.status_code in (200, 429), answer.text
    assert started == 5  # the tier's
    assert (await stranger.http.post(stranger.box(boxes[0], "pause"))).status_code == 200
    for what, body in (("start", None), ("exec", {"command": "true"}), ("files?path=/etc/hostname", None)):
        method = "GET" if what.startswith("files") else "POST"
        assert (await stranger.http.request(method, stranger.box(boxes[5], what), json=body)).status_code == 429, what
    assert (await stranger.http.post(stranger.box(boxes[1], "fork"), json={"count": 2})).status_code == 429
    assert len((await stranger.http.get("/v1/boxes")).json()["boxes"]) == 7
    assert (await stranger.http.delete(stranger.box(boxes[0]), params={"force": "true"})).status_code == 204
    assert (await stranger.http.post(stranger.box(boxes[5], "start"))).status_code == 200
    await stranger.drop(*boxes[1:])


async def test_no_path_and_no_archive_leads_out_of_a_box(owner: Client) -> None:
    volume = (await owner.http.post("/v1/volumes", json={"name": "links"})).json()["id"]
    box = await owner.create(volumes=[{"managed_volume": volume, "guest_path": "/data"}])
    await owner.run(box, "cd /data; ln -s /etc l; ln -s /proc/1/root p; ln -s / r; mkfifo fifo; ln -s /proc/self/fd f")
    for path in ("/data/fifo", "/data/p/etc/shadow", "/data/r/proc/1/environ", "/proc/1/mem", "/proc/self/mem",
                 "/proc/kcore", "/dev/zero", "/data/../../../etc/shadow", "/data/l/../../root", "/data/f/0",
                 "/etc\0"):  # fmt: skip
        got = await owner.http.get(owner.box(box, "files"), params={"path": path})
        assert 400 <= got.status_code < 500, (path, got.text)
    content, root = io.BytesIO(b"x"), tarfile.TarInfo("above")
    for name, kind, link in (("../../evil", tarfile.REGTYPE, ""), ("/etc/evil", tarfile.REGTYPE, ""),
                             ("node", tarfile.CHRTYPE, ""), ("hard", tarfile.LNKTYPE, "/etc/shadow"),
                             ("l/evil", tarfile.REGTYPE, "")):  # fmt: skip
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            root.name, root.type, root.linkname, root.size = name, kind, link, 1 if kind == tarfile.REGTYPE else 0
            content.seek(0)
            tar.addfile(root, content if root.size else None)
        for path in ("/data/", "/data/p/tmp/", "/proc/1/", "/dev/null"):
            put = await owner.http.put(owner.box(box, "files"), params={"path": path}, content=archive.getvalue())
            assert 400 <= put.status_code < 500, (name, path, put.text)
    assert (
        await owner.run(box, "ls -A /data; ls /evil /etc/evil /data/l/evil 2>/dev/null; true") == "f\nfifo\nl\np\nr\n"
    )
    await owner.drop(box)
    assert (await owner.http.delete(f"/v1/volumes/{volume}")).status_code == 204
