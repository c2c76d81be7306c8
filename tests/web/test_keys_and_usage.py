"""Keys and usage over the portal's API."""

import asyncio
import csv
import io
from datetime import UTC, datetime

import pytest

from tests.web.conftest import START_S, Browser, Portal

pytestmark = pytest.mark.anyio


async def test_a_key_is_made_shown_once_rotated_and_revoked(served: Portal) -> None:
    async with served.user() as browser:
        body = {"name": "ci", "description": "of the pipeline", "expiresAt": "2099-01-02T03:04:05Z", "dailyLimit": 7}
        made = await browser.post("/api/keys", body)
        assert made.status_code == 201, made.text
        key, secret = made.json()["key"], made.json()["secret"]
        assert (key["name"], key["dailyLimit"], key["expiresAt"]) == ("ci", 7, "2099-01-02T03:04:05.000Z")
        assert key["isActive"] is True
        assert key["isPrimary"] is False
        assert await served.accounts.verify(secret) is not None
        listed = await browser.get("/api/keys")
        assert [one["name"] for one in listed.json()["keys"]] == ["portal", "ci"]
        assert secret not in listed.text
        path = f"/api/keys/{key['id']}"
        changed = (await browser.ask("PATCH", path, json={"name": "cd", "dailyLimit": None})).json()
        assert (changed["name"], "dailyLimit" in changed, changed["description"]) == ("cd", False, "of the pipeline")
        rotated = (await browser.post(f"{path}/rotate")).json()["secret"]
        assert await served.accounts.verify(secret) is None
        assert await served.accounts.verify(rotated) is not None
        assert (await browser.ask("DELETE", path)).status_code == 204
        assert await served.accounts.verify(rotated) is None


async def test_inputs_of_a_key_that_are_wrong_are_named(served: Portal) -> None:
    async with served.user() as browser:
        for body, field in (
            ({"name": ""}, "name"),
            ({"name": "x", "expiresAt": "soon"}, "expiresAt"),
            ({"name": "x", "expiresAt": "2099-01-01T00:00:00"}, "expiresAt"),
            ({"name": "x", "dailyLimit": 0}, "dailyLimit"),
            ({"name": "x", "dailyLimit": 2**31 - 1}, "dailyLimit"),
            ({"name": "x", "concurrentLimit": True}, "concurrentLimit"),
        ):
            response = await browser.post("/api/keys", body)
            assert (response.status_code, response.json().get("field")) == (400, field), response.text


async def test_another_accounts_key_is_not_there(served: Portal) -> None:
    async with served.user() as ada, served.user() as bob:
        key = (await ada.post("/api/keys", {"name": "ci"})).json()["key"]
        path = f"/api/keys/{key['id']}"
        assert (await bob.ask("PATCH", path, json={"name": "x"})).status_code == 404
        assert (await bob.post(f"{path}/rotate")).status_code == 404
        assert (await bob.ask("DELETE", path)).status_code == 404
        assert (await bob.get("/api/usage", params={"key": key["id"]})).status_code == 404


async def used(browser: Browser, runs: int) -> dict[str, object]:
    """The usage once so many runs are in it."""
    async with asyncio.timeout(START_S):
        while True:
            found: dict[str, object] = (await browser.get("/api/usage", params={"days": "7"})).raise_for_status().json()
            if found["total"]["runs"] >= runs:  # type: ignore[index]
                return found
            await asyncio.sleep(0.1)


async def test_usage_is_told_by_day_by_hour_and_by_key(served: Portal) -> None:
    async with served.user() as browser:
        for code in ("print(1)", "raise SystemExit(1)"):
            await browser.ended((await browser.run(code))["id"])
        found = await used(browser, 2)
        total, days, hours, keys = found["total"], found["days"], found["hours"], found["keys"]
        assert isinstance(days, list)
        assert isinstance(hours, list)
        assert isinstance(keys, list)
        assert isinstance(total, dict)
        assert (total["runs"], total["errors"]) == (2, 1)
        assert total["cpuS"] > 0
        assert total["outcomes"] == {"exited": 2}
        assert len(days) == 7
        assert days[-1]["date"] <= datetime.now(UTC).date().isoformat()
        assert sum(one["runs"] for one in days) == sum(one["runs"] for one in hours) == 2
        assert [(one["name"], one["runs"]) for one in keys] == [("portal", 2)]
        of_key = (await browser.get("/api/usage", params={"key": keys[0]["id"]})).json()
        assert of_key["total"]["runs"] == 2
        exported = await browser.get("/api/usage.csv", params={"days": "7"})
        assert exported.headers["content-type"].startswith("text/csv")
        assert "attachment" in exported.headers["content-disposition"]
        rows = list(csv.DictReader(io.StringIO(exported.text)))
        assert len(rows) == 7
        assert sum(int(row["runs"]) for row in rows) == 2


async def test_another_accounts_usage_is_not_in_it(served: Portal) -> None:
    async with served.user() as ada, served.user() as bob:
        await ada.ended((await ada.run("print(1)"))["id"])
        await used(ada, 1)
        found = (await bob.get("/api/usage")).json()
        assert (found["total"]["runs"], found["keys"]) == (0, [])
        for days in ("0", "367", "x", "-1"):
            assert (await bob.get("/api/usage", params={"days": days})).status_code == 400
