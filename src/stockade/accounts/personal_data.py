"""What is kept of a person: shown to them whole, and removed when they go."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection

from stockade.accounts import inputs
from stockade.accounts.recovery import Recovery
from stockade.accounts.user_base import now, required
from stockade.model.users import User
from stockade.store import accounts as rows
from stockade.store import user_data
from stockade.store import users as user_rows
from stockade.store.usage import UsageTable

__all__ = ["PersonalData"]

EXPORTED_DAYS = 3660

Forget = Callable[[str], Awaitable[object]]
"""Is given an account's id; removes what is kept of it elsewhere (jobs), and ends what runs."""


@dataclass(frozen=True, kw_only=True)
class PersonalData(Recovery):
    """Export and removal."""

    async def export(self, user: User) -> dict[str, Any]:
        """All that the database holds of somebody, ready for JSON; no password, key or token, nor hashes of them."""

        def collect(connection: Connection) -> dict[str, Any]:
            account = rows.find_account(connection, user.account_id)
            return {
                "exportedAt": now(),
                "user": asdict(required(user_rows.find_user(connection, user.id))),
                "account": asdict(account) if account is not None else None,
                "limits": asdict(rows.find_limits(connection, user.account_id)),
                "keys": [_without(asdict(key), "hash") for key in rows.keys_of(connection, user.account_id)],
                "sessions": [asdict(one) for one in user_rows.list_sessions(connection, user.id)],
                "sandboxes": user_data.sandboxes_of(connection, user.account_id),
                **user_data.boxes_of(connection, user.account_id),
                "quotaRequests": user_data.quota_requests_of(connection, user.account_id),
                "auditLog": rows.list_notes(connection, user.account_id),
            }

        found = await self.database.read(collect)
        found["usage"] = [
            asdict(one) for one in await UsageTable(self.database).daily(user.account_id, now=now(), days=EXPORTED_DAYS)
        ]
        shown: dict[str, Any] = _plain(found)
        return shown

    async def delete(
        self, user: User, *, password: str = "", email: str = "", address: str = "", forget: Forget | None = None
    ) -> None:
        """Remove somebody who wants to go: see `remove`.

        Args:
            password: theirs; who has none types the e-mail address again instead.

        Raises:
            WrongCredentials: that is not the password.
            WrongInput: that is not the address.
            LimitExceeded: the password was guessed wrong too often.
            Conflict: they are the last admin.
        """
        if not user.has_password and inputs.email_key(email) != inputs.email_key(user.email):
            raise inputs.WrongInput("email", "type your e-mail address to confirm")
        await self.confirm(user, password, address=address)
        await self.remove(user.id, by=f"user {user.id}", forget=forget)

    async def remove(self, user_id: str, *, by: str, forget: Forget | None = None) -> None:
        """Remove a user, with all that names them. Their keys let nobody in any more; what their sandboxes used stays
        in the sums, of an account without a name.

        Args:
            forget: called once nobody can come in, before the rest is removed: should it fail, all can be repeated.

        Raises:
            NotFound: there is no such user.
            Conflict: it is the last admin.
        """

        def shut(connection: Connection) -> User:
            user = required(user_rows.find_user(connection, user_id))
            self.refuse_last_admin(connection, user)
            user_data.switch_keys_off(connection, user.account_id)
            user_rows.delete_sessions(connection, user.id)
            return required(user_rows.change_user(connection, user.id, {"is_locked": True, "tokens_valid_from": now()}))

        def remove(connection: Connection) -> None:
            user_rows.delete_user(connection, user_id)
            user_data.anonymise(connection, user.account_id)
            self.note(connection, user, user_rows.REMOVED, by=by)

        user = await self.database.write(shut)
        self.changed()
        if forget is not None:
            await forget(user.account_id)
        await self.database.write(remove)
        self.changed()


def _without(members: dict[str, Any], name: str) -> dict[str, Any]:
    return {one: value for one, value in members.items() if one != name}


def _plain(value: Any) -> Any:
    """*value* as JSON can hold it."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value
