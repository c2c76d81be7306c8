"""Callers who ask at once share a transaction.

Most of what a transaction costs is its end, where the disk has to confirm it. The first caller's begins at once; what
others ask for meanwhile is done together in the next one. So a single caller waits for nobody, and many wait for few.

A caller may have made somebody else ask, too: who queues a job wakes a worker that waits for one. Then the transaction
begins when that one has asked as well, and serves both.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from stockade.errors import StockadeError, Unavailable
from stockade.store.database import Database
from stockade.store.job_units import Unit

__all__ = ["Batcher"]

T = TypeVar("T")

MOST = 256
"""Requests in one transaction."""
CLOSE_S = 15.0
COMPANY_ROUNDS = 12
"""Of the event loop, within which somebody who has been woken asks; half of them do. Nothing but time hangs on it."""


@dataclass(frozen=True, kw_only=True)
class _Request(Generic[T]):
    work: Callable[[Unit], T]
    ids: tuple[str, ...]
    """Jobs that it will ask for."""
    future: "asyncio.Future[T]"


class Batcher:
    """Runs functions of a `Unit`, several of them in one transaction."""

    def __init__(self, database: Database, committed: Callable[[Unit], None], *, name: str) -> None:
        """Args:
        name: see `Unit`.
        committed: called in the event loop, before the callers learn of it, when a transaction has been committed.
        """
        self._database = database
        self._name = name
        self._committed = committed
        self._waiting: deque[_Request[Any]] = deque()
        self._more = asyncio.Event()
        self._company_rounds = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name="job-batches")

    async def close(self) -> None:
        """Let the transaction end that has begun, and refuse the rest. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        self._more.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(task)
        task.cancel()
        self._refuse(self._waiting)

    async def do(self, work: Callable[[Unit], T], *, ids: Iterable[str] = (), has_company: bool = False) -> T:
        """Run *work* in a transaction, committed when this returns.

        *work* may run in a thread, and more than once. It raises errors of ours only before it changes anything; with
        any other error, it is run again alone, so that nobody suffers from it but its own caller.

        Args:
            ids: jobs that *work* will ask for.
            has_company: somebody has just been woken, and will ask in a moment.

        Raises:
            Unavailable: the database cannot do it now, or this is not open. Whether it was done is not known.
        """
        if self._task is None:
            raise Unavailable("the store of jobs is closed")
        request = _Request(work=work, ids=tuple(ids), future=asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._more.set()
        if has_company:
            self._company_rounds = COMPANY_ROUNDS
        result: T = await request.future
        return result

    async def _serve(self) -> None:
        while True:
            await self._more.wait()
            await self._wait_for_company()
            if self._task is None:
                return
            batch = [request for request in self._take() if not request.future.done()]
            try:
                await self._run(batch)
            except BaseException:
                self._refuse(batch)
                raise

    async def _wait_for_company(self) -> None:
        rounds, self._company_rounds = self._company_rounds, 0
        there = len(self._waiting)
        for _ in range(rounds):
            if len(self._waiting) > there:
                break
            await asyncio.sleep(0)

    def _take(self) -> list[_Request[Any]]:
        batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
        if not self._waiting:
            self._more.clear()
        return batch

    async def _run(self, batch: list[_Request[Any]]) -> None:
        if not batch:
            return

        def transaction(connection: Connection) -> tuple[Unit, list[Any]]:
            unit = Unit(connection, is_sqlite=self._database.is_sqlite, name=self._name)
            unit.load(one for request in batch for one in request.ids)
            results = [_result(request.work, unit) for request in batch]
            unit.end()
            return unit, results

        try:
            unit, results = await self._database.write(transaction)
        except Unavailable as error:
            for request in batch:
                _fail(request.future, Unavailable(str(error)))
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0].future, error)
                return
            for request in batch:
                await self._run([request])
        else:
            self._committed(unit)
            # The last one first: a worker that has come in company with a submitter can begin before that is answered.
            for request, result in reversed(list(zip(batch, results, strict=True))):
                if isinstance(result, StockadeError):
                    _fail(request.future, result)
                elif not request.future.done():
                    request.future.set_result(result)

    def _refuse(self, requests: Iterable[_Request[Any]]) -> None:
        for request in requests:
            _fail(request.future, Unavailable("the store of jobs is closed"))


def _result(work: Callable[[Unit], Any], unit: Unit) -> Any:
    try:
        return work(unit)
    except StockadeError as error:
        return error


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
