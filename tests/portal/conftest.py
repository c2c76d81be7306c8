"""A server with the portal built, and Chromium windows on it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install --group dev")

from playwright.sync_api import Browser, sync_playwright

from tests.app.serving import Server, command, environment, serving
from tests.portal.browsing import PASSWORD, Open, Visitor, chromium, launch, open_window

BUILD = Path(__file__).parents[2] / "scripts" / "build_portal.py"
BUILD_S = 900
ADMIN = "admin@example.org"
TIER = "STOCKADE_ACCOUNTS_TIERS_PRO_"
PLAN = {TIER + "MAX_DURATION_S": "2h", TIER + "DAILY_SANDBOXES": "0"}
"""What whoever registers may have: sandboxes that outlive a slow machine's tests."""


@pytest.fixture(scope="session")
def program() -> str:
    """Chromium."""
    found = chromium()
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return found


@pytest.fixture(scope="session")
def built() -> None:
    """The portal's files, made from what is in `portal/` now; at once where that has not changed."""
    done = subprocess.run([sys.executable, str(BUILD)], capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def server(program: str, built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("portal"), **PLAN) as server:
        yield server
        server.end(signal.SIGINT)  # which ends what lives, too


@pytest.fixture(scope="module")
def browser(program: str) -> Iterator[Browser]:
    # Not for the session: Playwright keeps an event loop running for as long as it is there, and asyncio has but one.
    with sync_playwright() as playwright:
        browser = launch(playwright, program)
        yield browser
        browser.close()


@pytest.fixture
def open_browser(server: Server, browser: Browser) -> Iterator[Open]:
    """Opens windows, each with cookies of its own; afterwards none may have had any trouble."""
    visitors: list[Visitor] = []

    def opened(**options: object) -> Visitor:
        visitors.append(open_window(server, browser, **options))  # type: ignore[arg-type]
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.context.close()
    troubles = [trouble for visitor in visitors for trouble in visitor.troubles]
    assert troubles == []


@pytest.fixture
def visitor(open_browser: Open) -> Visitor:
    """Somebody who is not signed in."""
    return open_browser()


@pytest.fixture
def user(open_browser: Open) -> Visitor:
    """Somebody who has registered just now."""
    visitor = open_browser()
    visitor.register()
    return visitor


@pytest.fixture(scope="module")
def admin_email(server: Server) -> str:
    """The address of an administrator; the password is `PASSWORD`."""
    arguments = ("users", "create", ADMIN, "--role", "admin", "--password-stdin", "--data-dir", str(server.data_dir))
    done = subprocess.run(
        command(*arguments),
        env=environment(),
        input=PASSWORD,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ADMIN


@pytest.fixture
def admin(open_browser: Open, admin_email: str) -> Visitor:
    """Somebody who is signed in as an administrator."""
    visitor = open_browser()
    visitor.log_in(admin_email)
    return visitor
