"""PostgreSQL, over asyncpg."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from stockade.errors import Invalid, Unsupported

__all__ = ["PostgresDriver"]

T = TypeVar("T")

CLOSE_S = 5.0
CHECK_S = 15.0
ABANDONED_S = 5.0
"""Beyond our own deadline: the database then ends what a server that died has left open, and so its locks."""


class PostgresDriver:
    """Runs transactions on a pool of connections; broken ones are replaced as they are found."""

    is_sqlite = False

    def __init__(self, url: str, *, timeout_s: float, connections: int) -> None:
        try:
            import asyncpg  # type: ignore[import-untyped]
        except ImportError:
            raise Unsupported("DATABASE_URL: PostgreSQL needs: pip install 'stockade[postgres]'") from None

        async def connect() -> Any:
            # By the driver's own reading of the URL, which knows all that libpq does (sslmode, host=/a/directory, …).
            try:
                return await asyncpg.connect(
                    url,
                    timeout=timeout_s,
                    command_timeout=timeout_s,
                    server_settings={
                        "application_name": "stockade",
                        "idle_in_transaction_session_timeout": str(int(1000 * (timeout_s + ABANDONED_S))),
                    },
                )
            except (ValueError, asyncpg.ClientConfigurationError) as error:
                raise Invalid(f"DATABASE_URL: {error}") from error

        self._connect = connect
        self._timeout_s = timeout_s
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=timeout_s,
            pool_pre_ping=True,  # connections that a restart of the database has broken
            skip_autocommit_rollback=True,
        )

    async def write(self, work: Callable[[Connection], T], *, timeout_s: float) -> T:
        async with asyncio.timeout(timeout_s), self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def read(self, work: Callable[[Connection], T], *, timeout_s: float) -> T:
        async with asyncio.timeout(timeout_s), self._engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            return await connection.run_sync(work)

    @asynccontextmanager
    async def hear(self, channel: str, heard: Callable[[str], None]) -> AsyncIterator[asyncio.Event]:
        """See `Database.hear`."""
        gone = asyncio.Event()
        connection = await self._connect()
        connection.add_termination_listener(lambda _: gone.set())
        checking = asyncio.create_task(self._check(connection, gone), name="store-hear")
        try:
            await connection.add_listener(channel, lambda *said: heard(said[-1]))
            yield gone
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)
            connection.terminate()

    async def _check(self, connection: Any, gone: asyncio.Event) -> None:
        """Notice when the other end has fallen silent without a word."""
        try:
            while not gone.is_set():
                await asyncio.sleep(CHECK_S)
                await connection.execute("SELECT 1", timeout=self._timeout_s)
        except Exception:
            gone.set()

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._engine.dispose()
