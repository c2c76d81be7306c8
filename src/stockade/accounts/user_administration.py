"""What an admin does to users, and the operator on the command line."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from stockade.accounts.operation import TIERS
from stockade.accounts.user_base import UserBase, now, required
from stockade.errors import Invalid
from stockade.model.users import Role, User, UserPage
from stockade.store import accounts as rows
from stockade.store import users as user_rows

__all__ = ["UserAdministration"]

MOST = 200


@dataclass(frozen=True, kw_only=True)
class UserAdministration(UserBase):
    """May see and change every user. Whether the caller may is the caller's to know."""

    async def list(self, *, query: str = "", limit: int = 50, cursor: str | None = None) -> UserPage:
        """Users with their accounts, newest first.

        Args:
            query: part of a name, an address or an organization; or an id. Letter case does not count.

        Raises:
            Invalid: *cursor* is none of ours.
        """
        limit = max(1, min(limit, MOST))
        after = None if cursor is None else _parse(cursor)
        query = query.strip().encode(errors="replace").decode().replace("\0", "?")
        found = await self.database.read(
            lambda connection: user_rows.list_users(connection, query=query, limit=limit + 1, after=after)
        )
        page = tuple(found[:limit])
        return UserPage(users=page, cursor=_cursor(page[-1].user) if len(found) > limit else None)

    async def set_role(self, user_id: str, role: Role, *, by: str) -> User:
        """Make somebody an admin, or no admin any more.

        Args:
            by: `user <id>` of an admin, or `operator`.

        Raises:
            NotFound: there is no such user.
            Conflict: it is the last admin.
        """

        def change(connection: Connection, user: User) -> dict[str, Any]:
            if role is not Role.ADMIN:
                self.refuse_last_admin(connection, user)
            return {"role": role.value}

        return await self._change(user_id, change, "role_changed", by=by, role=role.value)

    async def set_tier(self, user_id: str, tier: str, *, by: str) -> User:
        """Give the account of a user another tier, without an end.

        Raises:
            NotFound: as `set_role`.
            Invalid: there is no such tier.
        """
        if tier not in TIERS:
            raise Invalid(f"tier: must be one of {', '.join(TIERS)} (got {tier!r})")

        def change(connection: Connection, user: User) -> dict[str, Any]:
            rows.change_account(connection, user.account_id, {"tier": tier, "tier_expires_at": None})
            return {}

        return await self._change(user_id, change, "tier_changed", by=by, tier=tier)

    async def lock(self, user_id: str, is_locked: bool, *, by: str) -> User:
        """Let somebody, and every key of theirs, in no more; or again. Their sessions end, their tokens are worthless.

        What runs of theirs is the caller's to end (jobs), or the servers' (see `Barred`).

        Raises:
            NotFound, Conflict: as `set_role`.
        """

        def change(connection: Connection, user: User) -> dict[str, Any]:
            if not is_locked:
                return {"is_locked": False}
            self.refuse_last_admin(connection, user)
            user_rows.delete_sessions(connection, user.id)
            return {"is_locked": True, "tokens_valid_from": now()}

        return await self._change(user_id, change, "locked" if is_locked else "unlocked", by=by)

    async def _change(
        self,
        user_id: str,
        change: Callable[[Connection, User], dict[str, Any]],
        action: str,
        *,
        by: str,
        **details: Any,
    ) -> User:
        def work(connection: Connection) -> User:
            user = required(user_rows.find_user(connection, user_id))
            changes = change(connection, user) | {"updated_at": now()}
            self.note(connection, user, action, by=by, **details)
            return required(user_rows.change_user(connection, user.id, changes))

        changed = await self.database.write(work)
        self.changed()
        return changed


def _cursor(user: User) -> str:
    return base64.urlsafe_b64encode(f"{user.created_at.isoformat()} {user.id}".encode()).decode()


def _parse(cursor: str) -> tuple[datetime, str]:
    try:
        at, _, id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii").partition(" ")
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC), id.replace("\0", "")
    except (ValueError, OverflowError):
        pass
    raise Invalid("cursor: must be one that this server gave")
