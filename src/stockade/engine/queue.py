"""Who runs now and who waits: a bounded queue, fair between actors."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stockade.errors import LimitExceeded, QueueFull
from stockade.model import Actor

__all__ = ["Queue"]


class Queue:
    """Gives out `places`; the rest waits, at most `length` of them and `wait_s` each.

    Actors with something waiting take turns, so one that sends a thousand requests delays another one's
    single request by at most one turn each. Everything is refused early rather than kept in unbounded memory.
    """

    def __init__(self, *, places: int, length: int, wait_s: float, places_per_actor: int | None = None) -> None:
        self.places = places
        self.length = length
        self.wait_s = wait_s
        self.places_per_actor = places_per_actor or places
        self.running = 0
        self.waiting = 0
        self._held: dict[str, int] = {}
        self._turns: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, actor: Actor) -> AsyncIterator[float]:
        """Hold a place; the value is the seconds spent waiting for it.

        Raises:
            QueueFull: too many wait already, or the wait took too long.
            LimitExceeded: this actor alone fills its share of the queue.
        """
        began = time.monotonic()
        if self.waiting or not self._free(actor.id):
            await self._wait(actor.id)
        else:
            self._take(actor.id)
        try:
            yield time.monotonic() - began
        finally:
            self._release(actor.id)

    def _free(self, actor: str) -> bool:
        return self.running < self.places and self._held.get(actor, 0) < self.places_per_actor

    def _take(self, actor: str) -> None:
        self.running += 1
        self._held[actor] = self._held.get(actor, 0) + 1

    def _release(self, actor: str) -> None:
        self.running -= 1
        if self._held[actor] == 1:
            del self._held[actor]
        else:
            self._held[actor] -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        """Give free places to the waiting, an actor at a turn; who has had a turn goes to the end."""
        for actor in list(self._turns):
            if self.running >= self.places:
                return
            line = self._turns[actor]
            if not self._free(actor):
                continue
            ticket = line.popleft()
            self.waiting -= 1
            self._turns.move_to_end(actor)
            if not line:
                del self._turns[actor]
            self._take(actor)
            ticket.set_result(None)

    async def _wait(self, actor: str) -> None:
        if self.waiting >= self.length:
            raise QueueFull(f"{self.waiting} requests are waiting already", retry_after_s=self._estimate_s())
        others = len(self._turns) - (actor in self._turns)
        line = self._turns.get(actor)
        if line is not None and others and len(line) >= max(1, self.length // 2):
            raise LimitExceeded("your requests fill half of the queue already", retry_after_s=self._estimate_s())
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.setdefault(actor, deque()).append(ticket)
        self.waiting += 1
        self._hand_out()  # others may wait only because their own share is used up
        try:
            async with asyncio.timeout(self.wait_s):
                await ticket
        except BaseException as error:
            if ticket.done() and not ticket.cancelled():  # a place came just as we gave up: pass it on
                self._release(actor)
            else:
                self._forget(actor, ticket)
            if isinstance(error, TimeoutError):
                raise QueueFull(
                    f"no place came free within {self.wait_s:g} s", retry_after_s=self._estimate_s()
                ) from None
            raise

    def _forget(self, actor: str, ticket: asyncio.Future[None]) -> None:
        line = self._turns.get(actor)
        if line is not None and ticket in line:
            line.remove(ticket)
            self.waiting -= 1
            if not line:
                del self._turns[actor]

    def _estimate_s(self) -> float:
        """A rough time after which to retry: a second for each full set of places that waits."""
        return 1.0 + self.waiting // max(1, self.places)
