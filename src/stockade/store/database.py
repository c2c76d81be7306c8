"""The connection to the database: transactions with a deadline, and its troubles in our words.

A transaction is a function of an SQLAlchemy connection: the same function runs on SQLite in a thread (one hand-over for
the whole of it, not one for each statement) and on PostgreSQL over an asynchronous driver.

Whatever is wrong with the database for a while (gone, locked, full, too slow) is `Unavailable`: callers answer 503, and
the next transaction tries anew. Nothing has to be restarted once the database is back.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from sqlalchemy import Connection, exc, make_url

from stockade.errors import Fault, Invalid, StockadeError, Unavailable
from stockade.store import schema

__all__ = ["Database", "Driver"]

T = TypeVar("T")

RETRY_S = 0.25
"""Between two tries to reach a database that is not there yet."""

_TRANSIENT = (
    "08",  # connection exceptions
    "40",  # deadlock, serialization failure
    "53",  # too many connections, disk full, out of memory
    "55P03",  # a lock was not to be had in time
    "57",  # cancelled by a time-out, shutting down, starting up
    "25P03",  # idle in a transaction for too long
    "25006",  # read-only: a standby
)
"""SQLSTATEs, or their beginnings, that pass (postgresql.org/docs/current/errcodes-appendix.html)."""

_BROKEN_SQLITE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_MISMATCH", "SQLITE_SCHEMA")


class Driver(Protocol):
    """How functions of a connection are run on one kind of database."""

    is_sqlite: bool

    async def write(self, work: Callable[[Connection], T], *, timeout_s: float) -> T:
        """Run *work* in a transaction that is committed when it returns."""
        ...

    async def read(self, work: Callable[[Connection], T], *, timeout_s: float) -> T:
        """Run *work* outside of any transaction."""
        ...

    def hear(self, channel: str, heard: Callable[[str], None]) -> AbstractAsyncContextManager[asyncio.Event]: ...

    async def close(self) -> None: ...


class _Refused(Unavailable):
    """The database lets us not in. Waiting does not mend it at a start; later, somebody is changing the password."""


class Database:
    """A database with our tables in it. Belongs to the event loop that opened it."""

    def __init__(self, driver: Driver, *, timeout_s: float) -> None:
        self._driver = driver
        self._timeout_s = timeout_s

    @classmethod
    async def open(
        cls, where: str | Path, *, timeout_s: float = 10.0, connections: int = 8, wait_s: float = 0.0
    ) -> "Database":
        """The database at *where*, with its tables made or brought up to date.

        Any number of servers may do so at once: one of them changes the tables, the others wait for it.

        Args:
            where: path of an SQLite file, which is made (mode 0600, its directory 0700), or a URL
                (`postgres://…`, `postgresql://…`, `sqlite:///path`).
            timeout_s: the longest time that a transaction may take.
            connections: connections to PostgreSQL held at most.
            wait_s: for how long to try when the database cannot be reached.

        Raises:
            Invalid: *where* is no such URL, or the database refuses name or password.
            Unsupported: the driver is not installed.
            Unavailable: it cannot be reached.
            Fault: it is damaged, or was made by a newer version of Stockade.
        """
        database = cls.at(where, timeout_s=timeout_s, connections=connections)
        try:
            await database.migrate(wait_s=wait_s)
        except BaseException:
            await database.close()
            raise
        return database

    @classmethod
    def at(cls, where: str | Path, *, timeout_s: float = 10.0, connections: int = 8) -> "Database":
        """The database at *where*, whose tables somebody has brought up to date. Connects, and starts threads, when it
        is first used: a server that gives up its privileges in between has nothing left that would keep them.

        Raises:
            Invalid, Unsupported: as `open`.
        """
        return cls(_driver(where, timeout_s=timeout_s, connections=connections), timeout_s=timeout_s)

    @property
    def is_sqlite(self) -> bool:
        return self._driver.is_sqlite

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def write(self, work: Callable[[Connection], T], *, timeout_s: float | None = None) -> T:
        """Run *work* in a transaction: committed, and durable, when this returns; rolled back when *work* raises.

        *work* may run in a thread: it uses the connection and its own arguments, and nothing else. On SQLite its is the
        only transaction that writes from its beginning on, so what it reads stays true until its end. A caller that is
        cancelled does not know whether it was committed.

        Raises:
            Unavailable: the database cannot do it now. Whether it was committed is not known when the connection was
                lost at the very end.
            Fault: the database refuses the statement, or is damaged.
        """
        with _translated():
            return await self._driver.write(work, timeout_s=timeout_s or self._timeout_s)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run *work* outside of any transaction: each of its statements sees what is committed by then.

        Raises:
            Unavailable, Fault: as `write`.
        """
        with _translated():
            return await self._driver.read(work, timeout_s=self._timeout_s)

    async def ping(self) -> None:
        """Raises Unavailable when the database does not answer."""
        await self.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())

    @contextlib.asynccontextmanager
    async def hear(self, channel: str, heard: Callable[[str], None]) -> AsyncIterator[asyncio.Event]:
        """Call *heard*, in the event loop, with each word that a transaction says on *channel* (`NOTIFY`) once it is
        committed, in whatever process.

        Yields:
            What is set when nothing more will be heard, because the connection is lost.

        Raises:
            Unsupported: SQLite knows no such thing.
            Unavailable: as `write`.
        """
        with _translated():
            async with self._driver.hear(channel, heard) as gone:
                yield gone

    def lock(self, connection: Connection, number: int) -> None:
        """Let no other transaction hold *number* until this one ends; waits for whoever does.

        A transaction on SQLite excludes all others anyway.
        """
        if not self.is_sqlite:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock($1)", (number,))

    async def migrate(self, *, wait_s: float = 0.0) -> None:
        """Make the tables, or bring them up to date; see `open`.

        Raises:
            Invalid, Unavailable, Fault: as `open`.
        """
        give_up = time.monotonic() + wait_s
        while True:
            try:
                # Looked at first: a start changes nothing as a rule, and can then do on a full disk, or on a standby.
                if not await self.read(schema.is_current):
                    await self.write(self._upgrade, timeout_s=max(self._timeout_s, schema.MOST_S))
                return
            except _Refused as error:
                raise Invalid(f"DATABASE_URL: {error}") from error
            except Unavailable:
                if time.monotonic() + RETRY_S > give_up:
                    raise
            await asyncio.sleep(RETRY_S)

    def _upgrade(self, connection: Connection) -> None:
        self.lock(connection, schema.LOCK)
        schema.upgrade(connection)


