"""What the operator does: the first key, keys of any account, tiers. For a server's start and for the command line."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from stockade.accounts import checks
from stockade.accounts.key_file import FileKey
from stockade.accounts.management import LONGEST_DESCRIPTION, LONGEST_NAME, NewKey, audited
from stockade.accounts.secrets import digest, new_secret, preview
from stockade.accounts.tiers import ADMIN
from stockade.config_accounts import TiersConfig
from stockade.errors import Conflict, Invalid, NotFound
from stockade.model.accounts import Account, ApiKey
from stockade.store import Database
from stockade.store import accounts as rows

__all__ = ["Operation", "insert_with_account", "new_key"]

LOCK = 0x73746B2D61646D6E
"""What servers that start on one database at once lock while one of them makes the operator's account."""
TIERS = tuple(one.name for one in fields(TiersConfig))
BY = "operator"
PRESET_NAME = "STOCKADE_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """May change every key and account."""

    database: Database
    changed: Callable[[], None]
    """Called after each change."""

    async def ensure_admin(
        self, *, preset: str = "", imported: Sequence[FileKey] = (), server_id: str = ""
    ) -> str | None:
        """Make sure that somebody can come in: the operator's account has a key.

        Any number of servers may do so at once.

        Args:
            preset: the key that the operator has chosen. Only that there is one is recorded: it is valid for as long as
                a server that is started with it lives.
            imported: keys of a file (`key_file`); taken over the first time that this server, *server_id*, asks.

        Returns:
            A new key, which nothing can show again; `None` where there is one already.
        """
        secret = new_secret()

        by = f"server {server_id}"
        shown = preview(preset) if preset else ""

        def is_settled(connection: Connection) -> bool:
            if imported and not rows.has_note(connection, "imported", by=by):
                return False
            if preset:
                found = rows.find_preset(connection)
                return found is not None and found.preview == shown
            admin = rows.find_admin(connection)
            return admin is not None and any(key.hash for key in rows.keys_of(connection, admin.id))

        def settle(connection: Connection) -> bool:
            """Whether a key was made."""
            self.database.lock(connection, LOCK)
            if is_settled(connection):
                return False  # another server was quicker
            admin = rows.find_admin(connection)
            if imported and not rows.has_note(connection, "imported", by=by):
                admin = _import(connection, admin, imported, by=by)
            if preset:
                if (found := rows.find_preset(connection)) is not None:
                    rows.change_key(connection, found.id, {"preview": shown})
                else:
                    _insert_admin_key(connection, admin, new_key(PRESET_NAME, hash=None, preview=shown))
                return False
            if admin is not None and any(key.hash for key in rows.keys_of(connection, admin.id)):
                return False
            _insert_admin_key(connection, admin, new_key("admin", hash=digest(secret), preview=preview(secret)))
            return True

        # Looked at first: so a start on a full disk needs no room where there is a key.
        if await self.database.read(is_settled):
            return None
        is_new = await self.database.write(settle)
        self.changed()
        return secret if is_new else None

    async def list_keys(self) -> tuple[tuple[ApiKey, Account], ...]:
        """Every key with its account, oldest first."""
        return tuple(await self.database.read(rows.all_keys))

    async def create_key(
        self,
        name: str,
        *,
        tier: str | None = None,
        email: str = "",
        description: str = "",
        **given: Any,
    ) -> NewKey:
        """Make a key: of the operator's own account, or, with *tier*, the first one of a new account.

        Args:
            given: further members of `ApiKey`: `expires_at`, `custom_daily_limit`, `custom_concurrent_limit`,
                `rate_limit_rps`, `templates`, `backend`.

        Raises:
            Conflict: the operator's account has a key of that name.
            Invalid: a value is wrong.
        """
        checks.text("name", name, least=1, most=LONGEST_NAME)
        members = _checked(given | {"description": description})
        if tier is not None:
            _check_tier(tier)
        if email:
            checks.email("email", email)
        secret = new_secret()
        new = new_key(name, hash=digest(secret), preview=preview(secret), **members)

        def create(connection: Connection) -> ApiKey:
            if tier is not None:
                return insert_with_account(connection, new, tier=tier, email=email, by=BY)
            self.database.lock(connection, LOCK)
            admin = rows.find_admin(connection)
            if admin is not None and any(key.name == name for key in rows.keys_of(connection, admin.id)):
                raise Conflict(f"there is a key named {name!r} already")
            return _insert_admin_key(connection, admin, new, by=BY)

        key = await self.database.write(create)
        self.changed()
        return NewKey(key=key, secret=secret)

    async def set_key(self, name: str, changes: Mapping[str, Any], *, tier: str | None = None) -> ApiKey:
        """Change the key of that name or id.

        Args:
            changes: members of `ApiKey`, by name; `is_active` too.
            tier: for its account, with all of its keys; without an end.

        Raises:
            NotFound: there is no such key.
            Conflict: several keys have the name; use the id.
            Invalid: a value is wrong.
        """
        checked = _checked(changes)
        if tier is not None:
            _check_tier(tier)

        def change(connection: Connection) -> ApiKey:
            key = _find(connection, name)
            if tier is not None:
                rows.change_account(connection, key.account_id, {"tier": tier, "tier_expires_at": None})
                rows.note(connection, "tier_changed", account_id=key.account_id, by=BY, details={"tier": tier})
            if not checked:
                return key
            if key.hash is None and checked.get("is_active") is False:
                raise Invalid(f"{PRESET_NAME} sets this key; start the server without it, or with another one")
            changed = rows.change_key(connection, key.id, checked)
            assert changed is not None
            action = {True: "activated", False: "deactivated", None: "updated"}[checked.get("is_active")]
            rows.note(connection, action, account_id=key.account_id, key_id=key.id, by=BY, details=audited(checked))
            return changed

        key = await self.database.write(change)
        self.changed()
        return key

    async def rotate_key(self, name: str) -> NewKey:
        """Give the key of that name or id a new secret; the old one is worthless.

        Raises:
            NotFound, Conflict: as `set_key`.
            Invalid: it is the preset one.
        """
        secret = new_secret()

        def rotate(connection: Connection) -> ApiKey:
            found = _find(connection, name)
            if found.hash is None:
                raise Invalid(f"{PRESET_NAME} sets this key; change it there, and start the server again")
            key = rows.change_key(connection, found.id, {"hash": digest(secret), "preview": preview(secret)})
            assert key is not None
            rows.note(connection, "rotated", account_id=key.account_id, key_id=key.id, by=BY)
            return key

        key = await self.database.write(rotate)
        self.changed()
        return NewKey(key=key, secret=secret)


def new_key(name: str, *, hash: str | None, preview: str, **members: Any) -> ApiKey:
    """The first key of an account that has its id."""
    id = str(uuid.uuid4())
    members.setdefault("created_at", datetime.now(UTC))
    return ApiKey(id=id, account_id=id, name=name, hash=hash, preview=preview, **members)


def insert_with_account(
    connection: Connection, key: ApiKey, *, tier: str, email: str = "", by: str, is_admin: bool = False
) -> ApiKey:
    """Insert *key* as the first one of a new account."""
    rows.insert_account(
        connection,
        Account(id=key.id, tier=tier, email=email, is_admin=is_admin, created_at=key.created_at),
    )
    rows.insert_key(connection, key)
    rows.note(connection, "created", account_id=key.id, key_id=key.id, by=by, details={"tier": tier})
    return key


def _insert_admin_key(connection: Connection, admin: Account | None, key: ApiKey, *, by: str = "server") -> ApiKey:
    """Insert a key of the operator's account, which is made where there is none."""
    if admin is None:
        return insert_with_account(connection, key, tier=ADMIN, by=by, is_admin=True)
    key = replace(key, account_id=admin.id, parent_key_id=admin.id)
    rows.insert_key(connection, key)
    rows.note(connection, "created", account_id=admin.id, key_id=key.id, by=by)
    return key


