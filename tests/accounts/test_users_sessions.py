"""How long sessions and tokens last, and how often somebody may guess."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from stockade.accounts import Accounts, TokenExpired, TokenInvalid, csrf_token
from stockade.accounts.attempts import Attempts
from stockade.accounts.sessions import MOST_OF_USER, UserSessions
from stockade.accounts.tokens import Tokens
from stockade.config_users import UsersConfig
from stockade.errors import Invalid, LimitExceeded, NotFound
from stockade.store import Database
from stockade.store import users as user_rows
from tests.accounts.people import ADA, ELSEWHERE, HERE, OTHER, PASSWORD, SECRET, both, people, register, where

__all__ = ["where"]

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 2, 3, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)


class Clock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def accounts(database: Database) -> AsyncIterator[Accounts]:
    async with people(database) as made:
        yield made


@pytest.fixture
def sessions(database: Database, clock: Clock) -> UserSessions:
    settings = UsersConfig(session_s=30 * 86400.0, idle_s=7 * 86400.0)
    return UserSessions(database, settings, clock=clock, monotonic=clock.monotonic)


@both
async def test_a_session_that_is_used_lasts_as_long_as_any_may(
    accounts: Accounts, sessions: UserSessions, clock: Clock
) -> None:
    user = await register(accounts.users)
    secret, session = await sessions.begin(user, address=HERE, agent="Mozilla\x1b[31m" + 400 * "x")
    assert session.agent.startswith("Mozilla[31m")
    assert len(session.agent) < 300
    for _ in range(4):
        clock.at += 6 * DAY
        found = await sessions.find(secret)
        assert found is not None
        assert (found[0].id, found[1].used_at) == (user.id, clock.at)
    clock.at = NOON + 30 * DAY
    assert await sessions.find(secret) is None


async def test_a_session_that_is_not_used_ends(accounts: Accounts, sessions: UserSessions, clock: Clock) -> None:
    user = await register(accounts.users)
    secret, _ = await sessions.begin(user, address=HERE, agent="")
    clock.at += 7 * DAY
    assert await sessions.find(secret) is None
    assert await sessions.list(user) == ()


@both
async def test_what_is_over_is_removed(
    accounts: Accounts, sessions: UserSessions, clock: Clock, database: Database
) -> None:
    user = await register(accounts.users)
    await sessions.begin(user, address=HERE, agent="")
    clock.at += 8 * DAY
    _, second = await sessions.begin(user, address=HERE, agent="")
    kept = await database.read(lambda connection: user_rows.list_sessions(connection, user.id))
    assert [one.id for one in kept] == [second.id]


async def test_only_who_has_the_secret_has_the_session(accounts: Accounts, sessions: UserSessions) -> None:
    user = await register(accounts.users)
    secret, session = await sessions.begin(user, address=HERE, agent="")
    for wrong in ("", session.id, secret[:-1], secret + "x", "x" * 10_000, "\ud800"):
        assert await sessions.find(wrong) is None


@both
async def test_a_user_ends_sessions_of_their_own_only(accounts: Accounts, sessions: UserSessions) -> None:
    ada, eve = await register(accounts.users), await register(accounts.users, "eve@example.com")
    secret, session = await sessions.begin(ada, address=HERE, agent="")
    other, kept = await sessions.begin(ada, address=ELSEWHERE, agent="")
    with pytest.raises(NotFound):
        await sessions.end(eve, session.id)
    assert await sessions.find(secret) is not None
    await sessions.end(ada, session.id)
    assert await sessions.find(secret) is None
    secret, _ = await sessions.begin(ada, address=HERE, agent="")
    assert await sessions.end_all(ada, but=kept.id) == 1
    assert await sessions.find(secret) is None
    assert await sessions.find(other) is not None


async def test_the_database_is_asked_once_a_second_and_changes_of_ours_count_at_once(
    accounts: Accounts, sessions: UserSessions, clock: Clock, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await register(accounts.users)
    secret, session = await sessions.begin(user, address=HERE, agent="")
    asked = 0
    read = database.read

    async def counted(work: object) -> object:
        nonlocal asked
        asked += 1
        return await read(work)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "read", counted)
    for _ in range(5):
        assert await sessions.find(secret) is not None
    assert asked == 1
    # As another process would.
    await database.write(lambda connection: user_rows.delete_session(connection, user.id, session.id))
    assert await sessions.find(secret) is not None
    clock.at += timedelta(seconds=1)
    assert await sessions.find(secret) is None


async def test_nobody_has_more_sessions_than_fit(
    accounts: Accounts, sessions: UserSessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_OF_USER >= 10
    monkeypatch.setattr("stockade.accounts.sessions.MOST_OF_USER", 3)
    user = await register(accounts.users)
    secrets = []
    for _ in range(5):
        clock.at += timedelta(minutes=1)
        secrets.append((await sessions.begin(user, address=HERE, agent=""))[0])
    assert [await sessions.find(one) is not None for one in secrets] == [False, False, True, True, True]


async def test_a_page_token_is_of_its_session_only() -> None:
    assert csrf_token("one") == csrf_token("one")
    assert csrf_token("one") != csrf_token("two")


@both
async def test_a_token_ends_with_its_time_and_with_the_password(
    accounts: Accounts, database: Database, clock: Clock
) -> None:
    user = await register(accounts.users)
    tokens = Tokens(database, UsersConfig(token_s=3600.0), secret=SECRET, clock=clock, monotonic=clock.monotonic)
    token = tokens.issue(user)
    assert (await tokens.verify(token)).id == user.id
    clock.at += timedelta(hours=1)
    with pytest.raises(TokenExpired, match=r"^token expired$"):
        await tokens.verify(token)
    # The password is chosen at a real now, long after noon.
    changed = await accounts.users.set_password(user, OTHER)
    clock.at = datetime.now(UTC) - timedelta(minutes=1)
    with pytest.raises(TokenInvalid, match=r"^invalid token$"):
        await tokens.verify(tokens.issue(user))
    clock.at = datetime.now(UTC)
    assert (await tokens.verify(tokens.issue(changed))).id == user.id


async def test_a_secret_that_can_be_guessed_is_refused(database: Database) -> None:
    with pytest.raises(Invalid, match="JWT_SECRET"):
        Tokens(database, UsersConfig(), secret="development")


async def fail(attempts: Attempts, address: str, *, email: str = ADA) -> None:
    assert not await attempts.guess(email, address, _wrong)


async def _wrong() -> bool:
    return False


async def _right() -> bool:
    return True


async def _never() -> bool:
    raise AssertionError("looked at a password that was not to be looked at")


@both
async def test_waits_grow_and_end(database: Database, clock: Clock) -> None:
    attempts = Attempts(database, clock=clock)
    for _ in range(5):
        await fail(attempts, HERE)
    waits = []
    for _ in range(7):
        with pytest.raises(LimitExceeded) as caught:
            await attempts.guess(ADA, HERE, _never)
        waits.append(caught.value.retry_after_s)
        clock.at += timedelta(seconds=waits[-1])
        await fail(attempts, HERE)
    assert waits == [30, 60, 120, 240, 480, 900, 900]
    clock.at += timedelta(seconds=900)
    assert await attempts.guess(ADA, HERE, _right)
    await fail(attempts, HERE)
    await fail(attempts, HERE)


async def test_failures_of_long_ago_do_not_count(database: Database, clock: Clock) -> None:
    attempts = Attempts(database, clock=clock)
    for _ in range(4):
        await fail(attempts, HERE)
    clock.at += timedelta(hours=1)
    for _ in range(5):
        await fail(attempts, HERE)


async def test_who_tries_many_addresses_from_one_place_has_to_wait(database: Database, clock: Clock) -> None:
    attempts = Attempts(database, clock=clock)
    for number in range(40):
        await fail(attempts, ELSEWHERE, email=f"user{number}@example.com")
    with pytest.raises(LimitExceeded):
        await attempts.guess("another@example.com", ELSEWHERE, _never)
    await fail(attempts, HERE, email="another@example.com")


async def test_who_tries_many_addresses_keeps_nobody_out_who_shares_theirs(database: Database, clock: Clock) -> None:
    """As all do who come through one proxy."""
    attempts = Attempts(database, clock=clock)
    assert await attempts.guess(ADA, HERE, _right)
    for number in range(40):
        await fail(attempts, HERE, email=f"user{number}@example.com")
    with pytest.raises(LimitExceeded):
        await attempts.guess("another@example.com", HERE, _never)
    assert await attempts.guess(ADA, HERE, _right)


async def test_guesses_from_everywhere_keep_an_owner_out_for_a_minute_at_most(database: Database, clock: Clock) -> None:
    """And not at all where they have logged in before."""
    attempts = Attempts(database, clock=clock)
    assert await attempts.guess(ADA, HERE, _right)
    clock.at += timedelta(seconds=1)
    refused = 0.0
    for number in range(60):
        try:
            await fail(attempts, f"198.51.100.{number}")
        except LimitExceeded as error:
            refused = max(refused, error.retry_after_s)
            clock.at += timedelta(seconds=error.retry_after_s)
    assert 30 < refused <= 60
    with pytest.raises(LimitExceeded):
        await attempts.guess(ADA, "203.0.113.9", _never)
    assert await attempts.guess(ADA, HERE, _right)


@both
async def test_no_number_of_guesses_at_once_gets_round_the_count(database: Database, clock: Clock) -> None:
    attempts = Attempts(database, clock=clock)
    found = await asyncio.gather(*(attempts.guess(ADA, HERE, _wrong) for _ in range(20)), return_exceptions=True)
    assert found.count(False) == 5
    assert sum(isinstance(one, LimitExceeded) for one in found) == 15
    assert not attempts._turns


@both
async def test_what_is_asked_for_too_often_is_refused_for_a_while(database: Database, clock: Clock) -> None:
    attempts = Attempts(database, clock=clock)
    for _ in range(3):
        await attempts.take("reset", HERE, most=3, every=timedelta(hours=1))
    with pytest.raises(LimitExceeded) as caught:
        await attempts.take("reset", HERE, most=3, every=timedelta(hours=1))
    assert caught.value.retry_after_s <= 3600
    await attempts.take("reset", ELSEWHERE, most=3, every=timedelta(hours=1))
    await attempts.take("register", HERE, most=3, every=timedelta(hours=1))
    clock.at += timedelta(seconds=caught.value.retry_after_s)
    await attempts.take("reset", HERE, most=3, every=timedelta(hours=1))


async def test_a_password_in_a_session_can_be_guessed_no_more_often(accounts: Accounts) -> None:
    """Whoever sits down at somebody's open browser; and the owner can still log in."""
    user = await register(accounts.users)
    for _ in range(5):
        with pytest.raises(Exception, match="invalid credentials"):
            await accounts.users.change_password(user, OTHER, OTHER, address=HERE)
    with pytest.raises(LimitExceeded):
        await accounts.users.change_password(user, PASSWORD, OTHER, address=HERE)
    await accounts.users.log_in(ADA, PASSWORD, address=HERE)
