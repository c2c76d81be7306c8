"""Prometheus metrics of the isobox dialect. No label holds code, input, keys or addresses."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from stockade.dialects.isobox.translate import outcome_label
from stockade.engine import Queue
from stockade.model import RunResult

__all__ = ["Metrics"]

_SHORT = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
_LONG = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)


class Metrics:
    """Counts requests and runs."""

    def __init__(self, registry: CollectorRegistry, queue: Queue) -> None:
        # Finding a child by its labels takes longer than counting does; there are few, so each is found once.
        self.requests = cache(
            Counter("isobox_requests", "Requests by route and status.", ("route", "status"), registry=registry).labels
        )
        self._executions = cache(
            Counter(
                "isobox_executions", "Programs by language and outcome.", ("language", "outcome"), registry=registry
            ).labels
        )
        self.rate_limited = Counter("isobox_rate_limited", "Requests refused with 429.", registry=registry)
        self._execution = cache(
            Histogram(
                "isobox_execution_seconds",
                "Time that programs ran.",
                ("language",),
                registry=registry,
                buckets=_LONG,
            ).labels
        )
        self._compile = cache(
            Histogram(
                "isobox_compile_seconds",
                "Time that compilers ran.",
                ("language",),
                registry=registry,
                buckets=_LONG,
            ).labels
        )
        self._queue = Histogram(
            "isobox_queue_seconds",
            "Time spent waiting for a place.",
            registry=registry,
            buckets=_SHORT,
        )
        self._start = Histogram(
            "isobox_start_seconds",
            "What sandboxes cost: time of a run that was neither waiting nor the program's or compiler's own.",
            registry=registry,
            buckets=_SHORT,
        )
        running = Gauge("isobox_running", "Programs running now.", registry=registry)
        running.set_function(lambda: queue.running)
        queued = Gauge("isobox_queued", "Programs waiting for a place.", registry=registry)
        queued.set_function(lambda: queue.waiting)

    def ran(self, result: RunResult, elapsed_s: float, *, compiled: bool = True) -> None:
        """Count one program.

        Args:
            elapsed_s: all the time that it took, waiting included.
            compiled: whether its compile step was part of that time.
        """
        self._executions(result.language, outcome_label(result)).inc()
        self._queue.observe(result.queued_s)
        own_s = 0.0
        if compiled and result.compilation is not None:
            self._compile(result.language).observe(result.compilation.usage.wall_s)
            own_s += result.compilation.usage.wall_s
        if result.process is not None:
            self._execution(result.language).observe(result.process.usage.wall_s)
            own_s += result.process.usage.wall_s
        self._start.observe(max(0.0, elapsed_s - result.queued_s - own_s))

    def failed(self, language: str, outcome: str) -> None:
        """Count a program that never got an outcome: refused, cancelled, or lost with its host."""
        self._executions(language, outcome).inc()
