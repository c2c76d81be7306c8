"""Users: people who log in, each of whom owns an account."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from stockade.model.accounts import Account

__all__ = ["Role", "User", "UserPage", "UserRecord", "UserSession"]


class Role(StrEnum):
    """What a user may do."""

    USER = "user"
    ADMIN = "admin"
    """Sees and changes everybody's."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody who logs in. What they log in with is kept elsewhere."""

    id: str
    """32 hexadecimal digits."""
    account_id: str
    """Whose keys, sandboxes, jobs and usage are theirs; also the id of the account's first key."""
    name: str
    email: str
    """As they wrote it. No two users have the same, letter case aside."""
    organization: str = ""
    role: Role = Role.USER
    has_password: bool = True
    """Else they log in by the provider of OpenID Connect."""
    email_verified_at: datetime | None = None
    oidc_issuer: str | None = None
    oidc_subject: str | None = None
    is_locked: bool = False
    """By an admin: neither they nor their keys are let in."""
    tokens_valid_from: datetime | None = None
    """Tokens of `/v1/auth` that were issued before are worth nothing."""
    last_login_at: datetime | None = None
    created_at: datetime
    updated_at: datetime

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


@dataclass(frozen=True, kw_only=True)
class UserSession:
    """A log-in, as long as it lasts."""

    id: str
    user_id: str
    address: str
    """Where it began."""
    agent: str
    """What the browser calls itself."""
    created_at: datetime
    used_at: datetime
    """True to a minute."""
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class UserRecord:
    """A user with the account, as an admin sees them."""

    user: User
    account: Account


@dataclass(frozen=True, kw_only=True)
class UserPage:
    """Some users, newest first."""

    users: tuple[UserRecord, ...]
    cursor: str | None
    """Where the next page begins; `None` at the end."""
