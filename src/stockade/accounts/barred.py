"""Accounts for which nobody may act any more: their user is locked, or has been removed.

Who comes in is asked at the door. This is for what is inside already: sandboxes that live, jobs that wait, and what
those who were removed have left.
"""

from collections.abc import Collection
from dataclasses import dataclass

from stockade.store import Database, user_data
from stockade.store import users as user_rows

__all__ = ["Barred", "Departed"]


@dataclass(frozen=True, kw_only=True)
class Barred:
    """Looks them up. It remembers nothing: whoever is locked is so from the very commit on."""

    database: Database

    async def among(self, account_ids: Collection[str]) -> frozenset[str]:
        """Those of *account_ids*. Raises Unavailable while the database is away."""
        wanted = [one for one in account_ids if one]
        if not wanted:
            return frozenset()
        return await self.database.read(lambda connection: user_rows.barred_accounts(connection, wanted))


@dataclass(frozen=True, kw_only=True)
class Departed:
    """Looks up whose user has been removed while something of theirs is still kept on a server."""

    database: Database
    server_id: str

    async def accounts(self) -> frozenset[str]:
        """Their accounts, of which this server has boxes, volumes or images. Raises Unavailable."""
        return await self.database.read(lambda connection: user_data.left_behind(connection, self.server_id))
