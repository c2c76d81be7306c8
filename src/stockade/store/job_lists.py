"""Lists of jobs, a page at a time.

What is asked for most are the jobs of an account in some states, while most jobs of it are in another one. So each
state is looked up by itself, in an index that has them in the wanted order, and the few that come of it are merged.
"""

import base64
import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import or_, select, union_all

from stockade.errors import Invalid
from stockade.model.jobs import Job, JobFilter, JobPage, JobState
from stockade.store.database import Database
from stockade.store.job_rows import is_storable, job_from_row
from stockade.store.job_tables import IS_DEAD, IS_OF_BATCH, jobs
from stockade.store.job_units import CORE

__all__ = ["page"]


async def page(database: Database, which: JobFilter, *, limit: int, cursor: str | None) -> JobPage:
    """See `JobStore.list`."""
    if not all(map(is_storable, (which.account_id, which.key_id, which.language, which.batch_id))):
        return JobPage(jobs=(), cursor=None)
    conditions = _conditions(which)
    if cursor is not None:
        at, seq = _read_cursor(cursor)
        conditions.append(or_(jobs.c.created_at < at, (jobs.c.created_at == at) & (jobs.c.seq < seq)))
    states = sorted(which.states or JobState)
    # Those of a batch, and the dead, are few, and have an index of their own.
    each = [[jobs.c.state == one.value] for one in states]
    if which.batch_id is not None or which.is_dead:
        each = [[jobs.c.state.in_([one.value for one in states])]]
    newest = (jobs.c.created_at.desc(), jobs.c.seq.desc())
    parts = [
        select(jobs.c.seq, jobs.c.created_at).where(*conditions, *one).order_by(*newest).limit(limit + 1).subquery()
        for one in each
    ]
    found = union_all(*(select(one.c.seq) for one in parts)).subquery()
    query = select(*CORE, jobs.c.seq).where(jobs.c.seq.in_(select(found.c.seq))).order_by(*newest).limit(limit + 1)
    rows = await database.read(lambda connection: list(connection.execute(query)))
    shown = tuple(job_from_row(row) for row in rows[:limit])
    is_more = len(rows) > limit > 0
    return JobPage(jobs=shown, cursor=_write_cursor(shown[-1], rows[limit - 1].seq) if is_more else None)


def _conditions(which: JobFilter) -> list[Any]:
    conditions: list[Any] = [~jobs.c.is_forgotten]
    for column in (jobs.c.account_id, jobs.c.key_id, jobs.c.language):
        if (wanted := getattr(which, column.name)) is not None:
            conditions.append(column == wanted)
    if which.batch_id is not None:
        conditions += [IS_OF_BATCH, jobs.c.batch_id == which.batch_id]
    if which.is_dead is not None:
        conditions.append(IS_DEAD if which.is_dead else ~jobs.c.is_dead)
    if which.created_after is not None:
        conditions.append(jobs.c.created_at > which.created_after)
    if which.created_before is not None:
        conditions.append(jobs.c.created_at < which.created_before)
    return conditions


def _write_cursor(last: Job, seq: int) -> str:
    place = json.dumps([last.created_at.isoformat(), seq])
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[datetime, int]:
    try:
        at, seq = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None or type(seq) is not int or not 0 <= seq < 1 << 63:
            raise ValueError
        moment = moment.astimezone(UTC)  # what no database can be asked for
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # JSON may be deeper than the stack
        raise Invalid("cursor: is none that a list of ours returned") from error
    return moment, seq
