"""What anybody may ask for without a key: a key, where strangers may sign up, and more than a tier gives."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection

from stockade.accounts import checks
from stockade.accounts.management import LONGEST_NAME, NewKey
from stockade.accounts.operation import insert_with_account, new_key
from stockade.accounts.secrets import digest, new_secret, preview
from stockade.accounts.tiers import DEFAULT
from stockade.errors import NotFound
from stockade.model import Actor
from stockade.model.accounts import QuotaRequest
from stockade.store import Database
from stockade.store import accounts as rows

__all__ = ["SignUp"]

LONGEST_TEXT = 4000
BY = "public"


@dataclass(frozen=True, kw_only=True)
class SignUp:
    """Takes in new accounts and requests for more."""

    database: Database
    is_open: bool
    changed: Callable[[], None]

    async def join(self, *, email: str, name: str = "") -> NewKey:
        """Make an account of the tier `free`, and its key. The same address may have several.

        Raises:
            NotFound: the operator does not let strangers sign up.
            Invalid: *email* is no address, or *name* too long.
        """
        if not self.is_open:
            raise NotFound("this server takes no sign-ups; ask its operator for a key")
        checks.email("email", email)
        checks.text("name", name, most=LONGEST_NAME)
        secret = new_secret()
        key = new_key(name, hash=digest(secret), preview=preview(secret))
        await self.database.write(
            lambda connection: insert_with_account(connection, key, tier=DEFAULT, email=email, by=BY)
        )
        self.changed()
        return NewKey(key=key, secret=secret)

    async def request_quota(
        self,
        *,
        email: str,
        name: str = "",
        company: str = "",
        use_case: str = "",
        requested_limits: str = "",
        budget: str = "",
        actor: Actor | None = None,
    ) -> QuotaRequest:
        """Record that somebody asks for more; `stockade usage --requests` lists them.

        Raises:
            Invalid: *email* is no address, or a text too long.
        """
        texts = {
            "name": name,
            "company": company,
            "use_case": use_case,
            "requested_limits": requested_limits,
            "budget": budget,
        }
        for member, value in texts.items():
            checks.text(member, value, most=LONGEST_TEXT)
        whose = {"key_id": actor.id, "current_tier": actor.tier} if actor is not None and actor.account_id else {}
        given = {"email": checks.email("email", email), "status": "pending", "created_at": datetime.now(UTC)}

        def record(connection: Connection) -> QuotaRequest:
            return rows.insert_quota_request(connection, {**texts, **whose, **given})

        return await self.database.write(record)

    async def quota_requests(self) -> tuple[QuotaRequest, ...]:
        """Every request, oldest first."""
        return tuple(await self.database.read(rows.list_quota_requests))
