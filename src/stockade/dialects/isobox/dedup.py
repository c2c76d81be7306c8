"""Answers that are kept and given again (`DEDUP_ENABLED`)."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import structlog

from stockade.errors import Unsupported

__all__ = ["AnswerCache", "MemoryCache", "RedisCache", "cache_key"]

MAX_ENTRIES = 10_000
REDIS_TIMEOUT_S = 0.5
"""A cache that takes longer than a run does is of no use."""

log = structlog.get_logger()


def cache_key(actor_id: str, language: str, *parts: str) -> str:
    """The key of a request: nothing that could change the answer is left out, and no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in (actor_id, language, *parts):
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return f"dedup:{language}:{digest.hexdigest()}"


class AnswerCache(Protocol):
    """Keeps answers for a while."""

    kind: str
    ttl_s: float

    async def get(self, key: str) -> bytes | None:
        """The answer kept under *key*; `None` also when the cache is out of order."""
        ...

    async def put(self, key: str, answer: bytes) -> None:
        """Keep *answer*, if it can be kept."""
        ...

    async def entries(self) -> int | None:
        """How many answers are kept, where that is known."""
        ...

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...


class MemoryCache:
    """Keeps answers in this process: at most 10,000 and `max_bytes`, the oldest dropped first."""

    kind = "memory"

    def __init__(
        self,
        *,
        ttl_s: float,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    async def get(self, key: str) -> bytes | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        if self._clock() >= kept[0]:
            self._drop(key)
            return None
        return kept[1]

    async def put(self, key: str, answer: bytes) -> None:
        if len(answer) > self._max_bytes:
            return
        self._drop(key)
        self._kept[key] = (self._clock() + self.ttl_s, answer)
        self._bytes += len(answer)
        while len(self._kept) > MAX_ENTRIES or self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    async def entries(self) -> int | None:
        return len(self._kept)

    async def close(self) -> None:
        self._kept.clear()
        self._bytes = 0

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept[1])


class RedisCache:
    """Keeps answers in Redis, where several servers share them. A Redis that is away counts as an empty one.

    Raises:
        Unsupported: the extra `redis` is not installed.
    """

    kind = "redis"

    def __init__(self, *, url: str, ttl_s: float) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError:
            raise Unsupported("dedup_cache_type = redis needs: pip install 'stockade[redis]'") from None
        self.ttl_s = ttl_s
        self._redis: Redis = Redis.from_url(url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)

    async def get(self, key: str) -> bytes | None:
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                answer = await self._redis.get(key)
        except (OSError, TimeoutError, self._error) as error:
            log.warning("isobox.dedup_unreachable", error=type(error).__name__)
            return None
        return answer if isinstance(answer, bytes) else None

    async def put(self, key: str, answer: bytes) -> None:
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                await self._redis.set(key, answer, px=int(self.ttl_s * 1000))
        except (OSError, TimeoutError, self._error) as error:
            log.warning("isobox.dedup_unreachable", error=type(error).__name__)

    async def entries(self) -> int | None:
        return None  # counting them would mean walking the whole database

    async def close(self) -> None:
        await self._redis.aclose()

    @property
    def _error(self) -> type[Exception]:
        from redis.exceptions import RedisError

        return RedisError
