"""What was used: charts with tables beside them, by key, as a file."""

import csv
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.portal.browsing import Open, Visitor, problems

WAIT_S = 45


def run(visitor: Visitor, code: str) -> None:
    """A job, to its end."""
    job = visitor.ask("POST", "/api/jobs", {"language": "python", "code": code})
    until = time.monotonic() + WAIT_S
    while "endedAt" not in job:
        assert time.monotonic() < until, job["state"]
        job = visitor.ask("GET", f"/api/jobs/{job['id']}")


def open_usage(visitor: Visitor) -> Page:
    """The page of usage, once what was used has been counted."""
    page = visitor.page
    visitor.go("/app/usage")
    figure = page.get_by_text("Runs by outcome", exact=True)
    empty = page.get_by_role("heading", name="Nothing ran in this time")
    until = time.monotonic() + WAIT_S
    while True:
        expect(figure.or_(empty)).to_be_visible()
        if figure.is_visible():
            return page
        assert time.monotonic() < until, "not counted"
        page.reload()


def test_nothing_used_is_said_in_words(user: Visitor) -> None:
    user.go("/app/usage")
    expect(user.page.get_by_role("heading", name="Nothing ran in this time")).to_be_visible()
    user.page.get_by_role("link", name="To the playground").click()
    expect(user.page).to_have_url(re.compile("/app/play$"))


def test_runs_are_drawn_and_can_be_read_as_a_table(user: Visitor) -> None:
    """Charts say nothing to who cannot see them: the same figures stand in a table below each."""
    run(user, "print(sum(range(10_000)))")
    page = open_usage(user)
    chart = page.get_by_role("figure").filter(has=page.get_by_role("heading", name="Runs by outcome"))
    expect(chart.locator("canvas")).to_be_visible()
    expect(chart.get_by_role("listitem").filter(has_text="Exited")).to_contain_text("1")
    chart.get_by_text("Runs by outcome as a table").click()
    table = chart.get_by_role("table", name="Runs by outcome")
    expect(table.get_by_role("row")).to_have_count(31)
    expect(table.get_by_role("row").last).to_contain_text("1")
    page.get_by_role("button", name="7 days").click()
    expect(table.get_by_role("row")).to_have_count(8)
    expect(page.get_by_role("table", name="What each key used").get_by_role("row").last).to_contain_text("portal")


def test_a_chart_is_drawn_in_the_colours_of_the_theme(user: Visitor) -> None:
    run(user, "print(1)")
    page = open_usage(user)
    canvas = page.locator("canvas").first
    expect(canvas).to_be_visible()
    before = canvas.evaluate("element => element.toDataURL()")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("before => document.querySelector('canvas').toDataURL() !== before", arg=before)


def test_usage_is_exported(user: Visitor) -> None:
    run(user, "print(1)")
    page = open_usage(user)
    page.get_by_role("button", name="7 days").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Export CSV").click()
    rows = list(csv.DictReader(Path(download.value.path()).read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 7
    assert int(rows[-1]["runs"]) == 1


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_of_usage_is_accessible_and_fits_a_phone(open_browser: Open, dark: bool) -> None:
    visitor = open_browser(width=360, height=740, dark=dark)
    visitor.register()
    run(visitor, "print(1)")
    page = open_usage(visitor)
    expect(page.locator("canvas").first).to_be_visible()
    page.get_by_text("Runs by outcome as a table").click()
    assert (problems(page), visitor.overflow()) == ([], 0)
