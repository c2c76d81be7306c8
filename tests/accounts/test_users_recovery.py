"""Forgotten passwords, addresses that are proved, mail; what is kept of a person, and its removal."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text, update

from stockade.accounts import Accounts, UsedUp, UserLocked, WrongCredentials, WrongInput
from stockade.accounts.mail import Letter, Mailer
from stockade.config_users import MailConfig
from stockade.engine.registry_credentials import RegistryCredentials
from stockade.errors import Conflict, Denied, Invalid, LimitExceeded, NotFound, Unsupported
from stockade.model.users import Role
from stockade.store import Database
from stockade.store import accounts as rows
from stockade.store.registry_credentials import RegistryCredentialTable
from stockade.store.rows import sandbox_to_row
from stockade.store.seals import Seal
from stockade.store.tables import metadata, sandboxes
from stockade.store.user_tables import user_tokens
from tests.accounts.people import (
    ADA,
    HERE,
    OTHER,
    PASSWORD,
    both,
    people,
    register,
    token_of,
    where,
    with_letters,
)
from tests.store.databases import a_sandbox

__all__ = ["where"]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def mailing(database: Database) -> AsyncIterator[tuple[Accounts, list[Letter]]]:
    async with with_letters(database) as made:
        yield made


@both
async def test_a_forgotten_password_is_replaced_by_a_link_that_is_good_once(mailing: Any) -> None:
    accounts, letters = mailing
    user = await register(accounts.users)
    secret, _ = await accounts.sessions.begin(user, address=HERE, agent="")
    await accounts.users.begin_reset("ADA@example.com", address=HERE)
    letter = letters[-1]
    assert letter.to == ADA
    assert "https://code.example/reset#token=" in letter.text
    token = token_of(letter)
    with pytest.raises(WrongInput):
        await accounts.users.finish_reset(token, "short")
    found = await asyncio.gather(*(accounts.users.finish_reset(token, OTHER) for _ in range(3)), return_exceptions=True)
    assert sum(isinstance(one, UsedUp) for one in found) == 2
    assert await accounts.sessions.find(secret) is None
    reset = await accounts.users.log_in(ADA, OTHER, address=HERE)
    assert reset.email_verified_at is not None
    with pytest.raises(WrongCredentials):
        await accounts.users.log_in(ADA, PASSWORD, address=HERE)


async def test_nobody_learns_by_a_reset_who_is_registered(mailing: Any) -> None:
    accounts, letters = mailing
    user = await register(accounts.users)
    sent = len(letters)
    await accounts.users.begin_reset("nobody@example.com", address=HERE)
    await accounts.users.begin_reset("\0\ud800", address=HERE)
    assert len(letters) == sent
    # Nor is somebody's box filled, and who is locked stays so.
    for _ in range(5):
        await accounts.users.begin_reset(ADA, address=HERE)
    assert len(letters) == sent + 3
    await accounts.users.lock(user.id, True, by="operator")
    with pytest.raises(UsedUp):
        await accounts.users.finish_reset(token_of(letters[-1]), OTHER)
    asking = [accounts.users.begin_reset(ADA, address=HERE) for _ in range(20)]
    asked = await asyncio.gather(*asking, return_exceptions=True)
    assert any(isinstance(one, LimitExceeded) for one in asked)


async def test_a_link_is_good_for_an_hour_and_for_one_purpose(mailing: Any) -> None:
    accounts, letters = mailing
    await register(accounts.users)
    (verification,) = letters
    with pytest.raises(UsedUp):
        await accounts.users.finish_reset(token_of(verification), OTHER)
    for wrong in ("", "x", "\ud800", "x" * 10_000):
        with pytest.raises(UsedUp):
            await accounts.users.verify_email(wrong)
    await accounts.users.begin_reset(ADA)
    over = update(user_tokens).values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await accounts.users.database.write(lambda connection: connection.execute(over))
    with pytest.raises(UsedUp):
        await accounts.users.finish_reset(token_of(letters[-1]), OTHER)


async def test_an_address_is_proved_by_what_is_mailed_there(mailing: Any) -> None:
    accounts, letters = mailing
    user = await register(accounts.users)
    assert user.email_verified_at is None
    (letter,) = letters
    verified = await accounts.users.verify_email(token_of(letter))
    assert verified.email_verified_at is not None
    with pytest.raises(UsedUp):
        await accounts.users.verify_email(token_of(letter))
    await accounts.users.begin_verification(verified)
    assert len(letters) == 1


async def test_without_mail_the_operator_hands_a_link_over(database: Database) -> None:
    async with people(database) as accounts:
        user = await register(accounts.users)
        with pytest.raises(Unsupported):
            await accounts.users.begin_verification(user)
        await accounts.users.begin_reset(ADA)
        query = text("SELECT count(*) FROM user_tokens")
        assert await database.read(lambda connection: connection.execute(query).scalar()) == 0
        token = await accounts.users.reset_token(user.id)
        reset = await accounts.users.finish_reset(token, OTHER)
        assert reset.email_verified_at is None
        with pytest.raises(NotFound):
            await accounts.users.reset_token("0" * 32)


@both
async def test_who_goes_leaves_nothing_that_names_them(database: Database) -> None:
    async with people(database) as accounts:
        user = await register(accounts.users, name="Ada Lovelace", organization="Analytical Engines")
        actor = await accounts.users.actor(user)
        key = await accounts.keys.create(actor, name="of lovelace")
        await accounts.limits.put(actor, {"billing_email": "bill@lovelace.example"})
        await accounts.sign_up.request_quota(email=ADA, use_case="engines of lovelace", actor=actor)
        secret, _ = await accounts.sessions.begin(user, address=HERE, agent="Browser of Lovelace")
        ended = a_sandbox("sess_ended", account_id=actor.account_id, key_id=actor.id, env={"WHO": "lovelace"})
        living = a_sandbox("sess_living", account_id=actor.account_id, key_id=actor.id)
        given = [sandbox_to_row(ended) | {"state": "ended"}, sandbox_to_row(living)]
        records = [one | {"server_id": "s"} for one in given]
        await database.write(lambda connection: connection.execute(sandboxes.insert(), records))
        forgotten: list[str] = []

        async def forget(account_id: str) -> None:
            assert await accounts.verify(key.secret) is None
            forgotten.append(account_id)

        with pytest.raises(WrongCredentials):
            await accounts.users.delete(user, password=OTHER)
        await accounts.users.delete(user, password=PASSWORD, forget=forget)
        assert forgotten == [user.account_id]
        assert await accounts.users.find(user.id) is None
        assert await accounts.sessions.find(secret) is None
        assert await accounts.verify(key.secret) is None

        def everything(connection: Any) -> str:
            return str([connection.execute(table.select()).all() for table in metadata.sorted_tables])

        kept = (await database.read(everything)).lower()
        assert not any(word in kept for word in ("lovelace", ADA, "analytical"))
        assert "sess_living" in kept
        notes = await database.read(lambda connection: rows.list_notes(connection, user.account_id))
        assert notes[-1]["action"] == "user_removed"
        again = await register(accounts.users)
        assert again.account_id != user.account_id


async def test_a_removal_that_failed_in_the_middle_can_be_repeated(database: Database) -> None:
    async with people(database) as accounts:
        user = await register(accounts.users)

        async def fail(_account_id: str) -> None:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await accounts.users.remove(user.id, by="operator", forget=fail)
        with pytest.raises(UserLocked):
            await accounts.users.log_in(ADA, PASSWORD, address=HERE)
        await accounts.users.remove(user.id, by="operator")
        assert await accounts.users.find(user.id) is None


@both
async def test_all_that_is_kept_of_somebody_is_shown_to_them_and_no_secret(database: Database) -> None:
    async with people(database) as accounts:
        user = await register(accounts.users)
        actor = await accounts.users.actor(user)
        made = await accounts.keys.create(actor, name="ci")
        secret, _ = await accounts.sessions.begin(user, address=HERE, agent="Browser")
        await register(accounts.users, "eve@example.com")
        registries = RegistryCredentials(RegistryCredentialTable(database=database), seal=Seal("0f" * 32))
        await registries.create(actor, host="ghcr.io", username="robot", password="of a registry")
        shown = await accounts.users.export(user)
        written = json.dumps(shown)
        assert shown["user"]["email"] == ADA
        assert [one["name"] for one in shown["keys"]] == ["portal", "ci"]
        assert [one["agent"] for one in shown["sessions"]] == ["Browser"]
        assert {one["action"] for one in shown["auditLog"]} == {"created", "user_created", "registry_created"}
        assert [(one["registry_host"], one["username"]) for one in shown["registries"]] == [("ghcr.io", "robot")]
        assert shown["boxes"] == shown["snapshots"] == shown["volumes"] == shown["images"] == []
        hidden = ("eve@", "argon2", made.secret, secret, made.key.hash, "of a registry", '"secret"')
        assert not any(one in written for one in hidden)


async def test_whom_the_provider_vouches_for_has_an_account_of_their_own(database: Database) -> None:
    async with people(database) as accounts:
        given: dict[str, Any] = {"issuer": "https://id.example", "subject": "1", "name": "Ada", "email": ADA}
        user = await accounts.users.admit(**given, is_verified=True)
        assert not user.has_password
        again = await accounts.users.admit(**(given | {"email": "moved@example.com"}), is_verified=True)
        assert (again.id, again.email) == (user.id, ADA)
        with pytest.raises(WrongCredentials):
            await accounts.users.log_in(ADA, PASSWORD, address=HERE)
        with pytest.raises(WrongInput):
            await accounts.users.delete(user, email="eve@example.com")
        changed = await accounts.users.change_password(user, "", PASSWORD)
        assert changed.has_password
        await accounts.users.log_in(ADA, PASSWORD, address=HERE)
        with pytest.raises(WrongCredentials):
            await accounts.users.delete(changed, email=ADA)
        with pytest.raises(Denied, match="e-mail"):
            await accounts.users.admit(**(given | {"subject": "2", "email": ""}), is_verified=True)


@pytest.mark.parametrize(("is_verified_there", "is_verified_here"), [(True, False), (False, True), (True, True)])
async def test_who_is_here_already_is_the_same_person_only_where_both_sides_know_the_address(
    mailing: Any, is_verified_there: bool, is_verified_here: bool
) -> None:
    """Else somebody registers with another's address, and waits for them to come by their provider."""
    accounts, letters = mailing
    user = await register(accounts.users)
    if is_verified_here:
        await accounts.users.verify_email(token_of(letters[0]))
    given = {"issuer": "https://id.example", "subject": "1", "name": "Ada", "email": "Ada@Example.com"}
    if is_verified_there and is_verified_here:
        assert (await accounts.users.admit(**given, is_verified=True)).id == user.id
        await accounts.users.log_in(ADA, PASSWORD, address=HERE)
    else:
        with pytest.raises(Conflict):
            await accounts.users.admit(**given, is_verified=is_verified_there)


