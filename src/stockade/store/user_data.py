"""What is kept of the person behind an account, beside the user itself: to be exported, and to be removed."""

from typing import Any

from sqlalchemy import Connection, delete, or_, select, update

from stockade.store.image_tables import registry_credentials
from stockade.store.tables import account_limits, accounts, api_keys, audit_log, quota_requests, sandboxes

__all__ = ["anonymise", "quota_requests_of", "sandboxes_of", "switch_keys_off"]

MOST_SANDBOXES = 10_000

_SANDBOX = (
    sandboxes.c.id,
    sandboxes.c.key_id,
    sandboxes.c.state,
    sandboxes.c.image,
    sandboxes.c.command,
    sandboxes.c.env,
    sandboxes.c.labels,
    sandboxes.c.created_at,
    sandboxes.c.started_at,
    sandboxes.c.ended_at,
    sandboxes.c.ended_by,
    sandboxes.c.outcome,
    sandboxes.c.exit_code,
    sandboxes.c.message,
    sandboxes.c.usage,
)


def sandboxes_of(connection: Connection, account_id: str) -> list[dict[str, Any]]:
    """The account's sandboxes, the newest first, up to a number that fits into memory."""
    query = select(*_SANDBOX).where(sandboxes.c.account_id == account_id)
    query = query.order_by(sandboxes.c.created_at.desc()).limit(MOST_SANDBOXES)
    return [dict(row._mapping) for row in connection.execute(query)]


def quota_requests_of(connection: Connection, account_id: str) -> list[dict[str, Any]]:
    """Requests for more that were made with a key of the account."""
    query = select(quota_requests).where(quota_requests.c.key_id.in_(_keys_of(account_id)))
    return [dict(row._mapping) for row in connection.execute(query.order_by(quota_requests.c.id))]


def switch_keys_off(connection: Connection, account_id: str) -> None:
    """Let nobody in with a key of the account's."""
    connection.execute(update(api_keys).where(api_keys.c.account_id == account_id).values(is_active=False))


def anonymise(connection: Connection, account_id: str) -> None:
    """Remove what names the owner of an account, or what they wrote. What was used, when and by which key, stays."""
    connection.execute(delete(quota_requests).where(quota_requests.c.key_id.in_(_keys_of(account_id))))
    connection.execute(delete(account_limits).where(account_limits.c.account_id == account_id))
    connection.execute(delete(registry_credentials).where(registry_credentials.c.account_id == account_id))
    connection.execute(update(accounts).where(accounts.c.id == account_id).values(email=""))
    connection.execute(
        update(api_keys).where(api_keys.c.account_id == account_id).values(name="", description="", is_active=False)
    )
    connection.execute(update(audit_log).where(audit_log.c.account_id == account_id).values(details={}))
    # A sandbox that has not ended may still be needed to end it.
    ended = or_(sandboxes.c.state == "ended", sandboxes.c.is_deleted)
    connection.execute(
        update(sandboxes)
        .where(sandboxes.c.account_id == account_id, ended)
        .values(command=[], env={}, labels={}, message="")
    )


def _keys_of(account_id: str) -> Any:
    return select(api_keys.c.id).where(api_keys.c.account_id == account_id)
