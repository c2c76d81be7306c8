"""What the dialect counts."""

from prometheus_client import CollectorRegistry, Counter

__all__ = ["Metrics"]


class Metrics:
    """Counters of the dialect, on the server's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "stockade_code_sandbox_requests",
            "Requests of the code-sandbox dialect.",
            ["route", "status"],
            registry=registry,
        )

    def answered(self, route: str, status: int) -> None:
        """Count an answer. *route* is a path of the protocol's, not of the request's: labels must be few."""
        self._requests.labels(route, str(status)).inc()
