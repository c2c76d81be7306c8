"""Accounts and keys: who is let in, who may change what, what is kept."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from stockade.accounts import Accounts, read_key_file, set_aside
from stockade.accounts.secrets import digest, new_secret, preview
from stockade.config_accounts import AccountsConfig
from stockade.errors import Conflict, Denied, Fault, Invalid, NotFound
from stockade.model import Actor
from stockade.store import Database
from stockade.store import accounts as rows

pytestmark = pytest.mark.anyio
PRESET = "chosen-by-the-operator"
KEY = re.compile(r"sk_[0-9a-f]{64}")


@pytest.fixture
async def accounts(database: Database) -> AsyncIterator[Accounts]:
    accounts = Accounts.on(database, AccountsConfig(waitlist=True))
    yield accounts
    await accounts.close()


async def bearer(accounts: Accounts, secret: str) -> Actor:
    actor = await accounts.verify(secret)
    assert actor is not None
    return actor


async def stranger(accounts: Accounts, email: str = "dev@example.org") -> tuple[str, Actor]:
    """Somebody with an account of the tier `free`: the key, and its bearer."""
    joined = await accounts.sign_up.join(email=email)
    return joined.secret, await bearer(accounts, joined.secret)


async def test_a_first_start_makes_one_key_and_a_second_start_none(accounts: Accounts) -> None:
    secret = await accounts.operation.ensure_admin()
    assert secret is not None
    assert KEY.fullmatch(secret)
    assert await accounts.operation.ensure_admin() is None
    actor = await bearer(accounts, secret)
    assert actor == Actor(
        id=actor.account_id, account_id=actor.id, tier="enterprise", is_admin=True, rate_limit_rps=1000
    )
    uuid.UUID(actor.id)


async def test_servers_that_start_at_once_make_one_key(where: str) -> None:
    databases = await asyncio.gather(*(Database.open(where) for _ in range(4)))
    made = await asyncio.gather(*(Accounts.on(one, AccountsConfig()).operation.ensure_admin() for one in databases))
    assert len([one for one in made if one is not None]) == 1
    for one in databases:
        await one.close()


async def test_nothing_that_is_kept_lets_anybody_in(accounts: Accounts, database: Database) -> None:
    secret = await accounts.operation.ensure_admin()
    assert secret is not None
    await Accounts.on(database, AccountsConfig(), preset=PRESET).operation.ensure_admin(preset=PRESET)
    everything = str(
        await database.read(lambda one: [tuple(row) for row in one.execute(text("SELECT * FROM api_keys"))])
    )
    assert secret.removeprefix("sk_")[8:-8] not in everything
    assert digest(secret) in everything
    assert PRESET not in everything
    assert digest(PRESET) not in everything
    for row in re.findall(r"[0-9a-f]{64}", everything):
        assert await accounts.verify(row) is None


@given(st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
async def test_what_is_no_key_is_refused(accounts: Accounts, presented: str) -> None:
    assert await accounts.verify(presented) is None


@pytest.mark.parametrize("presented", ["", "sk_\udcff", "sk_" + "0" * 64, "x" * 5000, "a\0b"])
async def test_odd_text_is_no_key(accounts: Accounts, presented: str) -> None:
    await accounts.operation.ensure_admin()
    assert await accounts.verify(presented) is None


async def test_a_preset_key_counts_while_the_server_that_was_started_with_it_lives(database: Database) -> None:
    first = Accounts.on(database, AccountsConfig(), preset=PRESET)
    assert await first.operation.ensure_admin(preset=PRESET) is None
    actor = await bearer(first, PRESET)
    assert actor.is_admin
    other = Accounts.on(database, AccountsConfig(), preset="another-that-was-chosen")
    assert await other.operation.ensure_admin(preset="another-that-was-chosen") is None
    assert await other.verify(PRESET) is None
    assert (await bearer(other, "another-that-was-chosen")).id == actor.id
    without = Accounts.on(database, AccountsConfig())
    made = await without.operation.ensure_admin()
    assert made is not None, "nobody could come in"
    assert await without.verify(PRESET) is None
    assert (await bearer(without, made)).account_id == actor.account_id
    for change in (first.keys.rotate(actor, actor.id), first.operation.rotate_key("STOCKADE_API_KEY")):
        with pytest.raises(Invalid, match="STOCKADE_API_KEY"):
            await change


async def test_a_preview_shows_nothing_of_a_key_that_somebody_chose() -> None:
    secret = new_secret()
    assert preview(secret) == f"{secret[:7]}...{secret[-4:]}"
    assert preview(PRESET) == "sk_****"


async def test_keys_of_a_file_are_taken_over_once(accounts: Accounts, tmp_path: Path) -> None:
    secrets = [new_secret(), new_secret()]
    entries: list[dict[str, Any]] = [
        {"id": f"key_{n}", "name": f"old {n}", "hash": digest(one), "preview": "sk_1234…abcd",
         "created": "2025-12-24T18:00:00+00:00", "templates": bool(n)}
        for n, one in enumerate(secrets)
    ]  # fmt: skip
    del entries[1]["templates"]
    (tmp_path / "keys.json").write_text(json.dumps({"format": 1, "keys": entries}))
    imported = read_key_file(tmp_path)
    assert await accounts.operation.ensure_admin(imported=imported, server_id="s") is None
    actors = [await bearer(accounts, one) for one in secrets]
    assert [one.templates for one in actors] == [False, True]
    assert all(one.is_admin for one in actors)
    keys = await accounts.keys.list(actors[0])
    assert [(one.name, one.preview) for one in keys] == [("old 0", "sk_1234...abcd"), ("old 1", "sk_1234...abcd")]
    rotated = await accounts.keys.rotate(actors[1], actors[1].id)
    assert await accounts.operation.ensure_admin(imported=imported, server_id="s") is None
    assert await accounts.verify(secrets[1]) is None, "a key that was rotated came back"
    assert await accounts.verify(rotated.secret) is not None
    set_aside(tmp_path)
    assert [path.name for path in tmp_path.glob("keys*")] == ["keys.json.imported"]
    assert read_key_file(tmp_path) == ()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2, "keys": []}', '{"format": 1, "keys": [{"id": 1}]}'])
async def test_a_damaged_key_file_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(Fault, match=r"keys\.json"):
        read_key_file(tmp_path)
    assert (tmp_path / "keys.json").read_text() == content


async def test_a_new_key_belongs_to_the_account_and_is_like_the_one_that_made_it(accounts: Accounts) -> None:
    joined = await accounts.sign_up.join(email="dev@example.org", name="Dev")
    await accounts.operation.set_key(joined.key.id, {"templates": False, "rate_limit_rps": 3})
    actor = await bearer(accounts, joined.secret)
    assert (actor.id, actor.tier, actor.daily_limit, actor.concurrent_limit) == (actor.account_id, "free", 10, 5)
    assert (actor.max_duration_s, actor.max_memory_bytes) == (60.0, 512 << 20)
    made = await accounts.keys.create(actor, name="ci", description="for builds", custom_daily_limit=4)
    assert KEY.fullmatch(made.secret)
    child = await bearer(accounts, made.secret)
    assert (child.account_id, child.daily_limit, child.concurrent_limit) == (actor.id, 4, 5)
    assert (child.templates, child.rate_limit_rps, made.key.parent_key_id) == (False, 3, actor.id)
    assert [one.name for one in await accounts.keys.list(child)] == ["Dev", "ci"]
    assert (await accounts.keys.get(actor, made.key.id.upper())).id == made.key.id


@pytest.mark.parametrize(
    "members",
    [
        {"name": ""},
        {"name": "n" * 101},
        {"name": "a\0b"},
        {"name": "\udcff"},
        {"name": "n", "description": "d" * 501},
        {"name": "n", "custom_daily_limit": 0},
        {"name": "n", "custom_daily_limit": 11},
        {"name": "n", "custom_concurrent_limit": 6},
        {"name": "n", "custom_concurrent_limit": 2**40},
        {"name": "n", "expires_at": datetime(2030, 1, 1)},
    ],
)
async def test_a_key_with_wrong_members_is_not_made(accounts: Accounts, members: dict[str, Any]) -> None:
    _, actor = await stranger(accounts)
    with pytest.raises(Invalid):
        await accounts.keys.create(actor, **members)
    assert len(await accounts.keys.list(actor)) == 1


async def test_an_expired_key_is_not_let_in(accounts: Accounts) -> None:
    _, actor = await stranger(accounts)
    now = datetime.now(UTC)
    past = await accounts.keys.create(actor, name="past", expires_at=now - timedelta(seconds=1))
    future = await accounts.keys.create(actor, name="future", expires_at=now + timedelta(hours=1))
    assert await accounts.verify(past.secret) is None
    assert await accounts.verify(future.secret) is not None
    await accounts.keys.update(actor, future.key.id, {"expires_at": now - timedelta(seconds=1)})
    assert await accounts.verify(future.secret) is None
    await accounts.keys.update(actor, future.key.id, {"expires_at": None})
    assert await accounts.verify(future.secret) is not None


async def test_changes_count_at_once(accounts: Accounts) -> None:
    secret, actor = await stranger(accounts)
    made = await accounts.keys.create(actor, name="ci")
    assert await accounts.verify(made.secret) is not None
    rotated = await accounts.keys.rotate(actor, made.key.id)
    assert rotated.key.id == made.key.id
    assert await accounts.verify(made.secret) is None
    assert await accounts.verify(rotated.secret) is not None
    for _ in range(2):
        await accounts.keys.deactivate(actor, made.key.id)
        assert await accounts.verify(rotated.secret) is None
    assert [one.is_active for one in await accounts.keys.list(actor)] == [True, False]
    with pytest.raises(Invalid, match="primary"):
        await accounts.keys.deactivate(actor, actor.id)
    assert await accounts.verify(secret) is not None


async def test_what_another_process_changes_counts_within_a_second(accounts: Accounts, where: str) -> None:
    secret, actor = await stranger(accounts)
    async with await Database.open(where) as other:
        await Accounts.on(other, AccountsConfig()).operation.set_key(actor.id, {"is_active": False})
    async with asyncio.timeout(30):
        while await accounts.verify(secret) is not None:  # noqa: ASYNC110  # only asking again tells
            await asyncio.sleep(0.05)


async def test_an_answer_from_before_a_change_is_not_remembered(accounts: Accounts) -> None:
    secret, actor = await stranger(accounts)
    for _ in range(10):
        accounts.verification.forget()
        asking = [asyncio.create_task(accounts.verify(secret)) for _ in range(5)]
        changing = asyncio.create_task(accounts.operation.set_key(actor.id, {"is_active": False}))
        await asyncio.gather(*asking, changing)
        assert await accounts.verify(secret) is None
        await accounts.operation.set_key(actor.id, {"is_active": True})


async def test_keys_of_other_accounts_are_not_there(accounts: Accounts) -> None:
    _, ann = await stranger(accounts, "ann@example.org")
    _, bob = await stranger(accounts, "bob@example.org")
    for attempt in (
        accounts.keys.get(bob, ann.id),
        accounts.keys.update(bob, ann.id, {"name": "mine"}),
        accounts.keys.rotate(bob, ann.id),
        accounts.keys.deactivate(bob, ann.id),
        accounts.keys.get(bob, str(uuid.uuid4())),
    ):
        with pytest.raises(NotFound):
            await attempt
    with pytest.raises(Invalid, match="UUID"):
        await accounts.keys.get(bob, "ann")
    with pytest.raises(Denied):
        await accounts.keys.list(Actor(id="anonymous:192.0.2.1"))


async def test_an_update_changes_what_it_names_and_nothing_else(accounts: Accounts) -> None:
    _, actor = await stranger(accounts)
    made = (await accounts.keys.create(actor, name="ci", description="d", custom_daily_limit=3)).key
    changed = await accounts.keys.update(actor, made.id, {"name": "", "custom_daily_limit": None})
    assert (changed.name, changed.description, changed.custom_daily_limit) == ("", "d", None)
    for wrong in ({}, {"is_active": True}, {"hash": "0" * 64}, {"custom_daily_limit": 11}):
        with pytest.raises(Invalid):
            await accounts.keys.update(actor, made.id, wrong)


async def test_limits_of_an_account_lower_those_of_its_tier_and_never_raise_them(accounts: Accounts) -> None:
    secret, actor = await stranger(accounts)
    tier = accounts.limits.tier(actor)
    assert (tier.daily, tier.concurrent) == (10, 5)
    limits = await accounts.limits.put(actor, {"daily_requests_limit": 3, "timezone": "Europe/Vienna"})
    assert (limits.daily_requests_limit, limits.concurrent_requests_limit, limits.alert_threshold) == (3, None, 80)
    limits = await accounts.limits.put(actor, {"monthly_cost_limit_cents": 500, "billing_email": "pay@example.org"})
    assert await accounts.limits.get(actor) == limits
    actor = await bearer(accounts, secret)
    assert (actor.daily_limit, actor.concurrent_limit, actor.monthly_cost_limit_cents) == (3, 5, 500)
    with pytest.raises(Invalid, match="custom_daily_limit"):
        await accounts.keys.create(actor, name="more", custom_daily_limit=4)
    for wrong in (
        {},
        {"daily_requests_limit": 11},
        {"concurrent_requests_limit": 0},
        {"alert_threshold": 101},
        {"billing_email": "nobody"},
        {"timezone": "Vienna"},
        {"updated_at": None},
    ):
        with pytest.raises(Invalid):
            await accounts.limits.put(actor, wrong)
    assert await accounts.limits.get(actor) == limits


async def test_a_tier_that_has_expired_or_is_unknown_is_free(accounts: Accounts, database: Database) -> None:
    made = await accounts.operation.create_key("customer", tier="pro", email="pro@example.org")
    assert ((actor := await bearer(accounts, made.secret)).tier, actor.daily_limit) == ("pro", 1000)
    for changes in ({"tier_expires_at": datetime.now(UTC)}, {"tier": "platinum", "tier_expires_at": None}):
        await database.write(lambda connection, c=changes: rows.change_account(connection, made.key.id, c))  # type: ignore[misc]
        accounts.verification.forget()
        assert (await bearer(accounts, made.secret)).daily_limit == 10
    await accounts.operation.set_key("customer", {}, tier="starter")
    assert ((actor := await bearer(accounts, made.secret)).tier, actor.daily_limit) == ("starter", 100)


async def test_the_operator_finds_keys_by_name_or_id(accounts: Accounts) -> None:
    ci = await accounts.operation.create_key("ci", templates=False)
    assert not (await bearer(accounts, ci.secret)).templates
    with pytest.raises(Conflict, match="'ci'"):
        await accounts.operation.create_key("ci")
    await accounts.operation.set_key("ci", {"templates": True, "rate_limit_rps": 7})
    assert ((actor := await bearer(accounts, ci.secret)).templates, actor.rate_limit_rps) == (True, 7)
    customer = await accounts.operation.create_key("ci", tier="free")
    with pytest.raises(Conflict, match="use the id"):
        await accounts.operation.set_key("ci", {"is_active": False})
    await accounts.operation.set_key(customer.key.id, {"is_active": False})
    assert await accounts.verify(customer.secret) is None
    with pytest.raises(NotFound, match="known: ci"):
        await accounts.operation.rotate_key("nobody")
    with pytest.raises(Invalid, match="tier"):
        await accounts.operation.create_key("x", tier="platinum")
    rotated = await accounts.operation.rotate_key(ci.key.id)
    assert await accounts.verify(ci.secret) is None
    assert await accounts.verify(rotated.secret) is not None
    assert [(key.name, account.tier) for key, account in await accounts.operation.list_keys()] == [
        ("ci", "enterprise"),
        ("ci", "free"),
    ]


async def test_sign_up_can_be_closed_and_checks_addresses(accounts: Accounts, database: Database) -> None:
    for email in ("", "dev", "dev@", "@example.org", "dev@example", "a b@example.org", "d@e.\0", "x" * 250 + "@e.org"):
        with pytest.raises(Invalid, match="email"):
            await accounts.sign_up.join(email=email)
    with pytest.raises(NotFound):
        await Accounts.on(database, AccountsConfig()).sign_up.join(email="dev@example.org")
    _, actor = await stranger(accounts)
    account = await accounts.limits.account(actor)
    assert (account.id, account.email, account.tier) == (actor.id, "dev@example.org", "free")


async def test_requests_for_more_are_numbered_and_say_whose_they_are(accounts: Accounts) -> None:
    _, actor = await stranger(accounts)
    first = await accounts.sign_up.request_quota(email="dev@example.org", use_case="more", actor=actor)
    second = await accounts.sign_up.request_quota(email="other@example.org", actor=Actor(id="anonymous:192.0.2.1"))
    assert (first.status, first.key_id, first.current_tier, second.key_id) == ("pending", actor.id, "free", None)
    assert second.id == first.id + 1
    assert await accounts.sign_up.quota_requests() == (first, second)
    with pytest.raises(Invalid):
        await accounts.sign_up.request_quota(email="dev@example.org", budget="9" * 5000)


async def test_every_change_is_in_the_audit_log_and_no_secret_is(accounts: Accounts, database: Database) -> None:
    _, actor = await stranger(accounts)
    made = await accounts.keys.create(actor, name="ci")
    await accounts.keys.update(actor, made.key.id, {"description": "d"})
    await accounts.keys.update(actor, made.key.id, {"custom_daily_limit": 3})
    rotated = await accounts.keys.rotate(actor, made.key.id)
    await accounts.limits.put(actor, {"alert_threshold": 50})
    await accounts.keys.deactivate(actor, made.key.id)
    await accounts.operation.set_key(made.key.id, {"is_active": True}, tier="pro")
    notes = await database.read(lambda connection: rows.list_notes(connection, actor.account_id))
    assert [(one["action"], one["performed_by"] == actor.id) for one in notes] == [
        ("created", False), ("created", True), ("updated", True), ("limits_changed", True), ("rotated", True),
        ("limits_changed", True), ("deleted", True), ("tier_changed", False), ("activated", False),
    ]  # fmt: skip
    for secret in (made.secret, rotated.secret):
        assert secret not in str(notes)
        assert digest(secret) not in str(notes)


async def test_when_a_key_was_used_is_noted_without_anybody_waiting(accounts: Accounts) -> None:
    secret, actor = await stranger(accounts)
    for _ in range(3):
        await accounts.verify(secret)
    async with asyncio.timeout(30):
        while (await accounts.keys.get(actor, actor.id)).last_used_at is None:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