def _import(connection: Connection, admin: Account | None, imported: Sequence[FileKey], *, by: str) -> Account | None:
    for number, one in enumerate(imported):  # which stays their order: their times are true to a second
        if rows.find_bearer(connection, one.hash) is not None:
            continue
        key = new_key(
            one.name,
            hash=one.hash,
            preview=one.preview,
            created_at=one.created_at + timedelta(microseconds=number),
            templates=one.templates,
        )
        _insert_admin_key(connection, admin, key, by=by)
        admin = admin or rows.find_admin(connection)
    if admin is not None:
        rows.note(connection, "imported", account_id=admin.id, by=by, details={"keys": len(imported)})
    return admin


def _find(connection: Connection, name: str) -> ApiKey:
    everything = [key for key, _ in rows.all_keys(connection)]
    found = [key for key in everything if key.id == name] or [key for key in everything if key.name == name]
    if not found:
        known = ", ".join(key.name or key.id for key in everything) or "none"
        raise NotFound(f"there is no key named {name!r}; known: {known}")
    if len(found) > 1:
        raise Conflict(f"{len(found)} keys are named {name!r}; use the id: {', '.join(key.id for key in found)}")
    return found[0]


def _check_tier(tier: str) -> None:
    if tier not in TIERS:
        raise Invalid(f"tier: must be one of {', '.join(TIERS)} (got {tier!r})")


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name == "name":
            checked[name] = checks.text(name, value, least=1, most=LONGEST_NAME)
        elif name == "description":
            checked[name] = checks.text(name, value, most=LONGEST_DESCRIPTION)
        elif name == "expires_at":
            checked[name] = None if value is None else checks.moment(name, value)
        elif name in ("custom_daily_limit", "custom_concurrent_limit", "rate_limit_rps"):
            checked[name] = None if value is None else checks.limit(name, value)
        elif name == "backend":
            checked[name] = checks.text(name, value, most=LONGEST_NAME)
        elif name in ("templates", "is_active"):
            checked[name] = bool(value)
        else:
            raise Invalid(f"{name}: cannot be changed")
    return checked
