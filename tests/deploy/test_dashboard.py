"""The Grafana dashboard asks for nothing that there is not."""

import json
import re
import time
from pathlib import Path

import httpx
import pytest

from tests.app.serving import serving
from tests.deploy.units import DEPLOY

BOARD = json.loads((DEPLOY / "grafana" / "stockade.json").read_text(encoding="utf-8"))
NOT_SHOWN_YET_S = 30.0
"""The queue is looked at in the background."""


def expressions() -> list[str]:
    """All PromQL of the dashboard."""
    return [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]


def metrics_of(expression: str) -> set[str]:
    """The names of metrics, as they stand before their labels."""
    return set(re.findall(r"([a-z_]+)(?=\{)", expression))


def shown(text: str) -> set[str]:
    """Names that a query may use, of what a server shows."""
    found: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        found |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return found


def test_every_metric_of_the_dashboard_is_shown_by_a_server(tmp_path: Path) -> None:
    wanted = set().union(*map(metrics_of, expressions())) | {"stockade_process_start_time_seconds"}
    assert len(wanted) > 30
    with serving(tmp_path / "data") as server:
        deadline = time.monotonic() + NOT_SHOWN_YET_S
        while missing := wanted - shown(httpx.get(f"{server.url}/metrics", timeout=30).text):
            if time.monotonic() > deadline:
                pytest.fail(f"no server has {sorted(missing)}")
            time.sleep(0.1)


def test_panels_are_on_the_grid_and_have_ids_of_their_own() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
