"""Whom the CPU time of ended processes is put down to, and what the benchmark's tables look like."""

from pathlib import Path

import pytest
from bench.__main__ import SECTIONS, main
from bench.server import hello, serving
from bench.table import Results

from bench import cpu


def test_cpu_time_of_a_run_is_told_by_process(tmp_path: Path) -> None:
    """Of a real server under real load; the whole is the sum of its parts."""
    with serving(tmp_path) as server:
        hello(server)()
        found = cpu.spent(server, clients=4, seconds=1)
    rows = {row.part: row for row in found.rows}
    assert {"server", "warden", "load generator", "all of these", "the whole machine"} <= set(rows)
    if "PID 1s" in rows:
        assert rows["PID 1s"].cpu_ms > 0
        assert rows["programs"].cpu_ms > 0
    parts = sum(row.cpu_ms for name, row in rows.items() if name not in ("all of these", "the whole machine"))
    assert parts == pytest.approx(rows["all of these"].cpu_ms)
    results = Results(sheets=[cpu.sheet(found)])
    assert "| warden |" in results.to_markdown()


def test_an_unknown_section_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, before anything is started."""
    with pytest.raises(SystemExit) as ended:
        main(["--only", "cpu,nosuch"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "nosuch" in said
    assert all(name in said for name in SECTIONS)
