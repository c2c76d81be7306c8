"""What users try on one another, and strangers on users, over the portal and over `/v1`: others' jobs by every way that
leads to one, lists with others' filters, headers that no browser sends, names that are there to mislead.
"""

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from stockade.accounts import Accounts, TokenInvalid, WrongInput
from stockade.accounts.mail import Letter, Mailer
from stockade.config_accounts import AccountsConfig
from stockade.config_users import MailConfig, UsersConfig
from stockade.engine.jobs import JobRequest
from stockade.engine.webhooks import secret_of
from stockade.errors import Conflict, LimitExceeded
from stockade.model import Actor, EndedBy, RunSpec, SandboxState
from stockade.model.accounts import UsageRecord
from stockade.model.jobs import JobState
from stockade.store import Database, UsageTable
from stockade.store.usage import JobUsage
from tests.web.conftest import PASSWORD, Browser, Portal, served
from tests.web.test_pages import raw

pytestmark = pytest.mark.anyio
__all__ = ["served"]

SCRIPT = "<script>alert(1)</script>\x1b]0;title\x07\x9b2J"
MANY = 1000


async def bearer(portal: Portal, browser: Browser) -> dict[str, str]:
    """Headers by which the browser's user asks over `/v1`."""
    user = await portal.accounts.users.find((await browser.get("/api/session")).json()["user"]["id"])
    assert user is not None
    return {"Authorization": f"Bearer {portal.accounts.tokens.issue(user)}"}


async def test_no_way_leads_to_another_accounts_job(served: Portal) -> None:
    async with served.user() as ada, served.user() as eve:
        hers, evil = await bearer(served, ada), await bearer(served, eve)
        waiting = {"language": "python", "code": "print(1)", "delay": "1h", "labels": {"of": "ada"}}
        made = await ada.http.post("/v1/jobs/batch", headers=hers, json={"jobs": [waiting] * 3})
        assert made.status_code == 202, made.text
        batch, ids = made.json()["batchId"], [one["id"] for one in made.json()["jobs"]]
        first = (await ada.http.get("/v1/jobs?limit=1", headers=hers)).json()
        own = (await eve.http.post("/v1/jobs", headers=evil, json=waiting | {"labels": {}})).json()["id"]

        for id in ids:
            for method, path in (
                ("GET", f"/v1/execute/{id}"),
                ("GET", f"/v1/execute/{id}?wait=1s"),
                ("GET", f"/v1/jobs/{id}"),
                ("GET", f"/v1/jobs/{id}?wait=1s"),
                ("GET", f"/v1/jobs/{id}/events"),
                ("POST", f"/v1/jobs/{id}/cancel"),
                ("POST", f"/v1/jobs/{id}/retry"),
                ("DELETE", f"/v1/jobs/{id}"),
            ):
                assert (await eve.http.request(method, path, headers=evil)).status_code == 404, path
                assert (await eve.http.request(method, path)).status_code == 401, path

        account = (await ada.get("/api/session")).json()["account"]["id"]
        for query in (
            {},
            {"account": account},
            {"key": account},
            {"batch": batch},
            {"cursor": first["cursor"]},
            {"status": "queued"},
        ):
            for path, options in (("/v1/jobs", {"headers": evil}), ("/api/jobs", {})):
                response = await eve.get(path, params=query, **options)
                assert response.status_code == 200, (path, query, response.text)
                assert {one["id"] for one in response.json()["jobs"]} <= {own}, (path, query)
        for cursor in ("x", "W10=", "WyIyMDI2LTAxLTAxIiwgMV0", "' OR 1=1 --", "\u00e9"):
            assert (await eve.get("/api/jobs", params={"cursor": cursor})).status_code == 400, cursor
        assert [one["state"] for one in (await ada.get("/api/jobs", params={"batch": batch})).json()["jobs"]] == [
            "queued"
        ] * 3


async def test_who_can_check_their_messages_cannot_sign_others(served: Portal) -> None:
    assert served.engine.jobs is not None
    root = served.engine.jobs.webhook_secret
    async with served.user() as ada, served.user() as eve:
        found = []
        for browser in (ada, eve):
            headers = await bearer(served, browser)
            found.append((await browser.http.get("/v1/jobs/webhook-secret", headers=headers)).json()["secret"])
            account = (await browser.get("/api/session")).json()["account"]["id"]
            assert found[-1] == secret_of(root, account)
        assert found[0] != found[1]
        assert root not in found
        assert root not in repr(served.engine.jobs)
        assert (await eve.http.get("/v1/jobs/webhook-secret")).status_code == 401


