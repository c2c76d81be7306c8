"""What changes in Redis, heard of by one connection for all of a process."""

import asyncio
from collections import OrderedDict
from typing import Any

from redis.exceptions import RedisError

__all__ = ["WORK", "Events"]

WORK = "work"
"""What happens when there may be something to claim; all other names are jobs' ids."""
STREAM = "stockade:events"
BLOCK_MS = 5000
RETRY_S = 0.5
CANCEL_S = 0.2
MOST_REMEMBERED = 20_000


class Events:
    """Tells those who wait. What happens between a look and the wait that follows it is not missed."""

    def __init__(self, redis: Any) -> None:
        """*redis*: a client of its own, whose answers may take as long as we block."""
        self._redis = redis
        self._count = 0
        self._happened: OrderedDict[str, int] = OrderedDict()
        self._looked: OrderedDict[str, int] = OrderedDict()
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._last = "0"

    async def start(self) -> None:
        """Listen from now on. Raises what redis-py raises."""
        await self._begin()
        self._task = asyncio.create_task(self._listen(), name="events of jobs")

    async def close(self) -> None:
        task, self._task = self._task, None
        # Now and then redis-py takes a cancellation that comes while it reads an answer for itself.
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=CANCEL_S)

    def looks(self, name: str) -> None:
        """To be called before *name* is read: the next wait for it is over when something has happened since."""
        _remember(self._looked, name, self._count)

    async def wait(self, name: str, timeout_s: float) -> bool:
        """Wait until something has happened to *name* since it was looked at; False after *timeout_s*."""
        since = self._looked.get(name, self._count)
        if self._happened.get(name, -1) > since:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(name, set())
        waiting.add(future)
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await future
        except TimeoutError:
            return False
        finally:
            waiting.discard(future)
            if not waiting and self._waiting.get(name) is waiting:
                del self._waiting[name]
        return True

    async def _begin(self) -> None:
        """What happens from now on is heard of."""
        newest = await self._redis.xrevrange(STREAM, count=1)
        self._last = newest[0][0].decode() if newest else "0"

    async def _listen(self) -> None:
        has_begun = True
        while self._task is not None:
            try:
                if not has_begun:
                    # Nobody knows what has happened meanwhile: all look. And a Redis without its data counts anew.
                    await self._begin()
                    self._tell_all()
                    has_begun = True
                found = await self._redis.xread({STREAM: self._last}, count=1000, block=BLOCK_MS)
            except (RedisError, OSError):
                has_begun = False
                await asyncio.sleep(RETRY_S)
                continue
            for _, entries in found or ():
                for number, members in entries:
                    self._last = number.decode()
                    self._tell(members.get(b"of", b"").decode(errors="replace"))

    def _tell(self, name: str) -> None:
        self._count += 1
        _remember(self._happened, name, self._count)
        for future in self._waiting.get(name, ()):
            if not future.done():
                future.set_result(None)

    def _tell_all(self) -> None:
        for name in {*self._waiting, *self._looked}:
            self._tell(name)


def _remember(where: OrderedDict[str, int], name: str, count: int) -> None:
    where[name] = count
    where.move_to_end(name)
    if len(where) > MOST_REMEMBERED:
        where.popitem(last=False)
