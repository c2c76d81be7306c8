"""The tables of jobs, beside those in `tables`.

What every job has is one narrow row in `jobs`; programs and outputs, which may be large, lie in tables of their own, so
that neither a list nor a change of state touches them.

Nothing ever counts jobs: `job_lanes` and `job_counts` hold the figures that claiming, quotas and metrics need, and each
transaction that moves a job corrects them. A backlog of any length costs as much as a short one.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    false,
    text,
)

from stockade.store.tables import Moment, metadata

__all__ = [
    "IS_DEAD",
    "IS_DUE_TO_TELL",
    "IS_EXPIRING",
    "IS_OF_BATCH",
    "IS_QUEUED",
    "IS_READY",
    "IS_RUNNING",
    "IS_UNRECORDED",
    "WAITS",
    "daily_outcomes",
    "job_counts",
    "job_lanes",
    "job_outputs",
    "job_payloads",
    "job_pieces",
    "job_signals",
    "job_workers",
    "jobs",
    "recorded_jobs",
]

jobs = Table(
    "jobs",
    metadata,
    # New ones go to the end of the file, and those of one moment keep their order.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", Text, nullable=False),  # whose turn it is: the account, or the key of those without one
    Column("account_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("dialect", Text, nullable=False),
    Column("spec", JSON, nullable=False),  # without code and stdin
    Column("language", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("is_ready", Boolean, nullable=False),  # it is queued, and its moment has been seen to have come
    Column("priority", Integer, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("batch_id", Text),
    Column("retry_of", Text),
    Column("trace", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("run_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    Column("expires_at", Moment),
    Column("attempts", Integer, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("worker", Text, nullable=False),
    Column("lease_until", Moment),
    Column("cancel_requested", Boolean, nullable=False),
    Column("cancel_keep_s", Double),  # what whoever asked for its end said about keeping it
    Column("is_dead", Boolean, nullable=False),
    Column("result", JSON(none_as_null=True)),  # without stdout and stderr
    Column("webhook", JSON(none_as_null=True)),
    Column("webhook_at", Moment),  # when somebody is to be told of its end
    Column("watched_until", Moment),
    Column("noted", Integer, nullable=False),  # number of the last piece of output of this attempt
    Column("usage_recorded_at", Moment),
    Column("is_forgotten", Boolean, nullable=False, server_default=false()),  # gone, but for its usage
)

# Written out: a database uses a partial index only where it can tell that it covers what is asked for.
IS_READY = text("is_ready")
IS_QUEUED = text("state = 'queued'")
IS_RUNNING = text("state = 'running'")
IS_DEAD = text("is_dead")
IS_DUE_TO_TELL = text("webhook_at IS NOT NULL")
IS_UNRECORDED = text("ended_at IS NOT NULL AND usage_recorded_at IS NULL")
IS_OF_BATCH = text("batch_id IS NOT NULL")
IS_EXPIRING = text("expires_at IS NOT NULL")


def _index(name: str, *columns: Any, where: Any = None) -> None:
    Index(f"ix_jobs_{name}", *columns, sqlite_where=where, postgresql_where=where)


_c = jobs.c
_index("ready", _c.owner, _c.language, _c.priority.desc(), _c.run_at, _c.seq, where=IS_READY)
_index("queued", _c.is_ready, _c.run_at, where=IS_QUEUED)
_index("running", _c.lease_until, where=IS_RUNNING)
_index("account_id", _c.account_id, _c.state, _c.created_at, _c.seq)
_index("state", _c.state, _c.created_at, _c.seq)
_index("dead", _c.created_at, _c.seq, where=IS_DEAD)
_index("batch_id", _c.batch_id, where=IS_OF_BATCH)
_index("expires_at", _c.expires_at, where=IS_EXPIRING)
_index("webhook_at", _c.webhook_at, where=IS_DUE_TO_TELL)
_index("unrecorded", _c.seq, where=IS_UNRECORDED)

job_payloads = Table(
    "job_payloads",
    metadata,
    Column("job_id", String(64), primary_key=True),
    # Not text: PostgreSQL's holds no NUL, and neither database a lone surrogate.
    Column("code", LargeBinary, nullable=False),
    Column("stdin", LargeBinary, nullable=False),
)

job_outputs = Table(
    "job_outputs",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("stdout", LargeBinary, nullable=False),
    Column("stderr", LargeBinary, nullable=False),
)

job_pieces = Table(
    "job_pieces",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("fence", BigInteger, nullable=False),
    Column("is_stderr", Boolean, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("at", Moment, nullable=False, index=True),
)

job_lanes = Table(
    "job_lanes",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("language", Text, primary_key=True),
    Column("ready", Integer, nullable=False),  # jobs of the lane that could start now
    Column("unended", Integer, nullable=False),  # those, the delayed and the running
    Column("turn", BigInteger, nullable=False),  # the lowest is next; all lanes of an owner have the same
)
WAITS = text("ready > 0")
Index("ix_job_lanes_turn", job_lanes.c.turn, sqlite_where=WAITS, postgresql_where=WAITS)
Index("ix_job_lanes_language", job_lanes.c.language, job_lanes.c.turn, sqlite_where=WAITS, postgresql_where=WAITS)

job_counts = Table(
    "job_counts",
    metadata,
    Column("language", Text, primary_key=True),
    Column("ready", Integer, nullable=False),
    Column("delayed", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("dead", Integer, nullable=False),
)

# What processes that cannot be woken look at: a number that grows whenever something has happened.
job_signals = Table(
    "job_signals",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

job_workers = Table(
    "job_workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("languages", JSON, nullable=False),
    Column("places", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("seen_at", Moment, nullable=False),
    Column("is_draining", Boolean, nullable=False),
)

# Jobs that are in the sums of usage: whoever stores jobs elsewhere may offer one twice.
recorded_jobs = Table(
    "recorded_jobs",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("at", Moment, nullable=False, index=True),
)

daily_outcomes = Table(
    "daily_outcomes",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("date", Date, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("outcome", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
)
