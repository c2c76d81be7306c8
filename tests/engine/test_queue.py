"""The queue by itself, on a clock that the test moves: who is taken, who waits, who is refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from stockade.engine import Queue
from stockade.engine.queue import BURST_S, LONGEST_RETRY_S
from stockade.errors import LimitExceeded, QueueFull
from stockade.model import Actor

pytestmark = pytest.mark.anyio
ONE, OTHER = Actor(id="one"), Actor(id="other")


class Machine:
    """Programs that each run until the test ends one; they ask for places of a queue."""

    def __init__(self, **settings: float) -> None:
        self.now = 0.0
        options = {"places": 2, "length": 1000, "wait_s": 30.0, "overload_wait_s": 2.0} | settings
        self.queue = Queue(**options, clock=lambda: self.now)  # type: ignore[arg-type]
        self.running: list[tuple[Actor, asyncio.Event]] = []
        self.refused: list[Exception] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def ask(self, actor: Actor = ONE) -> None:
        """A request comes."""
        self.tasks.add(asyncio.create_task(self._program(actor)))
        await settled()

    async def end_one(self) -> Actor:
        """The program that runs for longest ends; whose it was."""
        actor, ended = self.running.pop(0)
        ended.set()
        await settled()
        return actor

    async def overload(self, *, seconds: float, asked: int = 2, served: int = 1) -> None:
        """In each tenth of a second so many ask, and so many end."""
        for _ in range(round(10 * seconds)):
            for _ in range(asked):
                await self.ask()
            self.now += 0.1
            for _ in range(served):
                await self.end_one()

    async def _program(self, actor: Actor) -> None:
        try:
            async with self.queue.place(actor):
                ended = asyncio.Event()
                self.running.append((actor, ended))
                await ended.wait()
        except (QueueFull, LimitExceeded) as error:
            self.refused.append(error)


async def settled() -> None:
    """Every task has come as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def machine(**settings: float) -> AsyncIterator[Machine]:
    made = Machine(**settings)
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        assert (made.queue.running, made.queue.waiting) == (0, 0)


async def test_a_burst_waits_however_long_the_queue_grows() -> None:
    async with machine() as one:
        for _ in range(200):
            await one.ask()
        for _ in range(198):
            one.now += 0.1
            await one.end_one()
        assert not one.refused


async def test_a_lasting_overload_is_refused_early_and_the_taken_wait_for_no_longer_than_the_bound() -> None:
    async with machine() as one:
        await one.overload(seconds=BURST_S)
        assert not one.refused
        await one.overload(seconds=20)
        assert one.queue.running == 2  # nothing idles for it
        assert one.queue.waiting / 10 == pytest.approx(2.0, abs=0.5)  # ten a second are served
        refused = len(one.refused)
        await one.overload(seconds=10)
        assert len(one.refused) - refused == pytest.approx(100, abs=10)  # what is above the capacity, and no more
        assert all(isinstance(error, QueueFull) for error in one.refused)


async def test_requests_are_taken_again_once_the_overload_is_over() -> None:
    async with machine() as one:
        await one.overload(seconds=30)
        one.refused.clear()
        await one.overload(seconds=30, asked=1)
        while one.queue.waiting:
            one.now += 0.1
            await one.end_one()
        one.refused.clear()
        await one.overload(seconds=2, asked=3)
        assert not one.refused


async def test_somebody_else_s_overload_refuses_nobody_who_has_a_turn_soon() -> None:
    async with machine() as one:
        await one.overload(seconds=30)
        one.refused.clear()
        await one.ask(OTHER)
        assert not one.refused
        ended = [await one.end_one() for _ in range(5)]
        assert OTHER in ended


async def test_what_is_expected_to_wait_for_longer_than_anybody_may_is_refused_at_once() -> None:
    async with machine(wait_s=3.0, overload_wait_s=3.0) as one:
        await one.overload(seconds=20, asked=20)
        assert 20 < one.queue.waiting <= 40  # ten a second are served


async def test_as_many_as_there_are_places_wait_for_programs_that_take_long() -> None:
    async with machine(places=4) as one:
        for _ in range(8):
            await one.ask()
            one.now += 10
        assert (one.queue.running, one.queue.waiting, one.refused) == (4, 4, [])
        await one.ask()
        assert len(one.refused) == 1


async def test_a_standstill_is_told_from_a_busy_queue() -> None:
    async with machine() as one:
        await one.overload(seconds=3)
        waiting = one.queue.waiting
        one.now += 60
        await one.ask()
        assert (one.queue.waiting, len(one.refused)) == (waiting, 1)


async def test_the_time_to_retry_follows_the_queue_and_is_bounded() -> None:
    async with machine(length=100, overload_wait_s=30.0) as one:
        await one.overload(seconds=4, asked=20)
        full = one.refused[-1]
        assert isinstance(full, QueueFull)
        assert full.retry_after_s == pytest.approx(5, abs=0.5)  # ten a second are served, a hundred wait
        one.now += 3600
        await one.ask()
        last = one.refused[-1]
        assert isinstance(last, QueueFull)
        assert last.retry_after_s == LONGEST_RETRY_S


async def test_a_check_refuses_what_a_place_would_and_takes_nothing() -> None:
    async with machine(length=1) as one:
        one.queue.check(ONE)
        for _ in range(3):
            one.queue.check(ONE)
            await one.ask()
        assert (one.queue.running, one.queue.waiting) == (2, 1)
        with pytest.raises(QueueFull):
            one.queue.check(ONE)
        await one.end_one()
        one.queue.check(ONE)


async def test_half_of_the_queue_is_left_to_others() -> None:
    async with machine(length=10) as one:
        for _ in range(8):
            await one.ask()
        await one.ask(OTHER)
        await one.ask()
        assert [type(error) for error in one.refused] == [LimitExceeded]


async def test_places_are_given_back_when_many_are_cancelled_in_one_go() -> None:
    """A place that comes free must pass over who waits for it and has been cancelled a moment ago."""
    async with machine() as one:
        for _ in range(6):
            await one.ask()
        for task in one.tasks:
            task.cancel()
        await settled()
        assert (one.queue.running, one.queue.waiting) == (0, 0)
