"""People register, log in, and change what is theirs; on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.accounts import Accounts, Barred, SignUpClosed, UserLocked, WrongCredentials, WrongInput, inputs
from stockade.accounts.passwords import Passwords
from stockade.errors import Conflict, Invalid, LimitExceeded, NotFound
from stockade.model.users import Role
from stockade.store import Database
from stockade.store import accounts as rows
from stockade.store import users as user_rows
from tests.accounts.people import (
    ADA,
    ELSEWHERE,
    HERE,
    OTHER,
    PASSWORD,
    CountingPasswords,
    both,
    people,
    register,
    where,
)

__all__ = ["where"]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def accounts(database: Database) -> AsyncIterator[Accounts]:
    async with people(database) as made:
        yield made


@both
async def test_who_registers_has_an_account_with_a_key_that_nobody_has_seen(accounts: Accounts) -> None:
    user = await register(accounts.users, organization=" Analytical Engines ")
    actor = await accounts.users.actor(user)
    (key,) = await accounts.keys.list(actor)
    assert len(user.id) == 32
    assert int(user.id, 16) >= 0
    assert (user.name, user.email, user.organization) == ("Ada", ADA, "Analytical Engines")
    assert (actor.id, actor.account_id, actor.tier, actor.is_admin) == (key.id, key.id, "pro", False)
    assert (key.name, key.is_primary) == ("portal", True)
    rotated = await accounts.keys.rotate(actor, key.id)
    assert await accounts.verify(rotated.secret) == actor


@both
async def test_an_address_is_used_once_whatever_its_letter_case(accounts: Accounts) -> None:
    await register(accounts.users, "Straße@Example.com")
    with pytest.raises(Conflict, match=r"^user already exists$"):
        await register(accounts.users, "STRASSE@example.COM")


@both
async def test_of_many_who_register_with_one_address_at_once_one_wins(accounts: Accounts, database: Database) -> None:
    found = await asyncio.gather(*(register(accounts.users) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(one, Conflict) for one in found) == 4
    # And no account is left behind without its user.
    assert len(await database.read(rows.all_keys)) == 1


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"name": " \t"}, "name", "name is required"),
        ({"email": " "}, "email", "email is required"),
        ({"email": "a@b"}, "email", "invalid email format"),
        ({"email": "ab.example.com"}, "email", "invalid email format"),
        ({"email": "a@b.c,d@e.f"}, "email", "invalid email format"),
        ({"email": "a@b.c\r\nBcc: d@e.f"}, "email", "invalid email format"),
        ({"password": "11character"}, "password", "password must be at least 12 characters long"),
        ({"password": "x" * 1025}, "password", "password must be at most 1024 bytes long"),
        ({"name": "", "email": "", "password": ""}, "name", "name is required"),
        ({"name": "a\0b"}, "name", "name holds characters that are none"),
        ({"organization": "x" * 256}, "organization", "organization must be at most 255 characters long"),
    ],
)
async def test_what_is_wrong_is_said_with_the_name_of_its_field(
    changes: dict[str, str], field: str, message: str
) -> None:
    fields = {"name": "Ada", "email": ADA, "organization": "", "password": PASSWORD} | changes
    with pytest.raises(WrongInput) as caught:  # noqa: PT012 (in the order of the contract)
        inputs.name(fields["name"])
        inputs.email(fields["email"])
        inputs.organization(fields["organization"])
        inputs.password(fields["password"])
    assert (caught.value.field, str(caught.value)) == (field, message)


async def test_a_password_is_measured_in_bytes_of_utf_8() -> None:
    assert inputs.password("äöüäöü") == "äöüäöü"


@given(st.text(max_size=300))
def test_an_address_that_is_taken_can_stand_in_a_header(text: str) -> None:
    try:
        found = inputs.email(text)
    except WrongInput:
        return
    assert found == text.strip()
    assert found.count("@") == 1
    assert not set(found) & set("\r\n\0,;<> \t")
    found.encode()


async def test_strangers_register_only_where_they_may(database: Database) -> None:
    async with people(database, sign_up="closed") as accounts:
        with pytest.raises(SignUpClosed):
            await register(accounts.users)
        await accounts.users.create(name="Ada", email=ADA, password=PASSWORD)
    async with people(database, sign_up="auto") as accounts:
        assert not accounts.users.is_open
        with pytest.raises(SignUpClosed):
            await register(accounts.users, "b@example.com")


@both
async def test_logging_in_takes_the_password_and_any_letter_case_of_the_address(accounts: Accounts) -> None:
    user = await register(accounts.users)
    found = await accounts.users.log_in("ADA@Example.Com", PASSWORD, address=HERE)
    assert found.id == user.id
    assert found.last_login_at is not None
    for email, password in ((ADA, OTHER), ("nobody@example.com", PASSWORD), ("\0\ud800", PASSWORD)):
        with pytest.raises(WrongCredentials, match=r"^invalid credentials$"):
            await accounts.users.log_in(email, password, address=HERE)


async def test_an_unknown_address_costs_as_many_hashes_as_a_known_one(accounts: Accounts) -> None:
    """So the time that it takes says nothing about who is registered."""
    await register(accounts.users)
    passwords = accounts.users.passwords
    assert isinstance(passwords, CountingPasswords)
    for email in (ADA, "nobody@example.com"):
        with pytest.raises(WrongCredentials):
            await accounts.users.log_in(email, OTHER, address=HERE)
    assert passwords.checked == [True, False]


async def test_the_hash_that_nobody_has_costs_what_others_cost() -> None:
    """Its parameters are the ones of the day, and the library takes it for a hash: else checking it would be quick."""
    passwords = Passwords()
    try:
        assert passwords._hasher.check_needs_rehash(passwords._nobodys) is False
        assert not await passwords.check(PASSWORD, None)
        assert await passwords.check(PASSWORD, await passwords.hash(PASSWORD))
    finally:
        passwords.close()


async def test_a_hash_of_other_parameters_is_renewed_at_the_next_log_in(accounts: Accounts, database: Database) -> None:
    user = await register(accounts.users)
    older = CountingPasswords(passes=2)
    changes = {"password_hash": await older.hash(PASSWORD)}
    await database.write(lambda connection: user_rows.change_user(connection, user.id, changes))
    await accounts.users.log_in(ADA, PASSWORD, address=HERE)
    kept = await database.read(lambda connection: user_rows.password_hash(connection, user.id))
    assert kept is not None
    assert not accounts.users.passwords.is_outdated(kept)
    assert accounts.users.passwords.is_outdated(changes["password_hash"])
    await accounts.users.log_in(ADA, PASSWORD, address=HERE)
    older.close()


async def test_who_guesses_wrong_has_to_wait_and_nobody_else(accounts: Accounts) -> None:
    await register(accounts.users)
    for _ in range(5):
        with pytest.raises(WrongCredentials):
            await accounts.users.log_in(ADA, OTHER, address=ELSEWHERE)
    with pytest.raises(LimitExceeded) as caught:
        await accounts.users.log_in(ADA, PASSWORD, address=ELSEWHERE)
    assert 0 < caught.value.retry_after_s <= 30
    await accounts.users.log_in(ADA, PASSWORD, address=HERE)


async def test_a_new_password_ends_sessions_and_tokens_of_before(accounts: Accounts) -> None:
    user = await register(accounts.users)
    secret, session = await accounts.sessions.begin(user, address=HERE, agent="browser")
    other, _ = await accounts.sessions.begin(user, address=HERE, agent="browser")
    token = accounts.tokens.issue(user)
    with pytest.raises(WrongCredentials):
        await accounts.users.change_password(user, OTHER, OTHER)
    with pytest.raises(WrongInput) as caught:
        await accounts.users.change_password(user, PASSWORD, "short")
    assert caught.value.field == "new"
    await accounts.users.change_password(user, PASSWORD, OTHER, but=session.id)
    assert await accounts.sessions.find(secret) is not None
    assert await accounts.sessions.find(other) is None
    await accounts.users.log_in(ADA, OTHER, address=HERE)
    with pytest.raises(WrongCredentials):
        await accounts.users.log_in(ADA, PASSWORD, address=HERE)
    # What is true to a second cannot be told apart within one.
    del token


async def test_name_and_organization_can_be_changed(accounts: Accounts) -> None:
    user = await register(accounts.users)
    changed = await accounts.users.change(user, name=" Countess ", organization="")
    assert (changed.name, changed.organization) == ("Countess", "")
    assert changed.updated_at > user.updated_at
    with pytest.raises(WrongInput):
        await accounts.users.change(user, name=" ")


@both
async def test_an_admin_lists_finds_and_changes_users(accounts: Accounts) -> None:
    ids = [(await register(accounts.users, f"user_{number}@example.com")).id for number in range(5)]
    await register(accounts.users, "userX1@example.com")
    first = await accounts.users.list(query="USER_", limit=3)
    second = await accounts.users.list(query="USER_", limit=3, cursor=first.cursor)
    assert [one.user.id for one in first.users + second.users] == ids[::-1]
    assert second.cursor is None
    (found,) = (await accounts.users.list(query=ids[2])).users
    assert (found.user.id, found.account.id) == (ids[2], found.user.account_id)
    await accounts.users.set_tier(ids[0], "pro", by="operator")
    with pytest.raises(Invalid):
        await accounts.users.set_tier(ids[0], "royal", by="operator")
    user = await accounts.users.find(ids[0])
    assert user is not None
    assert (await accounts.users.actor(user)).tier == "pro"
    for cursor in ("", "x", "bm90aGluZw==", "ÿ"):
        with pytest.raises(Invalid):
            await accounts.users.list(cursor=cursor)
    with pytest.raises(NotFound):
        await accounts.users.set_role("0" * 32, Role.ADMIN, by="operator")


@both
async def test_the_last_admin_stays_one(accounts: Accounts) -> None:
    ada, bob = await register(accounts.users), await register(accounts.users, "bob@example.com")
    ada = await accounts.users.set_role(ada.id, Role.ADMIN, by="operator")
    assert (await accounts.users.actor(ada)).is_admin
    with pytest.raises(Conflict):
        await accounts.users.set_role(ada.id, Role.USER, by="operator")
    with pytest.raises(Conflict):
        await accounts.users.lock(ada.id, True, by="operator")
    with pytest.raises(Conflict):
        await accounts.users.delete(ada, password=PASSWORD)
    bob = await accounts.users.set_role(bob.id, Role.ADMIN, by=f"user {ada.id}")
    both = await asyncio.gather(
        accounts.users.set_role(ada.id, Role.USER, by=f"user {bob.id}"),
        accounts.users.set_role(bob.id, Role.USER, by=f"user {ada.id}"),
        return_exceptions=True,
    )
    assert sum(isinstance(one, Conflict) for one in both) == 1


@both
async def test_who_is_locked_comes_in_by_nothing(accounts: Accounts) -> None:
    user = await register(accounts.users)
    actor = await accounts.users.actor(user)
    key = await accounts.keys.rotate(actor, actor.id)
    secret, _ = await accounts.sessions.begin(user, address=HERE, agent="")
    locked = await accounts.users.lock(user.id, True, by="operator")
    assert await accounts.sessions.find(secret) is None
    assert await accounts.verify(key.secret) is None
    with pytest.raises(UserLocked):
        await accounts.users.actor(locked)
    with pytest.raises(UserLocked):
        await accounts.users.log_in(ADA, PASSWORD, address=HERE)
    await accounts.users.lock(user.id, False, by="operator")
    assert await accounts.verify(key.secret) is not None
    await accounts.users.log_in(ADA, PASSWORD, address=HERE)


@both
async def test_accounts_of_the_locked_and_of_the_removed_are_barred(accounts: Accounts, database: Database) -> None:
    barred = Barred(database=database)
    locked, gone, other = [
        await register(accounts.users, email=f"{name}@example.com") for name in ("locked", "gone", "other")
    ]
    machine = (await accounts.operation.create_key("ci", tier="free")).key
    everybody = {locked.account_id, gone.account_id, other.account_id, machine.account_id, "", "nobody"}
    assert await barred.among(everybody) == set()
    assert await barred.among([""]) == set()
    await accounts.users.lock(locked.id, True, by="operator")
    await accounts.users.remove(gone.id, by="operator")
    assert await barred.among(everybody) == {locked.account_id, gone.account_id}
    assert await barred.among([other.account_id]) == set()
    await accounts.users.lock(locked.id, False, by="operator")
    assert await barred.among(everybody) == {gone.account_id}


@both
async def test_what_happens_to_users_is_in_the_audit_log_without_secrets(
    accounts: Accounts, database: Database
) -> None:
    user = await register(accounts.users)
    await accounts.users.log_in(ADA, PASSWORD, address=HERE)
    await accounts.users.change_password(user, PASSWORD, OTHER)
    await accounts.users.lock(user.id, True, by="operator")
    notes = await database.read(lambda connection: rows.list_notes(connection, user.account_id))
    who = f"user {user.id}"
    assert [(one["action"], one["performed_by"]) for one in notes] == [
        ("created", "public"),
        ("user_created", "public"),
        ("logged_in", who),
        ("password_changed", who),
        ("locked", "operator"),
    ]
    assert not any(text in str(notes) for text in (ADA, PASSWORD, OTHER, "argon2"))
