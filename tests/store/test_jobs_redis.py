"""What jobs in Redis promise beyond what all stores do: the document, and what they survive."""

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from stockade.errors import Invalid, Unavailable
from stockade.model.jobs import Job, JobState
from stockade.model.limits import LimitOverrides
from stockade.model.outcomes import Outcome
from stockade.model.runs import RunSpec
from stockade.store.jobs import JobStore
from stockade.store.jobs_redis import RedisJobs
from tests.redis_server import RedisServer, redis_server
from tests.store.job_stores import a_job, a_result, until
from tests.store.job_stores_redis import DOCUMENT, in_redis

pytestmark = pytest.mark.anyio

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("r")) as server:
        yield server


def told(server: RedisServer, job: Job) -> dict[str, Any]:
    """The document of a job, as any client of Redis reads it."""
    answer = server.command("GET", f"job:{job.id}")
    assert answer.startswith(b"$"), answer
    assert not answer.startswith(b"$-1"), "there is no document"
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n")[2])
    return found


def at(text: str) -> datetime:
    assert MOMENT.fullmatch(text), text
    return datetime.fromisoformat(text)


async def test_the_document_follows_the_job(server: RedisServer) -> None:
    spec = RunSpec(language="JS", code="é\0\ud800", stdin=b"\xff", limits=LimitOverrides(wall_s=1.5))
    job = a_job(spec=spec, language="node")
    async with in_redis(server.url)() as store:
        await store.add([job])
        found = told(server, job)
        assert list(found) == ["id", "request", "status", "createdAt", "updatedAt"]
        assert (found["id"], found["status"]) == (job.id, "queued")
        assert found["request"] == {
            "language": "JS",
            "code": "é\0\ud800",
            "stdin": "\N{REPLACEMENT CHARACTER}",
            "timeout": 1_500_000_000,
        }
        assert at(found["createdAt"]) == job.created_at
        [claimed] = await store.claim("w", most=1, lease_s=60)
        found = told(server, job)
        assert (found["status"], at(found["startedAt"])) == ("running", claimed.started_at)
        done = await store.finish(job.id, claimed.fence, a_result(b"\xff\n", exit_code=3), keep_s=60)
    assert done is not None
    found = told(server, job)
    assert list(found) == [
        *("id", "request", "status", "result", "error"),
        *("createdAt", "updatedAt", "startedAt", "completedAt"),
    ]
    assert (found["status"], found["error"]) == ("failed", "process exited with status 3")
    assert found["result"]["stdout"] == "\N{REPLACEMENT CHARACTER}\n"
    assert (found["result"]["exitCode"], found["result"]["duration"]) == (3, 123_456_789_012)
    assert at(found["completedAt"]) == at(found["updatedAt"]) == at(found["result"]["completedAt"]) == done.ended_at


async def test_the_document_says_why_nothing_was_run(server: RedisServer) -> None:
    cancelled, lost = a_job(), a_job(priority=1)
    async with in_redis(server.url)() as store:
        await store.add([cancelled, lost])
        await store.cancel(cancelled.id, keep_s=60)
        [claimed] = await store.claim("w", most=1, lease_s=0.0)
        assert claimed.id == lost.id
        ended: list[Job] = []
        async with asyncio.timeout(30):
            while not ended:
                _, ended = await store.reap(most_attempts=1, keep_s=60)  # type: ignore[assignment]
    for job, why in ((cancelled, "execution cancelled"), (lost, "server restarted")):
        found = told(server, job)
        assert (found["status"], found["error"], found["result"]["exitCode"]) == ("failed", why, -1)


async def test_a_timeout_names_the_limit(server: RedisServer) -> None:
    job = a_job()
    async with in_redis(server.url)() as store:
        await store.add([job])
        [claimed] = await store.claim("w", most=1, lease_s=60)
        await store.finish(job.id, claimed.fence, a_result(outcome=Outcome.WALL_TIME, exit_code=None), keep_s=60)
    assert told(server, job)["error"].startswith("execution timed out: limit=2.5s ")


@pytest.mark.parametrize("day", ["1999-12-31", "2000-02-29", "2024-02-29", "2025-03-01", "2100-02-28", "2100-03-01"])
async def test_moments_are_written_as_calendars_have_them(server: RedisServer, day: str) -> None:
    created = datetime.fromisoformat(f"{day}T23:59:59.120000+00:00")
    job = a_job(created_at=created)
    async with in_redis(server.url)() as store:
        await store.add([job])
    assert told(server, job)["createdAt"] == f"{day}T23:59:59.12Z"


async def test_an_ended_job_goes_by_itself_when_its_time_has_come(server: RedisServer) -> None:
    async with in_redis(server.url)() as store:
        jobs = [a_job(), a_job()]
        await store.add(jobs)
        for job, keep_s in zip(await store.claim("w", most=2, lease_s=60), (3600.0, None), strict=True):
            await store.finish(job.id, job.fence, a_result(), keep_s=keep_s)
            left = int(server.command("TTL", f"job:{job.id}")[1:])
            assert (3590 < left <= 3600) if keep_s else left == -1


