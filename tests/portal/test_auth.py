"""Registering and logging in, in a real browser (case 37 of the Code Sandbox API)."""

import re

from playwright.sync_api import Page, expect

from tests.portal.browsing import PASSWORD, Open, Visitor, new_email


def fill_registration(page: Page, *, email: str, name: str = "Ada Example", password: str = PASSWORD) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Email").fill(email)
    page.get_by_label("Organization").fill("Example Works")
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Create account").click()


def test_the_form_registers_and_the_other_one_logs_in(visitor: Visitor) -> None:
    """Case 37: registering creates the account; it is shown who is signed in; the log-in form works afterwards."""
    page, email = visitor.page, new_email()
    visitor.go("/")
    page.get_by_role("link", name="Register").click()
    fill_registration(page, email=email)
    expect(page).to_have_url(re.compile("/app/play$"))
    expect(page.get_by_role("heading", name="Playground")).to_be_visible()
    page.get_by_role("button", name="Ada Example").click()
    expect(page.get_by_text(f"Signed in as {email}")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(re.compile("/$"))
    page.get_by_role("link", name="Log in").first.click()
    page.get_by_label("Email").fill(email.upper())
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("button", name="Ada Example")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Ada Example")).to_be_visible()


def test_a_second_account_of_an_address_is_refused_beside_the_form(user: Visitor, open_browser: Open) -> None:
    """Case 37: `user already exists`; what was typed stays, but for the password."""
    other = open_browser()
    other.go("/register")
    fill_registration(other.page, email=user.email.title(), name="Eve Example")
    expect(other.page.get_by_role("alert")).to_contain_text("user already exists")
    expect(other.page.get_by_label("Name")).to_have_value("Eve Example")
    expect(other.page.get_by_label("Email")).to_have_value(user.email.title())
    expect(other.page.get_by_label("Organization")).to_have_value("Example Works")
    expect(other.page.get_by_label("Password", exact=True)).to_have_value("")


def test_what_is_wrong_with_an_input_is_told_beside_it(visitor: Visitor) -> None:
    """The server's words belong to the input for screen readers, too, and the focus goes there."""
    page = visitor.page
    visitor.go("/register")
    fill_registration(page, email=new_email(), password="too short")
    password = page.get_by_label("Password", exact=True)
    expect(password).to_have_attribute("aria-invalid", "true")
    expect(password).to_be_focused()
    expect(password).to_have_accessible_description(re.compile("password must be at least 12 characters long"))
    expect(password).to_have_value("")
    expect(page.get_by_label("Name")).to_have_value("Ada Example")


def test_a_wrong_password_and_an_unknown_address_are_told_alike(user: Visitor, open_browser: Open) -> None:
    other = open_browser()
    for email in (user.email, new_email()):
        other.go("/login")
        other.page.get_by_label("Email").fill(email)
        other.page.get_by_label("Password", exact=True).fill("not this password")
        other.page.get_by_role("button", name="Log in").click()
        expect(other.page.get_by_role("alert")).to_contain_text("invalid credentials")
        expect(other.page.get_by_label("Email")).to_have_value(email)
        expect(other.page.get_by_label("Password", exact=True)).to_have_value("")


def test_logging_in_leads_to_the_page_that_was_asked_for(user: Visitor, open_browser: Open) -> None:
    """Also with its filters; but never to another site."""
    other = open_browser()
    for asked, got in (("/app/jobs?state=failed", r"/app/jobs\?state=failed$"), ("", "/app/play$")):
        other.page.goto(other.server.url + (asked or "/login?next=//example.com/app"))
        expect(other.page.get_by_role("heading", name="Log in")).to_be_visible()
        other.page.get_by_label("Email").fill(user.email)
        other.page.get_by_label("Password", exact=True).fill(PASSWORD)
        other.page.get_by_role("button", name="Log in").click()
        expect(other.page).to_have_url(re.compile(re.escape(other.server.url) + got))
        other.context.clear_cookies()


def test_a_forgotten_password_is_not_a_way_to_find_out_who_is_here(user: Visitor, open_browser: Open) -> None:
    other = open_browser()
    answers = []
    for email in (user.email, new_email()):
        other.go("/forgot")
        other.page.get_by_label("Email").fill(email)
        other.page.get_by_role("button", name="Send the link").click()
        expect(other.page.get_by_role("status").filter(has_text="If that address")).to_be_visible()
        answers.append(other.page.locator("main").inner_text())
    assert answers[0] == answers[1]
