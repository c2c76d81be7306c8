"""Prometheus metrics of the engine's own parts, read when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stockade.engine import Compilations
from stockade.engine.boxes import Boxes

__all__ = ["BoxMetrics", "CompilationMetrics"]


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


class BoxMetrics(Collector):
    """What becomes of the boxes of this server."""

    def __init__(self, registry: CollectorRegistry, boxes: Boxes) -> None:
        self._boxes = boxes
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The figures of this moment."""
        counts = self._boxes.counts()
        yield CounterMetricFamily("stockade_boxes_created", "Boxes that were made, copies included.", counts.created)
        starts = CounterMetricFamily("stockade_box_starts", "Starts of boxes by what came of them.", labels=("result",))
        starts.add_metric(("started",), counts.started)
        starts.add_metric(("failed",), counts.failed)
        yield starts
        yield GaugeMetricFamily("stockade_boxes_running", "Boxes that run, paused ones included.", counts.running)