@pytest.mark.parametrize("times", [1, 2])
async def test_what_was_acknowledged_is_there_when_redis_was_killed(server: RedisServer, times: int) -> None:
    """In the middle of things, and twice in a row; and whoever has it open goes on with the next one."""
    async with in_redis(server.url)() as store:
        added: list[str] = []
        ended: dict[str, bytes] = {}

        async def submit() -> None:
            for _ in range(60):
                job = a_job()
                if await _insisted(lambda job=job: store.add([job])):  # type: ignore[misc]
                    added.append(job.id)

        async def work() -> None:
            while len(ended) < 240:
                try:
                    claimed = await store.claim("w", most=4, lease_s=1.0)
                    await store.reap(most_attempts=1000, keep_s=None)
                except Unavailable:
                    await asyncio.sleep(0.01)
                    continue
                for job in claimed:
                    data = f"{job.id} {job.fence}".encode()
                    result = a_result(data)
                    await _insisted(lambda job=job, result=result: store.finish(job.id, job.fence, result, keep_s=None))  # type: ignore[misc]
                    found = await _insisted(lambda job=job: store.get(job.id))  # type: ignore[misc]
                    if isinstance(found, Job) and found.has_ended and found.result is not None:
                        assert ended.setdefault(job.id, found.result.stdout) == found.result.stdout
                await asyncio.sleep(0)

        async def kill() -> None:
            for number in range(times):
                await until(lambda enough=40 * (number + 1): len(ended) >= enough)  # type: ignore[misc]
                await asyncio.to_thread(server.end, signal.SIGKILL)
                await asyncio.to_thread(server.start)

        async with asyncio.timeout(90):
            await asyncio.gather(*(submit() for _ in range(4)), work(), work(), kill())
        assert sorted(added) == sorted(ended)
        depth = await store.depth()
        assert (dict(depth.queued), depth.running) == ({}, 0)


async def _insisted(ask: Any) -> Any:
    """What *ask* brings, however often it takes; True for nothing."""
    while True:
        try:
            found = await ask()
        except Unavailable:
            await asyncio.sleep(0.01)
        else:
            return True if found is None else found


async def test_scripts_that_redis_has_forgotten_are_sent_again(server: RedisServer) -> None:
    async with in_redis(server.url)() as store:
        await store.add([a_job()])
        assert server.command("SCRIPT", "FLUSH").startswith(b"+OK")
        assert len(await store.claim("w", most=1, lease_s=60)) == 1


async def test_without_redis_all_is_unavailable_and_with_it_fine_again(server: RedisServer) -> None:
    async with in_redis(server.url)() as store:
        job = a_job()
        await store.add([job])
        server.end()
        for asked in (store.ping(), store.add([a_job()]), store.get(job.id), store.claim("w", most=1, lease_s=60)):
            with pytest.raises(Unavailable):
                await asked
        assert await store.wait_for_work(0.01) in (True, False)
        server.start()
        found = await store.get(job.id)
        assert found is not None
        assert found.state is JobState.QUEUED
        waiting = asyncio.create_task(store.wait_for_change(job.id, 60))
        await _told_again(store, waiting)


async def _told_again(store: JobStore, waiting: "asyncio.Task[bool]") -> None:
    """Changes are heard of again."""
    async with asyncio.timeout(50):
        while not waiting.done():
            await store.add([a_job(run_at=datetime.now(UTC) + timedelta(hours=1))])
            for job in (await store.claim("w", most=1, lease_s=60)) or ():
                await store.finish(job.id, job.fence, a_result(), keep_s=None)
            await asyncio.sleep(0.05)
    assert await waiting


async def test_no_redis_at_the_start_is_told(tmp_path: Path) -> None:
    store = RedisJobs(f"unix://{tmp_path}/nowhere.sock", timeout_s=1.0, document=DOCUMENT)
    with pytest.raises(Unavailable):
        await store.open()
    await store.close()


@pytest.mark.parametrize("url", ["", "http://127.0.0.1", "redis://127.0.0.1:port"])
async def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match=r"jobs\.redis_url"):
        RedisJobs(url, timeout_s=1.0, document=DOCUMENT)


@pytest.mark.parametrize("is_durable", [True, False])
async def test_a_redis_that_keeps_nothing_is_warned_of(
    tmp_path_factory: pytest.TempPathFactory, is_durable: bool
) -> None:
    with (
        redis_server(tmp_path_factory.mktemp("r"), is_durable=is_durable) as server,
        structlog.testing.capture_logs() as logs,
    ):
        async with in_redis(server.url)():
            pass
    assert [one["event"] for one in logs] == ([] if is_durable else ["jobs.redis_not_durable"])
