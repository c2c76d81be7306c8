"""The tables of images from elsewhere, and of what accounts log in to registries with."""

from sqlalchemy import JSON, BigInteger, Column, Index, LargeBinary, String, Table, Text, UniqueConstraint

from stockade.store.tables import Moment, metadata

__all__ = ["image_names", "images", "registry_credentials"]

# Rows are of one server: the layers lie on its host.
images = Table(
    "images",
    metadata,
    Column("server_id", String(36), primary_key=True),
    # Empty for everybody's.
    Column("account_id", Text, primary_key=True),
    Column("digest", String(71), primary_key=True),
    Column("reference", Text, nullable=False),
    Column("config", JSON, nullable=False),
    Column("layers", JSON, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("brought_by", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("used_at", Moment, nullable=False),
)

image_names = Table(
    "image_names",
    metadata,
    Column("server_id", String(36), primary_key=True),
    # For whom the name leads there; empty for everybody.
    Column("account_id", Text, primary_key=True),
    Column("name", String(512), primary_key=True),
    Column("image_account_id", Text, nullable=False),
    Column("digest", String(71), nullable=False),
)
Index(
    "ix_image_names_server_id_image_account_id_digest",
    image_names.c.server_id,
    image_names.c.image_account_id,
    image_names.c.digest,
)

registry_credentials = Table(
    "registry_credentials",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("registry_host", String(262), nullable=False),
    Column("repository_prefix", String(255), nullable=False),
    Column("username", Text, nullable=False),
    # Encrypted.
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", Moment, nullable=False),
    # The name is written out: by the convention it would be longer than the 63 characters that PostgreSQL keeps.
    UniqueConstraint("account_id", "registry_host", "repository_prefix", name="uq_registry_credentials_place"),
)
