"""The whole way once, with real clicks: register, key, run, terminal, file, chart."""

import re
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect

from tests.portal.browsing import PASSWORD, Visitor, new_email


def go_to(page: Page, title: str) -> None:
    page.get_by_role("navigation", name="Main").get_by_role("link", name=title).click()
    expect(page.get_by_role("heading", name=title, level=1)).to_be_visible()


def register(visitor: Visitor) -> None:
    page = visitor.page
    visitor.go("/")
    page.get_by_role("link", name="Create an account").click()
    page.get_by_label("Name").fill("Ada Example")
    page.get_by_label("Email").fill(new_email())
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Create account").click()
    expect(page.get_by_role("heading", name="Playground")).to_be_visible()


def make_key(page: Page) -> str:
    """A new key's secret, from the dialog that shows it once."""
    go_to(page, "Keys")
    page.get_by_role("button", name="New key").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("journey")
    dialog.get_by_role("button", name="Make key").click()
    shown = dialog.get_by_label("Secret")
    expect(shown).to_have_value(re.compile(r"^sk_\w{40,}$"))
    secret = shown.input_value()
    dialog.get_by_role("button", name="I have copied it").click()
    expect(page.get_by_role("row").filter(has_text="journey")).to_be_visible()
    return secret


def make_sandbox(page: Page) -> None:
    go_to(page, "Sandboxes")
    page.get_by_role("button", name="New sandbox").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Life, minutes").fill("5")
    dialog.get_by_role("button", name="Make sandbox").click()
    expect(page).to_have_url(re.compile("/app/sandboxes/.+"))


def write_in_terminal(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text="Connected")).to_be_visible()
    screen = page.locator(".xterm-rows")
    expect(screen).to_contain_text(re.compile(r"[$#]"))
    page.keyboard.type("echo made in the terminal $((20+22)) > /tmp/note.txt; cat /tmp/note.txt\n")
    expect(screen).to_contain_text("made in the terminal 42")


def download_note(page: Page, to: Path) -> str:
    page.get_by_role("tab", name="Files").click()
    page.get_by_role("navigation", name="Folder").get_by_role("button", name="/", exact=True).click()
    page.get_by_role("button", name="tmp", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("row").filter(has_text="note.txt").get_by_role("link", name="Download").click()
    download.value.save_as(to)
    return to.read_text()


def test_from_registering_to_the_chart(visitor: Visitor, tmp_path: Path) -> None:
    page, url = visitor.page, visitor.server.url
    register(visitor)

    secret = make_key(page)
    answer = httpx.post(
        f"{url}/execute", json={"language": "python", "code": "print(6*7)"}, headers={"X-API-Key": secret}, timeout=60
    )
    assert answer.json()["stdout"] == "42\n"

    go_to(page, "Playground")
    visitor.type_program("print('on the way')\n")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("region", name="Output")).to_have_text("on the way\n")
    go_to(page, "Jobs")
    expect(page.get_by_role("row").filter(has_text="Ended well")).to_have_count(1)

    make_sandbox(page)
    write_in_terminal(page)
    assert download_note(page, tmp_path / "note.txt") == "made in the terminal 42\n"
    page.get_by_role("button", name="Kill").click()
    page.get_by_role("dialog").get_by_role("button", name="Kill").click()
    expect(page.get_by_text("It was killed")).to_be_visible()

    # What was used is counted now and then.
    go_to(page, "Usage")
    chart = page.locator(".uplot canvas").first
    nothing = page.get_by_role("heading", name="Nothing ran in this time")
    while True:
        expect(chart.or_(nothing).first).to_be_visible()
        if chart.is_visible():
            break
        page.reload()
