"""Accounts, as the rings above use them: one record of small services."""

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from stockade.accounts.attempts import Attempts
from stockade.accounts.mail import Mailer
from stockade.accounts.management import KeyManagement, LimitManagement
from stockade.accounts.operation import Operation
from stockade.accounts.passwords import Passwords
from stockade.accounts.sessions import UserSessions
from stockade.accounts.signup import SignUp
from stockade.accounts.tokens import Tokens
from stockade.accounts.usage import UsageAccounting
from stockade.accounts.users import Users
from stockade.accounts.verification import Verification
from stockade.config_accounts import AccountsConfig
from stockade.config_users import UsersConfig
from stockade.errors import Invalid
from stockade.model import Actor
from stockade.store import Database

if TYPE_CHECKING:
    from stockade.accounts.oidc import Oidc

__all__ = ["Accounts"]

SHORTEST_PRESET = 16
"""Characters of a key that the operator has chosen. Those that are made here have 256 bits."""


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Who may come in, how much they may have, and what they used."""

    verification: Verification
    keys: KeyManagement
    limits: LimitManagement
    usage: UsageAccounting
    sign_up: SignUp
    operation: Operation
    users: Users
    """People who log in."""
    sessions: UserSessions
    """Their browsers."""
    tokens: Tokens
    """Their programs."""
    oidc: "Oidc | None" = None
    """The provider by which they may log in; `None` without one."""

    @classmethod
    def on(
        cls,
        database: Database,
        config: AccountsConfig,
        *,
        preset: str = "",
        users: UsersConfig | None = None,
        secret: str = "",
        open_access: bool = False,
    ) -> Self:
        """The services on *database*.

        Args:
            preset: the API key that the operator chose; see `Operation.ensure_admin`, which must have been told too.
            users: settings of people who log in.
            secret: signs users' tokens where `users.jwt_secret` is not set (`store.kept_secret`); without either they
                are good for as long as this process lives.
            open_access: only this machine can reach the server.

        Raises:
            Invalid: the settings of users are wrong, or *preset* is so short that others could guess it.
            Unsupported: OpenID Connect is configured, and its library not installed.
        """
        if preset and len(preset) < SHORTEST_PRESET and not open_access:
            raise Invalid(
                f"server.api_key (STOCKADE_API_KEY): must have at least {SHORTEST_PRESET} characters where others can "
                "reach the server, for they could guess a shorter one; `openssl rand -hex 32` makes one"
            )
        users = users or UsersConfig()
        verification = Verification(database, config, preset=preset)
        sessions = UserSessions(database, users)
        people = Users(
            database=database,
            config=config,
            settings=users,
            passwords=Passwords(),
            attempts=Attempts(database),
            mailer=Mailer(users.mail),
            open_access=open_access,
            changed=lambda: changed(),
        )

        signing = users.jwt_secret or secret or secrets.token_hex(32)
        tokens = Tokens(database, users, secret=signing)

        def changed() -> None:
            verification.forget()
            sessions.forget()
            tokens.forget()
            people.forget()

        oidc = None
        if users.oidc.issuer:
            from stockade.accounts.oidc import Oidc

            oidc = Oidc(people, secret=signing)
        return cls(
            verification=verification,
            keys=KeyManagement(database=database, config=config, changed=changed),
            limits=LimitManagement(database=database, config=config, changed=changed),
            usage=UsageAccounting(database, config.prices),
            sign_up=SignUp(database=database, is_open=config.waitlist, changed=changed),
            operation=Operation(database=database, changed=changed),
            users=people,
            sessions=sessions,
            tokens=tokens,
            oidc=oidc,
        )

    async def verify(self, presented: str) -> Actor | None:
        """See `Verification.verify`."""
        return await self.verification.verify(presented)

    async def close(self) -> None:
        """Let what is written in the background end. The database is closed by whoever opened it."""
        await self.verification.close()
        await self.users.mailer.close()
        self.users.passwords.close()
        if self.oidc is not None:
            await self.oidc.close()
