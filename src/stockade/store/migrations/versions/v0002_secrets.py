"""Sandboxes that a secret opens, and the port of a sandbox that is bound."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UNENDED = sa.text("state <> 'ended' AND secret_digest IS NOT NULL")
_ENDED = sa.text("state = 'ended' AND secret_digest IS NOT NULL")


def upgrade() -> None:
    # Nullable, and without a default: neither database rewrites the rows that are there.
    op.add_column("sandboxes", sa.Column("secret_digest", sa.String(length=64), nullable=True))
    op.add_column("sandboxes", sa.Column("bound_port", sa.Integer(), nullable=True))
    op.create_index(
        "uq_sandboxes_secret_digest",
        "sandboxes",
        ["secret_digest"],
        unique=True,
        sqlite_where=_UNENDED,
        postgresql_where=_UNENDED,
    )
    op.create_index(
        "ix_sandboxes_secret_digest_ended_at",
        "sandboxes",
        ["secret_digest", "ended_at"],
        unique=False,
        sqlite_where=_ENDED,
        postgresql_where=_ENDED,
    )
