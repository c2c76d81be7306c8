"""Answers kept in Redis: a real server on a UNIX socket of its own, killed in the middle."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stockade.dialects.isobox.dedup import RedisCache, cache_key

pytestmark = pytest.mark.anyio
SERVER = shutil.which("redis-server")


@dataclass(kw_only=True)
class Redis:
    url: str
    process: "subprocess.Popen[bytes]"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis that keeps nothing and listens on no port."""
    if SERVER is None:
        pytest.skip("redis-server is not installed (Debian package redis-server)")
    socket = tmp_path / "redis.sock"
    words = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    process = subprocess.Popen([SERVER, *words], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30.0
        while not socket.is_socket():
            assert process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server did not come up"
            time.sleep(0.02)
        yield Redis(url=f"unix://{socket}", process=process)
    finally:
        process.kill()
        process.wait()


async def test_two_servers_share_answers_through_redis(redis: Redis) -> None:
    one, other = RedisCache(url=redis.url, ttl_s=60), RedisCache(url=redis.url, ttl_s=60)
    try:
        key = cache_key("actor", "python", "{}", "null")
        assert await other.get(key) is None
        await one.put(key, b'{"stdout":"\xc3\xbc"}')
        assert await other.get(key) == b'{"stdout":"\xc3\xbc"}'
    finally:
        await one.close()
        await other.close()


async def test_answers_in_redis_expire(redis: Redis) -> None:
    cache = RedisCache(url=redis.url, ttl_s=0.05)
    try:
        await cache.put("key", b"answer")
        deadline = time.monotonic() + 30.0
        while await cache.get("key") is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    finally:
        await cache.close()


async def test_a_redis_that_dies_counts_as_an_empty_one(redis: Redis) -> None:
    cache = RedisCache(url=redis.url, ttl_s=60)
    try:
        await cache.put("key", b"answer")
        redis.process.kill()
        redis.process.wait()
        assert await cache.get("key") is None
        await cache.put("key", b"answer")
    finally:
        await cache.close()
