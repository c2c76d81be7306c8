"""Runs the migrations on the connection that `stockade.store.schema` hands over, within its transaction."""

from alembic import context

# Their tables belong to the metadata.
from stockade.store import box_tables, image_tables, job_tables, user_tables  # noqa: F401
from stockade.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a table by making a new one
)
context.run_migrations()
