"""People for tests, on cheap hashes: those of production take 20 ms each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stockade.accounts import Accounts
from stockade.accounts.mail import Letter
from stockade.accounts.passwords import Passwords
from stockade.accounts.users import Users
from stockade.config_accounts import AccountsConfig
from stockade.config_users import MailConfig, UsersConfig
from stockade.model.users import User
from stockade.store import Database

ADA = "ada@example.com"
PASSWORD = "correct horse battery"
OTHER = "another long password"
SECRET = "0123456789abcdef0123456789abcdef"
HERE, ELSEWHERE = "192.0.2.1", "198.51.100.7"


both = pytest.mark.parametrize("where", ["sqlite", "postgresql"], indirect=True)
"""Marks the tests that are to run on PostgreSQL too, where `where` is the one below: a database for each takes time."""


@pytest.fixture
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As that of `tests.store.databases`; SQLite where nothing else is said."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return str(tmp_path / "state" / "stockade.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


class CountingPasswords(Passwords):
    """Counts hashes; takes next to no time for each."""

    def __init__(self, *, memory_kib: int = 8, passes: int = 1) -> None:
        super().__init__(memory_kib=memory_kib, passes=passes)
        self.checked: list[bool] = []
        """For each check, whether there was a hash to compare with."""

    def _check(self, password: bytes, kept: str | None) -> bool:
        self.checked.append(kept is not None)
        return super()._check(password, kept)


@asynccontextmanager
async def people(database: Database, **settings: Any) -> AsyncIterator[Accounts]:
    """Accounts whose users hash cheaply."""
    users = UsersConfig(**({"sign_up": "open", "jwt_secret": SECRET} | settings))
    accounts = Accounts.on(database, AccountsConfig(), users=users)
    accounts.users.passwords.close()
    cheap = replace(accounts.users, passwords=CountingPasswords())
    accounts = replace(accounts, users=cheap)
    try:
        yield accounts
    finally:
        await accounts.close()


@asynccontextmanager
async def with_letters(database: Database, **settings: Any) -> AsyncIterator[tuple[Accounts, list[Letter]]]:
    """As `people`; letters are kept instead of sent."""
    mail = MailConfig(host="mail.example", sender="stockade@example.com")
    settings = {"mail": mail, "public_url": "https://code.example"} | settings
    async with people(database, **settings) as accounts:
        letters: list[Letter] = []
        accounts.users.mailer.post = letters.append  # type: ignore[method-assign]
        yield accounts, letters


async def register(users: Users, email: str = ADA, **changes: Any) -> User:
    members: dict[str, Any] = {"name": "Ada", "email": email, "password": PASSWORD, "address": HERE}
    return await users.register(**(members | changes))


def token_of(letter: Letter) -> str:
    """The token in the link of a letter."""
    return letter.text.partition("#token=")[2].split()[0]
