"""Prometheus metrics of the executor dialect. No label holds commands, output, secrets or addresses."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Counts requests and times commands."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Finding a child by its labels takes longer than counting does; there are few, so each is found once.
        self.requests = cache(
            Counter(
                "executor_requests", "Requests by operation and status.", ("operation", "status"), registry=registry
            ).labels
        )
        self.run_seconds = Histogram(
            "executor_run_seconds", "Time that commands of /run took.", registry=registry, buckets=_SECONDS
        )
        self.wrong_secrets = Counter("executor_wrong_secrets", "Requests answered with 401.", registry=registry)
