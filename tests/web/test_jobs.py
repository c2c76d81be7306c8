"""Jobs over the portal's API: submitted, listed, followed, cancelled, repeated; and none of others."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from stockade.web.examples import EXAMPLES
from stockade.wire.events import ticking
from tests.web.conftest import START_S, Browser, Portal

pytestmark = pytest.mark.anyio
LONG = os.environ.get("STOCKADE_LONG_TESTS") == "1"
QUICK = {"bash", "lua", "node", "perl", "php", "python", "ruby"}


async def test_a_program_is_run_and_its_result_read(served: Portal) -> None:
    async with served.user() as browser:
        code = "import sys; print(sys.stdin.read(), sys.argv[1:]); print('e', file=sys.stderr)"
        submitted = await browser.run(
            code, stdin="in", args=["a b", ""], limits={"wall_s": 20}, labels={"from": "test"}, priority=3
        )
        assert submitted["state"] == "queued"
        job = await browser.ended(submitted["id"])
    assert job["state"] == "succeeded"
    assert job["language"] == job["requestedLanguage"] == "python"
    assert (job["code"], job["stdin"], job["args"]) == (code, "in", ["a b", ""])
    assert (job["labels"], job["priority"], job["keyName"]) == ({"from": "test"}, 3, "portal")
    assert job["limits"]["wall_s"] == 20
    result = job["result"]
    assert (result["outcome"], result["exitCode"], result["signal"]) == ("exited", 0, None)
    assert result["stdout"] == "in ['a b', '']\n"
    assert result["stderr"] == "e\n"
    assert result["durationS"] > 0
    assert result["memoryPeakBytes"] > 0
    assert job["createdAt"] <= job["startedAt"] <= job["endedAt"]


async def test_output_that_is_no_text_is_told_as_text(served: Portal) -> None:
    async with served.user() as browser:
        submitted = await browser.run("import os; os.write(1, b'\\xff\\0')")
        assert (await browser.ended(submitted["id"]))["result"]["stdout"] == "\ufffd\0"


async def test_what_cannot_be_run_is_refused_with_the_field(served: Portal) -> None:
    async with served.user() as browser:
        for body, field in (
            ({"language": "klingon", "code": "x"}, None),
            ({"language": "python"}, "code"),
            ({"language": "python", "code": "x", "limits": {"wall_s": 1e6}}, "wall_s"),
            ({"language": "python", "code": "x", "priority": 101}, "priority"),
            ({"language": "python", "code": "x", "unknown": 1}, "unknown"),
            ({"language": "python", "code": "x", "args": ["\0"]}, "args"),
        ):
            response = await browser.post("/api/jobs", body)
            assert response.status_code == 400, response.text
            assert response.json().get("field") == field, response.text
        response = await browser.ask(
            "POST", "/api/jobs", content=b'{"code": NaN}', headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400


async def test_a_body_that_is_too_large_is_refused(served: Portal) -> None:
    async with served.user() as browser:
        response = await browser.post("/api/jobs", {"language": "python", "code": "x" * (3 << 20)})
        assert (response.status_code, response.json()["error"]) == (413, "body.too_large")


async def test_jobs_are_listed_without_what_is_long_and_filtered(served: Portal) -> None:
    async with served.user() as browser:
        good = await browser.run("print(1)")
        bad = await browser.run("raise SystemExit(3)")
        later = await browser.run("print(1)", delay_s=3600)
        for one in (good, bad):
            await browser.ended(one["id"])

        async def ids(**query: str) -> list[str]:
            response = await browser.get("/api/jobs", params=query)
            assert response.status_code == 200, response.text
            return [one["id"] for one in response.json()["jobs"]]

        assert await ids() == [later["id"], bad["id"], good["id"]]
        assert await ids(state="failed") == [bad["id"]]
        assert await ids(state="failed,succeeded") == [bad["id"], good["id"]]
        assert await ids(state="living") == [later["id"]]
        assert await ids(language="py", state="ended") == [bad["id"], good["id"]]
        assert await ids(language="node") == []
        assert await ids(before="2020-01-01") == []
        assert await ids(after="2020-01-01T00:00:00Z", key=good["keyId"], dead="false") == [
            later["id"],
            bad["id"],
            good["id"],
        ]
        first = (await browser.get("/api/jobs", params={"limit": "2"})).json()
        assert len(first["jobs"]) == 2
        assert await ids(limit="2", cursor=first["cursor"]) == [good["id"]]
        listed = first["jobs"][1]
        assert not {"code", "stdin"} & set(listed)
        assert not {"stdout", "stderr"} & set(listed["result"])
        for query in ({"state": "odd"}, {"after": "soon"}, {"limit": "0"}, {"cursor": "x"}, {"language": "klingon"}):
            assert (await browser.get("/api/jobs", params=query)).status_code == 400, query


async def test_a_waiting_job_is_cancelled_repeated_and_forgotten(served: Portal) -> None:
    async with served.user() as browser:
        waiting = await browser.run("print(1)", delay_s=3600)
        path = f"/api/jobs/{waiting['id']}"
        assert (await browser.ask("DELETE", path)).status_code == 409
        assert (await browser.post(f"{path}/cancel")).json()["state"] == "cancelled"
        again = await browser.post(f"{path}/retry")
        assert again.status_code == 202
        assert again.json()["retryOf"] == waiting["id"]
        assert (await browser.ended(again.json()["id"]))["state"] == "succeeded"
        assert (await browser.ask("DELETE", path)).status_code == 204
        assert (await browser.get(path)).status_code == 404


async def test_another_accounts_job_is_not_there(served: Portal) -> None:
    async with served.user() as ada, served.user() as bob:
        job = await ada.run("print(1)")
        path = f"/api/jobs/{job['id']}"
        for method, where in (
            ("GET", path),
            ("GET", f"{path}/events"),
            ("DELETE", path),
            ("POST", f"{path}/cancel"),
            ("POST", f"{path}/retry"),
        ):
            assert (await bob.ask(method, where)).status_code == 404, where
        assert (await bob.get("/api/jobs")).json()["jobs"] == []
        assert (await bob.get("/api/jobs", params={"everybody": "true"})).json()["jobs"] == []
        await ada.ended(job["id"])


async def events(browser: Browser, job_id: str) -> list[tuple[str, Any]]:
    """All that is told of a job until its end."""
    found: list[tuple[str, Any]] = []
    async with (
        asyncio.timeout(START_S),
        browser.http.stream("GET", f"/api/jobs/{job_id}/events") as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
    return found


async def test_a_job_is_followed_live_until_its_end(served: Portal) -> None:
    async with served.user() as browser:
        code = "import sys\nfor n in range(3): print('ü', n, flush=True)\nprint('e', file=sys.stderr)"
        job = await browser.run(code)
        found = await events(browser, job["id"])
    text = "".join(data["text"] for name, data in found if name == "output" and data["stream"] == "stdout")
    assert text == "ü 0\nü 1\nü 2\n"
    assert [data["stream"] for name, data in found if name == "output"][-1] == "stderr"
    assert found[-1][0] == "state"
    assert found[-1][1]["state"] == "succeeded"
    assert found[-1][1]["result"]["stdout"] == text


async def test_output_comes_while_the_program_runs(served: Portal) -> None:
    async with served.user() as browser:
        job = await browser.run("import time\nprint('begun', flush=True)\ntime.sleep(60)", limits={"wall_s": 100})
        path = f"/api/jobs/{job['id']}"
        async with asyncio.timeout(START_S), browser.http.stream("GET", f"{path}/events") as response:
            lines = response.aiter_lines()
            while "begun" not in await anext(lines):
                pass
            assert (await browser.post(f"{path}/cancel")).status_code == 200
            while '"state":"cancelled"' not in await anext(lines):
                pass
            assert [line async for line in lines if line] == []
        assert (await browser.ended(job["id"]))["state"] == "cancelled"


async def test_a_stream_goes_away_with_who_listens(served: Portal) -> None:
    async with served.user() as browser:
        job = await browser.run("print(1)", delay_s=3600)
        for _ in range(served.config.portal.streams_per_user + 5):
            async with browser.http.stream("GET", f"/api/jobs/{job['id']}/events") as response:
                if response.status_code == 429:  # the one before is just being noticed as gone
                    await asyncio.sleep(0.05)
                    continue
                assert response.status_code == 200
                assert await anext(response.aiter_lines()) == "event: state"
        await browser.post(f"/api/jobs/{job['id']}/cancel")


async def test_a_stream_tells_now_and_then_that_it_is_there() -> None:
    closed = asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(3600)
        finally:
            closed.set()

    found: list[int | None] = []
    stream = ticking(slow(), 0.01)
    async for one in stream:
        found.append(one)
        if len(found) == 3:
            break
    await stream.aclose()
    assert found == [1, None, None]
    assert closed.is_set()


async def test_languages_come_with_a_program_to_begin_with(served: Portal) -> None:
    async with served.user() as browser:
        found = {one["name"]: one for one in (await browser.get("/api/languages")).json()["languages"]}
    assert found["python"]["installed"] is True
    assert found["python"]["extension"] == ".py"
    assert "py" in found["python"]["aliases"]
    assert set(EXAMPLES) <= set(found)
    assert len(EXAMPLES) >= 15
    assert all(one["example"].strip() for one in found.values())


async def test_every_example_runs_where_its_language_is_installed(served: Portal) -> None:
    """One after the other: compilers need much of a small machine, and most of them only in the long run."""
    languages = served.engine.languages
    async with served.user() as browser:
        for name, code in EXAMPLES.items():
            if not languages.is_available(name) or (name not in QUICK and not LONG):
                continue
            job = await browser.run(code, language=name, stdin="one\ntwo\n", limits={"wall_s": 100, "cpu_s": 100})
            result = (await browser.ended(job["id"]))["result"]
            assert (result["outcome"], result["exitCode"]) == ("exited", 0), (name, result)
            lines = result["stdout"].splitlines()
            assert lines[0].startswith("Hello from"), (name, result)
            assert lines[1:] == ["1: one", "2: two"], (name, result)


async def test_a_stranger_hears_nothing(served: Portal) -> None:
    async with served.user() as ada:
        job = await ada.run("print(1)", delay_s=3600)
        async with httpx.AsyncClient(base_url=served.url, trust_env=False) as http:
            assert (await http.get(f"/api/jobs/{job['id']}/events")).status_code == 401
        await ada.post(f"/api/jobs/{job['id']}/cancel")
