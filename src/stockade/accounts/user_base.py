"""What all that is done to users stands on."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from stockade.accounts.attempts import Attempts
from stockade.accounts.inputs import email_key
from stockade.accounts.mail import Mailer
from stockade.accounts.passwords import Passwords
from stockade.config_accounts import AccountsConfig
from stockade.config_users import UsersConfig
from stockade.errors import Conflict, NotFound
from stockade.model.users import Role, User
from stockade.store import Database
from stockade.store import accounts as rows
from stockade.store import users as user_rows

__all__ = ["LOCK", "UserBase", "new_user", "now", "required"]

LOCK = 0x73746B2D75736572
"""What is locked while the last admin might go."""


def now() -> datetime:
    return datetime.now(UTC)


def new_user(*, account_id: str, at: datetime, **members: Any) -> User:
    return User(id=secrets.token_hex(16), account_id=account_id, created_at=at, updated_at=at, **members)


def required(user: User | None) -> User:
    """Raises NotFound."""
    if user is None:
        raise NotFound("there is no such user")
    return user


@dataclass(frozen=True, kw_only=True)
class UserBase:
    """The parts, and what several of the classes above need."""

    database: Database
    config: AccountsConfig
    settings: UsersConfig
    passwords: Passwords
    attempts: Attempts
    mailer: Mailer
    open_access: bool = False
    """Whether only this machine can reach the server; what `users.sign_up = "auto"` goes by."""
    changed: Callable[[], None] = field(default=lambda: None)
    """Called after each change that has to do with who is let in."""

    @property
    def is_open(self) -> bool:
        """Whether anybody who reaches the server may register."""
        return self.settings.sign_up == "open" or (self.settings.sign_up == "auto" and self.open_access)

    @property
    def sends_mail(self) -> bool:
        return self.mailer.is_there

    async def find(self, user_id: str) -> User | None:
        return await self.database.read(lambda connection: user_rows.find_user(connection, user_id))

    async def find_by_email(self, email: str) -> User | None:
        """Whose address *email* is, whatever its letter case."""
        key = email_key(email)
        return await self.database.read(lambda connection: user_rows.find_user_by_email(connection, key))

    def note(self, connection: Connection, user: User, action: str, *, by: str = "", **details: Any) -> None:
        """Write into the audit log of the user's account what was done.

        Args:
            by: as `store.accounts.note`; the user, where it is empty.
        """
        rows.note(connection, action, account_id=user.account_id, by=by or f"user {user.id}", details={**details})

    def refuse_last_admin(self, connection: Connection, user: User) -> None:
        """Raise Conflict if nobody could administer this server without *user*. Until the transaction ends, nobody else
        stops being an admin.
        """
        self.database.lock(connection, LOCK)
        if user.role is Role.ADMIN and not user.is_locked and user_rows.count_admins(connection) <= 1:
            raise Conflict("this is the last admin; make somebody else one first")
