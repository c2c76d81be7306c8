"""What is noted about jobs beside their state, each within a transaction of `job_units`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stockade.model.jobs import Job, JobState, OutputPiece, Renewal, Webhook, WorkerRecord
from stockade.store.job_rows import job_from_row, webhook_to_json, worker_to_row
from stockade.store.job_tables import (
    IS_DUE_TO_TELL,
    IS_EXPIRING,
    job_outputs,
    job_payloads,
    job_pieces,
    job_workers,
    jobs,
)
from stockade.store.job_units import Unit

__all__ = ["due_webhooks", "forget", "forget_expired", "mark_recorded", "note_output", "renew", "set_webhook", "watch"]

PIECES_KEPT_S = 60.0
"""After a job's end: whoever watches it gets the last of them, and then its result."""
SILENT_S = 86400.0
"""A worker that has said nothing for so long is forgotten."""

_HELD = select(jobs.c.seq, jobs.c.id, jobs.c.fence, jobs.c.state, jobs.c.cancel_requested, jobs.c.watched_until).where(
    jobs.c.id.in_(bindparam("ids", expanding=True))
)
_PROLONG = update(jobs).where(jobs.c.seq.in_(bindparam("seqs", expanding=True))).values(lease_until=bindparam("until"))
_FORGET_SILENT = delete(job_workers).where(job_workers.c.seen_at < bindparam("before"))
_OLDER_PIECES = delete(job_pieces).where(job_pieces.c.job_id == bindparam("of_id"), job_pieces.c.fence < bindparam("f"))
_DUE_WEBHOOKS = (
    select(jobs.c.id)
    .where(IS_DUE_TO_TELL, jobs.c.webhook_at <= bindparam("now"))
    .order_by(jobs.c.webhook_at)
    .limit(bindparam("most"))
)
_EXPIRED = (
    select(jobs.c.id)
    .where(IS_EXPIRING, jobs.c.expires_at <= bindparam("now"))
    .order_by(jobs.c.expires_at)
    .limit(bindparam("most"))
)
_OLD_PIECES = (
    select(job_pieces.c.job_id)
    .distinct()
    .outerjoin(jobs, jobs.c.id == job_pieces.c.job_id)
    .where(job_pieces.c.at < bindparam("before"), jobs.c.id.is_(None) | (jobs.c.ended_at < bindparam("before")))
    .limit(bindparam("most"))
)
_OF_JOBS = {
    one.name: delete(one).where(one.c.job_id.in_(bindparam("ids", expanding=True)))
    for one in (job_payloads, job_outputs, job_pieces)
}
_REMOVE = delete(jobs).where(jobs.c.seq.in_(bindparam("seqs", expanding=True)))
_RECORDED = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.ended_at.is_not(None))
    .values(usage_recorded_at=bindparam("now"))
)
_FORGOTTEN = delete(jobs).where(jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.is_forgotten)


def _upsert_worker(dialect: Any) -> Any:
    query = dialect.insert(job_workers)
    rest = {one.name: query.excluded[one.name] for one in job_workers.columns if one.name != "id"}
    return query.on_conflict_do_update(index_elements=["id"], set_=rest)


_SET_WORKER = {True: _upsert_worker(sqlite), False: _upsert_worker(postgresql)}
_ADD_PIECES = {
    True: sqlite.insert(job_pieces).on_conflict_do_nothing(),
    False: postgresql.insert(job_pieces).on_conflict_do_nothing(),
}


def renew(unit: Unit, worker: WorkerRecord, held: Mapping[str, int], *, lease_s: float) -> Renewal:
    """See `JobStore.renew`."""
    unit.flush_if_changed()
    row = worker_to_row(worker) | {"seen_at": unit.now}
    unit.connection.execute(_SET_WORKER[unit.is_sqlite], row)
    if not held:
        return Renewal(lost=frozenset(), cancelled=frozenset(), watched=frozenset())
    rows = unit.connection.execute(_HELD, {"ids": list(held)}).all()
    own = [one for one in rows if one.state == JobState.RUNNING and one.fence == held[one.id]]
    if own:
        until = unit.now + timedelta(seconds=lease_s)
        unit.connection.execute(_PROLONG, {"seqs": [one.seq for one in own], "until": until})
    return Renewal(
        lost=frozenset(held) - {one.id for one in own},
        cancelled=frozenset(one.id for one in own if one.cancel_requested),
        watched=frozenset(one.id for one in own if one.watched_until is not None and one.watched_until > unit.now),
    )


