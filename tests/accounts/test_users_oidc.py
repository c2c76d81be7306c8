"""Logging in by a provider of OpenID Connect: a real one, on loopback."""

import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import RSAKey

from stockade.accounts import Accounts
from stockade.accounts.oidc import Oidc, own_path
from stockade.config_users import OidcConfig
from stockade.errors import Denied, Invalid, Unavailable
from stockade.store import Database
from tests.accounts.oidc_provider import CLIENT_ID, CLIENT_SECRET, Provider, providing
from tests.accounts.people import ADA, people, where

__all__ = ["where"]

pytestmark = pytest.mark.anyio

HERE = "https://code.example"


@pytest.fixture
async def provider(anyio_backend: str) -> AsyncIterator[Provider]:
    async with providing(HERE) as made:
        yield made


@pytest.fixture
async def accounts(database: Database, provider: Provider) -> AsyncIterator[Accounts]:
    oidc = OidcConfig(issuer=provider.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, name="Example")
    async with people(database, sign_up="closed", oidc=oidc, public_url=HERE + "/") as made:
        yield made


def oidc_of(accounts: Accounts) -> Oidc:
    assert accounts.oidc is not None
    return accounts.oidc


async def visit(url: str) -> dict[str, str]:
    """What somebody's browser brings back who is logged in over there."""
    async with httpx.AsyncClient(trust_env=False) as browser:
        response = await browser.get(url)
    assert response.status_code == 307
    back = urlsplit(response.headers["location"])
    assert f"{back.scheme}://{back.netloc}{back.path}" == f"{HERE}/api/oidc/callback"
    return dict(parse_qsl(back.query))


async def log_in(accounts: Accounts, next: str = "/app") -> Any:
    url, state = await oidc_of(accounts).start(next)
    return await oidc_of(accounts).finish(await visit(url), state)


async def test_who_comes_from_the_provider_has_an_account_and_comes_back_to_it(
    accounts: Accounts, provider: Provider
) -> None:
    login = await log_in(accounts, "/app/jobs?state=queued")
    assert (login.user.email, login.user.name, login.next) == (ADA, "Ada", "/app/jobs?state=queued")
    assert login.user.email_verified_at is not None
    assert (await log_in(accounts)).user.id == login.user.id
    # Its addresses and keys were asked for once.
    assert sorted(provider.fetched) == ["configuration", "keys"]
    assert oidc_of(accounts).name == "Example"


async def test_an_answer_counts_once_and_only_in_the_browser_that_began(accounts: Accounts) -> None:
    oidc = oidc_of(accounts)
    url, state = await oidc.start("/app")
    _, another = await oidc.start("/app")
    query = await visit(url)
    for kept in (another, "", "x", state[:-2], accounts.tokens.issue((await log_in(accounts)).user)):
        with pytest.raises(Denied, match="begun elsewhere"):
            await oidc.finish(query, kept)
    await oidc.finish(query, state)
    with pytest.raises(Denied):
        await oidc.finish(query, state)
    with pytest.raises(Denied):
        await accounts.tokens.verify(state)


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"iss": ""},
        {"state": "x"},
        {"state": "\ud800"},
        {"code": "x"},
        {"code": ""},
        {"error": "access_denied"},
    ],
)
async def test_an_answer_that_somebody_has_changed_lets_nobody_in(accounts: Accounts, changes: dict[str, str]) -> None:
    url, state = await oidc_of(accounts).start("/app")
    with pytest.raises(Denied):
        await oidc_of(accounts).finish(await visit(url) | changes, state)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": [CLIENT_ID, "another"], "azp": "another"},
        {"iss": "https://evil.example"},
        {"nonce": "x"},
        {"nonce": None},
        {"exp": int(time.time()) - 3600},
        {"exp": None},
        {"sub": None},
        {"sub": 7},
        {"email": None},
    ],
)
async def test_an_id_token_that_is_not_for_us_and_now_lets_nobody_in(
    accounts: Accounts, provider: Provider, changes: dict[str, Any]
) -> None:
    provider.changes = changes
    with pytest.raises(Denied):
        await log_in(accounts)


async def test_a_token_that_somebody_else_has_signed_lets_nobody_in(accounts: Accounts, provider: Provider) -> None:
    provider.signs_with = RSAKey.generate_key(2048, {"kid": "1"})
    with pytest.raises(Denied, match="verified"):
        await log_in(accounts)


async def test_a_provider_may_change_its_keys(
    accounts: Accounts, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log_in(accounts)
    provider.renew()
    monkeypatch.setattr("stockade.accounts.oidc.REFRESH_S", 0.0)
    await log_in(accounts)


async def test_who_has_no_account_stays_out_where_nobody_is_to_be_taken_in(
    database: Database, provider: Provider
) -> None:
    oidc = OidcConfig(issuer=provider.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, sign_up=False)
    async with people(database, oidc=oidc, public_url=HERE) as accounts:
        with pytest.raises(Denied, match="operator"):
            await log_in(accounts)


@pytest.mark.parametrize(
    ("issuer", "public_url", "name"),
    [
        ("http://id.example", HERE, "issuer"),
        ("ftp://127.0.0.1", HERE, "issuer"),
        ("https://id.example", "", "public_url"),
    ],
)
async def test_a_provider_is_not_spoken_to_in_the_clear(
    database: Database, issuer: str, public_url: str, name: str
) -> None:
    with pytest.raises(Invalid, match=name):
        async with people(database, oidc=OidcConfig(issuer=issuer, client_id="x"), public_url=public_url):
            pass


async def test_a_provider_that_is_away_is_told_and_asked_again(database: Database, provider: Provider) -> None:
    oidc = OidcConfig(issuer=provider.issuer + "/elsewhere", client_id=CLIENT_ID)
    async with people(database, oidc=oidc, public_url=HERE) as accounts:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await oidc_of(accounts).start("/app")


@pytest.mark.parametrize(
    "next",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "",
        "app",
        "/app\r\nx",
        "/ä",
        "/" + "a" * 3000,
        "/\t/x",
    ],
)
async def test_nobody_is_sent_elsewhere(next: str) -> None:
    assert own_path(next) == "/app"


@given(st.text(max_size=50))
def test_whatever_is_asked_for_leads_to_a_page_of_ours(text: str) -> None:
    found = urlsplit("https://code.example" + own_path(text))
    assert found.netloc == "code.example"
    assert own_path("/" + text).startswith("/")
    assert not own_path("/" + text).startswith(("//", "/\\"))
