"""Waiting: with an end in sight, and longer each time that something fails."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

__all__ = ["Pause", "first_of", "sleep_until"]


class Pause:
    """How long to wait before the next try: doubles, with some jitter, until something has worked."""

    def __init__(self, *, first_s: float = 0.1, longest_s: float = 5.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def next_s(self) -> float:
        planned_s = self._next_s
        self._next_s = min(self._longest_s, 2 * planned_s)
        # Workers that lost the same store do not all come back at the same instant.
        return planned_s * random.uniform(0.75, 1.25)

    def over(self) -> bool:
        """It has worked. Whether it had failed before."""
        had_failed = self._next_s != self._first_s
        self._next_s = self._first_s
        return had_failed


async def sleep_until(event: asyncio.Event, within_s: float) -> bool:
    """Wait until *event* is set, at most so long; whether it is."""
    if not event.is_set():
        try:
            async with asyncio.timeout(within_s):
                await event.wait()
        except TimeoutError:
            pass
    return event.is_set()


async def first_of(within_s: float, *work: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of several, at most so long; the others are cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
