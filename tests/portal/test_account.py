"""What belongs to a person: profile, password, log-ins, data, and the end of the account."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.portal.browsing import PASSWORD, Open, Visitor, problems

FRESH = "another good phrase"


def test_a_profile_is_changed_and_shown_everywhere(user: Visitor) -> None:
    page = user.page
    user.go("/app/account")
    expect(page.get_by_role("region", name="Profile")).to_contain_text(user.email)
    expect(page.get_by_role("button", name="Save profile")).to_be_disabled()
    page.get_by_label("Name").fill("Grace Example")
    page.get_by_label("Organization").fill("Examples & Sons")
    page.get_by_role("button", name="Save profile").click()
    expect(page.get_by_text("Your profile was saved.")).to_be_visible()
    expect(page.get_by_role("banner")).to_contain_text("Grace Example")
    page.reload()
    expect(page.get_by_label("Organization")).to_have_value("Examples & Sons")


def test_a_password_is_changed_with_the_present_one_only(user: Visitor, open_browser: Open) -> None:
    page = user.page
    user.go("/app/account")

    def change(old: str, fresh: str, again: str) -> None:
        page.get_by_label("Present password").fill(old)
        page.get_by_label("New password", exact=True).fill(fresh)
        page.get_by_label("New password again").fill(again)
        page.get_by_role("button", name="Change password").click()

    change(PASSWORD, FRESH, "something else")
    expect(page.get_by_text("The two are not the same.")).to_be_visible()
    change("not my password", FRESH, FRESH)
    section = page.get_by_role("region", name="Password")
    expect(section.locator(".field-error, [role=alert]")).to_be_visible()
    expect(page.get_by_label("New password", exact=True)).to_have_value(FRESH)
    change(PASSWORD, FRESH, FRESH)
    expect(page.get_by_text("Your password was changed.")).to_be_visible()
    open_browser().log_in(user.email, FRESH)


def test_log_ins_elsewhere_are_listed_and_ended(user: Visitor, open_browser: Open) -> None:
    """One by one, or all others at once; the one that asks stays."""
    others = [open_browser() for _ in range(3)]
    for other in others:
        other.log_in(user.email)
    page = user.page
    user.go("/app/account")
    table = page.get_by_role("table", name="Log-ins")
    expect(table.get_by_role("row")).to_have_count(5)
    expect(table.get_by_role("row").filter(has_text="this one")).to_have_count(1)
    table.get_by_role("button", name="End").first.click()
    expect(table.get_by_role("row")).to_have_count(4)
    page.get_by_role("button", name="End all others").click()
    page.get_by_role("dialog").get_by_role("button", name="End them").click()
    expect(table.get_by_role("row")).to_have_count(2)
    for other in others:
        other.go("/app/account")
        expect(other.page).to_have_url(re.compile("/login"))
    user.go("/app/keys")


def test_data_is_exported_without_secrets(user: Visitor) -> None:
    user.go("/app/account")
    with user.page.expect_download() as download:
        user.page.get_by_role("link", name="Export my data").click()
    found = Path(download.value.path()).read_text(encoding="utf-8")
    assert user.email in json.dumps(json.loads(found))
    assert "argon2" not in found


def test_an_account_is_deleted_with_password_and_typed_words(user: Visitor, open_browser: Open) -> None:
    page = user.page
    user.go("/app/account")
    page.get_by_role("button", name="Delete my account").click()
    dialog = page.get_by_role("dialog")
    delete = dialog.get_by_role("button", name="Delete it")
    dialog.get_by_label("Your password").fill("not my password")
    expect(delete).to_be_disabled()
    dialog.get_by_label("to confirm").fill("delete my account")
    delete.click()
    expect(dialog.locator(".field-error, [role=alert]")).to_be_visible()
    dialog.get_by_label("Your password").fill(PASSWORD)
    delete.click()
    expect(page).to_have_url(f"{user.server.url}/")
    again = open_browser()
    with pytest.raises(AssertionError, match="401"):
        again.log_in(user.email)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_of_the_account_is_accessible_and_fits_a_phone(open_browser: Open, dark: bool) -> None:
    visitor = open_browser(width=360, height=740, dark=dark)
    visitor.register()
    page = visitor.page
    visitor.go("/app/account")
    expect(page.get_by_role("table", name="Log-ins")).to_be_visible()
    assert (problems(page), visitor.overflow()) == ([], 0)
    page.get_by_role("button", name="Delete my account").click()
    assert (problems(page), visitor.overflow()) == ([], 0)
