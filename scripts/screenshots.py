"""Take the pictures of the portal in docs/images, from a server of its own.

.venv/bin/python scripts/screenshots.py
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from tests.app.serving import serving
from tests.portal.browsing import Visitor, chromium, launch, open_window

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 150 * 1024
PROGRAM = """\
import math

def primes(limit):
    sieve = bytearray([1]) * (limit + 1)
    sieve[:2] = b"\\0\\0"
    for n in range(2, math.isqrt(limit) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(sieve[n * n :: n]))
    return [n for n, is_prime in enumerate(sieve) if is_prime]

for limit in (10, 1_000, 100_000, 1_000_000):
    found = primes(limit)
    print(f"{len(found):>6} primes up to {limit:,}")
"""
JOBS = (
    ("python", "print(sum(range(10**6)))"),
    ("python", "raise SystemExit(3)"),
    ("python", "x = list(range(10**9))"),
    ("python", "while True: pass"),
    ("bash", "echo hello; exit 0"),
    ("node", "console.log([1, 2, 3].map(x => x * x))"),
)


def main() -> None:
    program = chromium()
    if program is None:
        sys.exit("needs Chromium: apt-get install chromium")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder)) as server,
        sync_playwright() as playwright,
    ):
        browser = launch(playwright, program)
        light = open_window(server, browser, width=1280, height=800)
        light.go("/")
        take(light, "portal-landing")
        light.register("Ada Example")
        for language, code in JOBS:
            limits = {"wall_s": 1} if "while True" in code else {}
            light.ask("POST", "/api/jobs", {"language": language, "code": code, "limits": limits})
        play(light)
        take(light, "portal-playground")
        dark = open_window(server, browser, width=1280, height=800, dark=True)
        dark.log_in(light.email)
        play(dark)
        take(dark, "portal-playground-dark")
        work(dark)
        take(dark, "portal-sandbox")
        light.go("/app/jobs")
        expect(light.page.locator(".badge").filter(has_text="queued")).to_have_count(0)
        take(light, "portal-jobs")
        light.go("/app/usage")
        while not light.page.locator(".uplot canvas").first.is_visible():
            light.page.reload()
            light.page.wait_for_load_state("networkidle")
        take(light, "portal-usage")
        phone = open_window(server, browser, width=360, height=740, dark=True)
        phone.log_in(light.email)
        phone.go("/app/play")
        expect(phone.page.get_by_role("textbox", name="Program")).to_be_visible()
        take(phone, "portal-phone")
        browser.close()
        server.end()


def play(visitor: Visitor) -> None:
    """A program that has run."""
    visitor.go("/app/play")
    visitor.type_program(PROGRAM)
    visitor.page.get_by_role("button", name="Run").click()
    expect(visitor.page.get_by_role("region", name="Result").get_by_role("status")).to_contain_text("succeeded")
    expect(visitor.page.get_by_role("region", name="Your last runs").get_by_text("running")).to_have_count(0)


def work(visitor: Visitor) -> None:
    """A sandbox with something in its terminal."""
    sandbox = visitor.ask("POST", "/api/sandboxes", {"timeout_s": 600})
    visitor.go(f"/app/sandboxes/{sandbox['id']}")
    expect(visitor.page.get_by_role("status").filter(has_text="Connected")).to_be_visible()
    visitor.page.keyboard.type("uname -s; ps -e; python3 -c 'print(6 * 7)'\n")
    expect(visitor.page.locator(".xterm-rows")).to_contain_text("42")


def take(visitor: Visitor, name: str) -> None:
    """A picture of what the window shows."""
    visitor.page.wait_for_load_state("networkidle")
    visitor.page.evaluate("document.fonts.ready")
    path = IMAGES / f"{name}.png"
    visitor.page.screenshot(path=path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{path.name} has {size} bytes: a page that loads slowly is not read")
    print(f"{path.relative_to(ROOT)}: {size // 1024} KiB")


if __name__ == "__main__":
    main()
