"""Jobs in the database that everything else is in: SQLite or PostgreSQL.

What changes jobs goes through `job_batches`, one transaction at a time in all processes together; what only reads them
does so beside it. `job_moves` and `job_notes` say what happens within, `job_waits` how one waits for it.
"""

import builtins
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, true

from stockade.model.jobs import (
    Job,
    JobFilter,
    JobPage,
    JobResult,
    OutputPiece,
    QueueDepth,
    Renewal,
    Webhook,
    WorkerRecord,
)
from stockade.store import job_lists, job_moves, job_notes
from stockade.store.database import Database
from stockade.store.job_batches import Batcher
from stockade.store.job_rows import is_storable, job_from_row, worker_from_row
from stockade.store.job_tables import IS_QUEUED, IS_UNRECORDED, job_counts, job_pieces, job_workers, jobs
from stockade.store.job_units import CORE, WITH_ALL, Unit, now_of
from stockade.store.job_waits import Waits

__all__ = ["DatabaseJobs"]

_GET = WITH_ALL.where(jobs.c.id == bindparam("wanted"), ~jobs.c.is_forgotten)
_PIECES = (
    select(job_pieces.c.number, job_pieces.c.fence, job_pieces.c.is_stderr, job_pieces.c.data)
    .join(jobs, (jobs.c.id == job_pieces.c.job_id) & (jobs.c.fence == job_pieces.c.fence))
    .where(job_pieces.c.job_id == bindparam("wanted"), job_pieces.c.number > bindparam("number"))
    .order_by(job_pieces.c.number)
)
_NOTED = select(jobs.c.noted).where(jobs.c.id == bindparam("wanted"))
_UNRECORDED = select(*CORE).where(IS_UNRECORDED).order_by(jobs.c.seq).limit(bindparam("most"))
_OLDEST = select(func.min(jobs.c.run_at)).where(IS_QUEUED, jobs.c.is_ready == true())
_COUNTS = select(job_counts)
_WORKERS = select(job_workers).where(job_workers.c.seen_at >= bindparam("since")).order_by(job_workers.c.id)


