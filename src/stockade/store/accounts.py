"""Accounts, keys, their limits, the audit log: what is done to them within a transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, exists, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stockade.model.accounts import Account, AccountLimits, ApiKey, QuotaRequest
from stockade.store.tables import account_limits, accounts, api_keys, audit_log, quota_requests
from stockade.store.user_tables import users

__all__ = [
    "all_keys",
    "change_account",
    "change_key",
    "find_account",
    "find_admin",
    "find_bearer",
    "find_key",
    "find_limits",
    "find_preset",
    "has_note",
    "insert_account",
    "insert_key",
    "insert_quota_request",
    "keys_of",
    "list_notes",
    "list_quota_requests",
    "note",
    "put_limits",
    "touch_keys",
]

_KEY = tuple(api_keys.c[one.name] for one in fields(ApiKey))
_ACCOUNT = tuple(accounts.c[one.name] for one in fields(Account))
_LIMITS = tuple(account_limits.c[one.name] for one in fields(AccountLimits))


def _labelled(prefix: str, columns: Sequence[Any]) -> list[Any]:
    return [column.label(f"{prefix}_{column.name}") for column in columns]


# Made once: it is asked with nearly every request.
_BEARER = (
    select(*_labelled("key", _KEY), *_labelled("account", _ACCOUNT), *_labelled("limits", _LIMITS))
    .select_from(api_keys.join(accounts).outerjoin(account_limits, account_limits.c.account_id == accounts.c.id))
    .where(
        api_keys.c.hash == bindparam("wanted"),
        # Whom an admin has locked comes in by no key either.
        ~exists().where(users.c.account_id == accounts.c.id, users.c.is_locked),
    )
)
_TOUCH = update(api_keys).where(api_keys.c.id == bindparam("wanted")).values(last_used_at=bindparam("at"))


def find_bearer(connection: Connection, hash: str) -> tuple[ApiKey, Account, AccountLimits] | None:
    """The key with that hash, its account, and what the account has set; `None` also when its owner is locked."""
    row = connection.execute(_BEARER, {"wanted": hash}).one_or_none()
    if row is None:
        return None
    key = ApiKey(**_members(row, "key", ApiKey))
    account = Account(**_members(row, "account", Account))
    # An account that has set nothing has no row.
    limits = AccountLimits(**_members(row, "limits", AccountLimits)) if row.limits_timezone else AccountLimits()
    return key, account, limits


def _members(row: Row[Any], prefix: str, cls: Any) -> dict[str, Any]:
    return {one.name: getattr(row, f"{prefix}_{one.name}") for one in fields(cls)}


def find_account(connection: Connection, id: str) -> Account | None:
    row = connection.execute(select(*_ACCOUNT).where(accounts.c.id == id)).one_or_none()
    return None if row is None else Account(**row._mapping)


def find_admin(connection: Connection) -> Account | None:
    """The operator's own account."""
    row = connection.execute(select(*_ACCOUNT).where(accounts.c.is_admin)).one_or_none()
    return None if row is None else Account(**row._mapping)


def insert_account(connection: Connection, account: Account) -> None:
    connection.execute(insert(accounts), asdict(account))


def change_account(connection: Connection, id: str, changes: Mapping[str, Any]) -> Account | None:
    query = update(accounts).where(accounts.c.id == id).values(**changes).returning(*_ACCOUNT)
    row = connection.execute(query).one_or_none()
    return None if row is None else Account(**row._mapping)


def find_key(connection: Connection, id: str) -> ApiKey | None:
    row = connection.execute(select(*_KEY).where(api_keys.c.id == id)).one_or_none()
    return None if row is None else ApiKey(**row._mapping)


def find_preset(connection: Connection) -> ApiKey | None:
    """The record of the key that the operator presets: the one without a hash."""
    row = connection.execute(select(*_KEY).where(api_keys.c.hash.is_(None))).one_or_none()
    return None if row is None else ApiKey(**row._mapping)


