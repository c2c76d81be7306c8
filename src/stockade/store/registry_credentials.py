"""The rows of what accounts log in to registries with. They are of no server: an account has them on all of them."""

from dataclasses import asdict, dataclass, fields

from sqlalchemy import Connection, delete, exc, insert, select

from stockade.errors import Conflict
from stockade.model.registries import SealedCredential
from stockade.store import accounts
from stockade.store.database import Database
from stockade.store.image_tables import registry_credentials as table

__all__ = ["RegistryCredentialTable"]

_COLUMNS = tuple(table.c[one.name] for one in fields(SealedCredential))


@dataclass(frozen=True, kw_only=True)
class RegistryCredentialTable:
    """See `engine.registry_credentials.CredentialTable`. Changes are in the account's audit log."""

    database: Database

    async def insert(self, row: SealedCredential, *, by: str) -> None:
        """Add one.

        Args:
            by: id of the key that asks for it.

        Raises:
            Conflict: the account has one for the same host and prefix.
        """

        def work(connection: Connection) -> None:
            connection.execute(insert(table), asdict(row))
            _note(connection, "registry_created", row, by=by)

        try:
            await self.database.write(work)
        except exc.IntegrityError:
            where = "/".join(filter(None, (row.registry_host, row.repository_prefix)))
            raise Conflict(f"the account has credentials for {where} already: remove them first") from None

    async def of_account(self, account_id: str) -> list[SealedCredential]:
        """The account's, the oldest first."""
        query = select(*_COLUMNS).where(table.c.account_id == account_id).order_by(table.c.created_at, table.c.id)
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        return [SealedCredential(**row._mapping) for row in rows]

    async def delete(self, account_id: str, id: str, *, by: str) -> bool:
        """Remove one; False when the account has none of that id."""
        query = delete(table).where(table.c.account_id == account_id, table.c.id == id).returning(*_COLUMNS)

        def work(connection: Connection) -> bool:
            row = connection.execute(query).one_or_none()
            if row is None:
                return False
            _note(connection, "registry_removed", SealedCredential(**row._mapping), by=by)
            return True

        return await self.database.write(work)


def _note(connection: Connection, action: str, row: SealedCredential, *, by: str) -> None:
    accounts.note(
        connection,
        action,
        account_id=row.account_id,
        by=by,
        details={"registry_id": row.id, "registry_host": row.registry_host, "prefix": row.repository_prefix},
    )
