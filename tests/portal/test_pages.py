"""What holds for every page: accessible, in both themes; readable on a phone; within its policy, and on no other host.

That no page had trouble with its policy, its scripts or other hosts is checked after each test (`open_browser`).
"""

import json
import re

import httpx
from playwright.sync_api import Page, expect

from tests.app.serving import Server
from tests.portal.browsing import Open, Visitor, problems

PUBLIC = ("/", "/register", "/login", "/forgot", "/reset?token=x", "/reset", "/verify?token=x")
INSIDE = ("/app/play", "/app/sandboxes", "/app/jobs", "/app/usage", "/app/keys", "/app/account")
ADMIN = ("/app/admin/users", "/app/admin/nodes", "/app/admin/health", "/app/admin/languages")
LIGHT, DARK = "rgb(246, 247, 249)", "rgb(15, 20, 26)"
FIRST_LOAD_BYTES = 300 * 1024


def settle(page: Page) -> None:
    """Until all that the page asked for is there."""
    page.wait_for_load_state("networkidle")
    expect(page.locator(".loading")).to_have_count(0)


def problems_of(visitor: Visitor, paths: tuple[str, ...]) -> dict[str, list[str]]:
    """What is wrong with pages, by path: everything in the light theme, the contrast in the dark one."""
    found: dict[str, list[str]] = {}
    for path in paths:
        visitor.page.emulate_media(color_scheme="light")
        visitor.go(path)
        settle(visitor.page)
        told = problems(visitor.page)
        visitor.page.emulate_media(color_scheme="dark")
        expect(visitor.page.locator("html")).to_have_css("background-color", DARK)
        found[path] = told + problems(visitor.page, colours_only=True)
    return {path: told for path, told in found.items() if told}


def test_pages_that_everybody_sees_are_accessible(visitor: Visitor) -> None:
    assert problems_of(visitor, (*PUBLIC, "/app/nowhere")) == {}


def test_pages_inside_are_accessible(admin: Visitor) -> None:
    job = admin.ask("POST", "/api/jobs", {"language": "python", "code": "import sys\nprint(1)\nsys.exit('bad')"})
    assert problems_of(admin, (*INSIDE, *ADMIN, f"/app/jobs/{job['id']}", "/app/jobs?state=cancelled")) == {}


def test_nothing_is_wider_than_a_phone(open_browser: Open, admin_email: str) -> None:
    """No page scrolls sideways in a window of 360 by 740."""
    visitor = open_browser(width=360, height=740)
    for path in PUBLIC:
        visitor.go(path)
        settle(visitor.page)
        assert visitor.overflow() <= 0, path
    visitor.log_in(admin_email)
    job = visitor.ask("POST", "/api/jobs", {"language": "python", "code": f"print('{'long' * 100}')"})
    for path in (*INSIDE, *ADMIN, f"/app/jobs/{job['id']}"):
        visitor.go(path)
        settle(visitor.page)
        assert visitor.overflow() <= 0, path


def test_the_menu_of_a_phone_is_opened_closed_and_followed(open_browser: Open) -> None:
    visitor = open_browser(width=360, height=740)
    visitor.register()
    visitor.go("/app/play")
    page = visitor.page
    menu = page.get_by_role("navigation", name="Main")
    expect(menu).to_be_hidden()
    page.get_by_role("button", name="Open menu").click()
    expect(menu).to_be_visible()
    assert problems(page) == []
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    page.get_by_role("button", name="Open menu").click()
    menu.get_by_role("link", name="Jobs").click()
    expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_focused()
    expect(menu).to_be_hidden()
    expect(page).to_have_title(re.compile("^Jobs"))


def test_the_theme_follows_the_system_until_one_is_chosen(user: Visitor) -> None:
    page, ground = user.page, user.page.locator("html")
    user.go("/app/jobs")
    expect(ground).to_have_css("background-color", LIGHT)
    page.emulate_media(color_scheme="dark")
    expect(ground).to_have_css("background-color", DARK)
    page.get_by_role("button", name="Theme: As the system").click()
    expect(ground).to_have_css("background-color", LIGHT)
    page.reload()
    expect(page.get_by_role("button", name="Theme: Light")).to_be_visible()
    expect(ground).to_have_css("background-color", LIGHT)


def test_pages_of_administrators_are_not_there_for_others(user: Visitor) -> None:
    user.go("/app/play")
    expect(user.page.get_by_role("navigation", name="Main").get_by_role("link", name="Health")).to_have_count(0)
    for path in ADMIN:
        user.page.goto(user.server.url + path)
        expect(user.page.get_by_role("heading", name="There is no such page")).to_be_visible()


def test_a_server_that_is_gone_is_told_and_asked_again(user: Visitor) -> None:
    """What was typed stays; "Try again" goes on where it stopped."""
    page = user.page
    user.go("/app/play")
    user.type_program("print('still here')\n")
    page.route("**/api/jobs*", lambda route: route.abort())
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert").first).to_contain_text("The server cannot be reached")
    expect(page.get_by_role("textbox", name="Program")).to_contain_text("still here")
    page.unroute("**/api/jobs*")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("region", name="Output")).to_have_text("still here\n")


def test_a_session_that_was_ended_elsewhere_leads_to_the_log_in(user: Visitor) -> None:
    user.go("/app/jobs")
    user.context.clear_cookies()
    user.page.get_by_role("navigation", name="Main").get_by_role("link", name="Keys").click()
    expect(user.page.get_by_role("heading", name="Log in")).to_be_visible()
    expect(user.page).to_have_url(re.compile(r"next=%2Fapp%2Fkeys"))


def test_the_first_page_and_the_playground_are_small(open_browser: Open) -> None:
    """As sent: compressed. The landing page loads neither editor, terminal nor charts."""
    visitor = open_browser()
    sent: list[int] = []
    session = visitor.context.new_cdp_session(visitor.page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sent.append(event["encodedDataLength"]))
    visitor.go("/")
    settle(visitor.page)
    assert 0 < sum(sent) < 100 * 1024
    visitor.register()
    sent.clear()
    visitor.go("/app/play")
    expect(visitor.page.get_by_role("textbox", name="Program")).to_be_visible()
    settle(visitor.page)
    assert 0 < sum(sent) < FIRST_LOAD_BYTES


def test_the_example_of_the_landing_page_works(visitor: Visitor) -> None:
    """What it tells people to paste is answered as it says."""
    visitor.go("/")
    command = visitor.page.get_by_label("Command", exact=True).inner_text()
    url = re.search(r"curl (\S+)", command)
    body = re.search(r"-d '(.*)'", command)
    assert url
    assert body
    answer = httpx.post(url[1], content=body[1], headers={"Content-Type": "application/json"}, timeout=60)
    told = json.loads(visitor.page.get_by_label("Answer", exact=True).inner_text())
    assert answer.status_code == 202, answer.text
    assert set(answer.json()) == set(told)


def test_a_page_of_another_site_may_not_frame_ours(server: Server) -> None:
    policy = httpx.get(server.url, timeout=60).headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
