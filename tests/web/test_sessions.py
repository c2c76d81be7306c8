"""Log-in and log-out, cookies, and what forged requests meet."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest

from stockade.model import EndedBy
from stockade.model.users import Role
from stockade.web.security import Cookies
from tests.web.conftest import PASSWORD, START_S, Browser, Portal

pytestmark = pytest.mark.anyio


async def test_who_registers_is_logged_in(served: Portal) -> None:
    async with served.user(organization="Example") as browser:
        found = (await browser.get("/api/session")).json()
        assert found["user"]["email"] == browser.email
        assert found["user"]["organization"] == "Example"
        assert found["user"]["role"] == "user"
        assert found["user"]["hasPassword"] is True
        assert found["user"]["emailVerified"] is False
        assert found["account"]["tier"] == "pro"
        assert not re.search("hash|password_", str(found))


async def test_what_pages_need_before_a_log_in_is_told_to_anybody(served: Portal) -> None:
    async with served.stranger() as browser:
        found = await browser.arrive()
        assert found["sign_up"] is True
        assert found["oidc"] is None
        assert found["mail"] is False
        assert found["max_limits"]["wall_s"] == served.config.sandbox.maximum.wall_s


async def test_without_a_log_in_everything_else_asks_for_one(served: Portal) -> None:
    async with served.stranger() as browser:
        await browser.arrive()
        for method, path in (
            ("GET", "/api/session"),
            ("GET", "/api/jobs"),
            ("POST", "/api/jobs"),
            ("GET", "/api/sandboxes"),
            ("GET", "/api/keys"),
            ("GET", "/api/usage"),
            ("GET", "/api/languages"),
            ("GET", "/api/account/export"),
            ("GET", "/api/admin/users"),
            ("DELETE", "/api/account"),
        ):
            response = await browser.ask(method, path)
            assert (response.status_code, response.json()["error"]) == (401, "auth.required"), path


async def test_the_cookie_is_kept_from_scripts_and_other_sites(served: Portal) -> None:
    async with served.stranger() as browser:
        response = await browser.register()
        (cookie,) = [one for one in response.headers.get_list("set-cookie") if one.startswith("stockade_session=")]
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=lax", "path=/"} <= attributes
        assert not any(one.startswith("domain") for one in attributes)
        assert "secure" not in attributes  # plain HTTP on this machine


def test_with_https_only_this_host_can_set_the_cookie() -> None:
    from starlette.responses import Response

    cookies, response = Cookies(is_secure=True, session_s=60), Response()
    cookies.write(response, cookies.session, "secret")
    text = response.headers["set-cookie"].lower()
    assert text.startswith("__host-stockade_session=secret;")
    assert "secure" in text.split("; ")


@pytest.mark.parametrize("path", ["/api/session", "/api/register", "/api/password/forgot", "/api/password/reset"])
async def test_a_forged_request_before_a_log_in_is_refused(served: Portal, path: str) -> None:
    async with served.stranger() as browser:
        await browser.arrive()
        for token in ("", "wrong", browser.csrf[:-1] + "x"):
            response = await browser.post(path, {}, headers={"X-CSRF-Token": token})
            assert (response.status_code, response.json()["error"]) == (403, "csrf.refused")


async def test_the_token_of_another_browser_is_refused(served: Portal) -> None:
    async with served.user() as ada, served.user() as bob:
        response = await ada.post("/api/keys", {"name": "stolen"}, headers={"X-CSRF-Token": bob.csrf})
        assert (response.status_code, response.json()["error"]) == (403, "csrf.refused")
        assert (await ada.ask("DELETE", "/api/session", headers={"X-CSRF-Token": None})).status_code == 403
        assert (await ada.get("/api/session")).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://8000-x.127.0.0.1"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_page_of_another_origin_learns_and_changes_nothing(served: Portal, origin: str, method: str) -> None:
    async with served.user() as browser:
        response = await browser.ask(method, "/api/keys", headers={"Origin": origin})
        assert (response.status_code, response.json()["error"]) == (403, "origin.refused")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_request_of_which_the_browser_says_that_it_comes_from_elsewhere_is_refused(
    served: Portal, site: str
) -> None:
    async with served.user() as browser:
        response = await browser.get("/api/keys", headers={"Origin": None, "Sec-Fetch-Site": site})
        assert (response.status_code, response.json()["error"]) == (403, "origin.refused")


async def test_a_body_that_a_form_can_send_is_refused(served: Portal) -> None:
    async with served.user() as browser:
        response = await browser.ask(
            "POST", "/api/keys", content=b'{"name": "x"}', headers={"Content-Type": "text/plain"}
        )
        assert response.status_code == 400


async def test_a_cookie_that_was_planted_never_becomes_a_log_in(served: Portal) -> None:
    async with served.stranger() as browser:
        await browser.register()
        planted = "a" * 43
        async with served.stranger(cookies={"stockade_session": planted}) as victim:
            response = await victim.log_in(browser.email)
            assert response.status_code == 200
            issued = [one for one in response.headers.get_list("set-cookie") if one.startswith("stockade_session=")]
            assert len(issued) == 1
            assert planted not in issued[0]
        async with served.stranger(cookies={"stockade_session": planted}) as attacker:
            assert (await attacker.get("/api/session")).status_code == 401


async def test_a_new_log_in_ends_the_one_that_the_browser_had(served: Portal) -> None:
    async with served.user() as browser:
        before = browser.cookies()
        assert (await browser.log_in()).status_code == 200
        async with served.stranger(headers={"Cookie": before}) as other:
            assert (await other.get("/api/session")).status_code == 401
        assert (await browser.get("/api/session")).status_code == 200


async def test_a_log_out_ends_the_log_in_on_the_server(served: Portal) -> None:
    async with served.user() as browser:
        cookie = browser.cookies()
        assert (await browser.ask("DELETE", "/api/session")).status_code == 204
        async with served.stranger(headers={"Cookie": cookie}) as other:
            assert (await other.get("/api/session")).status_code == 401


async def test_a_wrong_password_and_an_unknown_address_are_answered_alike(served: Portal) -> None:
    async with served.user() as ada, served.stranger() as browser:
        wrong = await browser.log_in(ada.email, "not the password")
        unknown = await browser.log_in("nobody@example.org", "not the password")
        assert wrong.status_code == unknown.status_code == 401
        assert wrong.json() == unknown.json()
        assert wrong.json()["message"] == "invalid credentials"


async def test_a_field_that_is_wrong_is_named(served: Portal) -> None:
    async with served.stranger() as browser:
        response = await browser.register(password="short")
        assert response.status_code == 400
        assert response.json()["field"] == "password"
        assert "12" in response.json()["message"]
        assert (await browser.register(email="a@b")).json()["field"] == "email"


async def test_an_address_that_is_taken_is_told(served: Portal) -> None:
    async with served.user() as ada, served.stranger() as browser:
        response = await browser.register(email=ada.email.upper())
        assert response.status_code == 409
        assert response.json()["message"] == "user already exists"


async def test_another_password_ends_all_other_log_ins(served: Portal) -> None:
    async with served.user() as here, served.stranger() as there:
        await there.log_in(here.email)
        wrong = await here.post("/api/password", {"old": "wrong password", "new": "another long password"})
        assert wrong.status_code == 403
        assert wrong.json()["error"] != "auth.required"
        right = await here.post("/api/password", {"old": PASSWORD, "new": "another long password"})
        assert right.status_code == 204
        assert (await here.get("/api/session")).status_code == 200
        assert (await there.get("/api/session")).status_code == 401


async def test_log_ins_are_listed_and_ended_one_by_one(served: Portal) -> None:
    async with served.user() as here, served.stranger() as there, served.user() as stranger:
        await there.log_in(here.email)
        found = (await here.get("/api/sessions")).json()["sessions"]
        assert sorted(one["isCurrent"] for one in found) == [False, True]
        (other,) = [one for one in found if not one["isCurrent"]]
        assert (await stranger.ask("DELETE", f"/api/sessions/{other['id']}")).status_code == 404
        assert (await here.ask("DELETE", f"/api/sessions/{other['id']}")).status_code == 204
        assert (await there.get("/api/session")).status_code == 401
        assert (await here.ask("DELETE", "/api/sessions")).status_code == 204
        assert (await here.get("/api/session")).status_code == 200


async def test_a_forgotten_password_is_reset_with_the_token_that_the_operator_hands_over(served: Portal) -> None:
    async with served.user() as here, served.stranger() as browser:
        user_id = (await here.get("/api/session")).json()["user"]["id"]
        await browser.arrive()
        for email in (here.email, "nobody@example.org"):
            response = await browser.post("/api/password/forgot", {"email": email})
            assert (response.status_code, response.json()) == (202, {})
        token = await served.accounts.users.reset_token(user_id)
        body = {"token": token, "password": "another long password"}
        assert (await browser.post("/api/password/reset", body)).status_code == 204
        assert (await browser.post("/api/password/reset", body)).status_code == 400
        assert (await here.get("/api/session")).status_code == 401
        assert (await browser.log_in(here.email, "another long password")).status_code == 200


async def test_who_is_locked_is_out_at_once(served: Portal) -> None:
    async with served.user() as browser:
        user_id = (await browser.get("/api/session")).json()["user"]["id"]
        await served.accounts.users.lock(user_id, True, by="operator")
        assert (await browser.get("/api/session")).json()["error"] == "auth.required"
        response = await browser.log_in()
        assert response.status_code == 401


async def test_api_keys_and_tokens_open_nothing_of_the_portal(served: Portal) -> None:
    async with served.user() as ada, served.stranger() as browser:
        user = await served.accounts.users.find((await ada.get("/api/session")).json()["user"]["id"])
        assert user is not None
        for secret in (served.key, served.accounts.tokens.issue(user)):
            headers = {"Authorization": f"Bearer {secret}", "X-API-Key": secret, "Cookie": f"stockade_session={secret}"}
            assert (await browser.get("/api/session", headers=headers)).status_code == 401


async def test_the_cookie_opens_nothing_of_the_other_apis(served: Portal) -> None:
    async with served.user() as browser:
        for path in ("/v1/sessions", "/v1/account", "/v1/account/keys", "/v1/jobs"):
            assert (await browser.get(path)).status_code == 401, path
        assert (await browser.post("/execute", {"language": "python", "code": "1"})).status_code == 401
        secret = browser.http.cookies["stockade_session"]
        headers = {"Authorization": f"Bearer {secret}", "X-API-Key": secret}
        assert (await browser.get("/v1/sessions", headers=headers)).status_code == 401
        assert (await browser.get("/v1/auth/validate", headers=headers)).status_code == 401


async def test_profile_is_changed(served: Portal) -> None:
    async with served.user() as browser:
        found = (await browser.ask("PATCH", "/api/account", json={"name": "Ada L."})).json()
        assert found["user"]["name"] == "Ada L."
        assert found["csrf"] == browser.csrf


async def test_an_account_is_exported_and_deleted_with_all_that_it_has(served: Portal) -> None:
    async with served.user() as browser:
        job = await browser.run("print(1)")
        waiting = await browser.run("print(2)", delay_s=3600)
        export = await browser.get("/api/account/export")
        assert "attachment" in export.headers["content-disposition"]
        assert browser.email in export.text
        assert (await browser.ask("DELETE", "/api/account", json={"password": "wrong password"})).status_code == 403
        response = await browser.ask("DELETE", "/api/account", json={"password": PASSWORD})
        assert response.status_code == 204, response.text
        assert (await browser.get("/api/session")).status_code == 401
        assert (await browser.log_in()).status_code == 401
        assert served.engine.jobs is not None
        for one in (job, waiting):
            assert await served.engine.jobs.store.get(one["id"]) is None


async def test_admin_pages_are_for_admins(served: Portal) -> None:
    async with served.user() as browser:
        for path in ("users", "health", "nodes", "queue", "usage"):
            response = await browser.get(f"/api/admin/{path}")
            assert (response.status_code, response.json()["error"]) == (403, "auth.admin_required"), path
        response = await browser.ask("PATCH", "/api/admin/users/" + "0" * 32, json={"role": "admin"})
        assert response.status_code == 403
        assert (await browser.ask("DELETE", "/api/admin/users/" + "0" * 32)).status_code == 403


async def _make_admin(served: Portal, browser: Browser) -> str:
    user_id: str = (await browser.get("/api/session")).json()["user"]["id"]
    await served.accounts.users.set_role(user_id, Role.ADMIN, by="operator")
    return user_id


async def test_an_admin_sees_and_changes_users(served: Portal) -> None:
    async with served.user(name="Root") as admin, served.user(name="Bob") as bob:
        await _make_admin(served, admin)
        found = (await admin.get("/api/admin/users", params={"q": bob.email})).json()["users"]
        assert [one["email"] for one in found] == [bob.email]
        path = f"/api/admin/users/{found[0]['id']}"
        changed = (await admin.ask("PATCH", path, json={"tier": "pro", "isLocked": True})).json()
        assert (changed["tier"], changed["isLocked"]) == ("pro", True)
        assert (await bob.get("/api/session")).status_code == 401
        assert (await admin.ask("PATCH", path, json={"tier": "gold"})).status_code == 400
        assert (await admin.ask("PATCH", path, json={})).status_code == 400
        assert (await admin.ask("DELETE", path)).status_code == 204
        assert (await admin.ask("DELETE", path)).status_code == 404


async def test_whom_an_admin_locks_has_nothing_that_runs(served: Portal) -> None:
    async with served.user(name="Root") as admin, served.user(name="Eve") as eve:
        await _make_admin(served, admin)
        own = await admin.run("print(1)", delay_s=3600)
        running = await eve.run("import time\nprint('on', flush=True)\ntime.sleep(600)")
        waiting = await eve.run("print(2)", delay_s=3600)
        made = await eve.post("/api/sandboxes", {"command": ["sleep", "600"]})
        assert made.status_code == 201, made.text
        sandbox_id = made.json()["id"]
        session = (await eve.get("/api/session")).json()
        jobs, sandboxes = served.engine.jobs, served.engine.sandboxes
        assert jobs is not None
        assert sandboxes is not None
        async with asyncio.timeout(START_S):
            while (await eve.get(f"/api/jobs/{running['id']}")).json()["state"] != "running":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        path = f"/api/admin/users/{session['user']['id']}"
        response = await admin.ask("PATCH", path, json={"isLocked": True})
        assert (response.status_code, response.json()["isLocked"]) == (200, True)
        row = await sandboxes.of_account(session["account"]["id"], sandbox_id)
        assert row.ended_by is EndedBy.KILL
        assert (await admin.ended(waiting["id"]))["state"] == "cancelled"
        assert (await admin.ended(running["id"]))["state"] == "cancelled"
        assert (await admin.get(f"/api/jobs/{own['id']}")).json()["state"] == "queued"
        await admin.post(f"/api/jobs/{own['id']}/cancel")


async def test_an_admin_sees_how_the_server_is(served: Portal) -> None:
    async with served.user() as admin:
        await _make_admin(served, admin)
        health = (await admin.get("/api/admin/health")).json()
        assert health["database"] == {"kind": "sqlite", "ok": True}
        assert health["jobs"] == {"store": "sqlite", "ok": True}
        assert {"memory", "processes"} <= {one["name"] for one in health["features"]}
        assert (await admin.get("/api/admin/nodes")).json()["places"]["all"] == served.engine.queue.places
        assert (await admin.get("/api/admin/queue")).json()["dead"] == 0
        assert "days" in (await admin.get("/api/admin/usage", params={"days": "7"})).json()


async def test_too_many_requests_are_slowed_down(served: Portal, tmp_path: Path) -> None:
    from fastapi import FastAPI
    from prometheus_client import CollectorRegistry

    from stockade.web import portal
    from stockade.wire.dialect import Services
    from tests.web.conftest import answering

    config = replace(served.config, portal=replace(served.config.portal, requests_per_s=1))
    app = FastAPI()
    app.include_router(
        portal(
            Services(
                engine=served.engine,
                keys=served.accounts,
                accounts=served.accounts,
                settings=None,
                server=config.server,
                registry=CollectorRegistry(),
                open_access=True,
            ),
            config,
            assets=tmp_path,
        )
    )
    async with answering(app) as url, replace(served, url=url).stranger() as browser:
        codes = [(await browser.get("/api/meta")) for _ in range(8)]
        refused = [one for one in codes if one.status_code == 429]
        assert refused
        assert int(refused[0].headers["retry-after"]) >= 1
        assert refused[0].json()["error"] == "rate.exceeded"
