"""The contract's account service: cases 31 to 35 of its list, and what it says besides; on SQLite and PostgreSQL."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry

from stockade.accounts import Accounts
from stockade.dialects.code_sandbox.access import Access
from stockade.dialects.code_sandbox.auth_routes import add_auth
from stockade.dialects.code_sandbox.edge import Edge
from stockade.dialects.code_sandbox.metrics import Metrics
from stockade.dialects.code_sandbox.settings import CodeSandboxSettings
from stockade.errors import Unavailable
from stockade.store import Database
from tests.accounts.people import ADA, OTHER, PASSWORD, SECRET, both, people, where
from tests.store.databases import database, postgres, postgres_url

__all__ = ["database", "postgres", "postgres_url", "where"]

pytestmark = pytest.mark.anyio

DAY_S = 86400
BODY = {"name": "Ada Example", "email": ADA, "password": PASSWORD}


@pytest.fixture
async def accounts(database: Database) -> AsyncIterator[Accounts]:
    async with people(database) as made:
        yield made


@pytest.fixture
async def client(accounts: Accounts) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(accounts) as made:
        yield made


def serving(accounts: Accounts) -> httpx.AsyncClient:
    """A client of an app that has the routes alone."""
    edge = Edge(
        access=Access(keys=accounts.verification, token_actor=None, is_open=True),
        settings=CodeSandboxSettings(),
        metrics=Metrics(CollectorRegistry()),
        body_timeout_s=30,
    )
    app, router = FastAPI(), APIRouter()
    add_auth(router, accounts, edge)
    app.include_router(router)
    transport = httpx.ASGITransport(app=app, client=("192.0.2.1", 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://code.example")


def told(response: httpx.Response) -> tuple[int, str]:
    """Status and `error` of an answer that ends as all do."""
    assert response.headers["content-type"] == "application/json"
    assert response.content.endswith(b"\n")
    assert set(response.json()) == {"error"}
    return response.status_code, response.json()["error"]


def decoded(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def forged(claims: dict[str, Any], *, algorithm: str = "HS256", secret: str = SECRET) -> str:
    """A token of our own making."""
    parts = ({"alg": algorithm, "typ": "JWT"}, claims)
    body = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
    signature = hmac.new(secret.encode(), body.encode(), hashlib.sha256).digest()
    return f"{body}.{_encoded(signature) if algorithm != 'none' else ''}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


async def validate(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.get("/v1/auth/validate", headers={"Authorization": f"Bearer {token}"})


@both
async def test_registering_gives_a_user_and_a_token_for_a_day(client: httpx.AsyncClient) -> None:
    """Case 31."""
    response = await client.post("/v1/auth/register", json=BODY)
    assert response.status_code == 201
    assert response.content.endswith(b"\n")
    found = response.json()
    user = found["user"]
    assert set(found) == {"user", "token"}
    assert set(user) == {"id", "name", "email", "createdAt", "updatedAt"}
    assert (user["name"], user["email"]) == ("Ada Example", ADA)
    assert len(user["id"]) == 32
    assert int(user["id"], 16) >= 0
    assert "password" not in response.text
    head, claims, _signature = found["token"].split(".")
    assert decoded(head) == {"alg": "HS256", "typ": "JWT"}
    assert set(decoded(claims)) == {"user_id", "email", "exp"}
    assert (decoded(claims)["user_id"], decoded(claims)["email"]) == (user["id"], ADA)
    assert time.time() + DAY_S - 120 < decoded(claims)["exp"] <= time.time() + DAY_S + 1


@both
async def test_an_address_registers_once_whatever_its_letter_case(client: httpx.AsyncClient) -> None:
    """Case 32."""
    assert (await client.post("/v1/auth/register", json=BODY)).status_code == 201
    again = await client.post("/v1/auth/register", json=BODY | {"email": "ADA@Example.COM"})
    assert told(again) == (409, "user already exists")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": " \t\n"}, "name is required"),
        ({"email": " "}, "email is required"),
        ({"email": "a@b"}, "invalid email format"),
        ({"password": "11character"}, "password must be at least 12 characters long"),
        ({"name": "", "email": "", "password": ""}, "name is required"),
        ({"email": "a@b", "password": ""}, "invalid email format"),
        ({"password": "x" * 1025}, "password must be at most 1024 bytes long"),
        ({"name": None}, "name is required"),
        ({"name": 1}, "invalid JSON payload"),
    ],
)
async def test_what_is_wrong_is_told_in_the_contracts_order_and_words(
    client: httpx.AsyncClient, changes: dict[str, object], error: str
) -> None:
    """Case 33."""
    assert told(await client.post("/v1/auth/register", json=BODY | changes)) == (400, error)


async def test_bodies_are_read_as_the_references_are(client: httpx.AsyncClient) -> None:
    """Names in any letter case, no content type, and text after the first value."""
    content = b'{"NAME":"Ada","Email":"ada@example.com","passWord":"correct horse battery","extra":1} trailing'
    assert (await client.post("/v1/auth/register", content=content)).status_code == 201
    for broken in (b"", b"{", b"[]", b'"x"'):
        assert told(await client.post("/v1/auth/register", content=broken)) == (400, "invalid JSON payload")
        assert told(await client.post("/v1/auth/login", content=broken)) == (400, "invalid JSON payload")


async def test_an_organization_is_shown_where_there_is_one(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/auth/register", json=BODY | {"organization": "Analytical Engines"})
    assert response.json()["user"]["organization"] == "Analytical Engines"


@both
async def test_logging_in_tells_nothing_of_who_is_registered(client: httpx.AsyncClient) -> None:
    """Case 34."""
    made = (await client.post("/v1/auth/register", json=BODY)).json()
    found = await client.post("/v1/auth/login", json={"email": "Ada@example.com", "password": PASSWORD})
    assert found.status_code == 200
    assert found.content.endswith(b"\n")
    assert set(found.json()) == {"user", "token"}
    assert found.json()["user"] == made["user"] | {"updatedAt": found.json()["user"]["updatedAt"]}
    wrong = await client.post("/v1/auth/login", json={"email": ADA, "password": OTHER})
    unknown = await client.post("/v1/auth/login", json={"email": "eve@example.com", "password": PASSWORD})
    assert told(wrong) == told(unknown) == (401, "invalid credentials")
    assert wrong.content == unknown.content


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"email": " ", "password": PASSWORD}, "email is required"),
        ({"email": ADA, "password": " "}, "password is required"),
        ({}, "email is required"),
    ],
)
async def test_what_is_missing_for_a_log_in_is_told(
    client: httpx.AsyncClient, body: dict[str, str], error: str
) -> None:
    assert told(await client.post("/v1/auth/login", json=body)) == (400, error)


async def test_who_guesses_too_often_has_to_wait(client: httpx.AsyncClient) -> None:
    for _ in range(5):
        response = await client.post("/v1/auth/login", json={"email": ADA, "password": OTHER})
        assert response.status_code == 401
    refused = await client.post("/v1/auth/login", json={"email": ADA, "password": OTHER})
    assert told(refused)[0] == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 30


@both
async def test_a_token_is_whose_it_is_and_no_other_is_good(client: httpx.AsyncClient) -> None:
    """Case 35."""
    made = (await client.post("/v1/auth/register", json=BODY)).json()
    user, token = made["user"], made["token"]
    for scheme in ("Bearer", "bearer", "BEARER"):
        good = await client.get("/v1/auth/validate", headers={"Authorization": f"{scheme} {token}"})
        assert good.status_code == 200
        assert good.json() == {"valid": True, "user": user}
        assert good.content.endswith(b"\n")
    for header in (None, "", "Bearer", "Bearer ", f"Basic {token}", token, f"Bearer  {token}", f"Bearer {token} x"):
        headers = {} if header is None else {"Authorization": header}
        refused = await client.get("/v1/auth/validate", headers=headers)
        assert told(refused) == (401, "missing or invalid authorization header"), header
    later, past = int(time.time()) + 60, int(time.time()) - 1
    claims = {"user_id": user["id"], "email": ADA, "exp": later}
    assert (await validate(client, forged(claims))).status_code == 200
    assert told(await validate(client, forged(claims | {"exp": past}))) == (401, "token expired")
    for bad in (
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        _padded_otherwise(token),
        token.rpartition(".")[0],
        f"{token}.",
        "a.b.c",
        "é.é.é",
        forged(claims, algorithm="none"),
        forged(claims, algorithm="none") + token.rpartition(".")[2],
        forged(claims, algorithm="HS512"),
        forged(claims, secret="another secret of thirty-two bytes"),
        forged(claims | {"exp": past}, secret="another secret of thirty-two bytes"),
        forged(claims | {"user_id": "0" * 32}),
        forged(claims | {"user_id": 7}),
        forged(claims | {"exp": "tomorrow"}),
        forged({"user_id": user["id"], "email": ADA}),
        "sk_" + "0" * 64,
    ):
        headers = {"Authorization": f"Bearer {bad}".encode()}
        refused = await client.get("/v1/auth/validate", headers=headers)  # type: ignore[arg-type]
        assert told(refused) == (401, "invalid token"), bad


def _padded_otherwise(token: str) -> str:
    """The same signature, by a lenient reading: a bit of its last character that stands for nothing is another one."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + letters[letters.index(token[-1]) ^ 1]


