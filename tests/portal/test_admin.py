"""Pages for administrators: users, nodes and queue, health, languages."""

import re

import pytest
from playwright.sync_api import Locator, expect

from tests.portal.browsing import PASSWORD, Open, Visitor, problems

PAGES = {"users": "Users", "nodes": "Nodes", "health": "Health", "languages": "Languages"}


def find(admin: Visitor, email: str) -> Locator:
    """The row of a user, by the search."""
    admin.go("/app/admin/users")
    admin.page.get_by_label("Search").fill(email)
    row = admin.page.get_by_role("row").filter(has_text=email)
    expect(row).to_be_visible()
    return row


def test_pages_for_administrators_are_not_there_for_others(user: Visitor) -> None:
    user.go("/app/keys")
    expect(user.page.get_by_text("Administration")).to_have_count(0)
    user.page.goto(f"{user.server.url}/app/admin/users")
    expect(user.page.get_by_role("heading", name="There is no such page")).to_be_visible()


def test_a_user_is_found_promoted_and_given_a_tier(admin: Visitor, user: Visitor) -> None:
    page = admin.page
    row = find(admin, user.email)
    row.get_by_role("button", name="Change").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Tier").select_option("pro")
    form.get_by_label("Role").select_option("admin")
    form.get_by_role("button", name="Save").click()
    expect(form).to_have_count(0)
    expect(row).to_contain_text("pro")
    user.go("/app/admin/nodes")
    expect(user.page.get_by_role("heading", level=1)).to_have_text("Nodes")
    page.get_by_label("Search").fill("nobody has this name")
    expect(page.get_by_role("heading", name="Nobody matches")).to_be_visible()


def test_whoever_is_locked_cannot_log_in_and_is_signed_out(admin: Visitor, user: Visitor, open_browser: Open) -> None:
    row = find(admin, user.email)
    row.get_by_role("button", name="Change").click()
    form = admin.page.get_by_role("dialog")
    form.get_by_label("Locked").check()
    form.get_by_role("button", name="Save").click()
    expect(row).to_contain_text("locked")
    user.page.goto(f"{user.server.url}/app/keys")
    expect(user.page).to_have_url(re.compile("/login"))
    with pytest.raises(AssertionError, match="POST /api/session: 4"):
        open_browser().log_in(user.email, PASSWORD)


def test_a_user_is_deleted_once_the_address_is_typed(admin: Visitor, user: Visitor) -> None:
    row = find(admin, user.email)
    row.get_by_role("button", name="Delete").click()
    dialog = admin.page.get_by_role("dialog")
    delete = dialog.get_by_role("button", name="Delete the account")
    expect(delete).to_be_disabled()
    dialog.get_by_label("to confirm").fill(user.email)
    delete.click()
    expect(row).to_have_count(0)


def test_an_administrator_cannot_lock_or_delete_themselves(admin: Visitor, admin_email: str) -> None:
    row = find(admin, admin_email)
    expect(row).to_contain_text("you")
    expect(row.get_by_role("button", name="Delete")).to_have_count(0)
    row.get_by_role("button", name="Change").click()
    form = admin.page.get_by_role("dialog")
    expect(form.get_by_label("Role")).to_be_disabled()
    expect(form.get_by_label("Locked")).to_be_disabled()


def test_nodes_show_workers_places_and_the_queue(admin: Visitor) -> None:
    page = admin.page
    admin.go("/app/admin/nodes")
    workers = page.get_by_role("table", name="Workers")
    expect(workers.get_by_role("row").nth(1)).to_contain_text("working")
    expect(page.get_by_role("region", name="Queue")).to_contain_text("Queued")
    expect(page.get_by_role("region", name="Jobs that were given up")).to_contain_text("None.")


def test_health_names_every_protection_and_its_remedy(admin: Visitor) -> None:
    page = admin.page
    admin.go("/app/admin/health")
    expect(page.get_by_text("works")).to_have_count(2)
    features = admin.ask("GET", "/api/admin/health")["features"]
    table = page.get_by_role("table", name="Protections of this host")
    expect(table.get_by_role("row")).to_have_count(len(features) + 1)
    for feature in features:
        row = table.get_by_role("row").filter(has_text=feature["name"].replace("_", " ")).first
        expect(row).to_contain_text("enforced")
        assert feature["enforced"] or feature["remedy"]


def test_languages_are_searched_and_filtered(admin: Visitor) -> None:
    page = admin.page
    admin.go("/app/admin/languages")
    page.get_by_label("Search").fill("python")
    page.get_by_role("button", name="Installed").click()
    table = page.get_by_role("table", name="Languages")
    expect(table.get_by_role("row").filter(has_text="Python").first).to_contain_text("installed")
    page.get_by_label("Search").fill("no such language")
    expect(page.get_by_role("heading", name="No language matches")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_for_administrators_are_accessible_and_fit_a_phone(
    open_browser: Open, admin_email: str, dark: bool
) -> None:
    visitor = open_browser(width=360, height=740, dark=dark)
    visitor.log_in(admin_email)
    page = visitor.page
    for name, title in PAGES.items():
        visitor.go(f"/app/admin/{name}")
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        expect(page.get_by_role("table").first).to_be_visible()
        assert (name, problems(page), visitor.overflow()) == (name, [], 0)
