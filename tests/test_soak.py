"""The soak, shortened: steady load on a real server leaves nothing behind."""

from pathlib import Path

from bench.server import serving
from bench.soak import Plan, judge, soak

SECONDS = 12.0


def test_steady_load_leaves_no_mount_group_namespace_descriptor_or_process(tmp_path: Path) -> None:
    """At 70 % of what the server can do; counts at rest are what they were, or less where fewer cells wait."""
    with serving(tmp_path) as server:
        found = soak(server, Plan(seconds=SECONDS, every_s=1.0, window_s=2.0, saturate_s=2.0))
    assert sum(told["runs"] for told in found.latencies) > 0
    assert sum(told["refused"] for told in found.latencies) == 0
    assert found.left_behind == {}
    # The table is made of what was seen; what it says of time is not judged here.
    sheet, figures = judge(found)
    names = [row[0] for row in sheet.rows]
    assert {"warden, resident MiB", "control groups", "network namespaces", "latency p99, ms"} <= set(names)
    assert figures[-1].met
