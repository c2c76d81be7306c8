"""Figures of jobs for Prometheus: how the queue stands, and what the workers of this process do."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stockade.engine.jobs import Jobs
from stockade.errors import StockadeError
from stockade.model.jobs import Job, JobResult, QueueDepth, WorkerRecord
from stockade.worker import Observer

__all__ = ["JobMetrics"]

log = structlog.get_logger()

LOOK_EVERY_S = 5.0
"""Between two looks at the queue, however often the figures are asked for."""
_WAITS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_RUNS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_STORED_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0)


class JobMetrics(Observer, Collector):
    """Counts what the workers of this process do, and shows how the common queue stands."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Nothing of the queue is shown before `look` has seen it."""
        self._ended = Counter(
            "stockade_jobs_ended",
            "Jobs that workers of this process have ended, by language, state, and outcome or failure.",
            ("language", "state", "outcome"),
            registry=registry,
        )
        self._given_back = Counter(
            "stockade_jobs_given_back",
            "Jobs that workers of this process have given back to be run again.",
            ("reason",),
            registry=registry,
        )
        self._reaped = Counter(
            "stockade_jobs_reaped",
            "Jobs found by this process whose worker had died: queued again, ended as dead, or as cancelled.",
            ("fate",),
            registry=registry,
        )
        self._webhooks = Counter(
            "stockade_webhooks", "Attempts to tell that a job has ended.", ("outcome",), registry=registry
        )
        self._waited = Histogram(
            "stockade_job_wait_seconds",
            "From the moment that a job could start to its first claim.",
            ("language",),
            buckets=_WAITS_S,
            registry=registry,
        )
        self._ran = Histogram(
            "stockade_job_run_seconds",
            "Time that a worker had a job, the wait for a place included.",
            ("language",),
            buckets=_RUNS_S,
            registry=registry,
        )
        self._stored = Histogram(
            "stockade_job_store_seconds", "Time that storing a result took.", buckets=_STORED_S, registry=registry
        )
        self._depth: QueueDepth | None = None
        self._workers: Sequence[WorkerRecord] = ()
        registry.register(self)

    async def look(self, jobs: Jobs, stop: asyncio.Event) -> None:
        """Look at the queue again and again, until *stop*. While the store is away, there are no figures of it."""
        while not stop.is_set():
            try:
                self._depth, self._workers = await jobs.depth(), await jobs.workers()
            except StockadeError as error:
                self._depth, self._workers = None, ()
                log.warning("jobs.no_figures", reason=str(error))
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await stop.wait()
            except TimeoutError:
                pass

    def collect(self) -> Iterator[Metric]:
        """How the queue stood when it was last looked at."""
        if (depth := self._depth) is None:
            return
        queued = GaugeMetricFamily("stockade_jobs_queued", "Jobs that could start now.", labels=("language",))
        for language, number in depth.queued.items():
            queued.add_metric((language,), number)
        yield queued
        for name, help, value in (
            ("delayed", "Jobs whose moment has not come.", depth.delayed),
            ("running", "Jobs that some worker has.", depth.running),
            ("dead", "Jobs in the dead-letter list.", depth.dead),
        ):
            yield GaugeMetricFamily(f"stockade_jobs_{name}", help, value=value)
        oldest = depth.oldest_queued_at
        yield GaugeMetricFamily(
            "stockade_jobs_oldest_seconds",
            "For how long the job that has waited longest could have started.",
            value=max(0.0, (datetime.now(UTC) - oldest).total_seconds()) if oldest is not None else 0.0,
        )
        yield GaugeMetricFamily("stockade_workers", "Workers that live.", value=len(self._workers))
        places = sum(one.places for one in self._workers if not one.is_draining)
        yield GaugeMetricFamily("stockade_worker_places", "Jobs that they can run at once.", value=places)

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        """See `Observer.running`."""
        began = time.monotonic()
        if job.fence == 1:
            waited_s = max(0.0, (datetime.now(UTC) - job.run_at).total_seconds())
            self._waited.labels(job.language).observe(waited_s)
        try:
            yield
        finally:
            self._ran.labels(job.language).observe(time.monotonic() - began)

    @contextmanager
    def storing(self, job: Job) -> Iterator[None]:
        """See `Observer.storing`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._stored.observe(time.monotonic() - began)

    def ended(self, job: Job, result: JobResult) -> None:
        """See `Observer.ended`."""
        word = result.failure or result.outcome
        self._ended.labels(job.language, result.state.value, word.value if word is not None else "none").inc()

    def given_back(self, job: Job, reason: str) -> None:
        """See `Observer.given_back`."""
        self._given_back.labels(reason).inc()

    def reaped(self, queued_again: int, ended: Sequence[Job]) -> None:
        """See `Observer.reaped`."""
        self._reaped.labels("queued").inc(queued_again)
        for job in ended:
            self._reaped.labels("dead" if job.is_dead else "cancelled").inc()

    def told(self, outcome: str) -> None:
        """See `Observer.told`."""
        self._webhooks.labels(outcome).inc()
