"""Many clients at once: each gets an answer, memory stays bounded, and the queue is fair."""

import asyncio
import re
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.app.serving import serving
from tests.app.traces import Answer, exchange

HELLO = {"language": "python", "code": "print(6*7)"}
CLIENTS = 1000
MOST_MEMORY = 256 * 1024 * 1024


@pytest.fixture(autouse=True)
def enough_descriptors() -> Iterator[None]:
    """A socket for each client."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2 * CLIENTS:
        pytest.skip(f"needs {2 * CLIENTS} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2 * CLIENTS), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.anyio
async def test_a_thousand_clients_at_once_all_get_an_answer(tmp_path: Path) -> None:
    with serving(tmp_path, STOCKADE_QUEUE_LENGTH="200") as server:
        answers: list[Answer] = await asyncio.gather(*(exchange(server.url, HELLO) for _ in range(CLIENTS)))
        found = Counter(one.status for one in answers)
        assert set(found) <= {200, 429, 503}, found
        assert found[200] >= 200
        for one in answers:
            if one.status == 200:
                assert one.json()["stdout"] == "42\n"
            else:
                assert int(one.headers["retry-after"]) >= 1
                assert isinstance(one.json()["error"], str)
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[0]) < MOST_MEMORY
        assert (await exchange(server.url, HELLO)).status == 200
        async with httpx.AsyncClient(base_url=server.url) as client:
            health = (await client.get("/health")).json()
        assert (health["running"], health["queued"]) == (0, 0)


@pytest.mark.anyio
async def test_whoever_sends_one_request_does_not_wait_for_another_one_s_two_hundred(tmp_path: Path) -> None:
    keys = ("the-key-of-somebody-busy", "the-key-of-somebody-else")
    with serving(tmp_path, API_KEYS=",".join(keys), STOCKADE_QUEUE_PLACES="2") as server:
        many = [asyncio.ensure_future(exchange(server.url, HELLO, [("X-API-Key", keys[0])])) for _ in range(200)]
        async with httpx.AsyncClient(base_url=server.url) as client, asyncio.timeout(60):
            while (await client.get("/health")).json()["queued"] < 100:
                assert not all(one.done() for one in many)
        one = await exchange(server.url, HELLO, [("X-API-Key", keys[1])])
        served_before = sum(other.done() for other in many)
        assert one.status == 200
        assert {answer.status for answer in await asyncio.gather(*many)} == {200}
        assert served_before < 150


@pytest.mark.anyio
async def test_a_busy_server_refuses_before_it_reads_a_body_and_the_connection_stays_usable(tmp_path: Path) -> None:
    sleeper = {"language": "python", "code": "import time; time.sleep(60)"}
    limits = httpx.Limits(max_connections=1)
    with serving(tmp_path, STOCKADE_QUEUE_PLACES="1", STOCKADE_QUEUE_LENGTH="0") as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=30) as other,
            httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as client,
        ):
            holding = asyncio.ensure_future(other.post("/execute", json=sleeper))
            async with asyncio.timeout(30):
                while not (await client.get("/health")).json()["running"]:
                    assert not holding.done()
            for body in (b"{}", b"{no JSON", b" " * 1_000_000):
                refused = await client.post("/execute", content=body, headers={"Content-Type": "application/json"})
                assert (refused.status_code, refused.json()["error"]) == (503, "Server busy")
                assert int(refused.headers["retry-after"]) >= 1
            holding.cancel()
            async with asyncio.timeout(30):
                while (await client.get("/health")).json()["running"]:
                    pass
            assert (await client.post("/execute", json=HELLO)).json()["stdout"] == "42\n"
        assert not any("isobox.failed" in line for line in server.log)  # such refusals are counted instead


@pytest.mark.anyio
async def test_a_kept_answer_is_given_also_while_there_is_no_room(tmp_path: Path) -> None:
    sleeper = {"language": "python", "code": "import time; time.sleep(60)"}
    with serving(tmp_path, STOCKADE_QUEUE_PLACES="1", STOCKADE_QUEUE_LENGTH="0", DEDUP_ENABLED="true") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await client.post("/execute", json=HELLO)).status_code == 200
            holding = asyncio.ensure_future(client.post("/execute", json=sleeper))
            async with asyncio.timeout(30):
                while not (await client.get("/health")).json()["running"]:
                    assert not holding.done()
            assert (await client.post("/execute", json=HELLO)).status_code == 200
            assert (await client.post("/execute", json=HELLO | {"stdin": "x"})).status_code == 503
            holding.cancel()
