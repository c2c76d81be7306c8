"""Redis as a place for jobs."""

import functools
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stockade.dialects.code_sandbox.shown import document
from stockade.store.jobs import JobStore
from stockade.store.jobs_redis import RedisJobs
from tests.redis_server import RedisServer, redis_server
from tests.store import job_stores

__all__ = ["in_redis", "redis_of_session"]

DOCUMENT = functools.partial(document, default_wall_s=10.0)


def in_redis(url: str) -> job_stores.Place:
    @asynccontextmanager
    async def opened() -> AsyncIterator[JobStore]:
        store = RedisJobs(url, timeout_s=20.0, document=DOCUMENT)
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    return opened


@pytest.fixture(scope="session")
def redis_of_session() -> Iterator[RedisServer]:
    # A path of a socket is short: 108 bytes.
    with tempfile.TemporaryDirectory(prefix="stockade-redis-") as folder, redis_server(Path(folder)) as server:
        yield server


def _redis(request: pytest.FixtureRequest) -> job_stores.Place:
    server: RedisServer = request.getfixturevalue("redis_of_session")
    assert server.command("FLUSHALL").startswith(b"+OK")
    return in_redis(server.url)


job_stores.PLACES["redis"] = _redis
