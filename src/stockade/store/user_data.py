"""What is kept of the person behind an account, beside the user itself: to be exported, and to be removed."""

from typing import Any

from sqlalchemy import Connection, Table, delete, or_, select, union, update

from stockade.store.box_tables import boxes, snapshots, volumes
from stockade.store.image_tables import images, registry_credentials
from stockade.store.tables import account_limits, accounts, api_keys, audit_log, quota_requests, sandboxes
from stockade.store.users import removed_accounts

__all__ = ["anonymise", "boxes_of", "left_behind", "quota_requests_of", "sandboxes_of", "switch_keys_off"]

MOST_SANDBOXES = 10_000
MOST_OF_A_KIND = 10_000

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


def boxes_of(connection: Connection, account_id: str) -> dict[str, list[dict[str, Any]]]:
    """What the account keeps on hosts: boxes with their snapshots, volumes, images of its own, and where it logs in for
    images. No content, and no secret.
    """
    told = {
        "boxes": (boxes, ("secrets", "owner", "server_id", "is_hidden", "disk")),
        "snapshots": (snapshots, ("server_id", "is_hidden", "disk")),
        "volumes": (volumes, ("owner", "server_id", "is_hidden", "disk")),
        "images": (images, ("server_id", "layers")),
        "registries": (registry_credentials, ("secret",)),
    }
    return {name: _rows_of(connection, table, account_id, but=hidden) for name, (table, hidden) in told.items()}


def left_behind(connection: Connection, server_id: str) -> frozenset[str]:
    """Accounts whose user has been removed, and of which a server still has boxes, volumes or images."""
    kept = union(*(select(one.c.account_id).where(one.c.server_id == server_id) for one in (boxes, volumes, images)))
    found = connection.execute(kept).scalars().all()
    return removed_accounts(connection, [one for one in found if one])


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


def _rows_of(connection: Connection, table: Table, account_id: str, *, but: tuple[str, ...]) -> list[dict[str, Any]]:
    """The account's rows of a table, the newest first, up to a number that fits into memory."""
    columns = [column for column in table.c if column.name not in but]
    query = select(*columns).where(table.c.account_id == account_id)
    query = query.order_by(table.c.created_at.desc()).limit(MOST_OF_A_KIND)
    return [dict(row._mapping) for row in connection.execute(query)]


def _keys_of(account_id: str) -> Any:
    return select(api_keys.c.id).where(api_keys.c.account_id == account_id)
