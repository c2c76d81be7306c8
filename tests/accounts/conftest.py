"""Accounts are tested on SQLite and on a real PostgreSQL, as the store is."""

from tests.store.databases import database, postgres, postgres_url, where

__all__ = ["database", "postgres", "postgres_url", "where"]
