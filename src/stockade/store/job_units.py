"""One transaction over jobs, in which several callers' requests may be served.

No two of them run at once: SQLite has one writer, and on PostgreSQL they take turns with an advisory lock. So each
sees all that those before it did, whichever process they were in, and who may have a job needs no further care. It is
fast because callers share transactions (see `job_batches`), and because everything is written in bulk at the end.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stockade.model.jobs import Job, JobState
from stockade.store.job_rows import PLAIN, is_storable
from stockade.store.job_tables import job_outputs, job_payloads, job_signals, jobs
from stockade.store.job_tally import Kind, Tally

__all__ = ["CHANNEL", "COLUMNS", "CORE", "WITH_ALL", "Unit", "kind_of", "now_of"]

LOCK = 0x73746F636B6A6F62
"""What transactions over jobs on one PostgreSQL lock."""
CHANNEL = "stockade_jobs"
"""Where PostgreSQL tells the others that something has happened."""
STUCK_MS = 5000
"""For so long a process that is stopped in the middle of a transaction holds up the others; then that is ended."""

CORE = (
    *(jobs.c[name] for name in PLAIN),
    *(jobs.c[name] for name in ("spec", "state", "result", "webhook", "webhook_at")),
)
"""What every job is made of."""
_HIDDEN = ("seq", "owner", "is_ready", "cancel_keep_s", "noted", "usage_recorded_at", "is_forgotten")
COLUMNS = (*CORE, *(jobs.c[name] for name in _HIDDEN))
"""A job without program and output."""

WITH_ALL = (
    select(*COLUMNS, job_payloads.c.code, job_payloads.c.stdin, job_outputs.c.stdout, job_outputs.c.stderr)
    .outerjoin(job_payloads, job_payloads.c.job_id == jobs.c.id)
    .outerjoin(job_outputs, job_outputs.c.job_id == jobs.c.id)
)
_LOAD = WITH_ALL.where(jobs.c.id.in_(bindparam("ids", expanding=True)))
_LOAD_ONE = WITH_ALL.where(jobs.c.id == bindparam("of_id"))  # as most do; a list of ids is worded anew each time
_UPDATE = update(jobs).where(jobs.c.seq == bindparam("of_seq"))
_INSERTS = {one.name: insert(one) for one in (jobs, job_payloads, job_outputs)}

_SIGNALS = {}
for _is_sqlite, _dialect in ((True, sqlite), (False, postgresql)):
    _query = _dialect.insert(job_signals)
    _SIGNALS[_is_sqlite] = _query.on_conflict_do_update(
        index_elements=["name"], set_={"number": job_signals.c.number + 1}
    ).returning(job_signals.c.number)


def now_of(connection: Connection) -> datetime:
    """The moment, by the clock that all who use this database share."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    return now


def kind_of(row: Any) -> Kind | None:
    """As what a job is counted; `None` when it has ended."""
    if row.state == JobState.RUNNING:
        return Kind.RUNNING
    if row.state == JobState.QUEUED:
        return Kind.READY if row.is_ready else Kind.DELAYED
    return None


class Unit:
    """The transaction. Whoever uses it raises errors of ours only before it has changed anything."""

    def __init__(self, connection: Connection, *, is_sqlite: bool, name: str = "") -> None:
        """Args:
        name: of this process; what it tells others on `CHANNEL`, and knows itself by.
        """
        self.connection = connection
        self._name = name
        self.changed: set[str] = set()
        """Ids of jobs about which something has changed."""
        self.has_work = False
        """Something can be claimed that could not before, or may soon."""
        self.has_delayed = False
        """Something will be work later."""
        self.moved: dict[str, Job] = {}
        """Jobs that have begun or ended, by id, as they are then."""
        self.signals: dict[str, int] = {}
        """What `job_signals` says after this transaction, of those that it has raised."""
        self.is_sqlite = is_sqlite
        if is_sqlite:
            self.now = datetime.now(UTC)
        else:
            self.now = connection.exec_driver_sql(
                "SELECT pg_advisory_xact_lock($1), set_config('idle_in_transaction_session_timeout', $2, true),"
                " clock_timestamp()",  # evaluated in this order: it is the moment at which the lock was had
                (LOCK, str(STUCK_MS)),
            ).one()[2]
        self.tally = Tally(connection, is_sqlite=is_sqlite)
        self._rows: dict[str, Any | None] = {}
        self._inserts: dict[str, list[dict[str, Any]]] = {}
        self._updates: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._touched: set[str] = set()

    def load(self, ids: Iterable[str]) -> None:
        """Read jobs at once that will be asked for one by one."""
        missing = [one for one in dict.fromkeys(ids) if one not in self._rows and is_storable(one)]
        if missing:
            if not self._touched.isdisjoint(missing):
                self.flush()
            self._rows |= dict.fromkeys(missing)
            if len(missing) == 1:
                found = self.connection.execute(_LOAD_ONE, {"of_id": missing[0]}).all()
            else:
                found = self.connection.execute(_LOAD, {"ids": missing}).all()
            self._rows |= {row.id: row for row in found}
            self.tally.load(row.owner for row in found)

    def row(self, job_id: str) -> Any | None:
        """The job's row, as it is by now; `None` when it is not there, or forgotten."""
        self.load((job_id,))
        row = self._rows.get(job_id)
        return None if row is None or row.is_forgotten else row

    def is_known(self, job_id: str) -> bool:
        """Whether there is a row, be it of a forgotten job."""
        self.load((job_id,))
        return self._rows.get(job_id) is not None

    def insert(self, table: str, row: dict[str, Any]) -> None:
        self._inserts.setdefault(table, []).append(row)

    def update(self, row: Any, **values: Any) -> None:
        """Change columns of a job."""
        self._updates.setdefault(tuple(values), []).append({"of_seq": row.seq, **values})
        self.touch(row.id)

    def move(self, row: Any, after: Kind | None) -> None:
        """Count a job as what it is from now on."""
        self.tally.move(row.owner, row.language, kind_of(row), after)

    def touch(self, job_id: str) -> None:
        """Something about the job has changed, or will."""
        self._rows.pop(job_id, None)
        self._touched.add(job_id)
        self.changed.add(job_id)

    def flush(self, *, is_last: bool = False) -> None:
        """Write what has been gathered; all of it only at the end."""
        inserts, self._inserts = self._inserts, {}
        for table, rows in inserts.items():
            self.connection.execute(_INSERTS[table], rows)
        updates, self._updates = self._updates, {}
        for changes in updates.values():
            self.connection.execute(_UPDATE, changes)
        self._touched.clear()
        self.tally.flush(with_counts=is_last)

    def drop_rows(self) -> None:
        """Rows have been changed past this: read them again when they are asked for."""
        self._rows.clear()

    def flush_if_changed(self) -> None:
        """Before something is looked for by other than its id."""
        if self._inserts or self._updates:
            self.flush()

    def end(self) -> None:
        """The last thing before it is committed."""
        self.flush(is_last=True)
        for name, has_happened in (("change", self.changed), ("work", self.has_work)):
            if has_happened:
                raised = self.connection.execute(_SIGNALS[self.is_sqlite], {"name": name, "number": 1})
                self.signals[name] = raised.scalar_one()
        if self.signals and not self.is_sqlite:
            self.connection.exec_driver_sql("SELECT pg_notify($1, $2)", (CHANNEL, self._name))