async def test_another_users_log_in_cannot_be_ended(served: Portal) -> None:
    async with served.user() as ada, served.user() as eve:
        (session,) = (await ada.get("/api/sessions")).json()["sessions"]
        assert (await eve.ask("DELETE", f"/api/sessions/{session['id']}")).status_code == 404
        assert (await eve.ask("DELETE", "/api/sessions")).status_code == 204
        assert (await ada.get("/api/session")).status_code == 200


async def test_what_a_tenant_has_written_is_data_wherever_it_is_shown(served: Portal) -> None:
    async with served.user(name="<b>Eve</b>") as eve:
        job = await eve.run("print(1)", labels={"<i>": "<img src=x onerror=alert(1)>"}, stdin=SCRIPT, delay_s=3600)
        for path in ("/api/jobs", f"/api/jobs/{job['id']}", "/api/session", "/api/account/export"):
            response = await eve.get(path)
            headers = response.headers
            assert headers["content-type"] == "application/json", path
            assert headers["x-content-type-options"] == "nosniff", path
            assert "sandbox" in headers["content-security-policy"], path
            json.loads(response.text)


@pytest.mark.parametrize("header", ["Origin: http://[", "Origin: http://[::1", "Origin: null", "Origin: \xff"])
@pytest.mark.parametrize("path", ["/api/meta", "/api/session", "/api/sandboxes/x/terminal"])
async def test_an_origin_that_is_none_is_refused_and_breaks_nothing(served: Portal, path: str, header: str) -> None:
    status, _, _ = await asyncio.to_thread(raw, served.url, path, header)
    assert status in (403, 404)  # 404: the terminal, to which a plain request does not lead


async def test_a_host_that_is_none_is_refused_and_breaks_nothing(served: Portal) -> None:
    async with served.user() as browser:
        response = await browser.get("/api/sandboxes", headers={"Host": "[", "Origin": None})
        assert response.status_code == 400, response.text
        assert (await browser.get("/api/sandboxes")).status_code == 200


@pytest.mark.parametrize("path", ["/api/session", "/api/register", "/api/password/forgot"])
async def test_a_crowd_of_members_is_not_looked_at_one_by_one(served: Portal, path: str) -> None:
    """Each of them would be an error with a text of its own: a second of the server's time for a few kilobytes."""
    async with served.stranger() as browser:
        await browser.arrive()
        response = await browser.post(path, {f"m{number}": 1 for number in range(50_000)})
        assert (response.status_code, "members" in response.json()["message"]) == (400, True)


async def test_nor_in_a_batch(served: Portal) -> None:
    async with served.user() as eve:
        headers = await bearer(served, eve)
        job = {"language": "python", "code": "1"}
        for body in (
            {"jobs": [{f"m{number}": 1 for number in range(50_000)}]},
            {"jobs": [job | {"labels": {f"m{number}": 1 for number in range(50_000)}}]},
            {"jobs": [job | {"args": [1] * 50_000}]},
            {"jobs": [1] * 500_000},
            {"jobs": [job], **{f"m{number}": 1 for number in range(50_000)}},
        ):
            response = await eve.http.post("/v1/jobs/batch", headers=headers, json=body)
            assert response.status_code == 400, response.text
            assert len(response.content) < 1000