def keys_of(connection: Connection, account_id: str) -> list[ApiKey]:
    """The account's keys, oldest first."""
    query = select(*_KEY).where(api_keys.c.account_id == account_id).order_by(api_keys.c.created_at, api_keys.c.id)
    return [ApiKey(**row._mapping) for row in connection.execute(query)]


def all_keys(connection: Connection) -> list[tuple[ApiKey, Account]]:
    """Every key with its account, oldest first."""
    query = (
        select(*_labelled("key", _KEY), *_labelled("account", _ACCOUNT))
        .select_from(api_keys.join(accounts))
        .order_by(api_keys.c.created_at, api_keys.c.id)
    )
    return [
        (ApiKey(**_members(row, "key", ApiKey)), Account(**_members(row, "account", Account)))
        for row in connection.execute(query)
    ]


def insert_key(connection: Connection, key: ApiKey) -> None:
    connection.execute(insert(api_keys), asdict(key))


def change_key(connection: Connection, id: str, changes: Mapping[str, Any]) -> ApiKey | None:
    query = update(api_keys).where(api_keys.c.id == id).values(**changes).returning(*_KEY)
    row = connection.execute(query).one_or_none()
    return None if row is None else ApiKey(**row._mapping)


def touch_keys(connection: Connection, used: Mapping[str, datetime]) -> None:
    """Note when keys were last used."""
    connection.execute(_TOUCH, [{"wanted": id, "at": at} for id, at in used.items()])


def find_limits(connection: Connection, account_id: str) -> AccountLimits:
    """What the account has set."""
    query = select(*_LIMITS).where(account_limits.c.account_id == account_id)
    row = connection.execute(query).one_or_none()
    return AccountLimits() if row is None else AccountLimits(**row._mapping)


def put_limits(connection: Connection, account_id: str, limits: AccountLimits) -> None:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    values = asdict(limits) | {"updated_at": datetime.now(UTC)}
    query = dialect.insert(account_limits).values(values | {"account_id": account_id})
    connection.execute(query.on_conflict_do_update(index_elements=[account_limits.c.account_id], set_=values))


def note(
    connection: Connection,
    action: str,
    *,
    account_id: str,
    by: str,
    key_id: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write down who changed what.

    Args:
        by: id of a key; `user` and an id; `operator` for the command line, `server` for a start, `public` for a
            sign-up, `oidc` for one by a provider.
        details: never a key, a password, a token or a hash of one, nor an e-mail address.
    """
    connection.execute(
        insert(audit_log),
        {
            "at": datetime.now(UTC),
            "account_id": account_id,
            "key_id": key_id,
            "action": action,
            "details": dict(details or {}),
            "performed_by": by,
        },
    )


def has_note(connection: Connection, action: str, *, by: str) -> bool:
    """Whether *by* has done *action* before."""
    query = select(audit_log.c.id).where(audit_log.c.action == action, audit_log.c.performed_by == by).limit(1)
    return connection.execute(query).first() is not None


def list_notes(connection: Connection, account_id: str) -> list[dict[str, Any]]:
    """The account's audit log, oldest first."""
    query = select(audit_log).where(audit_log.c.account_id == account_id).order_by(audit_log.c.id)
    return [dict(row._mapping) for row in connection.execute(query)]


def insert_quota_request(connection: Connection, given: Mapping[str, Any]) -> QuotaRequest:
    """Record a request for more; its number is made here."""
    columns = [quota_requests.c[one.name] for one in fields(QuotaRequest)]
    row = connection.execute(insert(quota_requests).values(**given).returning(*columns)).one()
    return QuotaRequest(**row._mapping)


def list_quota_requests(connection: Connection) -> list[QuotaRequest]:
    """Every request, oldest first."""
    columns = [quota_requests.c[one.name] for one in fields(QuotaRequest)]
    query = select(*columns).order_by(quota_requests.c.id)
    return [QuotaRequest(**row._mapping) for row in connection.execute(query)]
