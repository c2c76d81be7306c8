"""Accounts, keys and usage over HTTP, on a real database."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from stockade.accounts import Accounts
from stockade.config_accounts import AccountsConfig
from stockade.store import Database
from tests.dialects.execbox.conftest import serving

pytestmark = pytest.mark.anyio

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@asynccontextmanager
async def accounting(folder: Path, **config: Any) -> AsyncIterator[tuple[Any, Accounts, str]]:
    """A server, its accounts, and the operator's key."""
    async with await Database.open(str(folder / "state" / "stockade.db")) as database:
        accounts = Accounts.on(database, AccountsConfig(**config))
        admin = await accounts.operation.ensure_admin()
        assert admin is not None
        try:
            async with serving(accounts=accounts) as served:
                served.client.headers["Authorization"] = f"Bearer {admin}"
                yield served, accounts, admin
        finally:
            await accounts.close()


@pytest.fixture
async def served(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Any]:
    async with accounting(tmp_path) as (served, accounts, _admin):
        new = await accounts.operation.create_key("free", tier="free", email="dev@example.org")
        yield Asking(served.client), Asking(served.client, new.secret)


class Asking:
    """Asks with one key."""

    def __init__(self, client: httpx.AsyncClient, key: str = "") -> None:
        self.client = client
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def __call__(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.client.request(method, f"/v1{path}", json=body, headers=self.headers)


async def test_an_account_says_its_tier_and_whose_key_asks(served: Any) -> None:
    admin, free = served
    found = (await free("GET", "/account")).json()
    assert (found["tier"], found["email"]) == ("free", "dev@example.org")
    assert UUID.fullmatch(found["api_key_id"])
    assert re.fullmatch(r"sk_[0-9a-f]{4}\.\.\.[0-9a-f]{4}", found["api_key_preview"])
    assert found["created_at"].endswith("Z")
    other = (await admin("GET", "/account")).json()
    assert other["tier"] == "enterprise"
    assert "email" not in other


async def test_unlimited_is_minus_one(served: Any) -> None:
    admin, free = served
    assert (await free("GET", "/account/usage")).json() == {
        "sessions_today": 0, "active_sessions": 0, "quota_used": 0, "quota_remaining": 10, "tier": "free",
        "concurrent_limit": 5, "daily_limit": 10, "max_duration_seconds": 60, "max_memory_mb": 512,
    }  # fmt: skip
    found = (await admin("GET", "/account/usage")).json()
    assert found["tier"] == "enterprise"
    assert {
        found[name]
        for name in ("quota_remaining", "concurrent_limit", "daily_limit", "max_duration_seconds", "max_memory_mb")
    } == {-1}


async def test_enhanced_usage_and_its_export_are_empty_at_first(served: Any) -> None:
    _, free = served
    found = (await free("GET", "/account/usage/enhanced")).json()
    assert (found["cost_estimate_cents"], found["alert_threshold"]) == (0, 80)
    assert UUID.fullmatch(found["account_id"])
    assert "daily_history" not in found
    assert "hourly_usage" not in found
    assert (await free("GET", "/account/usage/export")).json() == []
    export = await free("GET", "/account/usage/export?format=csv")
    assert export.headers["content-type"].startswith("text/csv")
    assert export.text == "date,executions,duration_ms,cost_cents,errors\r\n"
    for wrong in ("enhanced?days=0", "enhanced?days=91", "export?days=366", "export?format=xml"):
        assert (await free("GET", f"/account/usage/{wrong}")).status_code == 400


async def test_limits_can_be_lowered_and_never_raised_above_the_tier(served: Any) -> None:
    _, free = served
    assert (await free("GET", "/account/limits")).json() == {
        "daily_requests_limit": 10, "concurrent_requests_limit": 5, "alert_threshold": 80, "timezone": "UTC",
    }  # fmt: skip
    changes = {"daily_requests_limit": 4, "timezone": "Europe/Vienna", "billing_email": "pay@example.org"}
    changed = await free("PUT", "/account/limits", changes)
    assert changed.status_code == 200
    assert changed.json().items() >= changes.items()
    assert changed.json()["concurrent_requests_limit"] == 5
    assert (await free("GET", "/account/usage")).json()["daily_limit"] == 4
    for wrong in (
        {},
        {"daily_requests_limit": 11},
        {"daily_requests_limit": 0},
        {"daily_requests_limit": -2},
        {"concurrent_requests_limit": -1},
        {"alert_threshold": 0},
        {"alert_threshold": 101},
        {"billing_email": "nobody"},
        {"timezone": "Mars/Olympus"},
        {"monthly_cost_limit_cents": 0},
    ):
        response = await free("PUT", "/account/limits", wrong)
        assert (response.status_code, response.json()["code"]) == (400, "BAD_REQUEST"), wrong


async def test_no_limit_is_for_those_who_have_none(served: Any) -> None:
    admin, _ = served
    assert (await admin("PUT", "/account/limits", {"daily_requests_limit": 7})).json()["daily_requests_limit"] == 7
    back = await admin("PUT", "/account/limits", {"daily_requests_limit": -1})
    assert back.json()["daily_requests_limit"] == -1


async def test_the_life_of_a_key(served: Any) -> None:
    admin, free = served
    made = await free("POST", "/account/keys", {"name": "ci", "description": "for tests", "custom_daily_limit": 3})
    assert made.status_code == 201
    key = made.json()
    assert re.fullmatch(r"sk_[0-9a-f]{64}", key["key"])
    assert key["key_preview"] == f"{key['key'][:7]}...{key['key'][-4:]}"
    assert (key["name"], key["is_active"], key["custom_daily_limit"]) == ("ci", True, 3)
    listed = (await free("GET", "/account/keys")).json()["keys"]
    assert [one["id"] for one in listed][-1] == key["id"]
    assert all("key" not in one for one in listed)
    ci = Asking(free.client, key["key"])
    assert (await ci("GET", "/account")).json()["api_key_id"] == key["id"]
    rotated = (await free("POST", f"/account/keys/{key['id']}/rotate")).json()
    assert rotated["id"] == key["id"]
    assert (await ci("GET", "/account")).status_code == 401
    ci = Asking(free.client, rotated["key"])
    assert (await ci("GET", "/account")).status_code == 200
    assert (await admin("GET", f"/account/keys/{key['id']}")).status_code == 404
    for _ in range(2):
        deleted = await free("DELETE", f"/account/keys/{key['id']}")
        assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await ci("GET", "/account")).status_code == 401
    kept = (await free("GET", f"/account/keys/{key['id']}")).json()
    assert kept["is_active"] is False


