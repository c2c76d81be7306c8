"""SQLite: a file, a thread that writes and two that read."""

import asyncio
import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, NullPool, create_engine, event, exc
from sqlalchemy.engine import URL

from stockade.errors import Unavailable, Unsupported

__all__ = ["SqliteDriver"]

T = TypeVar("T")

READERS = 2
CLOSE_S = 5.0

_NO_ROOM = ("SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMOPEN", "SQLITE_CANTOPEN", "SQLITE_FULL")

_WRITES = "stockade_writes"
"""Execution option of a connection whose transaction writes."""


class SqliteDriver:
    """Runs transactions in threads of its own.

    SQLite has one writer at a time, and those who wait for it poll: ours queue up for a single thread instead.
    Readers are never in a writer's way (write-ahead log).

    The log has an index that readers need too, and that takes some pages of disk. Where a start finds the disk full and
    the log empty, the file is read without either, so that whoever has a key still gets in.
    """

    is_sqlite = True

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        _make(path)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)), pool_size=1 + READERS, max_overflow=0, pool_timeout=timeout_s
        )
        self._path = path
        address = f"file:{quote(str(path))}?mode=ro&immutable=1"
        self._still = create_engine(
            "sqlite://",
            creator=lambda: sqlite3.connect(address, uri=True, check_same_thread=False),
            poolclass=NullPool,
        )
        # A little less than our own deadline: "database is locked" says more than a time-out.
        busy_ms = int(1000 * timeout_s * 0.9)

        @event.listens_for(self._engine, "connect")
        def connected(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # the driver begins no transactions by itself: `began` does
            for pragma in (
                f"busy_timeout = {busy_ms}",
                "journal_mode = WAL",
                "synchronous = FULL",  # what is committed survives a power failure
                "foreign_keys = ON",
            ):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(self._engine, "begin")
        def began(connection: Connection) -> None:
            # Whoever first reads and then writes would else fail when another process wrote in between.
            if connection.get_execution_options().get(_WRITES):
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    async def write(self, work: Callable[[Connection], T], *, timeout_s: float) -> T:
        def transaction() -> T:
            with self._engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
                return work(connection)

        return await self._run(self._writer, transaction, timeout_s)

    async def read(self, work: Callable[[Connection], T], *, timeout_s: float) -> T:
        def statements() -> T:
            try:
                with self._engine.connect() as connection:
                    return work(connection)
            except exc.OperationalError as error:
                if not self._is_full(error):
                    raise
            with self._still.connect() as connection:
                return work(connection)

        return await self._run(self._readers, statements, timeout_s)

    def _is_full(self, error: exc.OperationalError) -> bool:
        """Whether the disk has no room for the log's index, and the log has nothing in it."""
        if getattr(error.orig, "sqlite_errorname", "") not in _NO_ROOM:
            return False
        try:
            return self._path.with_name(f"{self._path.name}-wal").stat().st_size == 0
        except FileNotFoundError:
            return True

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[], T], timeout_s: float) -> T:
        # What has not begun by the deadline, or when the caller is cancelled, never does.
        async with asyncio.timeout(timeout_s):
            return await asyncio.get_running_loop().run_in_executor(threads, work)

    def hear(self, channel: str, heard: Callable[[str], None]) -> AbstractAsyncContextManager[asyncio.Event]:
        """See `Database.hear`."""
        raise Unsupported("SQLite tells nobody of changes")

    async def close(self) -> None:
        """Let what was begun end, and close the file."""

        def close() -> None:
            for threads in (self._writer, self._readers):
                threads.shutdown(cancel_futures=True)
            self._engine.dispose()

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.to_thread(close)


def _make(path: Path) -> None:
    """Make the file where it is missing: readable by its owner only, and with a write-ahead log from the beginning.

    It is made under another name, since of several who turn the log on at once, some are refused. A file that is there
    is not even opened: closing it would drop the locks that this process has on it (fcntl(2)).
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            return
        try:
            os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with contextlib.closing(sqlite3.connect(draft)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # never over one that somebody else has made
        finally:
            for ending in ("", "-wal", "-shm"):
                draft.with_name(draft.name + ending).unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(f"{path}: cannot be made: {error.strerror}") from error
    except sqlite3.Error as error:
        raise Unavailable(f"{path}: cannot be made: {error}") from error
