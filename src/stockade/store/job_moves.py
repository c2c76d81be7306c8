"""What happens to jobs, each within a transaction of `job_units`."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, false, select

from stockade.errors import Invalid
from stockade.model.jobs import Job, JobResult, JobState
from stockade.store.job_rows import (
    CANCELLED,
    LOST,
    ended,
    job_from_row,
    job_to_row,
    owner_of,
    payload_to_row,
    result_to_json,
)
from stockade.store.job_tables import IS_QUEUED, IS_READY, IS_RUNNING, jobs
from stockade.store.job_tally import Kind
from stockade.store.job_units import Unit
from stockade.store.jobs import TooManyJobs

__all__ = ["DUE", "add", "cancel", "claim", "finish", "promote", "reap", "release"]

PROMOTED_AT_ONCE = 1000
"""Delayed jobs whose moment has come are made ready so many at a time: the rest with the next claim."""
REAPED_AT_ONCE = 500
FULL_RETRY_S = 5.0

_IS_LATE = (IS_QUEUED, jobs.c.is_ready == false(), jobs.c.run_at <= bindparam("now"))
DUE = select(jobs.c.id).where(*_IS_LATE).order_by(jobs.c.run_at).limit(bindparam("most"))
"""Ids of delayed jobs whose moment has come."""
_OF_LANE = (
    # As the index has it, condition and order.
    select(jobs.c.id, jobs.c.priority, jobs.c.run_at, jobs.c.seq)
    .where(IS_READY, jobs.c.owner == bindparam("of_owner"), jobs.c.language == bindparam("of_language"))
    .order_by(jobs.c.priority.desc(), jobs.c.run_at, jobs.c.seq)
    .limit(bindparam("most"))
)
_LAPSED = (
    select(jobs.c.id)
    .where(IS_RUNNING, jobs.c.lease_until < bindparam("now"))
    .order_by(jobs.c.lease_until)
    .limit(bindparam("most"))
)


def add(unit: Unit, given: Sequence[Job], *, most_of_account: int | None, most: int | None) -> None:
    """See `JobStore.add`. Jobs that are there already are left as they are."""
    unit.load(job.id for job in given)
    fresh = [job for job in {job.id: job for job in given}.values() if not unit.is_known(job.id)]
    if wrong := next((job for job in fresh if job.state is not JobState.QUEUED), None):
        raise Invalid(f"job {wrong.id} is {wrong.state}: only queued ones can be added")
    by_owner: dict[str, int] = {}
    for job in fresh:
        owner = owner_of(job.account_id, job.key_id)
        by_owner[owner] = by_owner.get(owner, 0) + 1
    unit.tally.load(by_owner)
    if most is not None and (there := unit.tally.unended()) + len(fresh) > most:
        raise TooManyJobs(f"the queue is full ({there} of {most} jobs wait or run)", retry_after_s=FULL_RETRY_S)
    for owner, number in by_owner.items():
        if most_of_account is not None and (there := unit.tally.unended_of(owner)) + number > most_of_account:
            raise TooManyJobs(
                f"too many jobs of yours wait or run: {there}, and {number} more would exceed {most_of_account}",
                retry_after_s=FULL_RETRY_S,
            )
    for job in fresh:
        # Compared with the moment by the submitter's clock too: another machine's may lag behind it.
        is_ready = job.run_at <= max(unit.now, job.created_at)
        row = job_to_row(job, is_ready=is_ready)
        unit.insert("jobs", row)
        unit.insert("job_payloads", payload_to_row(job))
        unit.tally.move(row["owner"], job.language, None, Kind.READY if is_ready else Kind.DELAYED)
        unit.touch(job.id)
        unit.has_work = unit.has_work or is_ready
        unit.has_delayed = unit.has_delayed or not is_ready


def promote(unit: Unit) -> None:
    """Make those delayed jobs ready whose moment has come."""
    unit.flush_if_changed()
    due = unit.connection.execute(DUE, {"now": unit.now, "most": PROMOTED_AT_ONCE}).scalars().all()
    unit.load(due)
    for job_id in due:
        row = unit.row(job_id)
        assert row is not None
        unit.move(row, Kind.READY)
        unit.update(row, is_ready=True)
        unit.has_work = True


def claim(
    unit: Unit,
    *,
    worker: str,
    most: int,
    lease_s: float,
    languages: Sequence[str] | None,
    room: Mapping[str, int] | None,
) -> list[Job]:
    """See `JobStore.claim`."""
    if most <= 0:
        return []
    promote(unit)
    unit.flush_if_changed()
    waiting = {language: counts.ready for language, counts in unit.tally.counts().items() if counts.ready > 0}
    left = {
        language: min(ready, most if room is None else room.get(language, most))
        for language, ready in waiting.items()
        if languages is None or language in languages
    }
    left = {language: number for language, number in left.items() if number > 0}
    # Where some language's room runs out, owners of others have to be at hand.
    is_any = all(left.get(language, 0) >= min(ready, most) for language, ready in waiting.items())
    chosen = _choose(unit, left, most=most, is_any=is_any) if left else []
    unit.load(chosen)
    claimed = []
    for job_id in chosen:
        row = unit.row(job_id)
        assert row is not None
        now = max(unit.now, row.created_at)  # by another machine's clock, which may be ahead
        changes = {
            "updated_at": now,
            "started_at": now,
            "attempts": row.attempts + 1,
            "fence": row.fence + 1,
            "worker": worker,
            "lease_until": unit.now + timedelta(seconds=lease_s),
        }
        claimed.append(replace(job_from_row(row), state=JobState.RUNNING, **changes))
        unit.moved[job_id] = claimed[-1]
        unit.move(row, Kind.RUNNING)
        unit.update(row, state=JobState.RUNNING.value, is_ready=False, noted=0, **changes)
    if not any(counts.ready > 0 for counts in unit.tally.counts().values()):
        unit.has_work = False  # what was added in this transaction has been taken in it: nobody need look
    return claimed


def _choose(unit: Unit, left: dict[str, int], *, most: int, is_any: bool) -> list[str]:
    """Ids of the jobs whose turn it is: at most so many of each language as *left* has."""
    chosen: list[str] = []
    heads: dict[str, dict[str, list[Any]]] = {}
    turns = unit.tally.waiting_owners(None if is_any else left, most=most)
    unit.tally.load(owner for _, owner in turns)
    heapq.heapify(turns)
    while turns and len(chosen) < most:
        _, owner = heapq.heappop(turns)
        if owner not in heads:
            heads[owner] = {
                language: list(
                    reversed(
                        unit.connection.execute(
                            _OF_LANE,
                            {"of_owner": owner, "of_language": language, "most": min(most - len(chosen), number)},
                        ).all()
                    )
                )
                for language, number in left.items()
                if (lane := unit.tally.lanes(owner).get(language)) is not None and lane.ready
            }
        lanes = [lane for language, lane in heads[owner].items() if lane and left[language] > 0]
        if not lanes:
            continue
        best = min(lanes, key=lambda lane: (-lane[-1].priority, lane[-1].run_at, lane[-1].seq))
        left[next(language for language, lane in heads[owner].items() if lane is best)] -= 1
        chosen.append(best.pop().id)
        heapq.heappush(turns, (unit.tally.serve(owner), owner))
    return chosen


def finish(
    unit: Unit, job_id: str, *, fence: int, result: JobResult, keep_s: float | None, is_dead: bool
) -> Job | None:
    """See `JobStore.finish`."""
    row = unit.row(job_id)
    if row is None or row.state != JobState.RUNNING or row.fence != fence:
        return None
    return _end(unit, row, result, keep_s=keep_s, is_dead=is_dead)


def _end(unit: Unit, row: Any, result: JobResult, *, keep_s: float | None, is_dead: bool = False) -> Job:
    now = max(unit.now, row.started_at or row.created_at)
    job = ended(job_from_row(row), result, now=now, keep_s=keep_s, is_dead=is_dead)
    unit.move(row, None)
    if is_dead:
        unit.tally.bury(row.language, 1)
    unit.update(
        row,
        state=job.state.value,
        is_ready=False,
        result=result_to_json(result),
        ended_at=job.ended_at,
        updated_at=job.updated_at,
        expires_at=job.expires_at,
        lease_until=None,
        is_dead=is_dead,
        webhook_at=None if job.webhook is None else job.webhook.next_at,
    )
    unit.moved[row.id] = job
    if result.stdout or result.stderr:
        unit.insert("job_outputs", {"job_id": row.id, "stdout": result.stdout, "stderr": result.stderr})
    return job


def release(unit: Unit, job_id: str, *, fence: int, run_at: datetime, refund: bool) -> bool:
    """See `JobStore.release`. A job whose end was asked for ends as cancelled instead."""
    row = unit.row(job_id)
    if row is None or row.state != JobState.RUNNING or row.fence != fence:
        return False
    if row.cancel_requested:
        _end(unit, row, CANCELLED, keep_s=row.cancel_keep_s)
        return True
    _requeue(unit, row, run_at=run_at, attempts=row.attempts - 1 if refund else row.attempts)
    return True


def _requeue(unit: Unit, row: Any, *, run_at: datetime, attempts: int) -> None:
    is_ready = run_at <= unit.now
    unit.move(row, Kind.READY if is_ready else Kind.DELAYED)
    unit.update(
        row,
        state=JobState.QUEUED.value,
        is_ready=is_ready,
        run_at=run_at,
        attempts=attempts,
        lease_until=None,
        updated_at=unit.now,
    )
    unit.has_work = unit.has_work or is_ready
    unit.has_delayed = unit.has_delayed or not is_ready


def cancel(unit: Unit, job_id: str, *, keep_s: float | None) -> Job | None:
    """See `JobStore.cancel`."""
    row = unit.row(job_id)
    if row is None:
        return None
    if row.state == JobState.QUEUED:
        return _end(unit, row, CANCELLED, keep_s=keep_s)
    job = job_from_row(row)
    if row.state != JobState.RUNNING or row.cancel_requested:
        return job
    unit.update(row, cancel_requested=True, cancel_keep_s=keep_s, updated_at=unit.now)
    return replace(job, cancel_requested=True, updated_at=unit.now)


def reap(unit: Unit, *, most_attempts: int, keep_s: float | None) -> tuple[int, list[Job]]:
    """See `JobStore.reap`."""
    unit.flush_if_changed()
    lapsed = unit.connection.execute(_LAPSED, {"now": unit.now, "most": REAPED_AT_ONCE}).scalars().all()
    unit.load(lapsed)
    requeued, gone = 0, []
    for job_id in lapsed:
        row = unit.row(job_id)
        assert row is not None
        if row.cancel_requested:
            gone.append(_end(unit, row, CANCELLED, keep_s=keep_s))
        elif row.attempts >= most_attempts:
            gone.append(_end(unit, row, LOST, keep_s=keep_s, is_dead=True))
        else:
            _requeue(unit, row, run_at=row.run_at, attempts=row.attempts)
            requeued += 1
    return requeued, gone
