"""What the owner of an account does with its keys and limits. Every change is in the audit log."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from stockade.accounts import checks
from stockade.accounts.secrets import digest, new_secret, preview
from stockade.accounts.tiers import smallest, tier_name, tier_of
from stockade.config_accounts import AccountsConfig
from stockade.errors import Denied, Invalid, NotFound
from stockade.model import Actor
from stockade.model.accounts import Account, AccountLimits, ApiKey
from stockade.store import Database
from stockade.store import accounts as rows

__all__ = ["KeyManagement", "LimitManagement", "NewKey", "TierLimits", "audited"]

LONGEST_NAME = 100
LONGEST_DESCRIPTION = 500


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key that was made or changed, and its secret, which nothing can show again."""

    key: ApiKey
    secret: str


@dataclass(frozen=True, kw_only=True)
class TierLimits:
    """What the tier of an account gives each key; `None` for no limit."""

    daily: int | None
    concurrent: int | None


@dataclass(frozen=True, kw_only=True)
class KeyManagement:
    """The keys of an account, for whoever holds one of them. They are each other's equals, but that the first one
    cannot be deleted, and that one which is bounded (it expires, or has limits of its own) changes no key but by
    rotating itself: else whoever it was lent to would have as much as who lent it.
    """

    database: Database
    config: AccountsConfig
    changed: Callable[[], None]
    """Called after each change."""

    async def list(self, actor: Actor) -> "tuple[ApiKey, ...]":
        """The account's keys, oldest first, those that are switched off included."""
        account_id = _account_id(actor)
        return tuple(await self.database.read(lambda connection: rows.keys_of(connection, account_id)))

    async def get(self, actor: Actor, key_id: str) -> ApiKey:
        """One of the account's keys.

        Raises:
            Invalid: *key_id* is no UUID.
            NotFound: the account has no such key.
        """
        account_id, wanted = _account_id(actor), checks.uuid(key_id)
        return await self.database.read(lambda connection: _own(connection, account_id, wanted))

    async def create(
        self,
        actor: Actor,
        *,
        name: str,
        description: str = "",
        expires_at: datetime | None = None,
        custom_daily_limit: int | None = None,
        custom_concurrent_limit: int | None = None,
    ) -> NewKey:
        """Make another key. Rate limit, backend and whether templates are allowed are those of the key that makes it.

        Args:
            expires_at: may have passed: the key is then never valid.

        Raises:
            Invalid: a member is too long, or a limit above the account's own.
            Denied: *actor*'s own key is bounded.
        """
        account_id = _account_id(actor)
        checks.text("name", name, least=1, most=LONGEST_NAME)
        given: dict[str, Any] = {
            "name": name,
            "description": description,
            "expires_at": expires_at,
            "custom_daily_limit": custom_daily_limit,
            "custom_concurrent_limit": custom_concurrent_limit,
        }
        secret = new_secret()

        def create(connection: Connection) -> ApiKey:
            parent = _own(connection, account_id, actor.id)
            _refuse_bounded(connection, actor)
            key = ApiKey(
                id=str(uuid.uuid4()),
                account_id=account_id,
                hash=digest(secret),
                preview=preview(secret),
                parent_key_id=parent.id,
                rate_limit_rps=parent.rate_limit_rps,
                templates=parent.templates,
                backend=parent.backend,
                created_at=datetime.now(UTC),
                **self._checked(connection, account_id, given),
            )
            rows.insert_key(connection, key)
            rows.note(connection, "created", account_id=account_id, key_id=key.id, by=actor.id, details=audited(given))
            return key

        return NewKey(key=await self.database.write(create), secret=secret)

    async def update(self, actor: Actor, key_id: str, changes: Mapping[str, Any]) -> ApiKey:
        """Change name, description, expiry or limits of a key.

        Args:
            changes: by the names of `ApiKey`; `None` takes an expiry or a limit away.

        Raises:
            Invalid: nothing to change, a member that cannot be changed, or as `create`.
            NotFound: the account has no such key.
            Denied: as `create`.
        """
        account_id, wanted = _account_id(actor), checks.uuid(key_id)
        if not changes:
            raise Invalid("no fields to update")

        def update(connection: Connection) -> ApiKey:
            _own(connection, account_id, wanted)
            _refuse_bounded(connection, actor)
            checked = self._checked(connection, account_id, changes)
            key = rows.change_key(connection, wanted, checked)
            assert key is not None
            limited = any(name.startswith("custom_") for name in checked)
            action = "limits_changed" if limited else "updated"
            rows.note(connection, action, account_id=account_id, key_id=wanted, by=actor.id, details=audited(checked))
            return key

        key = await self.database.write(update)
        self.changed()
        return key

    async def deactivate(self, actor: Actor, key_id: str) -> None:
        """Switch a key off, for good as far as its owner goes. Idempotent.

        Raises:
            Invalid: it is the account's first key, or preset by the operator.
            NotFound: the account has no such key.
            Denied: as `create`.
        """
        account_id, wanted = _account_id(actor), checks.uuid(key_id)

        def deactivate(connection: Connection) -> None:
            key = _own(connection, account_id, wanted)
            _refuse_bounded(connection, actor)
            if key.is_primary:
                raise Invalid("the account's primary key cannot be deleted; rotate it instead")
            _refuse_preset(key)
            if key.is_active:
                rows.change_key(connection, wanted, {"is_active": False})
                rows.note(connection, "deleted", account_id=account_id, key_id=wanted, by=actor.id)

        await self.database.write(deactivate)
        self.changed()

    async def rotate(self, actor: Actor, key_id: str) -> NewKey:
        """Give a key a new secret; the old one is worthless when this returns.

        Raises:
            Invalid: the operator presets it.
            NotFound: the account has no such key.
            Denied: as `create`, and it is another key than *actor*'s own.
        """
        account_id, wanted = _account_id(actor), checks.uuid(key_id)
        secret = new_secret()

        def rotate(connection: Connection) -> ApiKey:
            _refuse_preset(_own(connection, account_id, wanted))
            if wanted != actor.id:
                _refuse_bounded(connection, actor)
            key = rows.change_key(connection, wanted, {"hash": digest(secret), "preview": preview(secret)})
            assert key is not None
            rows.note(connection, "rotated", account_id=account_id, key_id=wanted, by=actor.id)
            return key

        key = await self.database.write(rotate)
        self.changed()
        return NewKey(key=key, secret=secret)

    def _checked(self, connection: Connection, account_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        account = _account(connection, account_id)
        tier = tier_of(tier_name(account, self.config, now=datetime.now(UTC)), self.config)
        own = rows.find_limits(connection, account_id)
        most = {
            "custom_daily_limit": smallest(tier.daily_sandboxes, own.daily_requests_limit),
            "custom_concurrent_limit": smallest(tier.concurrent_sandboxes, own.concurrent_requests_limit),
        }
        checked: dict[str, Any] = {}
        for name, value in given.items():
            if name == "name":
                checked[name] = checks.text(name, value, most=LONGEST_NAME)
            elif name == "description":
                checked[name] = checks.text(name, value, most=LONGEST_DESCRIPTION)
            elif name == "expires_at":
                checked[name] = None if value is None else checks.moment(name, value)
            elif name in most:
                checked[name] = None if value is None else checks.limit(name, value, most=most[name])
            else:
                raise Invalid(f"{name}: cannot be changed")
        return checked


@dataclass(frozen=True, kw_only=True)
class LimitManagement:
    """What the owner of an account has set for all of its keys."""

    database: Database
    config: AccountsConfig
    changed: Callable[[], None]

    async def account(self, actor: Actor) -> Account:
        """The account itself."""
        account_id = _account_id(actor)
        return await self.database.read(lambda connection: _account(connection, account_id))

    def tier(self, actor: Actor) -> TierLimits:
        """What counts where the account has set nothing."""
        tier = tier_of(actor.tier, self.config)
        return TierLimits(daily=smallest(tier.daily_sandboxes), concurrent=smallest(tier.concurrent_sandboxes))

    async def get(self, actor: Actor) -> AccountLimits:
        """What the account has set."""
        account_id = _account_id(actor)
        return await self.database.read(lambda connection: rows.find_limits(connection, account_id))

    async def put(self, actor: Actor, changes: Mapping[str, Any]) -> AccountLimits:
        """Change some of it; the rest stays.

        Args:
            changes: by the names of `AccountLimits`; `None` for what the tier gives, or none.

        Raises:
            Invalid: nothing to change, an unknown member, or a value out of range or above what the tier gives.
            Denied: *actor*'s own key is bounded.
        """
        account_id = _account_id(actor)
        if not changes:
            raise Invalid("no fields to update")
        checked = self._checked(actor, changes)

        def put(connection: Connection) -> AccountLimits:
            _refuse_bounded(connection, actor)
            limits = replace(rows.find_limits(connection, account_id), **checked)
            rows.put_limits(connection, account_id, limits)
            rows.note(connection, "limits_changed", account_id=account_id, by=actor.id, details=audited(checked))
            return limits

        limits = await self.database.write(put)
        self.changed()
        return limits

    def _checked(self, actor: Actor, changes: Mapping[str, Any]) -> dict[str, Any]:
        tier = self.tier(actor)
        checked: dict[str, Any] = {}
        for name, value in changes.items():
            if name == "alert_threshold":
                if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
                    raise Invalid("alert_threshold: must be a whole number from 1 to 100")
                checked[name] = value
            elif name == "timezone":
                checked[name] = checks.timezone(name, value)
            elif name == "billing_email":
                checked[name] = None if value is None else checks.email(name, value)
            elif name in {one.name for one in fields(AccountLimits)}:
                most = {"daily_requests_limit": tier.daily, "concurrent_requests_limit": tier.concurrent}.get(name)
                checked[name] = None if value is None else checks.limit(name, value, most=most)
            else:
                raise Invalid(f"{name}: is no limit of an account")
        return checked


def audited(changes: Mapping[str, Any]) -> dict[str, Any]:
    """*changes* as the audit log keeps them; what is not set is left out."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in changes.items()
        if value is not None
    }


def _account_id(actor: Actor) -> str:
    if not actor.account_id:
        raise Denied("this needs an API key of this server")
    return actor.account_id


def _account(connection: Connection, account_id: str) -> Account:
    account = rows.find_account(connection, account_id)
    if account is None:
        raise NotFound("there is no such account")
    return account


def _own(connection: Connection, account_id: str, key_id: str) -> ApiKey:
    key = rows.find_key(connection, key_id)
    if key is None or key.account_id != account_id:
        raise NotFound(f"key {key_id} not found")
    return key


def _refuse_bounded(connection: Connection, actor: Actor) -> None:
    """Raise Denied if *actor* asks with a key that expires or has limits of its own, and is not the account's first."""
    key = rows.find_key(connection, actor.id)
    if key is None or key.is_primary:
        return
    if key.expires_at is not None or key.custom_daily_limit is not None or key.custom_concurrent_limit is not None:
        raise Denied("this key expires, or has limits of its own: change keys and limits with one that has none")


def _refuse_preset(key: ApiKey) -> None:
    if key.hash is None:
        raise Invalid("this key is set by STOCKADE_API_KEY; change it there, and start the server again")
