"""The list of sandboxes, and the page of one: terminal, files, ports, logs, and the buttons that end it."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.app.serving import Server, serving
from tests.portal.browsing import Open, Visitor, problems

TIER = "STOCKADE_ACCOUNTS_TIERS_PRO_"


@pytest.fixture(scope="module")
def server(program: str, built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One where whoever registers may have sandboxes that live for long."""
    tier = {TIER + "MAX_DURATION_S": "2h", TIER + "DAILY_SANDBOXES": "0"}
    with serving(tmp_path_factory.mktemp("sandboxes"), **tier) as server:
        yield server
        server.end(signal.SIGINT)  # which ends what lives, too


def make(visitor: Visitor, **members: object) -> str:
    found = visitor.ask("POST", "/api/sandboxes", {"timeout_s": 600, **members})
    identity = found["id"]
    assert isinstance(identity, str)
    return identity


def connected(page: Page) -> Locator:
    """The terminal, once it takes input."""
    expect(page.get_by_role("status").filter(has_text="Connected")).to_be_visible()
    screen = page.locator(".xterm-rows")
    expect(screen).to_contain_text(re.compile(r"[$#]"))
    return screen


def open_files(page: Page, folder: str) -> None:
    page.get_by_role("tab", name="Files").click()
    for name in ["/", *[part for part in folder.split("/") if part]]:
        place = page.get_by_role("navigation", name="Folder")
        crumb = place.get_by_role("button", name=name, exact=True)
        (crumb if crumb.count() else page.get_by_role("button", name=name, exact=True)).click()
        expect(place.locator("[aria-current]")).to_have_text(name)


@pytest.fixture
def sandbox(user: Visitor) -> Visitor:
    """A visitor at the page of a sandbox of theirs."""
    user.go(f"/app/sandboxes/{make(user)}")
    return user


def test_a_sandbox_is_made_in_the_page_and_listed_until_it_is_killed(user: Visitor) -> None:
    """With nothing there, the page says what to do; a form makes one and leads to it."""
    page = user.page
    user.go("/app/sandboxes")
    expect(page.get_by_role("heading", name="No sandbox lives")).to_be_visible()
    page.get_by_role("button", name="New sandbox").first.click()
    form = page.get_by_role("dialog")
    form.get_by_label("Command").fill("sh -c 'echo \"to be seen\"; sleep 300'")
    form.get_by_label("Life, minutes").fill("5")
    form.get_by_role("button", name="Make sandbox").click()
    expect(page).to_have_url(re.compile(r"/app/sandboxes/sbx-"))
    expect(page.get_by_text("running")).to_be_visible()
    page.get_by_role("tab", name="Logs").click()
    expect(page.get_by_role("log")).to_have_text("to be seen\n")

    page.get_by_role("button", name="30 minutes more").click()
    expect(page.get_by_text("in 34 min")).to_be_visible()
    page.get_by_role("button", name="Kill").click()
    page.get_by_role("dialog").get_by_role("button", name="Kill").click()
    expect(page.get_by_text("It was killed")).to_be_visible()
    expect(page.get_by_role("tab", name="Terminal")).to_have_count(0)
    page.get_by_role("link", name="Sandboxes").click()
    expect(page.get_by_role("heading", name="No sandbox lives")).to_be_visible()
    page.get_by_role("button", name="Ended").click()
    expect(page.get_by_role("row").filter(has_text="sleep 300")).to_contain_text("ended")


def test_a_form_keeps_what_was_typed_and_says_what_is_wrong(user: Visitor) -> None:
    page = user.page
    user.go("/app/sandboxes")
    page.get_by_role("button", name="New sandbox").first.click()
    form = page.get_by_role("dialog")
    form.get_by_label("Command").fill("echo 'open")
    form.get_by_role("button", name="Make sandbox").click()
    expect(form.get_by_text("opening ' without a closing one")).to_be_visible()
    form.get_by_label("Command").fill("echo done")
    form.get_by_label("Image").fill("no/such:image")
    form.get_by_role("button", name="Make sandbox").click()
    expect(form.locator(".field-error, [role=alert]")).to_contain_text("no/such:image")
    expect(form.get_by_label("Command")).to_have_value("echo done")
    page.keyboard.press("Escape")
    expect(form).to_have_count(0)


def test_the_terminal_shows_what_a_shell_prints_in_its_colours_and_size(sandbox: Visitor) -> None:
    """A shell of the sandbox: keys go in, output comes out, 24-bit colours pass the page's policy."""
    page = sandbox.page
    screen = connected(page)
    page.keyboard.type("printf '\\033[38;2;120;0;60mor%s\\033[0m\\n' ange; stty size; echo $((40 + 2)) sum\n")
    expect(screen).to_contain_text("42 sum")
    orange = screen.locator("span", has_text=re.compile("^orange$"))
    assert orange.evaluate("element => getComputedStyle(element).color") == "rgb(120, 0, 60)"
    rows = page.locator(".xterm-rows > div").count()
    expect(screen).to_contain_text(re.compile(rf"{rows} \d+"))
    # The shell learns that the window has become smaller.
    page.set_viewport_size({"width": 700, "height": 700})
    expect(page.locator(".xterm-rows > div")).not_to_have_count(rows)
    fewer = page.locator(".xterm-rows > div").count()
    page.keyboard.type("clear; stty size\n")
    expect(screen).to_contain_text(re.compile(rf"{fewer} \d+"))