async def test_who_follows_a_job_hears_no_more_once_the_key_is_revoked(
    served: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stockade.dialects.code_sandbox.job_routes.LOOK_AGAIN_S", 0.0)
    async with served.user() as ada:
        made = (await ada.post("/api/keys", {"name": "lent"})).json()
        headers = {"X-API-Key": made["secret"]}
        job = await ada.run("print('for the owner only')", delay_s=3600)
        async with asyncio.timeout(60), ada.http.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as told:
            lines = told.aiter_lines()
            assert await anext(lines) == "event: state"
            assert (await ada.ask("DELETE", f"/api/keys/{made['key']['id']}")).status_code == 204
            await ada.post(f"/api/jobs/{job['id']}/cancel")
            rest = [line async for line in lines]
        assert "event: error" in rest
        assert "event: state" not in rest
        assert not any("cancelled" in line for line in rest)


async def test_an_account_that_has_cost_what_it_may_gets_no_job_either(served: Portal) -> None:
    async with served.user() as eve:
        headers = await bearer(served, eve)
        done = await eve.ended((await eve.run("print(1)"))["id"])
        account = (await eve.get("/api/session")).json()["account"]["id"]
        await served.accounts.limits.put(Actor(id=account, account_id=account), {"monthly_cost_limit_cents": 1})
        used = UsageRecord(executions=1, cost_microcents=2_000_000)
        now = datetime.now(UTC)
        usage = JobUsage(
            job_id=f"of-{account}", account_id=account, key_id=account, ended_at=now, outcome="exited", used=used
        )
        await UsageTable(served.accounts.operation.database).record_jobs([usage])
        job = {"language": "python", "code": "print(1)"}
        asked = eve.http.post
        for response in (
            await eve.post("/api/jobs", job),
            await eve.post(f"/api/jobs/{done['id']}/retry"),
            await asked("/v1/jobs", headers=headers, json=job | {"delay": "1h"}),
            await asked("/v1/jobs/batch", headers=headers, json={"jobs": [job]}),
            await asked(f"/v1/jobs/{done['id']}/retry", headers=headers),
            await asked("/v1/execute", headers=headers, json=job),
        ):
            assert response.status_code == 429, response.text
            assert "cost" in response.text


async def test_who_leaves_takes_every_job_along_however_many(served: Portal) -> None:
    assert served.engine.jobs is not None
    async with served.user() as browser:
        account = (await browser.get("/api/session")).json()["account"]["id"]
        token = await bearer(served, browser)
        key = (await browser.post("/api/keys", {"name": "left behind"})).json()["secret"]
        request = JobRequest(
            spec=RunSpec(language="python", code="print(1)"),
            dialect="test",
            run_at=datetime.now(UTC) + timedelta(hours=1),
        )
        actor = Actor(id=account, account_id=account)
        made = await served.engine.jobs.submit_batch(actor, [request] * MANY)
        response = await browser.ask("DELETE", "/api/account", json={"password": PASSWORD})
        assert response.status_code == 204, response.text
        for headers in (token, {"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            for path in ("/v1/jobs", f"/v1/execute/{made[0].id}"):
                assert (await browser.http.get(path, headers=headers)).status_code == 401
        for job in (made[0], made[-1]):
            assert await served.engine.jobs.store.get(job.id) is None


async def test_whom_another_process_locks_has_nothing_that_runs(served: Portal) -> None:
    """The command line locks in the database alone; what was let in before that moment is ended, too."""
    jobs, sandboxes = served.engine.jobs, served.engine.sandboxes
    assert jobs is not None
    assert sandboxes is not None
    async with served.user() as eve, served.user() as ada:
        made = []
        for browser in (eve, ada):
            response = await browser.post("/api/sandboxes", {"command": ["sleep", "600"]})
            assert response.status_code == 201, response.text
            session = (await browser.get("/api/session")).json()
            made.append((session["user"]["id"], session["account"]["id"], response.json()["id"]))
        user_id, account_id, sandbox_id = made[0]
        await served.accounts.users.lock(user_id, True, by="operator")
        request = JobRequest(spec=RunSpec(language="python", code="print('ran')"), dialect="test")
        actor = Actor(id=account_id, account_id=account_id)  # as somebody who was let in just before
        late = await jobs.wait(actor, (await jobs.submit(actor, request)).id, timeout_s=30)
        assert late.state is JobState.CANCELLED
        assert late.result is not None
        assert late.result.stdout == b""
        async with asyncio.timeout(30):
            while (row := await sandboxes.of_account(account_id, sandbox_id)).ended_by is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert row.ended_by is EndedBy.KILL
        _, account_id, sandbox_id = made[1]
        assert (await sandboxes.of_account(account_id, sandbox_id)).state is SandboxState.RUNNING
        await sandboxes.kill_of_account(account_id)


# Names and addresses


@pytest.fixture
async def accounts(tmp_path: Path, anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Accounts that send mail, to a list."""
    letters: list[Letter] = []
    monkeypatch.setattr(Mailer, "post", lambda _self, letter: letters.append(letter))
    users = UsersConfig(sign_up="open", mail=MailConfig(host="localhost", sender="stockade@example.com"))
    async with await Database.open(tmp_path / "accounts.db") as database:
        accounts = Accounts.on(database, AccountsConfig(), users=users, secret="s" * 64)
        try:
            yield accounts, letters
        finally:
            await accounts.close()


async def registered(accounts: Accounts, **members: Any) -> Any:
    return await accounts.users.register(**{"name": "Ada", "password": PASSWORD, **members})


@pytest.mark.parametrize(
    "name", ["Eve\u202egro.elpmaxe@nimda", "Eve\u2066", "Eve\u2028admin", "Eve\x1b[2J", "Eve\x9b2J"]
)
async def test_a_name_cannot_rearrange_the_list_that_it_stands_in(accounts: Any, name: str) -> None:
    with pytest.raises(WrongInput):
        await registered(accounts[0], name=name, email="eve@example.org")
    with pytest.raises(WrongInput):
        await registered(accounts[0], organization=name, email="eve@example.org")


async def test_a_stranger_puts_no_words_into_mail_of_ours(accounts: Any) -> None:
    made, letters = accounts
    await registered(made, name="You have won, see https://evil.example", email="victim@example.org")
    (letter,) = letters
    assert letter.to == "victim@example.org"
    assert "evil" not in letter.text + letter.subject


async def test_letters_that_look_alike_to_us_are_not_the_same_person(accounts: Any) -> None:
    """Both addresses are proved, each to somebody else: the sign of Kelvin is folded to k, ß to ss."""
    made, letters = accounts
    for email, alike in (("kim@example.org", "\u212aim@example.org"), ("strasse@example.org", "straße@example.org")):
        await registered(made, email=email)
        await made.users.verify_email(letters[-1].text.partition("token=")[2].split()[0])
        with pytest.raises(Conflict):
            await made.users.admit(issuer="https://id", subject=email, name="Eve", email=alike, is_verified=True)
        await made.users.admit(issuer="https://id", subject=email, name="Ada", email=email.upper(), is_verified=True)


async def test_who_registers_with_somebodys_address_is_out_once_its_owner_comes(accounts: Any) -> None:
    """Else keys made beforehand would go on opening the account when it has become its owner's."""
    made, letters = accounts
    eve = await registered(made, email="ada@example.org")
    actor, token = await made.users.actor(eve), made.tokens.issue(eve)
    secrets = [
        (await made.keys.create(actor, name="waits")).secret,
        (await made.keys.rotate(actor, eve.account_id)).secret,
    ]
    cookie, _ = await made.sessions.begin(eve, address="", agent="")
    assert all([await made.verify(secret) for secret in secrets])

    await made.users.begin_reset("ada@example.org")
    link = letters[-1].text.partition("token=")[2].split()[0]
    ada = await made.users.finish_reset(link, "the owner's own password")
    assert ada.email_verified_at is not None
    assert [await made.verify(secret) for secret in secrets] == [None, None]
    assert await made.sessions.find(cookie) is None
    # Of the same second, perhaps.
    with pytest.raises(TokenInvalid):
        await made.tokens.verify(token)
    assert (await made.tokens.verify(made.tokens.issue(ada))).id == ada.id

    # Her own are good for as long as she wants: also after another forgotten password.
    own = (await made.keys.rotate(await made.users.actor(ada), ada.account_id)).secret
    await made.users.begin_reset("ada@example.org")
    await made.users.finish_reset(letters[-1].text.partition("token=")[2].split()[0], "yet another password")
    assert await made.verify(own) is not None


async def test_who_asks_by_registering_which_addresses_are_taken_is_stopped(accounts: Any) -> None:
    made, _ = accounts
    await registered(made, email="ada@example.org", address="198.51.100.7")

    async def ask_on() -> None:
        for _ in range(1000):
            with contextlib.suppress(Conflict):
                await registered(made, email="ada@example.org", address="198.51.100.7")

    with pytest.raises(LimitExceeded):
        await ask_on()
    await registered(made, email="bob@example.org", address="198.51.100.8")


async def test_guessing_ids_of_jobs_tells_nothing(served: Portal) -> None:
    async with served.user() as eve, httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        headers = await bearer(served, eve)
        for id in ("0" * 36, "%00", "..%2f..", "\u00e9", "a" * 2000, "*", "job:1", "batch:x"):
            for path in (f"/v1/jobs/{id}", f"/v1/execute/{id}", f"/v1/jobs/{id}/events"):
                assert (await client.get(path, headers=headers)).status_code == 404, path
            assert (await eve.get(f"/api/jobs/{id}")).status_code == 404, id
