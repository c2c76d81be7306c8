"""Prometheus metrics of the engine's own parts, read when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stockade.engine import Compilations

__all__ = ["CompilationMetrics"]


class CompilationMetrics(Collector):
    """What the compile cache spares, and what it costs."""

    def __init__(self, registry: CollectorRegistry, compilations: Compilations) -> None:
        self._compilations = compilations
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The figures of this moment."""
        kept = self._compilations
        asked = CounterMetricFamily(
            "stockade_compilations",
            "Compile steps by where they came from: the cache or the compiler.",
            labels=("from",),
        )
        asked.add_metric(("cache",), kept.hits)
        asked.add_metric(("compiler",), kept.misses)
        yield asked
        yield GaugeMetricFamily("stockade_compilations_kept", "Compilations in the cache.", value=len(kept))
        yield GaugeMetricFamily("stockade_compilations_bytes", "Memory of the compile cache.", value=kept.bytes)
