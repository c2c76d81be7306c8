"""Runs the migrations on the connection that `stockade.store.schema` hands over, within its transaction."""

from alembic import context

from stockade.store import job_tables, user_tables  # noqa: F401 (their tables belong to the metadata)
from stockade.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a table by making a new one
)
context.run_migrations()