async def test_other_methods_are_not_allowed(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", "register"), ("PUT", "login"), ("POST", "validate"), ("DELETE", "validate")):
        response = await client.request(method, f"/v1/auth/{path}")
        assert told(response) == (405, "method not allowed")
        assert "allow" not in response.headers
    assert (await client.options("/v1/auth/login")).status_code == 200


async def test_a_token_ends_with_its_user(accounts: Accounts, client: httpx.AsyncClient) -> None:
    made = (await client.post("/v1/auth/register", json=BODY)).json()
    await accounts.users.remove(made["user"]["id"], by="operator")
    assert told(await validate(client, made["token"])) == (401, "invalid token")


async def test_a_database_that_is_away_is_an_internal_error(
    accounts: Accounts, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of what the database says is told."""

    async def away(*_: object, **__: object) -> None:
        raise Unavailable("the database at 10.0.0.7 is gone")

    monkeypatch.setattr(accounts.users.database, "read", away)
    for response in (
        await client.post("/v1/auth/register", json=BODY),
        await client.post("/v1/auth/login", json={"email": ADA, "password": PASSWORD}),
    ):
        assert told(response) == (500, "internal error")


async def test_strangers_register_only_where_they_may(database: Database) -> None:
    async with people(database, sign_up="closed") as closed, serving(closed) as client:
        status, error = told(await client.post("/v1/auth/register", json=BODY))
    assert status == 403
    assert "registrations" in error
