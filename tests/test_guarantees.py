"""Each promise on the page of guarantees names tests that are there, and the page names every fault that is tried."""

import re
from pathlib import Path

from bench.faults_kinds import KINDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/.-]+?)(?:::(\w+))?`")


def test_every_test_that_the_page_names_is_there() -> None:
    found = NAMED.findall(PAGE)
    assert len(found) > 40
    for path, function in found:
        assert (ROOT / path).exists(), f"docs/guarantees.md names {path}"
        if function:
            text = (ROOT / path).read_text(encoding="utf-8")
            assert f"def {function}(" in text, f"docs/guarantees.md names {path}::{function}"


def test_every_promise_names_a_test() -> None:
    sections, _, _ = PAGE.partition("## The fault matrix")
    rows = [line for line in sections.splitlines() if line.startswith("| ") and not line.startswith("| Promise")]
    assert len(rows) > 25
    for row in rows:
        promise, tests = row.strip("| ").rsplit(" | ", 1)
        assert NAMED.search(tests), f"nothing is named that tests: {promise}"


def test_every_fault_of_the_matrix_is_on_the_page() -> None:
    missing = [kind.name for kind in KINDS if f"| {kind.name} |" not in PAGE]
    assert not missing, "run `python -m bench.faults --markdown`, and put its table on the page"
