"""Every test of the store runs on SQLite and on a real PostgreSQL."""

from tests.store.databases import database, postgres, postgres_url, where

__all__ = ["database", "postgres", "postgres_url", "where"]
