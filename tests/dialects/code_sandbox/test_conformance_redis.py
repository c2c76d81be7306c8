"""The contract's cases about Redis, with a real one."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dialects.code_sandbox.serving import WITHIN_S, CodeSandbox, code_sandbox
from tests.redis_server import RedisServer, redis_server

WRITE_TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis"), has_port=True) as server:
        yield server


def variables(redis: RedisServer) -> dict[str, str]:
    return {
        "REDIS_ADDR": f"127.0.0.1:{redis.port}",
        "HTTP_WRITE_TIMEOUT": f"{WRITE_TIMEOUT_S:g}s",
        "STOCKADE_JOBS_LEASE_S": "1",
        "STOCKADE_JOBS_HEARTBEAT_S": "0.2",
    }


def document(redis: RedisServer, job_id: str) -> dict[str, Any]:
    """What another server of the original finds."""
    answer = redis.command("GET", f"job:{job_id}")
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n")[2])
    return found


def test_redis_holds_the_jobs_and_its_absence_is_told_until_it_is_back(redis: RedisServer, tmp_path: Path) -> None:
    """Cases 23 and 26."""
    with code_sandbox(tmp_path / "data", **variables(redis)) as sandbox:
        done = sandbox.run("javascript", 'console.log("<hi>")')
        held = document(redis, done["id"])
        assert list(held) == ["id", "request", "status", "result", "createdAt", "updatedAt", "startedAt", "completedAt"]
        assert held == done
        failed = sandbox.run("python", "raise SystemExit(3)")
        held = document(redis, failed["id"])
        assert (held["status"], held["error"]) == ("failed", "process exited with status 3")
        assert held == failed
        waiting = sandbox.job(delay="1h")
        assert document(redis, waiting["id"])["status"] == "queued"

        redis.end()
        for _ in range(2):
            began = time.monotonic()
            assert sandbox.is_error(sandbox.execute(), 500, "execution failed")
            assert sandbox.is_error(sandbox.ask("GET", f"/v1/execute/{done['id']}"), 500, "failed to load job")
            assert time.monotonic() - began < 2 * WRITE_TIMEOUT_S
        redis.start()
        assert _readable_again(sandbox, done["id"]) == done
        assert sandbox.run("python", "print(2)")["result"]["stdout"] == "2\n"


def _readable_again(sandbox: CodeSandbox, job_id: str) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while (response := sandbox.ask("GET", f"/v1/execute/{job_id}")).status_code != 200:
        assert time.monotonic() < deadline, response.text
        time.sleep(0.1)
    return response.json()


def test_jobs_outlive_the_server_and_none_runs_for_ever(redis: RedisServer, tmp_path: Path) -> None:
    """Cases 24 and 25."""
    with code_sandbox(tmp_path / "data", **variables(redis)) as first:
        done = first.run("python", "print(1)")
        long = first.queued("python", "import time; time.sleep(2); print('ended')", timeout="30s")
        deadline = time.monotonic() + WITHIN_S
        while first.read(long)["status"] != "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.server.end(signal.SIGKILL)
    with code_sandbox(tmp_path / "data", **variables(redis)) as second:
        assert second.read(done["id"]) == done
        job = second.ended(long)
        assert (job["status"], job["result"]["stdout"]) == ("succeeded", "ended\n")
        assert second.own(long)["attempts"] == 2
