"""Figures of jobs."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stockade.app.job_metrics import JobMetrics
from stockade.config_jobs import JobsConfig
from stockade.engine.jobs import Jobs
from stockade.model import Outcome
from stockade.model.jobs import JobFailure, JobResult, WorkerRecord
from tests.worker.fake_store import FakeStore
from tests.worker.working import a_job, becomes

pytestmark = pytest.mark.anyio


def lines(registry: CollectorRegistry) -> list[str]:
    return generate_latest(registry).decode().splitlines()


async def test_the_figures_of_the_queue_are_those_of_the_last_look(anyio_backend: str) -> None:
    registry, store, nothing = CollectorRegistry(), FakeStore(), Any
    metrics = JobMetrics(registry)
    jobs = Jobs(store=store, runs=nothing, config=JobsConfig())  # type: ignore[arg-type]
    now = datetime.now(UTC)
    await store.add([a_job(), a_job(run_at=now - timedelta(hours=1)), a_job(language="go")])
    await store.add([a_job(run_at=now + timedelta(hours=1))])
    worker = WorkerRecord(id="w", host="h", pid=1, languages=(), places=4, running=0, started_at=now, seen_at=now)
    for one in (worker, replace(worker, id="v", is_draining=True)):
        await store.renew(one, {}, lease_s=1)
    assert not [line for line in lines(registry) if line.startswith("stockade_jobs_queued")]
    stop = asyncio.Event()
    looking = asyncio.create_task(metrics.look(jobs, stop))
    await becomes(lambda: 'stockade_jobs_queued{language="go"} 1.0' in lines(registry))
    found = lines(registry)
    for line in ('stockade_jobs_queued{language="python"} 2.0', "stockade_jobs_delayed 1.0", "stockade_jobs_dead 0.0"):
        assert line in found
    assert {"stockade_workers 2.0", "stockade_worker_places 4.0"} <= set(found)
    (oldest,) = [line for line in found if line.startswith("stockade_jobs_oldest_seconds ")]
    assert 3600 <= float(oldest.split()[1]) < 3700
    stop.set()
    await looking


def test_what_workers_do_is_counted() -> None:
    registry = CollectorRegistry()
    metrics = JobMetrics(registry)
    job = a_job(attempts=1, fence=1)
    for one in (job, replace(job, fence=2)):  # it has waited once, and is run again
        with metrics.running(one):
            pass
    with metrics.storing(job):
        pass
    metrics.ended(job, JobResult(outcome=Outcome.EXITED, exit_code=0))
    metrics.ended(job, JobResult(outcome=None, failure=JobFailure.REFUSED))
    metrics.given_back(job, "busy")
    metrics.reaped(2, [replace(job, is_dead=True), job])
    metrics.told("delivered")
    found = lines(registry)
    for line in (
        'stockade_jobs_ended_total{language="python",outcome="exited",state="succeeded"} 1.0',
        'stockade_jobs_ended_total{language="python",outcome="refused",state="failed"} 1.0',
        'stockade_jobs_given_back_total{reason="busy"} 1.0',
        'stockade_jobs_reaped_total{fate="queued"} 2.0',
        'stockade_jobs_reaped_total{fate="dead"} 1.0',
        'stockade_jobs_reaped_total{fate="cancelled"} 1.0',
        'stockade_webhooks_total{outcome="delivered"} 1.0',
        'stockade_job_wait_seconds_count{language="python"} 1.0',
        'stockade_job_run_seconds_count{language="python"} 2.0',
        "stockade_job_store_seconds_count 1.0",
    ):
        assert line in found
