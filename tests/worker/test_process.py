"""`stockade worker`: a process that takes jobs from the queue, beside a server or without one."""

import asyncio
import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from stockade.app.worker import knows_accounts
from stockade.config import load
from stockade.engine.job_events import follow
from stockade.model.jobs import Job, JobState, OutputPiece
from stockade.store.identity import server_id
from stockade.store.jobs import JobStore
from tests.app.serving import START_S, command, environment
from tests.faults.sessions import warden_of
from tests.worker.processes import open_queue, worker_process
from tests.worker.working import a_job, ended

pytestmark = pytest.mark.anyio
QUICK = {"STOCKADE_JOBS_HEARTBEAT_S": "0.1"}
SLOW = "print('begun', flush=True)\nimport time\ntime.sleep({seconds})\nprint('done')"


async def becomes_running(store: JobStore, job: Job) -> None:
    async with asyncio.timeout(START_S):
        while True:
            found = await store.get(job.id)
            assert found is not None
            if found.state is JobState.RUNNING:
                return
            await store.wait_for_change(job.id, 0.1)


def a_free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def heard_until_cancelled(store: JobStore) -> list[JobState | bytes]:
    """What is told of a job that prints and sleeps, and is cancelled once its output was heard."""
    job, heard = a_job(SLOW.format(seconds=60)), list[JobState | bytes]()
    await store.add([job])
    async with asyncio.timeout(START_S):
        async for event in follow(store, job, nudge=lambda: None):
            if isinstance(event, OutputPiece):
                await store.cancel(job.id, keep_s=None)
            found = event.data if isinstance(event, OutputPiece) else event.job.state
            if found not in heard:  # that its end was asked for is told as well
                heard.append(found)
    return heard


async def test_workers_do_what_waits_each_its_languages_show_their_figures_and_leave_nothing(tmp_path: Path) -> None:
    """Two on one queue: one has Python alone, and so the job in Bash waits for the other."""
    port = a_free_port()
    async with open_queue(tmp_path) as store:
        jobs = [a_job(f"print({number})") for number in range(20)]
        bash = a_job("echo from bash", language="bash")
        await store.add([*jobs, bash])
        with worker_process(
            tmp_path, "--language", "py", "--places", "2", "--metrics", f"127.0.0.1:{port}", **QUICK
        ) as first:
            assert first.said == "Stockade works: 2 jobs at once, py only\n"
            for number, job in enumerate(jobs):
                done = await ended(store, job)
                assert done.result is not None
                assert (done.result.stdout, done.attempts) == (f"{number}\n".encode(), 1)
            waiting = await store.get(bash.id)
            assert waiting is not None
            assert waiting.state is JobState.QUEUED
            (announced,) = await store.workers(seen_within_s=60)
            assert (announced.languages, announced.places, announced.pid) == (("python",), 2, first.process.pid)
            async with httpx.AsyncClient() as client:
                figures = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
            assert 'stockade_jobs_ended_total{language="python",outcome="exited",state="succeeded"} 20.0' in figures
            assert 'stockade_job_run_seconds_count{language="python"} 20.0' in figures
            assert await heard_until_cancelled(store) == [
                JobState.QUEUED,
                JobState.RUNNING,
                b"begun\n",
                JobState.CANCELLED,
            ]
            with worker_process(tmp_path, "--language", "bash") as second:
                assert (await ended(store, bash)).state is JobState.SUCCEEDED
                for one in (second, first):
                    one.process.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(one.process.wait, START_S) == 0
    assert not warden_of(tmp_path / "workers" / "1")
    assert not warden_of(tmp_path / "workers" / "2")


async def test_a_worker_that_is_told_to_stop_ends_what_runs_and_at_the_second_time_gives_it_back(
    tmp_path: Path,
) -> None:
    async with open_queue(tmp_path) as store:
        short, long, later = a_job(SLOW.format(seconds=1)), a_job(SLOW.format(seconds=60)), a_job()
        await store.add([short, long])
        with worker_process(tmp_path, **QUICK, STOCKADE_SANDBOX_DEFAULTS_WALL_S="100") as worker:
            for job in (short, long):
                await becomes_running(store, job)
            worker.process.send_signal(signal.SIGTERM)
            await store.add([later])
            done = await ended(store, short)
            assert done.result is not None
            assert done.result.stdout == b"begun\ndone\n"
            assert worker.process.poll() is None
            worker.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.process.wait, START_S) == 0
        for job in (long, later):
            found = await store.get(job.id)
            assert found is not None
            assert (found.state, found.attempts) == (JobState.QUEUED, 0)


async def test_a_worker_that_is_killed_loses_no_job(tmp_path: Path) -> None:
    """Another one runs it, once the lease of the first has run out."""
    quick = QUICK | {"STOCKADE_JOBS_LEASE_S": "1"}
    async with open_queue(tmp_path) as store:
        job = a_job(SLOW.format(seconds=5))
        await store.add([job])
        with worker_process(tmp_path, **quick) as first:
            await becomes_running(store, job)
            first.process.kill()
            with worker_process(tmp_path, **quick):
                done = await ended(store, job)
    assert done.result is not None
    assert (done.attempts, done.result.stdout) == (2, b"begun\ndone\n")


def test_a_worker_that_knows_of_redis_alone_leaves_accounts_to_others(tmp_path: Path) -> None:
    """Its own database is then one that no server looks into: what it added up there would be lost."""

    def knows(**variables: str) -> bool:
        return knows_accounts(load(environ=variables, options={"data_dir": tmp_path}))

    redis = {"REDIS_URL": "redis://127.0.0.1:6379/0"}
    assert knows()
    assert not knows(**redis)
    assert knows(DATABASE_URL="postgres://127.0.0.1/stockade", **redis)
    server_id(tmp_path / "state")  # a server starts on the same directory
    assert knows(**redis)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (("--language", "klingon"), {}, "unknown language 'klingon'"),
        (("--metrics", "nowhere"), {}, "option --metrics"),
        ((), {"STOCKADE_JOBS_POOLS": "python=many"}, "jobs.pools: python: must be a whole number"),
        ((), {"STOCKADE_JOBS_WEBHOOKS_PERMIT_PRIVATE": "here"}, "jobs.webhooks.permit_private"),
    ],
)
def test_a_mistake_in_the_configuration_is_told_at_the_start(
    tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str], message: str
) -> None:
    ended = subprocess.run(
        command("worker", "--data-dir", str(tmp_path), *arguments),
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert ended.returncode == 2
    assert re.search(rf"^stockade: .*{re.escape(message)}", ended.stderr, re.MULTILINE), ended.stderr
