"""Log-in by a provider of OpenID Connect, behind HTTPS: a browser's way there and back."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from stockade.accounts import Accounts
from stockade.config import Config
from stockade.config_users import OidcConfig, UsersConfig
from stockade.engine import Engine
from stockade.store import Database
from stockade.web import portal
from stockade.wire.dialect import Services
from tests.accounts.oidc_provider import CLIENT_ID, CLIENT_SECRET, providing
from tests.web.conftest import Browser

pytestmark = pytest.mark.anyio
HERE = "https://code.example"


@pytest.fixture
async def browser(config: Config, engine: Engine, tmp_path: Path) -> AsyncIterator[Browser]:
    """Of somebody whom the provider knows."""
    async with providing(HERE) as provider, await Database.open(tmp_path / "oidc.db") as database:
        users = UsersConfig(
            public_url=HERE,
            oidc=OidcConfig(issuer=provider.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, name="Example"),
        )
        accounts = Accounts.on(database, config.accounts, users=users, secret="s" * 64)
        app = FastAPI(redirect_slashes=False)
        services = Services(
            engine=engine,
            keys=accounts,
            accounts=accounts,
            settings=None,
            server=config.server,
            registry=CollectorRegistry(),
            open_access=False,
        )
        app.include_router(portal(services, replace(config, users=users), assets=tmp_path))
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=HERE) as http:
                yield Browser(http=http)
        finally:
            await accounts.close()


async def begun(browser: Browser, next: str = "/app/jobs") -> str:
    """Where the provider sends the browser back to."""
    there = await browser.get("/api/oidc/start", params={"next": next}, headers={"Origin": None})
    assert there.status_code == 302
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(there.headers["location"])).headers["location"]


async def back(browser: Browser, where: str) -> httpx.Response:
    """As a browser follows another site's redirect."""
    return await browser.http.get(where, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})


async def test_who_the_provider_vouches_for_is_logged_in(browser: Browser) -> None:
    assert (await browser.arrive())["oidc"] == {"name": "Example"}
    response = await back(browser, await begun(browser))
    assert (response.status_code, response.headers["location"]) == (303, "/app/jobs")
    (cookie,) = [one for one in response.headers.get_list("set-cookie") if "stockade_session" in one]
    assert cookie.startswith("__Host-stockade_session=")
    assert {"secure", "httponly", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    found = (await browser.get("/api/session")).json()
    assert found["user"]["email"] == "ada@example.com"
    assert found["user"]["hasPassword"] is False
    assert (await browser.post("/api/keys", {"name": "x"}, headers={"X-CSRF-Token": found["csrf"]})).status_code == 201


async def test_the_answer_counts_once_and_only_in_the_browser_that_began(browser: Browser) -> None:
    where = await begun(browser)
    kept = dict(browser.http.cookies)
    browser.http.cookies.clear()
    other = await back(browser, where)
    assert other.headers["location"].startswith("/login?failed=")
    assert (await browser.get("/api/session")).status_code == 401
    for name, value in kept.items():
        browser.http.cookies.set(name, value)
    assert (await back(browser, where)).headers["location"] == "/app/jobs"
    assert (await back(browser, where)).headers["location"].startswith("/login?failed=")


async def test_what_was_meddled_with_logs_nobody_in(browser: Browser) -> None:
    where = urlsplit(await begun(browser))
    query = {name: values[0] for name, values in parse_qs(where.query).items()}
    for change in ({"state": "other"}, {"code": "other"}, {"iss": "https://evil.example"}, {"error": "denied"}):
        response = await browser.http.get(where.path, params=query | change)
        assert response.headers["location"].startswith("/login?failed="), change
        assert "stockade_session" not in str(response.headers.get_list("set-cookie"))


@pytest.mark.parametrize("next", ["https://evil.example/", "//evil.example", "/\\evil.example", "/api/session", ""])
async def test_it_leads_to_no_other_site(browser: Browser, next: str) -> None:
    assert (await back(browser, await begun(browser, next))).headers["location"] == "/app"


async def test_only_pages_of_ours_begin_it(browser: Browser) -> None:
    response = await browser.http.get("/api/oidc/start", headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 403
