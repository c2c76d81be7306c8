"""Every test of the store runs on SQLite and on a real PostgreSQL."""

from tests.store.databases import database, postgres, postgres_url, where
from tests.store.job_stores import both, emptied, made_postgresql, made_sqlite, place, store
from tests.store.job_stores_redis import redis_of_session

__all__ = [
    "both",
    "database",
    "emptied",
    "made_postgresql",
    "made_sqlite",
    "place",
    "postgres",
    "postgres_url",
    "redis_of_session",
    "store",
    "where",
]
