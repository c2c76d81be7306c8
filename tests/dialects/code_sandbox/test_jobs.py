"""Our own routes, `/v1/jobs`, on a real server."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from stockade.dialects.code_sandbox.wire import JobAnswer, ListAnswer
from tests.dialects.code_sandbox.serving import WITHIN_S, CodeSandbox

Event = tuple[str, str, dict[str, Any]]
"""Name, id and data."""


def is_refused(response: httpx.Response, status: int, code: str, field: str = "") -> bool:
    body = response.json()
    assert (response.status_code, body["code"], body.get("field", "")) == (status, code, field), body
    assert response.content.endswith(b"\n")
    return True


@contextmanager
def followed(sandbox: CodeSandbox, job_id: str, last: str = "") -> Iterator[Iterator[Event]]:
    """The events of a job, as they come."""
    connection = http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=WITHIN_S)
    connection.request("GET", f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last} if last else {})
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    try:
        yield _events(response)
    finally:
        response.close()
        connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[Event]:
    name, id, data = "", "", ""
    for line in response:
        text = line.decode("ascii").rstrip("\n")
        key, _, value = text.partition(": ")
        match key:
            case "event":
                name = value
            case "id":
                id = value
            case "data":
                data = value
            case "" if not text and name:
                yield name, id, json.loads(data)
                name, id, data = "", "", ""
            case _:
                assert text == "" or text.startswith(":"), text


def test_a_job_can_have_every_option(either: CodeSandbox) -> None:
    queued = either.job(
        code="import sys; print(input(), sys.argv[1:])",
        stdin="in\n",
        args=["a b", "c"],
        timeout="10s",
        limits={"memory_bytes": 64 << 20, "processes": 10},
        priority=-5,
        template="none",
        labels={"course": "intro"},
    )
    JobAnswer.model_validate(queued)
    assert (queued["status"], queued["language"], queued["priority"]) == ("queued", "python", -5)
    assert queued["request"]["limits"]["memory_bytes"] == 64 << 20
    job = either.own_ended(queued["id"])
    JobAnswer.model_validate(job)
    assert job["status"] == "succeeded", job
    assert job["result"]["stdout"] == "in ['a b', 'c']\n"
    assert job["result"]["outcome"] == "exited"
    assert job["result"]["usage"]["peakMemory"] > 0
    assert job["labels"] == {"course": "intro"}
    assert either.read(job["id"])["request"]["timeout"] == 10_000_000_000


def test_every_language_of_the_server_can_be_had(sandbox: CodeSandbox) -> None:
    job = sandbox.own_ended(sandbox.job(language="bash", code="echo $((6*7))")["id"])
    assert job["result"]["stdout"] == "42\n", job


def test_a_job_starts_no_sooner_than_it_may(sandbox: CodeSandbox) -> None:
    at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for later in ({"delay": "1h"}, {"runAt": at}):
        job = sandbox.job(**later)
        assert sandbox.own(job["id"], wait="200ms")["status"] == "queued"
        cancelled = sandbox.ask("POST", f"/v1/jobs/{job['id']}/cancel").json()
        assert cancelled["status"] == "cancelled"
        assert sandbox.read(job["id"])["error"] == "execution cancelled"
        assert sandbox.read(job["id"])["status"] == "failed"
    soon = sandbox.job(delay="300ms")
    done = sandbox.own_ended(soon["id"])
    assert datetime.fromisoformat(done["startedAt"]) >= datetime.fromisoformat(soon["runAt"])


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"language": "nope", "code": "x"}, 501, "language.unknown", ""),
        ({"language": "python"}, 400, "invalid", "code"),
        ({"language": "python", "code": "x", "nope": 1}, 400, "invalid", "nope"),
        ({"language": "python", "code": "x", "priority": 1000}, 400, "invalid", "priority"),
        ({"language": "python", "code": "x", "template": "nope"}, 400, "template.unknown", ""),
        ({"language": "python", "code": "x", "limits": {"cpus": 1e6}}, 400, "limit.invalid", "limits.cpus"),
        ({"language": "python", "code": "x", "delay": "500000h"}, 400, "invalid", "delay"),
        ([], 400, "body.not_json", ""),
    ],
)
def test_what_is_wrong_with_a_job_is_named(
    sandbox: CodeSandbox, body: object, status: int, code: str, field: str
) -> None:
    assert is_refused(sandbox.ask("POST", "/v1/jobs", json=body), status, code, field)


def test_a_batch_is_queued_whole_or_not_at_all(sandbox: CodeSandbox) -> None:
    good = {"language": "python", "code": "print(1)"}
    response = sandbox.ask("POST", "/v1/jobs/batch", json={"jobs": [good] * 5})
    assert response.status_code == 202
    batch = response.json()
    assert len({job["id"] for job in batch["jobs"]}) == 5
    for job in batch["jobs"]:
        assert sandbox.own_ended(job["id"])["batchId"] == batch["batchId"]
    listed = sandbox.ask("GET", "/v1/jobs", params={"batch": batch["batchId"]}).json()["jobs"]
    assert {job["id"] for job in listed} == {job["id"] for job in batch["jobs"]}
    bad = [good, good, {"language": "nope", "code": "x"}]
    refused = sandbox.ask("POST", "/v1/jobs/batch", json={"jobs": bad})
    assert is_refused(refused, 501, "invalid", "jobs.2")
    bad[2] = {"language": "python", "code": "x", "timeout": "1"}
    refused = sandbox.ask("POST", "/v1/jobs/batch", json={"jobs": bad})
    assert is_refused(refused, 400, "invalid", "jobs.2.timeout")
    assert is_refused(sandbox.ask("POST", "/v1/jobs/batch", json={"jobs": []}), 400, "invalid", "jobs")
    assert is_refused(sandbox.ask("POST", "/v1/jobs/batch", json={"jobs": [good] * 21}), 400, "invalid", "jobs")


def test_jobs_are_listed_by_what_they_are(sandbox: CodeSandbox) -> None:
    labels = {"labels": {"of": "list"}}
    ids = [sandbox.job(code=f"import sys; sys.exit({number % 2})", **labels)["id"] for number in range(4)]
    ended = [sandbox.own_ended(job_id) for job_id in ids]
    assert [job["status"] for job in ended] == ["succeeded", "failed"] * 2

    def listed(**params: Any) -> list[str]:
        response = sandbox.ask("GET", "/v1/jobs", params={"after": ended[0]["createdAt"], **params})
        assert response.status_code == 200, response.text
        page = response.json()
        ListAnswer.model_validate(page)
        assert not any({"code", "stdin"} & job["request"].keys() for job in page["jobs"])
        return [job["id"] for job in page["jobs"] if job["id"] in ids]

    assert set(ids[1:]) <= set(listed())
    assert listed(status="failed") == [ids[3], ids[1]]
    assert listed(status="failed,succeeded", limit=2) == [ids[3], ids[2]]
    assert listed(language="Py")[:1] == [ids[3]]
    assert listed(language="go") == []
    assert listed(dead="true") == []
    assert listed(before=ended[0]["createdAt"]) == []


def test_pages_follow_one_another(sandbox: CodeSandbox) -> None:
    ids = [sandbox.job(delay="1h")["id"] for _ in range(3)]
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None and len(found) < 3:
        params = {"limit": "2", "status": "queued", **({"cursor": cursor} if cursor else {})}
        page = sandbox.ask("GET", "/v1/jobs", params=params).json()
        found += [job["id"] for job in page["jobs"]]
        cursor = page["cursor"]
    assert found[:3] == ids[::-1]
    for job_id in ids:
        assert sandbox.ask("POST", f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "x"),
        ("status", "nope"),
        ("language", "nope"),
        ("dead", "maybe"),
        ("after", "yesterday"),
        ("before", "2026-01-01"),
    ],
)
def test_a_wrong_filter_is_named(sandbox: CodeSandbox, name: str, text: str) -> None:
    assert is_refused(sandbox.ask("GET", "/v1/jobs", params={name: text}), 400, "invalid", name)


def test_a_cursor_that_is_none_is_refused(sandbox: CodeSandbox) -> None:
    assert sandbox.ask("GET", "/v1/jobs", params={"cursor": "nope"}).status_code == 400


def test_waiting_ends_with_the_job(either: CodeSandbox) -> None:
    job_id = either.queued("python", "import time; time.sleep(0.5); print(1)", timeout="20s")
    job = either.ask("GET", f"/v1/execute/{job_id}", params={"wait": "60s"}).json()
    assert job["status"] == "succeeded"


@pytest.mark.parametrize("wait", ["5", "-1s", "x"])
def test_a_wait_that_is_no_duration_is_refused(sandbox: CodeSandbox, wait: str) -> None:
    job_id = sandbox.queued()
    assert sandbox.is_error(sandbox.ask("GET", f"/v1/execute/{job_id}?wait={wait}"), 400, "invalid wait value")
    assert is_refused(sandbox.ask("GET", f"/v1/jobs/{job_id}?wait={wait}"), 400, "invalid", "wait")


def test_a_running_job_can_be_ended(sandbox: CodeSandbox) -> None:
    job = sandbox.job(code="print('began', flush=True)\nimport time; time.sleep(50)", timeout="55s")
    with followed(sandbox, job["id"]) as events:
        for name, _, data in events:
            if name == "output":
                assert data == {"stream": "stdout", "text": "began\n"}
                assert sandbox.ask("POST", f"/v1/jobs/{job['id']}/cancel").status_code == 200
                break
        last = list(events)[-1]
    assert (last[0], last[2]["status"]) == ("state", "cancelled")
    again = sandbox.ask("POST", f"/v1/jobs/{job['id']}/cancel").json()
    assert again["status"] == "cancelled"


def test_output_is_told_as_it_comes(sandbox: CodeSandbox) -> None:
    code = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)\nsys.stderr.write('é')"
    job = sandbox.job(code="import time\ntime.sleep(0.5)\n" + code, stdin="one\ntwo\n", timeout="20s")
    with followed(sandbox, job["id"]) as events:
        seen = list(events)
    assert seen[0][0] == seen[-1][0] == "state"
    assert seen[-1][2]["status"] == "succeeded"
    assert seen[-1][2]["result"]["stdout"] == "one\ntwo\n"

    def text(stream: str) -> str:
        return "".join(data["text"] for name, _, data in seen if name == "output" and data["stream"] == stream)

    assert (text("stdout"), text("stderr")) == ("one\ntwo\n", "é")
    ids = [id for name, id, _ in seen if name == "output"]
    assert all(ids)
    assert ids == sorted(ids, key=lambda id: tuple(map(int, id.split("."))))


def test_who_comes_again_is_not_told_what_he_has(sandbox: CodeSandbox) -> None:
    code = "import time\nprint('first', flush=True)\ntime.sleep(3)\nprint('second')"
    job = sandbox.job(code=code, timeout="30s")
    with followed(sandbox, job["id"]) as events:
        last = next(id for name, id, _ in events if name == "output")
    with followed(sandbox, job["id"], last) as events:
        texts = [data["text"] for name, _, data in events if name == "output"]
    assert "".join(texts) == "second\n"


def test_the_events_of_an_ended_job_are_its_state(sandbox: CodeSandbox) -> None:
    job_id = sandbox.run()["id"]
    with followed(sandbox, job_id) as events:
        ((name, _, data),) = events
    assert (name, data["status"]) == ("state", "succeeded")


def test_a_job_can_be_run_again_and_removed(sandbox: CodeSandbox) -> None:
    first = sandbox.own_ended(sandbox.job(code="print(7)")["id"])
    response = sandbox.ask("POST", f"/v1/jobs/{first['id']}/retry")
    assert response.status_code == 202
    second = sandbox.own_ended(response.json()["id"])
    assert (second["retryOf"], second["result"]["stdout"]) == (first["id"], "7\n")
    removed = sandbox.ask("DELETE", f"/v1/jobs/{first['id']}")
    assert (removed.status_code, removed.content) == (204, b"")
    assert is_refused(sandbox.ask("GET", f"/v1/jobs/{first['id']}"), 404, "not_found")


def test_what_has_not_ended_cannot_be_removed_or_run_again(sandbox: CodeSandbox) -> None:
    job = sandbox.job(delay="1h")
    assert is_refused(sandbox.ask("DELETE", f"/v1/jobs/{job['id']}"), 409, "conflict")
    assert is_refused(sandbox.ask("POST", f"/v1/jobs/{job['id']}/retry"), 409, "conflict")
    assert sandbox.ask("POST", f"/v1/jobs/{job['id']}/cancel").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/events")],
)
def test_a_job_that_there_is_not_is_not_found(either: CodeSandbox, method: str, path: str) -> None:
    for name in ("00000000-0000-4000-8000-000000000000", "nope"):
        assert is_refused(either.ask(method, f"/v1/jobs/{name}{path}"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/v1/jobs"), ("GET", "/v1/jobs/batch"), ("POST", "/v1/jobs/queue"), ("GET", "/v1/jobs/x/cancel")],
)
def test_other_methods_are_not_allowed(either: CodeSandbox, method: str, path: str) -> None:
    assert either.ask(method, path).status_code == 405


def test_the_queue_tells_how_many_wait(sandbox: CodeSandbox) -> None:
    job = sandbox.job(delay="1h")
    depth = sandbox.ask("GET", "/v1/jobs/queue").json()
    assert depth["delayed"] >= 1
    assert depth.keys() >= {"queued", "delayed", "running", "dead"}
    assert sandbox.ask("POST", f"/v1/jobs/{job['id']}/cancel").status_code == 200


def test_a_trace_goes_on_with_the_job(sandbox: CodeSandbox) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    response = sandbox.ask(
        "POST", "/v1/execute", json={"language": "python", "code": "print(1)"}, headers={"traceparent": trace}
    )
    assert response.status_code == 202
    assert sandbox.ended(response.json()["id"])["status"] == "succeeded"


def test_a_client_that_leaves_takes_its_stream_along(sandbox: CodeSandbox) -> None:
    """The streams of one address are bounded; those that were left do not count."""
    job = sandbox.job(delay="1h")
    done = threading.Barrier(5)

    def leave() -> None:
        with followed(sandbox, job["id"]) as events:
            next(events)
        done.wait(WITHIN_S)

    for _ in range(30):
        threads = [threading.Thread(target=leave) for _ in range(4)]
        for thread in threads:
            thread.start()
        done.wait(WITHIN_S)
        for thread in threads:
            thread.join()
    assert sandbox.ask("POST", f"/v1/jobs/{job['id']}/cancel").status_code == 200