class Smtp:
    """A server that takes mail, of the little that it takes to do so."""

    def __init__(self, *, refuse: int = 0) -> None:
        self.mails: asyncio.Queue[str] = asyncio.Queue()
        self.refuse = refuse

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := await reader.readline():
            word = line[:4].upper()
            if word == b"MAIL" and self.refuse:
                self.refuse -= 1
                writer.write(b"421 come back later\r\n")
                return
            if word == b"DATA":
                writer.write(b"354 go on\r\n")
                await self.mails.put((await reader.readuntil(b"\r\n.\r\n")).decode())
            writer.write(b"221 bye\r\n" if word == b"QUIT" else b"250 fine\r\n")


@pytest.mark.parametrize("refuse", [0, 1])
async def test_letters_arrive_in_the_background(
    database: Database, refuse: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the server has to be asked twice."""
    monkeypatch.setattr("stockade.accounts.mail.RETRY_S", 0.01)
    smtp = Smtp(refuse=refuse)
    async with await asyncio.start_server(smtp.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        mail = MailConfig(host="127.0.0.1", port=port, sender="stockade@example.com", encryption="none")
        async with people(database, mail=mail, public_url="https://code.example/") as accounts:
            await register(accounts.users, name="Ädä")
            sent = await asyncio.wait_for(smtp.mails.get(), 30)
    assert f"To: {ADA}\r\n" in sent
    assert "From: stockade@example.com\r\n" in sent
    assert "https://code.example/verify#token=" in sent.replace("=\r\n", "").replace("=3D", "=")


@pytest.mark.parametrize(
    "config",
    [
        MailConfig(host="mail.example"),
        MailConfig(host="mail.example", sender="a@b.c", user="a", password="b", encryption="none"),
    ],
)
async def test_mail_that_cannot_be_sent_safely_is_refused_at_the_start(config: MailConfig) -> None:
    with pytest.raises(Invalid, match=r"users\.mail"):
        Mailer(config)


async def test_an_admin_is_made_by_the_operator(database: Database) -> None:
    async with people(database, sign_up="closed") as accounts:
        user = await accounts.users.create(name="Ada", email=ADA, password=PASSWORD, role=Role.ADMIN)
        actor = await accounts.users.actor(user)
        assert (actor.is_admin, actor.tier) == (True, "enterprise")
        with pytest.raises(Invalid, match="tier"):
            await accounts.users.create(name="Bob", email="bob@example.com", password=PASSWORD, tier="royal")
