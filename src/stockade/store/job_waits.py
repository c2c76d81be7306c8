"""Waiting for something to happen to jobs: in this process, which is told at once, and in others, which are asked.

Of changes in other processes a glance at two numbers tells, a few times a second and only while somebody waits. Only
when these have moved are the jobs looked at that somebody waits for.

Between reading a job and waiting for its change, it may have changed: what was read is remembered, and compared.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, bindparam, false, func, select

from stockade.errors import StockadeError
from stockade.model.jobs import Job
from stockade.store.database import Database
from stockade.store.job_tables import IS_QUEUED, job_signals, jobs
from stockade.store.job_units import CHANNEL, now_of

__all__ = ["Waits"]

LOOK_S = 0.1
"""Between two glances."""
LOOK_AFTER_SILENCE_S = 1.0
"""Between two glances where others say when something has happened: delayed jobs come by themselves."""
GATHER_S = 0.02
"""Two glances are never closer together, however much happens."""
AWAY_S = 0.5
"""While the database is away."""
JUST_S = 0.5
"""For so long what a waiter was told holds, should another process change it meanwhile."""
REMEMBERED = 10_000
"""Jobs that were read last."""

_GLANCE = select(
    *(select(job_signals.c.number).where(job_signals.c.name == name).scalar_subquery() for name in ("change", "work")),
    select(func.min(jobs.c.run_at)).where(IS_QUEUED, jobs.c.is_ready == false()).scalar_subquery(),
)
_STATES = select(jobs.c.id, jobs.c.state, jobs.c.fence, jobs.c.cancel_requested, jobs.c.noted).where(
    jobs.c.id.in_(bindparam("ids", expanding=True))
)


@dataclass
class _Seen:
    """What was last read of a job."""

    state: tuple[Any, ...] | None = None
    """State, fence and whether its end was asked for; `None`: not read since it changed."""
    noted: int | None = None
    """How much of its output there was; `None` likewise."""


class Waits:
    """Who waits for what."""

    def __init__(self, database: Database, *, name: str) -> None:
        """Args:
        name: see `Unit`.
        """
        self._database = database
        self._name = name
        self._tasks: list[asyncio.Task[None]] = []
        self._hears = False
        """Others say by themselves when something has happened."""
        self._somebody = asyncio.Event()
        self._work = 0
        """How often there was new work."""
        self._work_taken = 0
        """Up to where somebody has looked for it since."""
        self._for_work: set[asyncio.Event] = set()
        self._for_jobs: dict[str, set[asyncio.Event]] = {}
        self._to_check: set[str] = set()
        """Jobs that somebody has begun to wait for since the last glance."""
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._moved: WeakKeyDictionary[asyncio.Event, Job] = WeakKeyDictionary()
        self._told: WeakKeyDictionary[asyncio.Task[Any], tuple[Job, float]] = WeakKeyDictionary()
        """With what a wait has ended, and when, for the task that waited."""
        self._numbers: dict[str, int] = {}
        self._glance_now = asyncio.Event()

    def start(self) -> None:
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._look(), name="job-waits"))
            if not self._database.is_sqlite:
                self._tasks.append(asyncio.create_task(self._hear(), name="job-waits-hear"))

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What this process knows by itself

    def looks_for_work(self) -> None:
        """Somebody begins to claim: what has come until now is found."""
        self._work_taken = self._work

    def wakes_for_work(self) -> bool:
        """Something is about to come: let those look who wait for it here. Whether there are any."""
        for woken in self._for_work:
            woken.set()
        return bool(self._for_work)

    def reads(self, job_id: str) -> Callable[[Any, int | None], None]:
        """Somebody begins to read a job. What is returned is to be called with what was found: state, fence and whether
        its end was asked for (`None`: only output was asked for); the number of its last piece of output.
        """
        before = self._seen[job_id] = self._seen.get(job_id) or _Seen()
        self._seen.move_to_end(job_id)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

        def found(state: Any, noted: int | None) -> None:
            if self._seen.get(job_id) is before:  # else it has changed in the meantime
                before.state = before.state if state is None else state
                before.noted = before.noted if noted is None else noted

        return found

    def told(self, job_id: str) -> Job | None:
        """The job with which a wait of this very task for it has just ended: it need not be read again."""
        task = asyncio.current_task()
        if task is None or (told := self._told.pop(task, None)) is None:
            return None
        job, at = told
        if job.id != job_id or time.monotonic() >= at + JUST_S:
            return None
        # As if it had been read. Of output there is none yet: whoever follows that hears of each piece.
        self.reads(job_id)((job.state.value, job.fence, job.cancel_requested), 0)
        return job

    def changed(
        self,
        ids: Collection[str],
        *,
        has_work: bool,
        has_delayed: bool,
        signals: Mapping[str, int],
        moved: Mapping[str, Job],
    ) -> None:
        """This process has changed jobs; see `Unit`."""
        for name, number in signals.items():
            if number == self._numbers.get(name, 0) + 1:
                self._numbers[name] = number  # nobody else has done anything: no need to look
        for task in [task for task, (job, _) in self._told.items() if job.id in ids]:
            del self._told[task]  # what it was told no longer holds
        for job_id in ids:
            if job_id in self._seen:
                self._seen[job_id] = _Seen()
            self._wake(job_id, moved.get(job_id))
        if has_work:
            self._new_work()
        if has_delayed:
            self._glance_now.set()  # its moment may come before the next glance

    async def work(self, timeout_s: float) -> bool:
        """See `JobStore.wait_for_work`."""
        if self._work_taken != self._work:
            return True
        woken = asyncio.Event()
        self._for_work.add(woken)
        self._somebody.set()
        try:
            return await _happens(woken, timeout_s)
        finally:
            self._for_work.discard(woken)

    async def change(self, job_id: str, timeout_s: float) -> bool:
        """See `JobStore.wait_for_change`."""
        seen = self._seen.get(job_id)
        if seen is not None and seen.state is None and seen.noted is None:
            # It has changed since. Told once: who does not read it again is told by the next glance.
            del self._seen[job_id]
            return True
        woken = asyncio.Event()
        self._for_jobs.setdefault(job_id, set()).add(woken)
        self._to_check.add(job_id)
        self._somebody.set()
        if self._hears:
            self._glance_now.set()  # else the next glance is near
        try:
            has_changed = await _happens(woken, timeout_s)
            task = asyncio.current_task()
            if task is not None and (job := self._moved.get(woken)) is not None:
                self._told[task] = job, time.monotonic()
            return has_changed
        finally:
            self._for_jobs[job_id].discard(woken)
            if not self._for_jobs[job_id]:
                del self._for_jobs[job_id]
                self._to_check.discard(job_id)

    def _new_work(self) -> None:
        self._work += 1
        for woken in self._for_work:
            woken.set()

    def _wake(self, job_id: str, moved: Job | None = None) -> None:
        for woken in self._for_jobs.get(job_id, ()):
            if moved is not None:
                self._moved[woken] = moved
            else:
                self._moved.pop(woken, None)
            woken.set()

    # What others have done

    async def _look(self) -> None:
        while True:
            await self._somebody.wait()
            if not self._for_work and not self._for_jobs:
                self._somebody.clear()
                continue
            self._glance_now.clear()
            began = time.monotonic()
            pause_s = LOOK_AFTER_SILENCE_S if self._hears else LOOK_S
            try:
                due_s = await self._glance()
                pause_s = pause_s if due_s is None else min(pause_s, max(0.0, due_s))
            except StockadeError:
                pause_s = AWAY_S  # whoever waits finds out by asking
            await _happens(self._glance_now, pause_s)
            await asyncio.sleep(max(0.0, began + GATHER_S - time.monotonic()))

    async def _hear(self) -> None:
        """Listen to the others; where that cannot be, they are looked at instead."""

        def heard(who: str) -> None:
            if who != self._name:
                self._glance_now.set()

        while True:
            with contextlib.suppress(StockadeError):
                async with self._database.hear(CHANNEL, heard) as gone:
                    self._hears = True
                    self._glance_now.set()  # what was said before
                    await gone.wait()
            self._hears = False
            self._glance_now.set()
            await asyncio.sleep(AWAY_S)

    async def _glance(self) -> float | None:
        """Look at what others have done. Seconds until the next delayed job's moment; `None` without one."""
        to_check, self._to_check = self._to_check, set()
        asked = set(self._for_jobs)
        before = dict(self._numbers)

        def read(connection: Connection) -> tuple[dict[str, int], float | None, dict[str, Any]]:
            change, work, due = tuple(connection.execute(_GLANCE).one())
            numbers = {"change": change or 0, "work": work or 0}
            due_s = None if due is None else (due - now_of(connection)).total_seconds()
            wanted = asked if numbers["change"] != before.get("change", 0) else to_check
            rows = connection.execute(_STATES, {"ids": sorted(wanted)}) if wanted else ()
            states: dict[str, Any] = dict.fromkeys(wanted)
            return numbers, due_s, states | {row.id: row for row in rows}

        try:
            numbers, due_s, rows = await self._database.read(read)
        except BaseException:
            self._to_check |= to_check & self._for_jobs.keys()
            raise
        if numbers["work"] > self._numbers.get("work", 0) or (due_s is not None and due_s <= 0):
            self._new_work()
        for name, number in numbers.items():
            self._numbers[name] = max(number, self._numbers.get(name, 0))
        for job_id, row in rows.items():
            seen = self._seen.get(job_id)
            is_same = (
                seen is not None
                and row is not None
                and seen.state in (None, (row.state, row.fence, bool(row.cancel_requested)))
                and seen.noted in (None, row.noted)
            )
            if not is_same:
                self._seen.pop(job_id, None)
                self._wake(job_id)
        return None if due_s is None or due_s <= 0 else due_s


async def _happens(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(max(0.0, timeout_s)):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