def test_the_terminal_can_be_left_with_the_keyboard_and_started_again(sandbox: Visitor) -> None:
    page = sandbox.page
    screen = connected(page)
    page.keyboard.press("F6")
    expect(page.get_by_role("button", name="Paste")).to_be_focused()
    page.get_by_role("textbox", name="Terminal input").focus()
    page.keyboard.type("exit 3\n")
    expect(page.get_by_role("status").filter(has_text="Ended with exit code 3")).to_be_visible()
    page.get_by_role("button", name="New shell").click()
    connected(page)
    page.keyboard.type("echo ag''ain\n")
    expect(screen).to_contain_text("again")


def test_a_terminal_goes_on_while_another_tab_is_shown(sandbox: Visitor) -> None:
    page = sandbox.page
    screen = connected(page)
    page.keyboard.type("kept=still; clear\n")
    page.get_by_role("tab", name="Files").click()
    expect(page.get_by_role("navigation", name="Folder")).to_be_visible()
    page.get_by_role("tab", name="Terminal").click()
    page.get_by_role("textbox", name="Terminal input").focus()
    page.keyboard.type("echo $kept here\n")
    expect(screen).to_contain_text("still here")


def test_files_go_in_and_come_out_as_they_were(sandbox: Visitor, tmp_path: Path) -> None:
    """Upload by the button, see it from the shell, download it, delete it after a question."""
    page = sandbox.page
    content = bytes(range(256)) * 4096
    source = tmp_path / "data  ü.bin"
    source.write_bytes(content)
    open_files(page, "/tmp")
    page.locator("input[type=file]").set_input_files(source)
    expect(page.get_by_role("status").filter(has_text="1 of 1 uploaded")).to_be_visible()
    row = page.get_by_role("row").filter(has_text="ü.bin")
    expect(row).to_contain_text("1.0 MiB")

    with page.expect_download() as download:
        row.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_bytes() == content
    assert download.value.suggested_filename == source.name

    # The same name again is asked about.
    page.locator("input[type=file]").set_input_files(source)
    page.get_by_role("dialog").get_by_role("button", name="Replace").click()
    expect(page.get_by_role("status").filter(has_text="2 of 2 uploaded")).to_be_visible()

    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)


def test_files_can_be_dropped_and_folders_made(sandbox: Visitor) -> None:
    page = sandbox.page
    open_files(page, "/tmp")
    page.get_by_role("button", name="New folder").click()
    form = page.get_by_role("dialog")
    form.get_by_role("button", name="Make folder").click()
    expect(form.get_by_text("Type a name.")).to_be_visible()
    form.get_by_label("Name of the folder").fill("made here")
    form.get_by_role("button", name="Make folder").click()
    page.get_by_role("button", name="made here", exact=True).click()
    expect(page.get_by_role("heading", name="This folder is empty")).to_be_visible()
    files = page.evaluate_handle(
        "() => { const data = new DataTransfer(); data.items.add(new File(['dropped'], 'note.txt')); return data; }"
    )
    page.get_by_role("region", name="Files").dispatch_event("drop", {"dataTransfer": files})
    expect(page.get_by_role("row").filter(has_text="note.txt")).to_contain_text("7 B")


def test_ports_are_links_where_a_browser_can_open_them(user: Visitor) -> None:
    identity = make(user, network="exposed", ports=[8080])
    user.go(f"/app/sandboxes/{identity}")
    link = user.page.get_by_role("link", name="8080/tcp")
    assert re.match("https?://", link.evaluate("element => element.href"))
    expect(link).to_have_attribute("rel", "noopener noreferrer")


def test_another_accounts_sandbox_is_not_there(open_browser: Open) -> None:
    owner, other = open_browser(), open_browser()
    owner.register()
    other.register()
    identity = make(owner)
    other.go(f"/app/sandboxes/{identity}")
    expect(other.page.get_by_role("heading", name="There is no such sandbox")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_pages_of_sandboxes_are_accessible_and_fit_a_phone(open_browser: Open, dark: bool) -> None:
    visitor = open_browser(width=360, height=740, dark=dark)
    visitor.register()
    page = visitor.page
    identity = make(visitor, command=["sleep", "300"], network="exposed", ports=[8080])
    visitor.go("/app/sandboxes")
    expect(page.get_by_role("row").filter(has_text="sleep 300")).to_be_visible()
    assert (problems(page), visitor.overflow()) == ([], 0)
    page.get_by_role("button", name="New sandbox").click()
    page.get_by_label("Network").select_option("exposed")
    assert (problems(page), visitor.overflow()) == ([], 0)
    visitor.go(f"/app/sandboxes/{identity}")
    connected(page)
    assert (problems(page), visitor.overflow()) == ([], 0)
    for tab, seen in (("Files", "Upload"), ("Logs", "Refresh")):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("button", name=seen).last).to_be_visible()
        assert (problems(page), visitor.overflow()) == ([], 0)
