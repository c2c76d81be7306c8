"""When to look at what: one moment for each thing, however often it is put down."""

import heapq
import math
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["Agenda"]

T = TypeVar("T", bound=Hashable)


class Agenda(Generic[T]):
    """Things, each with the earliest moment that it was put down for. What is put down again takes no more room."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._due: dict[T, float] = {}
        """What counts: entries of the heap that say otherwise are of before."""
        self._count = 0

    @property
    def next(self) -> float:
        """The next moment; infinity when there is none. Something stale may make it too early."""
        return self._heap[0][0] if self._heap else math.inf

    def put(self, thing: T, when: float) -> None:
        """Look at *thing* at *when*, unless it is to be looked at before that anyway."""
        if when >= self._due.get(thing, math.inf):
            return
        self._due[thing] = when
        self._count += 1  # a tie-breaker: things do not compare
        heapq.heappush(self._heap, (when, self._count, thing))
        if len(self._heap) > 64 + 4 * len(self._due):
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def drop(self, thing: T) -> None:
        """Do not look at it any more. It need not have been put down."""
        self._due.pop(thing, None)

    def take(self, now: float) -> Iterator[T]:
        """What has come due by *now*; each may be put down again meanwhile."""
        while self._heap and self._heap[0][0] <= now:
            when, _, thing = heapq.heappop(self._heap)
            if self._due.get(thing) == when:
                del self._due[thing]
                yield thing

    def __len__(self) -> int:
        """Entries that are held, stale ones included."""
        return len(self._heap)
