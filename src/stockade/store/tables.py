"""The tables, as SQLAlchemy Core knows them. What makes and changes them in a database is `migrations/`."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)

__all__ = [
    "IS_UNENDED",
    "UNIQUE_SECRET",
    "Moment",
    "account_limits",
    "accounts",
    "api_keys",
    "audit_log",
    "daily_usage",
    "hourly_usage",
    "image_builds",
    "metadata",
    "quota_requests",
    "sandboxes",
]


class Moment(TypeDecorator[datetime]):
    """A moment, to the microsecond; always UTC here. SQLite keeps it as text, which sorts as the moments do."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


metadata = MetaData(
    # Constraints with names of ours can be changed by later migrations, on both databases.
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("email", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("tier_expires_at", Moment),
    Column("is_admin", Boolean, nullable=False),
    Column("created_at", Moment, nullable=False),
)
# One operator's account, also when two servers start on an empty database at once.
Index(
    "uq_accounts_admin",
    accounts.c.is_admin,
    unique=True,
    sqlite_where=accounts.c.is_admin,
    postgresql_where=accounts.c.is_admin,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("hash", String(64), unique=True),
    Column("preview", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("expires_at", Moment),
    Column("parent_key_id", ForeignKey("api_keys.id")),
    Column("custom_daily_limit", Integer),
    Column("custom_concurrent_limit", Integer),
    Column("rate_limit_rps", Integer),
    Column("templates", Boolean, nullable=False),
    Column("backend", Text, nullable=False, server_default=""),
    Column("created_at", Moment, nullable=False),
    Column("last_used_at", Moment),
)

account_limits = Table(
    "account_limits",
    metadata,
    Column("account_id", ForeignKey("accounts.id"), primary_key=True),
    Column("daily_requests_limit", Integer),
    Column("concurrent_requests_limit", Integer),
    Column("monthly_cost_limit_cents", BigInteger),
    Column("alert_threshold", Integer, nullable=False),
    Column("billing_email", Text),
    Column("timezone", Text, nullable=False),
    Column("updated_at", Moment, nullable=False),
)

# Keys and accounts of sandboxes are no foreign keys: whoever is known by a token has neither here, and a record of what
# ran outlives both.
sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("server_id", String(36), nullable=False),
    Column("account_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("dialect", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("image", Text, nullable=False),
    Column("command", JSON, nullable=False),
    Column("env", JSON, nullable=False),
    Column("cwd", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("network", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    Column("deadline_at", Moment),
    Column("ended_by", Text),
    Column("outcome", Text),
    Column("exit_code", Integer),
    Column("message", Text, nullable=False),
    Column("is_deleted", Boolean, nullable=False, server_default=false()),
    Column("usage", JSON(none_as_null=True)),
    Column("secret_digest", String(64)),
    Column("bound_port", Integer),
    Column("backend", Text, nullable=False, server_default=""),
    Column("is_quota_free", Boolean, nullable=False, server_default=false()),
    Column("usage_recorded_at", Moment),
)
Index("ix_sandboxes_key_id_created_at", sandboxes.c.key_id, sandboxes.c.created_at, sandboxes.c.id)
# The few that count: what has not ended, and what has ended and is in no sum yet.
# Written out: a database uses the index only where it can tell that it covers what is asked for.
IS_UNENDED = text("state <> 'ended'")
Index(
    "ix_sandboxes_unended",
    sandboxes.c.key_id,
    sqlite_where=IS_UNENDED,
    postgresql_where=IS_UNENDED,
)
# A secret opens one sandbox at a time; once that has ended, it may be given to another.
_HAS_SECRET = text("state <> 'ended' AND secret_digest IS NOT NULL")
UNIQUE_SECRET = Index(
    "uq_sandboxes_secret_digest",
    sandboxes.c.secret_digest,
    unique=True,
    sqlite_where=_HAS_SECRET,
    postgresql_where=_HAS_SECRET,
)
_HAD_SECRET = text("state = 'ended' AND secret_digest IS NOT NULL")
Index(
    "ix_sandboxes_secret_digest_ended_at",
    sandboxes.c.secret_digest,
    sandboxes.c.ended_at,
    sqlite_where=_HAD_SECRET,
    postgresql_where=_HAD_SECRET,
)
_UNRECORDED = text("usage_recorded_at IS NULL")
Index(
    "ix_sandboxes_unrecorded",
    sandboxes.c.server_id,
    sandboxes.c.state,
    sqlite_where=_UNRECORDED,
    postgresql_where=_UNRECORDED,
)


def _sums() -> list[Column[Any]]:
    names = (
        "executions",
        "errors",
        "duration_ms",
        "cpu_ms",
        "memory_mb_seconds",
        "bytes_in",
        "bytes_out",
        "cost_microcents",
    )
    return [Column(name, BigInteger, nullable=False) for name in names]


hourly_usage = Table(
    "hourly_usage",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("hour", Moment, primary_key=True),
    Column("key_id", Text, primary_key=True),
    *_sums(),
)

daily_usage = Table(
    "daily_usage",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("date", Date, primary_key=True),
    Column("key_id", Text, primary_key=True),
    *_sums(),
)

quota_requests = Table(
    "quota_requests",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("email", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("company", Text, nullable=False),
    Column("use_case", Text, nullable=False),
    Column("requested_limits", Text, nullable=False),
    Column("budget", Text, nullable=False),
    Column("key_id", Text),
    Column("current_tier", Text),
    Column("status", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Moment, nullable=False),
    Column("account_id", Text, nullable=False, index=True),
    Column("key_id", Text),
    Column("action", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Column("performed_by", Text, nullable=False),
)

image_builds = Table(
    "image_builds",
    metadata,
    Column("server_id", String(36), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("base_image", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("duration_s", Double, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("last_used_at", Moment, nullable=False),
)
