"""Keys while the database is away: who has a sandbox goes on using it, for a while."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from stockade.accounts import Accounts
from stockade.accounts.verification import REMEMBER_S, TRUSTED_S, Verification
from stockade.config_accounts import AccountsConfig
from stockade.errors import Unavailable
from stockade.store import Database

pytestmark = pytest.mark.anyio


class Outage:
    """A database that can be away, and a clock."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.is_away = False
        self.asked = 0
        self.now = 1000.0

    async def read(self, work: Callable[[Connection], Any]) -> Any:
        self.asked += 1
        if self.is_away:
            raise Unavailable("the database is gone, starting or overloaded")
        return await self.database.read(work)

    async def write(self, work: Callable[[Connection], Any], *, timeout_s: float | None = None) -> Any:
        if self.is_away:
            raise Unavailable("the database is gone, starting or overloaded")
        return await self.database.write(work, timeout_s=timeout_s)


@pytest.fixture
async def outage(tmp_path: Path, anyio_backend: str) -> AsyncIterator[tuple[Outage, Verification, str]]:
    async with await Database.open(tmp_path / "state" / "stockade.db") as database:
        accounts = Accounts.on(database, AccountsConfig())
        key = await accounts.operation.ensure_admin()
        assert key is not None
        outage = Outage(database)
        verification = Verification(outage, AccountsConfig(), clock=lambda: outage.now)  # type: ignore[arg-type]
        try:
            yield outage, verification, key
        finally:
            await verification.close()
            await accounts.close()


async def test_a_key_that_was_good_stays_good_for_a_while_without_the_database(outage: Any) -> None:
    """And the database is not asked again for every request meanwhile: each would wait until its time is up."""
    database, verification, key = outage
    assert await verification.verify(key) is not None
    database.is_away = True
    database.now += REMEMBER_S
    database.asked = 0
    for _ in range(5):
        assert await verification.verify(key) is not None
    assert database.asked == 1
    database.now += TRUSTED_S
    with pytest.raises(Unavailable):
        await verification.verify(key)
    database.is_away = False
    assert await verification.verify(key) is not None


async def test_a_key_that_nobody_has_confirmed_is_not_good_without_the_database(outage: Any) -> None:
    database, verification, key = outage
    database.is_away = True
    for one in (key, "sk_" + "0" * 64):
        with pytest.raises(Unavailable):
            await verification.verify(one)


async def test_what_was_changed_counts_at_once_without_the_database(outage: Any) -> None:
    """Who revokes a key forgets it here, and an outage does not bring it back."""
    database, verification, key = outage
    assert await verification.verify(key) is not None
    verification.forget()
    database.is_away = True
    with pytest.raises(Unavailable):
        await verification.verify(key)