def _driver(where: str | Path, *, timeout_s: float, connections: int) -> Driver:
    if isinstance(where, Path) or "://" not in where:
        from stockade.store.sqlite import SqliteDriver

        return SqliteDriver(Path(where), timeout_s=timeout_s)
    scheme = urlsplit(where).scheme
    if scheme in ("postgres", "postgresql", "postgresql+asyncpg"):
        from stockade.store.postgresql import PostgresDriver

        url = "postgresql" + where.removeprefix(scheme)
        return PostgresDriver(url, timeout_s=timeout_s, connections=connections)
    if scheme == "sqlite":
        from stockade.store.sqlite import SqliteDriver

        try:
            path = make_url(where).database
        except exc.ArgumentError:
            path = None
        if path and path != ":memory:":
            return SqliteDriver(Path(path), timeout_s=timeout_s)
        raise Invalid("DATABASE_URL: SQLite needs a file: sqlite:///relative/path or sqlite:////absolute/path")
    raise Invalid(f"DATABASE_URL: must begin with postgres:// or sqlite:// (got {scheme}://)")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise what goes wrong with the database as an error of ours."""
    try:
        yield
    except StockadeError:
        raise
    except TimeoutError as error:
        raise Unavailable("the database did not answer in time") from error
    except OSError as error:
        raise Unavailable(f"the database cannot be reached: {error.strerror or error}") from error
    except Exception as error:
        if (ours := _in_our_words(error)) is not None:
            raise ours from error
        raise


def _in_our_words(error: Exception) -> StockadeError | None:
    """What *error* means to callers; `None` when it does not come from the database. No values, no password."""
    if isinstance(error, exc.TimeoutError):
        return Unavailable("all connections to the database are busy")
    if isinstance(error, exc.IntegrityError):
        return None  # two of the same: whoever inserts knows what that means
    cause: Any = error.orig if isinstance(error, exc.DBAPIError) else error
    if name := getattr(cause, "sqlite_errorname", ""):
        if name.startswith(_BROKEN_SQLITE):
            return Fault(f"the database is damaged, or refuses a statement: {cause}")
        return Unavailable(f"the database cannot do it now: {cause}")
    state = getattr(cause, "sqlstate", None)
    if state is not None and state.startswith(_TRANSIENT):
        return Unavailable("the database is gone, starting or overloaded")
    if state is not None and state.startswith(("28", "3D")):
        return _Refused("the database does not know that user, password or database name")
    if isinstance(error, exc.DBAPIError):
        if error.connection_invalidated or isinstance(error, exc.InterfaceError):
            return Unavailable("the connection to the database was lost")
        return Fault(f"the database refuses a statement: {type(cause).__name__}")
    if type(error).__module__.partition(".")[0] == "asyncpg":
        return Unavailable("the connection to the database was lost")
    return None
