"""Who runs now and who waits: a bounded queue, fair between actors, that refuses early what it cannot serve in time."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from stockade.engine.pace import Pace
from stockade.errors import LimitExceeded, QueueFull
from stockade.model import Actor

__all__ = ["Queue"]

BURST_S = 3.0
"""A queue that is empty again within this time was a burst, and waiting was the right answer to it. One that is not has
more requests than places for good: then a longer queue serves nobody sooner and everybody later."""
LONGEST_RETRY_S = 60.0


class Queue:
    """Gives out `places`; the rest waits, at most `length` of them and `wait_s` each.

    Actors with something waiting take turns, so one that sends a thousand requests delays another one's
    single request by at most one turn each. Everything is refused early rather than kept in unbounded memory: also
    what is expected to wait for longer than `wait_s` or, when there has been somebody waiting for `BURST_S`, than
    `overload_wait_s`. So under a lasting overload all places are busy and those who are taken wait for a short while.
    """

    def __init__(
        self,
        *,
        places: int,
        length: int,
        wait_s: float,
        overload_wait_s: float = 2.0,
        places_per_actor: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.places = places
        self.length = length
        self.wait_s = wait_s
        self.overload_wait_s = min(wait_s, overload_wait_s)
        self.places_per_actor = places_per_actor or places
        self.running = 0
        self.waiting = 0
        self._clock = clock
        self._pace = Pace()
        self._busy_since = 0.0
        """Since when somebody waits; of no meaning while nobody does."""
        self._held: dict[str, int] = {}
        self._turns: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, actor: Actor) -> AsyncIterator[float]:
        """Hold a place; the value is the seconds spent waiting for it.

        Raises:
            QueueFull: too many wait already, or the wait took, or would take, too long.
            LimitExceeded: this actor alone fills its share of the queue.
        """
        began = self._clock()
        if self._must_wait(actor.id):
            self._admit(actor.id)
            await self._wait(actor.id)
        else:
            self._take(actor.id)
        try:
            yield self._clock() - began
        finally:
            self._release(actor.id)

    def check(self, actor: Actor) -> None:
        """Raise what `place` would raise at once: to refuse a request before any work is put into it."""
        if self._must_wait(actor.id):
            self._admit(actor.id)

    def _must_wait(self, actor: str) -> bool:
        return self.waiting > 0 or not self._free(actor)

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
        if self.waiting:
            self._pace.freed(self._clock())
            self._hand_out()

    def _hand_out(self) -> None:
        """Give free places to the waiting, an actor at a turn; who has had a turn goes to the end."""
        for actor in list(self._turns):
            if self.running >= self.places:
                return
            if self._free(actor) and (ticket := self._next_of(actor)) is not None:
                self._take(actor)
                ticket.set_result(None)

    def _next_of(self, actor: str) -> asyncio.Future[None] | None:
        """Take *actor*'s first ticket out of the queue; a cancelled one, whose owner has yet to notice, is dropped."""
        line = self._turns[actor]
        ticket = None
        while line and (ticket is None or ticket.cancelled()):
            ticket = line.popleft()
            self._left_line()
        self._turns.move_to_end(actor)
        if not line:
            del self._turns[actor]
        return None if ticket is None or ticket.cancelled() else ticket

    def _admit(self, actor: str) -> None:
        """Refuse *actor*'s request where the queue cannot take it."""
        now = self._clock()
        if self.waiting >= self.length:
            raise QueueFull(f"{self.waiting} requests are waiting already", retry_after_s=self._retry_s(now))
        line = self._turns.get(actor)
        own = len(line) if line is not None else 0
        turns = len(self._turns) + (line is None)
        if own >= max(1, self.length // 2) and turns > 1:
            raise LimitExceeded("your requests fill half of the queue already", retry_after_s=self._retry_s(now))
        # Everybody has a turn before one's next; and what is behind a single set of programs is no overload yet.
        before = min(self.waiting + 1, (own + 1) * turns)
        bound_s = self.wait_s if not self.waiting or now - self._busy_since < BURST_S else self.overload_wait_s
        if before > self.places and (expected_s := self._pace.time_for(before, now)) > bound_s:
            raise QueueFull(
                f"a place is expected in {expected_s:.1f} s, and nobody is let wait for longer than {bound_s:g} s now",
                retry_after_s=self._retry_s(now),
            )

    async def _wait(self, actor: str) -> None:
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.setdefault(actor, deque()).append(ticket)
        self.waiting += 1
        if self.waiting == 1:
            self._busy_since = self._clock()
            self._pace.begin(self._busy_since)
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
                    f"no place came free within {self.wait_s:g} s", retry_after_s=self._retry_s(self._clock())
                ) from None
            raise

    def _forget(self, actor: str, ticket: asyncio.Future[None]) -> None:
        line = self._turns.get(actor)
        if line is not None and ticket in line:
            line.remove(ticket)
            self._left_line()
            if not line:
                del self._turns[actor]

    def _left_line(self) -> None:
        self.waiting -= 1
        if not self.waiting:
            self._pace.end(self._clock())

    def _retry_s(self, now: float) -> float:
        """A time after which to try again: half of those that wait will have had their turn."""
        return min(LONGEST_RETRY_S, max(1.0, self._pace.time_for(self.waiting, now) / 2))
