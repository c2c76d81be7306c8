"""Metrics of the compile cache."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stockade.app.metrics import CompilationMetrics
from stockade.engine import Compilations
from stockade.model import Outcome, ProcessResult, Usage

pytestmark = pytest.mark.anyio


async def refuse() -> tuple[ProcessResult, float]:
    usage = Usage(wall_s=0.1, cpu_user_s=0.1, cpu_system_s=0.0, memory_peak_bytes=1)
    result = ProcessResult(
        outcome=Outcome.EXITED,
        exit_code=1,
        signal=None,
        stdout=b"",
        stderr=b"",
        stdout_truncated=False,
        stderr_truncated=False,
        usage=usage,
    )
    return result, 0.0


async def test_metrics_tell_what_the_compile_cache_spared() -> None:
    registry, kept = CollectorRegistry(), Compilations(most_bytes=1 << 20, most_entries=10)
    CompilationMetrics(registry, kept)
    for _ in range(3):
        async with kept.compiled("key", refuse):
            pass
    text = generate_latest(registry).decode()
    assert 'stockade_compilations_total{from="cache"} 2.0' in text
    assert 'stockade_compilations_total{from="compiler"} 1.0' in text
    assert "stockade_compilations_kept 1.0" in text
    assert f"stockade_compilations_bytes {float(kept.bytes)}" in text
