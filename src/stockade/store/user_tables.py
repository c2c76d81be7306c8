"""The tables of users: who logs in, what they are logged in with, and who guesses passwords."""

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, String, Table, Text

from stockade.store.tables import Moment, metadata

__all__ = ["login_attempts", "user_sessions", "user_tokens", "users"]

users = Table(
    "users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False, unique=True),
    Column("name", String(255), nullable=False),
    Column("email", String(255), nullable=False),
    # The address without regard to case, which folding may make longer.
    Column("email_key", Text, nullable=False, unique=True),
    Column("organization", String(255), nullable=False),
    Column("password_hash", String(255)),
    Column("role", String(16), nullable=False),
    Column("email_verified_at", Moment),
    Column("oidc_issuer", Text),
    Column("oidc_subject", Text),
    Column("is_locked", Boolean, nullable=False),
    # Tokens that were issued before are worth nothing.
    Column("tokens_valid_from", Moment),
    Column("last_login_at", Moment),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
)
Index("uq_users_oidc_issuer_oidc_subject", users.c.oidc_issuer, users.c.oidc_subject, unique=True)
Index("ix_users_created_at_id", users.c.created_at, users.c.id)

user_sessions = Table(
    "user_sessions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("address", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("used_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False, index=True),
)

user_tokens = Table(
    "user_tokens",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("purpose", String(16), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False, index=True),
)

# Whom attempts are counted for (an address, somebody's e-mail address, both together) is kept as a digest only.
login_attempts = Table(
    "login_attempts",
    metadata,
    Column("subject", String(64), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("last_at", Moment, nullable=False, index=True),
    Column("blocked_until", Moment),
    Column("succeeded_at", Moment),
)
