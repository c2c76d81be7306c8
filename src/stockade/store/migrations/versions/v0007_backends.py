"""Which backend the sandboxes of a key come from, and which one a sandbox came from."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("api_keys", "sandboxes"):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("backend", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    for table in ("api_keys", "sandboxes"):
        with op.batch_alter_table(table) as batch:
            batch.drop_column("backend")
