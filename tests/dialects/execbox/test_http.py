"""Sessions, files and logs over HTTP, in front of an engine in memory."""

import asyncio
import json
from typing import Any

import pytest
import yaml

from stockade.errors import BackendLost, Fault, LimitExceeded, Unavailable, UnknownImage, Unsupported
from stockade.model import EndedBy, Network, NetworkMode, Port, SandboxState
from tests.dialects.execbox.conftest import serving
from tests.dialects.execbox.test_streams import until

pytestmark = pytest.mark.anyio

NOWHERE = "sess_000000000000"


async def test_a_session_is_created_read_listed_and_ended(execbox: Any) -> None:
    response = await execbox.client.post("/v1/sessions", json={"image": "host", "command": ["cat"]})
    assert response.status_code == 201
    answer = response.json()
    assert set(answer) == {"id", "status", "createdAt"}
    assert answer["status"] == "running"
    session = answer["id"]
    assert (await execbox.client.get(f"/v1/sessions/{session}")).json()["status"] == "running"
    listed = (await execbox.client.get("/v1/sessions")).json()
    assert [one["id"] for one in listed["sessions"]] == [session]
    stopped = await execbox.client.post(f"/v1/sessions/{session}/stop")
    assert (stopped.status_code, stopped.json()) == (200, {"status": "stopped"})
    again = await execbox.client.post(f"/v1/sessions/{session}/stop")
    assert (again.status_code, again.json()["code"]) == (409, "CONFLICT")
    for _ in range(2):
        killed = await execbox.client.delete(f"/v1/sessions/{session}")
        assert (killed.status_code, killed.json()) == (200, {"status": "killed"})
    assert (await execbox.client.get(f"/v1/sessions/{session}")).json()["status"] == "killed"


async def test_a_list_without_sessions_is_empty(execbox: Any) -> None:
    assert (await execbox.client.get("/v1/sessions")).json() == {"sessions": []}


async def test_a_list_is_filtered_and_paged(execbox: Any) -> None:
    first, second, third = [await execbox.create() for _ in range(3)]
    execbox.sandboxes.change(first, state=SandboxState.ENDED, ended_by=EndedBy.ITSELF, exit_code=0)
    execbox.sandboxes.change(second, state=SandboxState.ENDED, ended_by=EndedBy.ITSELF, exit_code=1)

    async def ids(query: str) -> list[str]:
        return [one["id"] for one in (await execbox.client.get(f"/v1/sessions?{query}")).json()["sessions"]]

    assert await ids("") == [third, second, first]
    assert await ids("status=running") == [third]
    assert await ids("status=stopped") == [first]
    assert await ids("status=failed") == [second]
    page = (await execbox.client.get("/v1/sessions?limit=2")).json()
    assert [one["id"] for one in page["sessions"]] == [third, second]
    assert await ids(f"limit=2&cursor={page['cursor']}") == [first]
    for wrong in ("status=nonsense", "limit=0", "limit=x"):
        response = await execbox.client.get(f"/v1/sessions?{wrong}")
        assert (response.status_code, response.json()["code"]) == (400, "BAD_REQUEST")


async def test_sandboxes_of_other_dialects_are_no_sessions(execbox: Any) -> None:
    session = await execbox.create()
    execbox.sandboxes.change(session, dialect="boxlite")
    assert (await execbox.client.get(f"/v1/sessions/{session}")).status_code == 404
    assert (await execbox.client.get("/v1/sessions")).json() == {"sessions": []}


@pytest.mark.parametrize("header", [None, "Basic x", "Bearer", "Bearer  key-a", "Bearer nobody's", "key-a"])
async def test_without_a_good_key_all_look_the_same(execbox: Any, header: str | None) -> None:
    execbox.client.headers.pop("authorization")
    headers = {} if header is None else {"Authorization": header}
    answers = [
        await execbox.client.get("/v1/sessions", headers=headers),
        await execbox.client.post("/v1/sessions", content=b"{not json", headers=headers),
        await execbox.client.get(f"/v1/sessions/{NOWHERE}", headers=headers),
    ]
    for response in answers:
        assert response.status_code == 401
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {
            "error": "unauthorized",
            "code": "UNAUTHORIZED",
            "status": 401,
            "title": "Unauthorized",
            "detail": "unauthorized",
        }


