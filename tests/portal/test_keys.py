"""API keys: made with a secret that is shown once, limited, rotated, revoked."""

import re
import urllib.error
import urllib.request
from datetime import date, timedelta

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.portal.browsing import Open, Visitor, problems


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("row").filter(has_text=name)


def secret_shown(page: Page) -> str:
    dialog = page.get_by_role("dialog")
    shown = dialog.get_by_label("Secret")
    expect(shown).to_have_value(re.compile(r"\S{20,}"))
    secret = shown.input_value()
    dialog.get_by_role("button", name="I have copied it").click()
    expect(dialog).to_have_count(0)
    return secret


def status(visitor: Visitor, secret: str) -> int:
    """What the API answers to a program that uses the key."""
    request = urllib.request.Request(f"{visitor.server.url}/v1/jobs", headers={"X-API-Key": secret})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def make(page: Page, name: str) -> str:
    page.get_by_role("button", name="New key").first.click()
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill(name)
    form.get_by_role("button", name="Make key").click()
    return secret_shown(page)


def test_a_key_works_until_it_is_revoked(user: Visitor) -> None:
    page = user.page
    user.go("/app/keys")
    secret = make(page, "build server")
    assert status(user, secret) == 200
    assert secret not in page.content(), "shown once"

    row(page, "build server").get_by_role("button", name="Rotate").click()
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    fresh = secret_shown(page)
    assert (status(user, secret), status(user, fresh)) == (401, 200)

    row(page, "build server").get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row(page, "build server")).to_have_count(0)
    assert status(user, fresh) == 401
    page.get_by_label("Show those that are revoked").check()
    expect(row(page, "build server")).to_contain_text("revoked")


def test_the_first_key_of_an_account_cannot_be_revoked(user: Visitor) -> None:
    user.go("/app/keys")
    primary = row(user.page, "primary")
    expect(primary.get_by_role("button", name="Change")).to_be_visible()
    expect(primary.get_by_role("button", name="Revoke")).to_have_count(0)


def test_limits_and_a_last_day_can_be_set_and_taken_away(user: Visitor) -> None:
    page = user.page
    user.go("/app/keys")
    page.get_by_role("button", name="New key").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("limited")
    form.get_by_label("Last day").fill((date.today() + timedelta(days=30)).isoformat())
    form.get_by_label("Runs a day").fill("5")
    form.get_by_label("Runs at once").fill("1")
    form.get_by_role("button", name="Make key").click()
    secret_shown(page)
    expect(row(page, "limited")).to_contain_text("5 a day, 1 at once")
    expect(row(page, "limited")).not_to_contain_text("the account's")

    row(page, "limited").get_by_role("button", name="Change").click()
    expect(form.get_by_label("Runs a day")).to_have_value("5")
    form.get_by_label("Name").fill("unlimited")
    for field in ("Last day", "Runs a day", "Runs at once"):
        form.get_by_label(field).fill("")
    form.get_by_role("button", name="Save").click()
    expect(row(page, "unlimited")).to_contain_text("the account's")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_of_keys_is_accessible_and_fits_a_phone(open_browser: Open, dark: bool) -> None:
    visitor = open_browser(width=360, height=740, dark=dark)
    visitor.register()
    page = visitor.page
    visitor.go("/app/keys")
    expect(row(page, "primary")).to_be_visible()
    assert (problems(page), visitor.overflow()) == ([], 0)
    page.get_by_role("button", name="New key").click()
    assert (problems(page), visitor.overflow()) == ([], 0)
    page.get_by_label("Name").fill("one")
    page.get_by_role("button", name="Make key").click()
    expect(page.get_by_label("Secret")).to_be_visible()
    assert (problems(page), visitor.overflow()) == ([], 0)
