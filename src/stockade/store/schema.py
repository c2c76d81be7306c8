"""Bringing a database's tables up to date, with Alembic; the same steps for SQLite and PostgreSQL."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from stockade.errors import Fault

__all__ = ["HEAD", "LOCK", "MOST_S", "is_current", "upgrade"]

HEAD = "0007"
"""The newest revision in `migrations/versions`."""
LOCK = 0x73746F636B616465
"""What servers on one PostgreSQL that start at once lock while one of them changes the tables."""
MOST_S = 300.0

_MIGRATIONS = Path(__file__).parent / "migrations"


def is_current(connection: Connection) -> bool:
    """Whether the tables are up to date."""
    return _found(connection) == HEAD


def upgrade(connection: Connection) -> None:
    """Make the tables, or bring them up to date, in the transaction of *connection*.

    Raises:
        Fault: a newer version of Stockade made them.
    """
    found = _found(connection)
    if found == HEAD:
        return  # another server was quicker
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise Fault(
            f"the database has revision {found!r}, which this version of Stockade does not know: a newer one made it. "
            "Install that version, or restore a backup from before"
        ) from error


def _found(connection: Connection) -> str | None:
    """The revision of the tables; `None` where there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found