async def test_the_schemes_case_does_not_matter(execbox: Any) -> None:
    response = await execbox.client.get("/v1/sessions", headers={"Authorization": "bearer key-a"})
    assert response.status_code == 200


@pytest.mark.parametrize("body", [b"", b"{not json", b"[]", b'{"image": 5}', b"{}", b'{"image":"a","image":"b"}'])
async def test_a_wrong_body_is_a_bad_request(execbox: Any, body: bytes) -> None:
    response = await execbox.client.post("/v1/sessions", content=body)
    assert (response.status_code, response.json()["code"]) == (400, "BAD_REQUEST")
    assert not execbox.sandboxes.rows


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with serving(max_body_bytes=2000) as execbox:
        response = await execbox.client.post("/v1/sessions", json={"image": "host", "env": {"A": "x" * 3000}})
        assert (response.status_code, response.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownImage("nope", ["host"]), 400, "BAD_REQUEST"),
        (LimitExceeded("concurrent session limit reached (5/5)"), 429, "QUOTA_EXCEEDED"),
        (Unsupported("no network here"), 501, "NOT_IMPLEMENTED"),
        (Unavailable("the database is away", retry_after_s=2.5), 503, "UNAVAILABLE"),
        (BackendLost("the warden went away"), 503, "UNAVAILABLE"),
        (Fault("/var/lib/secret is broken"), 500, "INTERNAL"),
        (ZeroDivisionError("/var/lib/secret"), 500, "INTERNAL"),
    ],
)
async def test_errors_of_the_engine(execbox: Any, error: Exception, status: int, code: str) -> None:
    execbox.sandboxes.failure = error
    response = await execbox.client.post("/v1/sessions", json={"image": "host"})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) == (status in (429, 503))


async def test_a_client_that_does_not_wait_takes_its_session_back(execbox: Any) -> None:
    execbox.sandboxes.hold = asyncio.Event()
    asking = asyncio.create_task(execbox.client.post("/v1/sessions", json={"image": "host"}))
    await until(lambda: execbox.sandboxes.held == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: execbox.sandboxes.cancelled == 1)
    assert not execbox.sandboxes.rows


async def test_more_requests_than_the_rate_are_refused_with_the_time_to_wait() -> None:
    async with serving(rps=5) as execbox:
        answers = await asyncio.gather(*(execbox.client.get("/v1/sessions") for _ in range(15)))
        refused = [one for one in answers if one.status_code == 429]
        assert len(refused) >= 8
        for one in refused:
            assert one.json()["code"] == "RATE_LIMIT_EXCEEDED"
            assert int(one.headers["retry-after"]) >= 1
        other = await execbox.client.get("/v1/sessions", headers={"Authorization": "Bearer key-b"})
        assert other.status_code == 200
        assert "x-ratelimit-remaining" in other.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/stop"),
        ("GET", "/files?path=/a"),
        ("GET", "/files?path=/&list=true"),
        ("POST", "/files?path=/a"),
        ("GET", "/url?port=80"),
        ("GET", "/logs"),
        ("GET", "/stats"),
    ],
)
async def test_unknown_and_foreign_sessions_are_not_found_alike(execbox: Any, method: str, path: str) -> None:
    session = await execbox.create()
    for name, key in ((NOWHERE, "key-a"), (session, "key-b"), ("x", "key-a")):
        response = await execbox.client.request(
            method, f"/v1/sessions/{name}{path}", headers={"Authorization": f"Bearer {key}"}
        )
        assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")
        assert response.json()["error"] == f"session {name} not found"
    assert execbox.sandboxes.rows[session].state is SandboxState.RUNNING


@pytest.mark.parametrize("path", ["/v1/sessions/a/b/c", "/v1/account/nothing", "/v1/sessions/"])
async def test_an_unknown_path_is_not_found_as_json(execbox: Any, path: str) -> None:
    for method in ("GET", "PUT"):
        response = await execbox.client.request(method, path)
        assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")