async def test_a_key_can_be_changed(served: Any) -> None:
    _, free = served
    key = (await free("POST", "/account/keys", {"name": "ci"})).json()
    path = f"/account/keys/{key['id']}"
    changed = (await free("PUT", path, {"name": "", "custom_concurrent_limit": 2})).json()
    assert "name" not in changed
    assert changed["custom_concurrent_limit"] == 2
    moved = (await free("PUT", path, {"expires_at": "2099-02-03T04:05:06+02:00"})).json()
    assert moved["expires_at"] == "2099-02-03T02:05:06Z"
    for wrong in ({}, {"other": 1}, {"name": "x" * 101}, {"custom_daily_limit": 0}, {"expires_at": "tomorrow"}):
        assert (await free("PUT", path, wrong)).status_code == 400, wrong


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x" * 101},
        {"name": "x", "description": "x" * 501},
        {"name": "x", "custom_daily_limit": 0},
        {"name": "x", "custom_concurrent_limit": 6},
        {"name": "x", "expires_at": "2026-02-30T00:00:00Z"},
        {"name": "x", "expires_at": "2026-02-03T00:00:00"},
    ],
)
async def test_a_key_that_is_wrong_is_not_made(served: Any, body: dict[str, Any]) -> None:
    _, free = served
    response = await free("POST", "/account/keys", body)
    assert (response.status_code, response.json()["code"]) == (400, "BAD_REQUEST")
    assert len((await free("GET", "/account/keys")).json()["keys"]) == 1


async def test_a_key_that_has_expired_already_opens_nothing(served: Any) -> None:
    _, free = served
    made = await free("POST", "/account/keys", {"name": "old", "expires_at": "2020-01-01T00:00:00Z"})
    assert made.status_code == 201
    assert (await Asking(free.client, made.json()["key"])("GET", "/account")).status_code == 401


async def test_the_primary_key_stays(served: Any) -> None:
    _, free = served
    primary = (await free("GET", "/account")).json()["api_key_id"]
    assert (await free("DELETE", f"/account/keys/{primary}")).status_code == 400
    assert (await free("GET", "/account")).status_code == 200


async def test_ids_of_keys_are_uuids(served: Any) -> None:
    _, free = served
    for method in ("GET", "DELETE"):
        assert (await free(method, "/account/keys/none")).status_code == 400
        assert (await free(method, "/account/keys/00000000-0000-0000-0000-000000000000")).status_code == 404


async def test_strangers_sign_up_only_where_they_may(tmp_path: Path, anyio_backend: str) -> None:
    async with accounting(tmp_path / "closed") as (served, _, _):
        response = await served.client.post("/v1/waitlist", json={"email": "dev@example.org"})
        assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")
    async with accounting(tmp_path / "open", waitlist=True) as (served, _, _):
        nobody = {"Authorization": ""}
        joined = await served.client.post(
            "/v1/waitlist", json={"email": "dev@example.org", "name": "Dev"}, headers=nobody
        )
        assert joined.status_code == 201
        answer = joined.json()
        assert answer["tier"] == "free"
        account = (await Asking(served.client, answer["key"])("GET", "/account")).json()
        assert (account["api_key_id"], account["tier"]) == (answer["id"], "free")
        for wrong in ({}, {"email": ""}, {"email": "nobody"}, {"email": 5}):
            assert (await served.client.post("/v1/waitlist", json=wrong, headers=nobody)).status_code == 400
        answers = [await served.client.post("/v1/waitlist", json={}, headers=nobody) for _ in range(20)]
        assert any(one.status_code == 429 for one in answers)


async def test_anybody_can_ask_for_more(served: Any) -> None:
    _, free = served
    for asking in (free, Asking(free.client, "nobody's")):
        response = await asking("POST", "/quota-requests", {"email": "dev@example.org", "use_case": "a course"})
        assert response.status_code == 201
        assert response.json()["status"] == "pending"
        assert isinstance(response.json()["id"], int)
    assert (await free("POST", "/quota-requests", {"name": "Dev"})).status_code == 400