class DatabaseJobs:
    """The driver of `JobStore` for a `Database`, which stays its owner's."""

    def __init__(self, database: Database) -> None:
        self._database = database
        name = secrets.token_hex(8)
        self._waits = Waits(database, name=name)
        self._batches = Batcher(database, self._committed, name=name)

    async def open(self) -> None:
        await self._database.ping()
        self._batches.start()
        self._waits.start()

    async def close(self) -> None:
        await self._waits.close()
        await self._batches.close()

    async def ping(self) -> None:
        await self._database.ping()

    async def add(self, jobs: Sequence[Job], *, most_of_account: int | None = None, most: int | None = None) -> None:
        def work(unit: Unit) -> None:
            job_moves.add(unit, jobs, most_of_account=most_of_account, most=most)

        # A worker of this process that waits is woken now, and its claim shares this transaction. It comes after the
        # jobs: what is asked for first is done first.
        has_company = any(job.run_at <= job.created_at for job in jobs) and self._waits.wakes_for_work()
        await self._batches.do(work, ids=(job.id for job in jobs), has_company=has_company)

    async def get(self, job_id: str) -> Job | None:
        if not is_storable(job_id):
            return None
        if (job := self._waits.told(job_id)) is not None:
            return job
        found = self._waits.reads(job_id)
        row = await self._database.read(
            lambda connection: connection.execute(_GET, {"wanted": job_id}).one_or_none(),
        )
        if row is None:
            return None
        found((row.state, row.fence, bool(row.cancel_requested)), row.noted)
        return job_from_row(row)

    async def list(self, which: JobFilter, *, limit: int, cursor: str | None = None) -> JobPage:
        return await job_lists.page(self._database, which, limit=limit, cursor=cursor)

    async def claim(
        self,
        worker: str,
        *,
        most: int,
        lease_s: float,
        languages: Sequence[str] | None = None,
        room: Mapping[str, int] | None = None,
    ) -> Sequence[Job]:
        self._waits.looks_for_work()
        return await self._batches.do(
            lambda unit: job_moves.claim(
                unit, worker=worker, most=most, lease_s=lease_s, languages=languages, room=room
            )
        )

    async def wait_for_work(self, timeout_s: float) -> bool:
        return await self._waits.work(timeout_s)

    async def wait_for_change(self, job_id: str, timeout_s: float) -> bool:
        return await self._waits.change(job_id, timeout_s)

    async def renew(self, worker: WorkerRecord, held: Mapping[str, int], *, lease_s: float) -> Renewal:
        return await self._batches.do(lambda unit: job_notes.renew(unit, worker, held, lease_s=lease_s))

    async def finish(
        self, job_id: str, fence: int, result: JobResult, *, keep_s: float | None, is_dead: bool = False
    ) -> Job | None:
        return await self._batches.do(
            lambda unit: job_moves.finish(unit, job_id, fence=fence, result=result, keep_s=keep_s, is_dead=is_dead),
            ids=(job_id,),
        )

    async def release(self, job_id: str, fence: int, *, run_at: datetime, refund: bool) -> bool:
        return await self._batches.do(
            lambda unit: job_moves.release(unit, job_id, fence=fence, run_at=run_at, refund=refund), ids=(job_id,)
        )

    async def cancel(self, job_id: str, *, keep_s: float | None) -> Job | None:
        return await self._batches.do(lambda unit: job_moves.cancel(unit, job_id, keep_s=keep_s), ids=(job_id,))

    async def reap(self, *, most_attempts: int, keep_s: float | None) -> tuple[int, Sequence[Job]]:
        return await self._batches.do(lambda unit: job_moves.reap(unit, most_attempts=most_attempts, keep_s=keep_s))

    async def watch(self, job_id: str, *, for_s: float) -> None:
        await self._batches.do(lambda unit: job_notes.watch(unit, job_id, for_s=for_s), ids=(job_id,))

    async def note_output(self, job_id: str, pieces: Sequence[OutputPiece]) -> None:
        await self._batches.do(lambda unit: job_notes.note_output(unit, job_id, pieces), ids=(job_id,))

    async def output_after(self, job_id: str, number: int) -> Sequence[OutputPiece]:
        if not is_storable(job_id):
            return []
        found = self._waits.reads(job_id)

        def read(connection: Connection) -> tuple[int | None, builtins.list[Any]]:
            wanted = {"wanted": job_id}
            noted = connection.scalar(_NOTED, wanted)
            return noted, list(connection.execute(_PIECES, wanted | {"number": number}))

        noted, rows = await self._database.read(read)
        found(None, noted)
        return [OutputPiece(number=row.number, fence=row.fence, is_stderr=row.is_stderr, data=row.data) for row in rows]

    async def due_webhooks(self, *, most: int, hold_s: float) -> Sequence[Job]:
        return await self._batches.do(lambda unit: job_notes.due_webhooks(unit, most=most, hold_s=hold_s))

    async def set_webhook(self, job_id: str, webhook: Webhook) -> None:
        await self._batches.do(lambda unit: job_notes.set_webhook(unit, job_id, webhook), ids=(job_id,))

    async def forget(self, job_ids: Sequence[str]) -> int:
        return await self._batches.do(lambda unit: job_notes.forget(unit, job_ids))

    async def forget_expired(self, *, most: int) -> int:
        return await self._batches.do(lambda unit: job_notes.forget_expired(unit, most=most))

    async def unrecorded(self, *, most: int) -> Sequence[Job]:
        rows = await self._database.read(lambda connection: list(connection.execute(_UNRECORDED, {"most": most})))
        return [job_from_row(row) for row in rows]

    async def mark_recorded(self, job_ids: Sequence[str]) -> None:
        if job_ids:
            await self._batches.do(lambda unit: job_notes.mark_recorded(unit, job_ids))

    async def depth(self) -> QueueDepth:
        def is_late(connection: Connection) -> bool:
            return connection.execute(job_moves.DUE, {"now": now_of(connection), "most": 1}).first() is not None

        def read(connection: Connection) -> QueueDepth:
            rows = connection.execute(_COUNTS).all()
            return QueueDepth(
                queued={row.language: row.ready for row in rows if row.ready},
                delayed=sum(row.delayed for row in rows),
                running=sum(row.running for row in rows),
                dead=sum(row.dead for row in rows),
                oldest_queued_at=connection.scalar(_OLDEST),
            )

        if await self._database.read(is_late):
            await self._batches.do(job_moves.promote)
        return await self._database.read(read)

    async def workers(self, *, seen_within_s: float) -> Sequence[WorkerRecord]:
        def read(connection: Connection) -> builtins.list[WorkerRecord]:
            since = now_of(connection) - timedelta(seconds=seen_within_s)
            return [worker_from_row(row) for row in connection.execute(_WORKERS, {"since": since})]

        return await self._database.read(read)

    def _committed(self, unit: Unit) -> None:
        self._waits.changed(
            unit.changed,
            has_work=unit.has_work,
            has_delayed=unit.has_delayed,
            signals=unit.signals,
            moved=unit.moved,
        )