async def test_a_life_can_be_extended(execbox: Any) -> None:
    session = await execbox.create()
    response = await execbox.client.post(f"/v1/sessions/{session}/extend", json={"timeoutMs": 60000})
    assert response.json()["expiresAt"] == "1970-01-01T00:01:00Z"
    for wrong in ({}, {"timeoutMs": 999}, {"timeoutMs": "1m"}):
        assert (await execbox.client.post(f"/v1/sessions/{session}/extend", json=wrong)).status_code == 400


async def test_the_url_of_an_exposed_port(execbox: Any) -> None:
    session = await execbox.create()
    execbox.sandboxes.change(
        session, network=Network(mode=NetworkMode.EXPOSED, ports=(Port(container=8080, host=40000),))
    )
    response = await execbox.client.get(f"/v1/sessions/{session}/url?port=8080")
    assert response.json() == {
        "containerPort": 8080, "hostPort": 40000, "url": "http://localhost:40000", "protocol": "tcp",
    }  # fmt: skip
    for query, status in (("port=9999", 404), ("port=abc", 400), ("", 400), ("port=0", 400), ("port=65536", 400)):
        assert (await execbox.client.get(f"/v1/sessions/{session}/url?{query}")).status_code == status


async def test_what_a_session_has_used(execbox: Any) -> None:
    session = await execbox.create()
    response = await execbox.client.get(f"/v1/sessions/{session}/stats")
    assert response.json() == {
        "wallSeconds": 1.5, "cpuSeconds": 0.5, "memoryPeakBytes": 1 << 20, "memoryBytes": 4096,
    }  # fmt: skip


async def test_a_file_goes_up_and_comes_down(execbox: Any) -> None:
    session = await execbox.create()
    data = bytes(range(256)) * 5000
    url = f"/v1/sessions/{session}/files"
    response = await execbox.client.post(f"{url}?path=/tmp/a/b.bin", content=data)
    assert (response.status_code, response.json()) == (201, {"path": "/tmp/a/b.bin", "size": len(data)})
    response = await execbox.client.get(f"{url}?path=/tmp/a/b.bin")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-length"] == str(len(data))
    assert response.content == data
    response = await execbox.client.get(f"{url}?path=/tmp/a&list=true")
    assert response.json() == {
        "path": "/tmp/a",
        "entries": [{"name": "b.bin", "size": len(data), "isDir": False, "mode": 420}],
    }
    await until(lambda: execbox.sandboxes.fileset.open == 0)


async def test_a_relative_path_begins_at_the_working_directory(execbox: Any) -> None:
    session = await execbox.create(workDir="/srv")
    response = await execbox.client.post(f"/v1/sessions/{session}/files?path=notes.txt", content=b"x")
    assert response.json() == {"path": "notes.txt", "size": 1}
    assert execbox.sandboxes.fileset.content == {"/srv/notes.txt": b"x"}


@pytest.mark.parametrize(
    ("wanted", "status", "content", "where"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-100", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=3-1", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
    ],
)
async def test_parts_of_a_file(
    execbox: Any, wanted: str, status: int, content: bytes | None, where: str | None
) -> None:
    session = await execbox.create()
    execbox.sandboxes.fileset.content["/a"] = b"0123456789"
    response = await execbox.client.get(f"/v1/sessions/{session}/files?path=/a", headers={"Range": wanted})
    assert response.status_code == status
    assert response.headers.get("content-range") == where
    assert content is None or response.content == content