def watch(unit: Unit, job_id: str, *, for_s: float) -> None:
    """See `JobStore.watch`."""
    row = unit.row(job_id)
    if row is not None and row.ended_at is None:
        unit.update(row, watched_until=unit.now + timedelta(seconds=for_s))


def note_output(unit: Unit, job_id: str, pieces: Sequence[OutputPiece]) -> None:
    """See `JobStore.note_output`."""
    row = unit.row(job_id)
    if row is None:
        return
    fresh = [one for one in pieces if one.fence == row.fence]
    if not fresh:
        return
    if row.noted == 0:
        unit.connection.execute(_OLDER_PIECES, {"of_id": job_id, "f": row.fence})
    values = {"job_id": job_id, "fence": row.fence, "at": unit.now}
    unit.connection.execute(
        _ADD_PIECES[unit.is_sqlite],
        [values | {"number": one.number, "is_stderr": one.is_stderr, "data": one.data} for one in fresh],
    )
    unit.update(row, noted=max(row.noted, *(one.number for one in fresh)))


def due_webhooks(unit: Unit, *, most: int, hold_s: float) -> list[Job]:
    """See `JobStore.due_webhooks`."""
    unit.flush_if_changed()
    due = unit.connection.execute(_DUE_WEBHOOKS, {"now": unit.now, "most": most}).scalars().all()
    unit.load(due)
    found = []
    for job_id in due:
        row = unit.row(job_id)
        if row is None:
            continue
        until = unit.now + timedelta(seconds=hold_s)
        job = job_from_row(row)
        assert job.webhook is not None
        found.append(replace(job, webhook=replace(job.webhook, next_at=until)))
        unit.update(row, webhook_at=until)
    return found


def set_webhook(unit: Unit, job_id: str, webhook: Webhook) -> None:
    """See `JobStore.set_webhook`."""
    row = unit.row(job_id)
    if row is not None:
        unit.update(row, webhook=webhook_to_json(webhook), webhook_at=webhook.next_at)


def forget(unit: Unit, ids: Sequence[str]) -> int:
    """See `JobStore.forget`. Of those whose usage nobody has added up, an empty row stays until somebody has."""
    unit.flush_if_changed()
    unit.load(ids)
    rows = [row for one in dict.fromkeys(ids) if (row := unit.row(one)) is not None and row.ended_at is not None]
    if not rows:
        return 0
    for query in _OF_JOBS.values():
        unit.connection.execute(query, {"ids": [row.id for row in rows]})
    gone = []
    for row in rows:
        if row.is_dead:
            unit.tally.bury(row.language, -1)
        if row.usage_recorded_at is None:
            unit.update(row, is_forgotten=True, expires_at=None, webhook_at=None, is_dead=False)
        else:
            gone.append(row.seq)
            unit.touch(row.id)
    if gone:
        unit.connection.execute(_REMOVE, {"seqs": gone})
    return len(rows)


def forget_expired(unit: Unit, *, most: int) -> int:
    """See `JobStore.forget_expired`. Live output that nobody needs any more goes too."""
    unit.flush_if_changed()
    expired = unit.connection.execute(_EXPIRED, {"now": unit.now, "most": most}).scalars().all()
    forgotten = forget(unit, expired)
    before = unit.now - timedelta(seconds=PIECES_KEPT_S)
    old = unit.connection.execute(_OLD_PIECES, {"before": before, "most": most}).scalars().all()
    if old:
        unit.connection.execute(_OF_JOBS[job_pieces.name], {"ids": old})
    unit.connection.execute(_FORGET_SILENT, {"before": unit.now - timedelta(seconds=SILENT_S)})
    return forgotten


def mark_recorded(unit: Unit, ids: Sequence[str]) -> None:
    """See `JobStore.mark_recorded`."""
    unit.flush_if_changed()
    unit.connection.execute(_RECORDED, {"ids": list(ids), "now": unit.now})
    unit.connection.execute(_FORGOTTEN, {"ids": list(ids)})
    unit.drop_rows()
