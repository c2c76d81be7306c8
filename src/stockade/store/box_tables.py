"""The tables of boxes, their snapshots, and volumes."""

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Index, Integer, LargeBinary, String, Table, Text, text

from stockade.store.tables import Moment, metadata

__all__ = ["UNIQUE_BOX_NAME", "UNIQUE_SNAPSHOT_NAME", "UNIQUE_VOLUME_NAME", "boxes", "snapshots", "volumes"]

# Rows are of one server: the disks lie on its host. A hidden row is of something that is being made, or removed: nobody
# is told of it, and one that a start finds is cleared away, with its disk.
boxes = Table(
    "boxes",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("server_id", String(36), nullable=False),
    # The account, or the key of whoever has none: names are theirs.
    Column("owner", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("dialect", Text, nullable=False),
    Column("name", String(128)),
    Column("state", Text, nullable=False),
    Column("is_hidden", Boolean, nullable=False),
    Column("image", Text, nullable=False),
    Column("image_digest", Text, nullable=False),
    Column("entrypoint", JSON, nullable=False),
    Column("command", JSON, nullable=False),
    Column("env", JSON, nullable=False),
    Column("cwd", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("terminal", Boolean, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("network", JSON, nullable=False),
    Column("mounts", JSON, nullable=False),
    # Encrypted; null where there are none.
    Column("secrets", LargeBinary),
    Column("drop_capabilities", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("auto_stop_s", Double),
    Column("auto_delete_s", Double),
    Column("auto_resume", Boolean, nullable=False),
    Column("disk", String(40), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("last_used_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("stopped_at", Moment),
    Column("sandbox_id", String(64)),
    Column("starts", Integer, nullable=False),
    Column("exit_code", Integer),
    Column("message", Text, nullable=False),
    Column("parent_snapshot_id", String(26)),
)
UNIQUE_BOX_NAME = Index(
    "uq_boxes_name",
    boxes.c.owner,
    boxes.c.name,
    unique=True,
    sqlite_where=text("name IS NOT NULL"),
    postgresql_where=text("name IS NOT NULL"),
)
# Ids are ULIDs: they sort as the moments do at which they were made.
Index("ix_boxes_owner_id", boxes.c.owner, boxes.c.id)
Index("ix_boxes_server_id_state", boxes.c.server_id, boxes.c.state)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("server_id", String(36), nullable=False),
    Column("box_id", String(26), nullable=False),
    Column("account_id", Text, nullable=False),
    # Null once it is being removed: the name is free again.
    Column("name", Text),
    Column("is_hidden", Boolean, nullable=False),
    Column("disk", String(40), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("parent_id", String(26)),
    Column("was_running", Boolean, nullable=False),
)
UNIQUE_SNAPSHOT_NAME = Index(
    "uq_snapshots_name",
    snapshots.c.box_id,
    snapshots.c.name,
    unique=True,
    sqlite_where=text("name IS NOT NULL"),
    postgresql_where=text("name IS NOT NULL"),
)

volumes = Table(
    "volumes",
    metadata,
    Column("id", String(30), primary_key=True),
    Column("server_id", String(36), nullable=False),
    Column("owner", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("name", String(128)),
    Column("is_hidden", Boolean, nullable=False),
    Column("disk", String(40), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
)
UNIQUE_VOLUME_NAME = Index(
    "uq_volumes_name",
    volumes.c.owner,
    volumes.c.name,
    unique=True,
    sqlite_where=text("name IS NOT NULL"),
    postgresql_where=text("name IS NOT NULL"),
)
