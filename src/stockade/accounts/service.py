"""Accounts, as the rings above use them: one record of small services."""

from dataclasses import dataclass
from typing import Self

from stockade.accounts.management import KeyManagement, LimitManagement
from stockade.accounts.operation import Operation
from stockade.accounts.signup import SignUp
from stockade.accounts.usage import UsageAccounting
from stockade.accounts.verification import Verification
from stockade.config_accounts import AccountsConfig
from stockade.model import Actor
from stockade.store import Database

__all__ = ["Accounts"]


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Who may come in, how much they may have, and what they used."""

    verification: Verification
    keys: KeyManagement
    limits: LimitManagement
    usage: UsageAccounting
    sign_up: SignUp
    operation: Operation

    @classmethod
    def on(cls, database: Database, config: AccountsConfig, *, preset: str = "") -> Self:
        """The services on *database*.

        Args:
            preset: the API key that the operator chose; see `Operation.ensure_admin`, which must have been told too.
        """
        verification = Verification(database, config, preset=preset)
        changed = verification.forget
        return cls(
            verification=verification,
            keys=KeyManagement(database=database, config=config, changed=changed),
            limits=LimitManagement(database=database, config=config, changed=changed),
            usage=UsageAccounting(database, config.prices),
            sign_up=SignUp(database=database, is_open=config.waitlist, changed=changed),
            operation=Operation(database=database, changed=changed),
        )

    async def verify(self, presented: str) -> Actor | None:
        """See `Verification.verify`."""
        return await self.verification.verify(presented)

    async def close(self) -> None:
        """Let what is written in the background end. The database is closed by whoever opened it."""
        await self.verification.close()
