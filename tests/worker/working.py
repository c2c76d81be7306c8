"""A worker at work during a block, on whatever store and engine."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stockade.config_jobs import JobsConfig
from stockade.engine import Engine, Languages
from stockade.model import Actor, Outcome, ProcessResult, RunResult, RunSpec, Usage
from stockade.model.jobs import Job, Webhook
from stockade.store.jobs import JobStore
from stockade.worker import Worker

__all__ = ["QUICK", "FakeRuns", "Working", "a_job", "becomes", "ended", "working"]

QUICK = JobsConfig(heartbeat_s=0.05, lease_s=5.0, most_attempts=3)
WITHIN_S = 60.0


def a_job(code: str = "print('done')", *, key_id: str = "ann", language: str = "python", **members: Any) -> Job:
    """A job that may start now."""
    now = datetime.now(UTC)
    spec = members.pop("spec", None) or RunSpec(language=language, code=code)
    if url := members.pop("url", ""):
        members["webhook"] = Webhook(url=url)
    known: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "account_id": key_id,
        "key_id": key_id,
        "dialect": "test",
        "spec": spec,
        "language": language,
        "created_at": now,
        "updated_at": now,
        "run_at": now,
    }
    return Job(**(known | members))


class FakeRuns:
    """Stands for `engine.runs`: what it makes of a program, a test says."""

    def __init__(self, languages: Languages, act: Callable[[RunSpec], Awaitable[bytes]]) -> None:
        self.languages = languages
        self.running = 0
        self.most_running = 0
        self.actors: list[Actor] = []
        self.cut_short = 0
        self._act = act

    async def run(self, actor: Actor, spec: RunSpec, *, watched: Any = None) -> RunResult:
        self.actors.append(actor)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            return printed(await self._act(spec))
        except asyncio.CancelledError:
            self.cut_short += 1
            raise
        finally:
            self.running -= 1


def printed(stdout: bytes, outcome: Outcome = Outcome.EXITED) -> RunResult:
    usage = Usage(wall_s=0.25, cpu_user_s=0.1, cpu_system_s=0.05, memory_peak_bytes=1 << 20)
    process = ProcessResult(
        outcome=outcome,
        exit_code=0 if outcome is Outcome.EXITED else None,
        signal=None,
        stdout=stdout,
        stderr=b"",
        stdout_truncated=False,
        stderr_truncated=False,
        usage=usage,
    )
    return RunResult(language="python", compilation=None, process=process, queued_s=0.0)


@dataclass(frozen=True, kw_only=True)
class Working:
    """A running worker, and how to end it."""

    worker: Worker
    stop: asyncio.Event
    at_once: asyncio.Event
    task: "asyncio.Task[None]"

    async def end(self) -> None:
        """Stop it and wait for its end."""
        self.stop.set()
        async with asyncio.timeout(WITHIN_S):
            await self.task


@contextlib.asynccontextmanager
async def working(
    store: JobStore, engine: Engine | FakeRuns, config: JobsConfig = QUICK, *, places: int = 4, **options: Any
) -> AsyncIterator[Working]:
    """A worker; at the end of the block it gives back at once what it still has."""
    runs: Any = engine if isinstance(engine, FakeRuns) else engine.runs
    worker = Worker(store, runs, config, places=places, **options)
    stop, at_once = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(worker.run(stop, at_once=at_once))
    try:
        yield Working(worker=worker, stop=stop, at_once=at_once, task=task)
    finally:
        at_once.set()
        stop.set()
        async with asyncio.timeout(WITHIN_S):
            await task


async def becomes(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    """Wait until *condition* holds; the test fails when it does not come to."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.01)


async def ended(store: JobStore, job: Job, within_s: float = WITHIN_S) -> Job:
    """The job once it has ended."""
    async with asyncio.timeout(within_s):
        while True:
            found = await store.get(job.id)
            assert found is not None
            if found.has_ended:
                return found
            await store.wait_for_change(job.id, 0.1)
