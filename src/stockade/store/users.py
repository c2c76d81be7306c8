"""Users, their sessions and tokens, and attempts to log in: what is done to them within a transaction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stockade.model.accounts import Account
from stockade.model.users import Role, User, UserRecord, UserSession
from stockade.store.tables import accounts, audit_log
from stockade.store.user_tables import login_attempts, user_sessions, user_tokens, users

__all__ = [
    "REMOVED",
    "barred_accounts",
    "change_user",
    "count_admins",
    "count_attempt",
    "delete_attempts",
    "delete_expired",
    "delete_session",
    "delete_sessions",
    "delete_tokens",
    "delete_user",
    "find_attempts",
    "find_session",
    "find_token",
    "find_user",
    "find_user_by_email",
    "find_user_by_subject",
    "find_user_of_account",
    "insert_session",
    "insert_token",
    "insert_user",
    "list_sessions",
    "list_users",
    "password_hash",
    "put_attempts",
    "removed_accounts",
    "take_token",
    "tokens_of",
    "touch_session",
]

REMOVED = "user_removed"
"""What the audit log of an account says of a user who is gone."""
_IS_REMOVED = and_(
    users.c.id.is_(None), exists().where(audit_log.c.account_id == accounts.c.id, audit_log.c.action == REMOVED)
)
_DERIVED = ("has_password", "role")
_USER = (
    *(users.c[one.name] for one in fields(User) if one.name not in _DERIVED),
    users.c.role,
    users.c.password_hash.is_not(None).label("has_password"),
)
_SESSION = tuple(user_sessions.c[one.name] for one in fields(UserSession))
_ACCOUNT = tuple(accounts.c[one.name].label(f"owner_{one.name}") for one in fields(Account))


def _user(members: Mapping[Any, Any]) -> User:
    return User(**{**members, "role": Role(members["role"]), "has_password": bool(members["has_password"])})


def insert_user(connection: Connection, user: User, *, email_key: str, password_hash: str | None) -> None:
    """Raises IntegrityError (SQLAlchemy's) where there is one with that address, or that subject."""
    values = {one.name: getattr(user, one.name) for one in fields(User) if one.name != "has_password"}
    values |= {"role": user.role.value, "email_key": email_key, "password_hash": password_hash}
    connection.execute(insert(users), values)


def _find(connection: Connection, condition: Any) -> User | None:
    row = connection.execute(select(*_USER).where(condition)).one_or_none()
    return None if row is None else _user(dict(row._mapping))


def find_user(connection: Connection, id: str) -> User | None:
    return _find(connection, users.c.id == id)


def find_user_by_email(connection: Connection, email_key: str) -> User | None:
    return _find(connection, users.c.email_key == email_key)


def find_user_by_subject(connection: Connection, issuer: str, subject: str) -> User | None:
    return _find(connection, and_(users.c.oidc_issuer == issuer, users.c.oidc_subject == subject))


def find_user_of_account(connection: Connection, account_id: str) -> User | None:
    return _find(connection, users.c.account_id == account_id)


def password_hash(connection: Connection, id: str) -> str | None:
    found: str | None = connection.execute(select(users.c.password_hash).where(users.c.id == id)).scalar()
    return found


def change_user(connection: Connection, id: str, changes: Mapping[str, Any]) -> User | None:
    """Args: changes: by the names of columns."""
    connection.execute(update(users).where(users.c.id == id).values(**changes))
    return find_user(connection, id)


def delete_user(connection: Connection, id: str) -> None:
    """With sessions and tokens; not the account."""
    connection.execute(delete(user_sessions).where(user_sessions.c.user_id == id))
    connection.execute(delete(user_tokens).where(user_tokens.c.user_id == id))
    connection.execute(delete(users).where(users.c.id == id))


def count_admins(connection: Connection) -> int:
    """Those that can log in."""
    query = select(func.count()).select_from(users).where(users.c.role == Role.ADMIN.value, ~users.c.is_locked)
    return int(connection.execute(query).scalar_one())


def barred_accounts(connection: Connection, account_ids: Collection[str]) -> frozenset[str]:
    """Those of *account_ids* whose user is locked or has been removed. An account of keys alone never had a user."""
    return _accounts_that(connection, account_ids, or_(users.c.is_locked, _IS_REMOVED))


def removed_accounts(connection: Connection, account_ids: Collection[str]) -> frozenset[str]:
    """Those of *account_ids* whose user has been removed."""
    return _accounts_that(connection, account_ids, _IS_REMOVED)


def _accounts_that(connection: Connection, account_ids: Collection[str], are_so: ColumnElement[bool]) -> frozenset[str]:
    query = select(accounts.c.id).select_from(accounts.outerjoin(users)).where(accounts.c.id.in_(account_ids), are_so)
    return frozenset(connection.execute(query).scalars())


def list_users(
    connection: Connection, *, query: str, limit: int, after: tuple[datetime, str] | None
) -> list[UserRecord]:
    """Users with their accounts, newest first.

    Args:
        query: in whose name, address (folded) or organization this is; or whose id.
        after: moment and id of the one after which to begin.
    """
    found = select(*_USER, *_ACCOUNT).select_from(users.join(accounts))
    if query:
        wanted = f"%{_escaped(query)}%"
        found = found.where(
            or_(
                users.c.email_key.like(_folded(wanted), escape="\\"),
                users.c.name.ilike(wanted, escape="\\"),
                users.c.organization.ilike(wanted, escape="\\"),
                users.c.id == query,
            )
        )
    if after is not None:
        at, id = after
        found = found.where(or_(users.c.created_at < at, and_(users.c.created_at == at, users.c.id < id)))
    found = found.order_by(users.c.created_at.desc(), users.c.id.desc()).limit(limit)
    return [_record(row) for row in connection.execute(found)]


def _record(row: Row[Any]) -> UserRecord:
    members = dict(row._mapping)
    account = Account(**{one.name: members.pop(f"owner_{one.name}") for one in fields(Account)})
    return UserRecord(user=_user(members), account=account)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _folded(text: str) -> str:
    return text.casefold()


# --- sessions


def insert_session(connection: Connection, session: UserSession, *, digest: str) -> None:
    values = {one.name: getattr(session, one.name) for one in fields(UserSession)}
    connection.execute(insert(user_sessions), values | {"digest": digest})


def find_session(connection: Connection, digest: str) -> tuple[User, UserSession] | None:
    """The session with that digest, whether it is over or not, and whose it is."""
    row = connection.execute(select(*_SESSION).where(user_sessions.c.digest == digest)).one_or_none()
    if row is None:
        return None
    user = find_user(connection, row.user_id)
    return None if user is None else (user, UserSession(**row._mapping))


def list_sessions(connection: Connection, user_id: str) -> list[UserSession]:
    """The user's sessions, last used first."""
    query = select(*_SESSION).where(user_sessions.c.user_id == user_id)
    query = query.order_by(user_sessions.c.used_at.desc(), user_sessions.c.id)
    return [UserSession(**row._mapping) for row in connection.execute(query)]


def touch_session(connection: Connection, id: str, at: datetime) -> None:
    connection.execute(update(user_sessions).where(user_sessions.c.id == id).values(used_at=at))


def delete_session(connection: Connection, user_id: str, id: str) -> bool:
    """Whether there was one."""
    gone = delete(user_sessions).where(user_sessions.c.user_id == user_id, user_sessions.c.id == id)
    return connection.execute(gone).rowcount > 0


def delete_sessions(connection: Connection, user_id: str, *, but: str | None = None) -> int:
    """How many there were."""
    gone = delete(user_sessions).where(user_sessions.c.user_id == user_id)
    if but is not None:
        gone = gone.where(user_sessions.c.id != but)
    return connection.execute(gone).rowcount


def delete_expired(connection: Connection, *, now: datetime, idle_since: datetime) -> None:
    """Remove sessions and tokens that are over."""
    over = or_(user_sessions.c.expires_at <= now, user_sessions.c.used_at <= idle_since)
    connection.execute(delete(user_sessions).where(over))
    connection.execute(delete(user_tokens).where(user_tokens.c.expires_at <= now))


# --- tokens for mail


def insert_token(
    connection: Connection, digest: str, *, user_id: str, purpose: str, created_at: datetime, expires_at: datetime
) -> None:
    values = {"user_id": user_id, "purpose": purpose, "created_at": created_at, "expires_at": expires_at}
    connection.execute(insert(user_tokens), values | {"digest": digest})


def find_token(connection: Connection, digest: str, purpose: str, *, now: datetime) -> User | None:
    """Whose token that is; `None` for one that is over, or for something else."""
    query = select(user_tokens.c.user_id).where(
        user_tokens.c.digest == digest, user_tokens.c.purpose == purpose, user_tokens.c.expires_at > now
    )
    user_id = connection.execute(query).scalar()
    return None if user_id is None else find_user(connection, user_id)


def tokens_of(connection: Connection, user_id: str, purpose: str, *, since: datetime) -> int:
    """How many were made since then."""
    query = select(func.count()).where(
        user_tokens.c.user_id == user_id, user_tokens.c.purpose == purpose, user_tokens.c.created_at > since
    )
    return int(connection.execute(query).scalar_one())


def take_token(connection: Connection, digest: str, purpose: str, *, now: datetime) -> bool:
    """Use a token up; whether it was good. Of several who take one at once, one gets it."""
    gone = delete(user_tokens).where(
        user_tokens.c.digest == digest, user_tokens.c.purpose == purpose, user_tokens.c.expires_at > now
    )
    return connection.execute(gone).rowcount > 0


def delete_tokens(connection: Connection, user_id: str, purpose: str) -> None:
    gone = delete(user_tokens).where(user_tokens.c.user_id == user_id, user_tokens.c.purpose == purpose)
    connection.execute(gone)


# --- attempts to log in


def find_attempts(connection: Connection, subjects: Sequence[str]) -> dict[str, Row[Any]]:
    """What is counted for each subject, where anything is."""
    query = select(login_attempts).where(login_attempts.c.subject.in_(subjects))
    return {row.subject: row for row in connection.execute(query)}


def put_attempts(connection: Connection, subject: str, values: Mapping[str, Any]) -> None:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    query = dialect.insert(login_attempts).values({"subject": subject, **values})
    connection.execute(query.on_conflict_do_update(index_elements=[login_attempts.c.subject], set_=dict(values)))


def count_attempt(connection: Connection, subject: str, *, at: datetime) -> int:
    """Add one to what is counted for *subject*; how many it are with it. Of several at once each counts."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    query = dialect.insert(login_attempts).values(subject=subject, failures=1, last_at=at)
    more = {"failures": login_attempts.c.failures + 1, "last_at": at}
    query = query.on_conflict_do_update(index_elements=[login_attempts.c.subject], set_=more)
    return int(connection.execute(query.returning(login_attempts.c.failures)).scalar_one())


def delete_attempts(connection: Connection, *, failed_before: datetime, succeeded_before: datetime) -> None:
    """Forget whom nobody has tried for long; who has got in, later."""
    never, long_ago = login_attempts.c.succeeded_at.is_(None), login_attempts.c.succeeded_at < succeeded_before
    connection.execute(delete(login_attempts).where(login_attempts.c.last_at < failed_before, or_(never, long_ago)))
