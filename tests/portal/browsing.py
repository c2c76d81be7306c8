"""A real Chromium in front of a real server: what tests of the portal look through."""

import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, Request, expect

from tests.app.serving import Server

__all__ = ["PASSWORD", "Open", "Visitor", "chromium", "launch", "problems"]

PASSWORD = "correct horse battery"
WAIT_MS = 45_000.0
"""The longest that anything on a page may take; tests wait no longer than it does."""

ARGUMENTS = (
    "--no-sandbox",  # tests run as root, where Chromium's own sandbox does not
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
AXE = Path(__file__).parents[2] / "portal" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
_numbers = itertools.count(1)


def chromium() -> str | None:
    """The program; `None` where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def launch(playwright: Playwright, program: str) -> Browser:
    expect.set_options(timeout=WAIT_MS)
    return playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS), timeout=WAIT_MS)


@dataclass(kw_only=True)
class Visitor:
    """Somebody at a browser of their own. Whatever a page may not do is collected in `troubles`."""

    server: Server
    context: BrowserContext
    page: Page
    email: str = ""
    troubles: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note errors in scripts, what the Content-Security-Policy refused, and requests to anybody else."""
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.troubles.append(f"error in a script: {error}"))
        self.context.on("request", self._asked)

    def _heard(self, message: ConsoleMessage) -> None:
        # That an answer was 401 or 404 is said here, too; that is no mistake of the page.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.troubles.append(f"console: {message.text}")

    def _asked(self, request: Request) -> None:
        host = re.sub(r"^(https?|wss?)://", "", self.server.url)
        if not re.match(rf"((https?|wss?)://{re.escape(host)}/|data:|blob:|about:)", request.url):
            self.troubles.append(f"request to another host: {request.url}")

    def go(self, path: str) -> None:
        """Open a page of the portal and wait until its heading is there."""
        self.page.goto(self.server.url + path)
        expect(self.page.locator("h1")).to_be_visible()

    def ask(self, method: str, path: str, json: object = None) -> Any:
        """What the API answers to this browser, by the token that its pages have."""
        request = self.context.request
        answer = request.get(f"{self.server.url}/api/session")
        token = (answer if answer.ok else request.get(f"{self.server.url}/api/meta")).json()["csrf"]
        response = request.fetch(
            self.server.url + path, method=method, data=json, headers={"X-CSRF-Token": token}, timeout=WAIT_MS
        )
        assert response.ok, f"{method} {path}: {response.status} {response.text()}"
        return response.json() if response.body() else None

    def register(self, name: str = "Ada Example") -> None:
        """An account and a log-in, without the form."""
        self.email = new_email()
        self.ask("POST", "/api/register", {"name": name, "email": self.email, "password": PASSWORD})

    def log_in(self, email: str, password: str = PASSWORD) -> None:
        self.email = email
        self.ask("POST", "/api/session", {"email": email, "password": password})

    def type_program(self, code: str) -> None:
        """Replace what is in the playground's editor."""
        editor = self.page.get_by_role("textbox", name="Program")
        editor.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.press("Delete")
        self.page.keyboard.insert_text(code)

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        wider = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert isinstance(wider, int)
        return wider


def new_email() -> str:
    return f"ada{next(_numbers)}@example.org"


Open = Callable[..., Visitor]
"""Opens another browser window; `width`, `height`, `dark` say how it looks."""


def open_window(
    server: Server, browser: Browser, *, width: int = 1280, height: int = 860, dark: bool = False, **options: Any
) -> Visitor:
    scheme: Literal["dark", "light"] = "dark" if dark else "light"
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce", **options
    )
    context.set_default_timeout(WAIT_MS)
    visitor = Visitor(server=server, context=context, page=context.new_page())
    visitor.watch()
    return visitor


def problems(page: Page, *, colours_only: bool = False) -> list[str]:
    """What axe finds wrong with the page as it is now: rule, element, reason."""
    only = {"type": "rule", "values": ["color-contrast"]} if colours_only else {"type": "tag", "values": list(RULES)}
    # Not as a script of the page: its policy allows none but its own.
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("only => axe.run(document, {runOnly: only, resultTypes: ['violations']})", only)
    return [
        f"{violation['id']}: {node['target']}: {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]
