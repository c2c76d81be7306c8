"""Jobs, and usage that comes from them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "daily_outcomes",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("date", sa.Date(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "date", "key_id", "outcome", name=op.f("pk_daily_outcomes")),
    )
    op.create_table(
        "job_counts",
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("ready", sa.Integer(), nullable=False),
        sa.Column("delayed", sa.Integer(), nullable=False),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("dead", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("language", name=op.f("pk_job_counts")),
    )
    op.create_table(
        "job_lanes",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("ready", sa.Integer(), nullable=False),
        sa.Column("unended", sa.Integer(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "language", name=op.f("pk_job_lanes")),
    )
    op.create_index(
        "ix_job_lanes_language",
        "job_lanes",
        ["language", "turn"],
        sqlite_where=sa.text("ready > 0"),
        postgresql_where=sa.text("ready > 0"),
    )
    op.create_index(
        "ix_job_lanes_turn",
        "job_lanes",
        ["turn"],
        sqlite_where=sa.text("ready > 0"),
        postgresql_where=sa.text("ready > 0"),
    )
    op.create_table(
        "job_outputs",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("stdout", sa.LargeBinary(), nullable=False),
        sa.Column("stderr", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_outputs")),
    )
    op.create_table(
        "job_payloads",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("code", sa.LargeBinary(), nullable=False),
        sa.Column("stdin", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_payloads")),
    )
    op.create_table(
        "job_pieces",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("is_stderr", sa.Boolean(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_pieces")),
    )
    op.create_index(op.f("ix_job_pieces_at"), "job_pieces", ["at"])
    op.create_table(
        "job_signals",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_job_signals")),
    )
    op.create_table(
        "job_workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("languages", sa.JSON(), nullable=False),
        sa.Column("places", sa.Integer(), nullable=False),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.Column("seen_at", _MOMENT, nullable=False),
        sa.Column("is_draining", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_workers")),
    )
    op.create_table(
        "jobs",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("dialect", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("is_ready", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("retry_of", sa.Text(), nullable=True),
        sa.Column("trace", sa.Text(), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("updated_at", _MOMENT, nullable=False),
        sa.Column("run_at", _MOMENT, nullable=False),
        sa.Column("started_at", _MOMENT, nullable=True),
        sa.Column("ended_at", _MOMENT, nullable=True),
        sa.Column("expires_at", _MOMENT, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("lease_until", _MOMENT, nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("cancel_keep_s", sa.Double(), nullable=True),
        sa.Column("is_dead", sa.Boolean(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("webhook", sa.JSON(), nullable=True),
        sa.Column("webhook_at", _MOMENT, nullable=True),
        sa.Column("watched_until", _MOMENT, nullable=True),
        sa.Column("noted", sa.Integer(), nullable=False),
        sa.Column("usage_recorded_at", _MOMENT, nullable=True),
        sa.Column("is_forgotten", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_jobs")),
        sa.UniqueConstraint("id", name=op.f("uq_jobs_id")),
    )
    op.create_index("ix_jobs_account_id", "jobs", ["account_id", "state", "created_at", "seq"])
    op.create_index(
        "ix_jobs_batch_id",
        "jobs",
        ["batch_id"],
        sqlite_where=sa.text("batch_id IS NOT NULL"),
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_dead",
        "jobs",
        ["created_at", "seq"],
        sqlite_where=sa.text("is_dead"),
        postgresql_where=sa.text("is_dead"),
    )
    op.create_index(
        "ix_jobs_expires_at",
        "jobs",
        ["expires_at"],
        sqlite_where=sa.text("expires_at IS NOT NULL"),
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["is_ready", "run_at"],
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_jobs_ready",
        "jobs",
        ["owner", "language", sa.text("priority DESC"), "run_at", "seq"],
        sqlite_where=sa.text("is_ready"),
        postgresql_where=sa.text("is_ready"),
    )
    op.create_index(
        "ix_jobs_running",
        "jobs",
        ["lease_until"],
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state", "created_at", "seq"])
    op.create_index(
        "ix_jobs_unrecorded",
        "jobs",
        ["seq"],
        sqlite_where=sa.text("ended_at IS NOT NULL AND usage_recorded_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NOT NULL AND usage_recorded_at IS NULL"),
    )
    op.create_index(
        "ix_jobs_webhook_at",
        "jobs",
        ["webhook_at"],
        sqlite_where=sa.text("webhook_at IS NOT NULL"),
        postgresql_where=sa.text("webhook_at IS NOT NULL"),
    )
    op.create_table(
        "recorded_jobs",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_recorded_jobs")),
    )
    op.create_index(op.f("ix_recorded_jobs_at"), "recorded_jobs", ["at"])