async def test_wrong_uses_of_files(execbox: Any) -> None:
    session = await execbox.create()
    execbox.sandboxes.fileset.content["/d/f"] = b"x"
    url = f"/v1/sessions/{session}/files"
    for method, query, status in (
        ("GET", "path=/missing", 404),
        ("GET", "path=/missing&list=1", 404),
        ("GET", "", 400),
        ("POST", "", 400),
        ("POST", "path=", 400),
        ("GET", "path=/d", 400),
        ("POST", "path=/d", 400),
        ("POST", "path=/e/", 400),
        ("GET", "path=/d/f&list=true", 400),
        ("GET", "path=/d&archive=zip", 400),
        ("POST", "path=/d/g&mode=9999", 400),
    ):
        response = await execbox.client.request(method, f"{url}?{query}", content=b"x" if method == "POST" else None)
        assert response.status_code == status, (method, query, response.text)
        assert response.json()["code"] == {404: "NOT_FOUND", 400: "BAD_REQUEST"}[status]
    execbox.sandboxes.change(session, state=SandboxState.ENDED, ended_by=EndedBy.ITSELF, exit_code=0)
    assert (await execbox.client.post(f"{url}?path=/a", content=b"x")).status_code == 409


async def test_a_full_disk_is_told(execbox: Any) -> None:
    session = await execbox.create()
    execbox.sandboxes.fileset.full_at = 100_000
    response = await execbox.client.post(f"/v1/sessions/{session}/files?path=/a", content=bytes(8 << 20))
    assert (response.status_code, response.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert response.json()["error"] == "the disk is full"


async def test_archives_directories_and_deletion(execbox: Any) -> None:
    session = await execbox.create()
    url = f"/v1/sessions/{session}/files"
    response = await execbox.client.get(f"{url}?path=/d&archive=tar")
    assert (response.headers["content-type"], response.content) == ("application/x-tar", b"tar of /d")
    response = await execbox.client.post(f"{url}?path=/d&archive=tar", content=b"x")
    assert (response.status_code, response.json()) == (201, {"path": "/d", "members": 1})
    assert (await execbox.client.post(f"{url}?path=/new&directory=true")).status_code == 201
    execbox.sandboxes.fileset.content["/d/f"] = b"x"
    assert (await execbox.client.delete(f"{url}?path=/d/f")).status_code == 204
    assert "/d/f" not in execbox.sandboxes.fileset.content


async def test_logs_show_what_was_printed(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    await process.print("grüße\n".encode())
    await process.print(b"oops\n", to="stderr")
    url = f"/v1/sessions/{session}/logs"
    assert (await execbox.client.get(f"{url}?stream=stdout")).text == "grüße\n"
    assert (await execbox.client.get(f"{url}?stream=stderr")).text == "oops\n"
    assert (await execbox.client.get(f"{url}?stream=stdout&tail=4")).content == "ße\n".encode()
    response = await execbox.client.get(f"{url}?format=ndjson")
    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in response.text.splitlines()] == [
        {"stream": "stdout", "offset": 0, "text": "grüße\n"},
        {"stream": "stderr", "offset": 0, "text": "oops\n"},
    ]
    await until(lambda: process.readers == 0)
    assert (await execbox.client.get(f"{url}?stream=all")).status_code == 400


async def test_logs_can_be_followed_to_the_end(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    await process.print(b"one\n")
    async with execbox.client.stream("GET", f"/v1/sessions/{session}/logs?follow=true") as response:
        lines = response.aiter_lines()
        assert await anext(lines) == "one"
        await process.print(b"two\n")
        assert await anext(lines) == "two"
        await process.exit(0)
        assert [line async for line in lines] == []


async def test_the_description_names_everything(execbox: Any) -> None:
    response = await execbox.client.get("/openapi.yaml")
    found = yaml.safe_load(response.text)
    names = {one["operationId"] for path in found["paths"].values() for one in path.values()}
    assert names >= {
        "createSession", "listSessions", "getSession", "stopSession", "killSession", "attachSession", "execSession",
        "uploadFile", "downloadFile", "getSessionUrl",
    }  # fmt: skip
    assert found["components"]["securitySchemes"]["bearerAuth"]["scheme"] == "bearer"
    create = found["paths"]["/v1/sessions"]["post"]
    assert create["security"] == [{"bearerAuth": []}]
    assert found == (await execbox.client.get("/openapi.json")).json()


async def test_a_request_id_is_echoed(execbox: Any) -> None:
    response = await execbox.client.get("/v1/sessions", headers={"X-Request-ID": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
