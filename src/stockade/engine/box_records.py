"""What is known of boxes now: their records, who uses them, and who may change one.

Records of this server's boxes are kept in memory, as many as have been asked for lately: nobody else changes them, and
whoever uses a box asks for its record each time.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

from stockade.engine.box_needs import BoxTable
from stockade.engine.lives import moment
from stockade.errors import NotFound, Unavailable
from stockade.model import Actor, Box, BoxState, owner_of

__all__ = ["AT_REST", "LIVING", "BoxRecords", "owner_actor"]

LIVING = frozenset({BoxState.RUNNING, BoxState.PAUSED})
"""A sandbox of it lives."""
AT_REST = frozenset({BoxState.CONFIGURED, BoxState.STOPPED, BoxState.FAILED})
"""Nothing of it runs, or is about to end."""
_MOST_KNOWN = 4096


def owner_actor(box: Box) -> Actor:
    """Who acts for a box where nobody asked: the key that made it. Its sandboxes are this key's."""
    return Actor(id=box.key_id, account_id=box.account_id)


class BoxRecords:
    """Looks boxes up, and changes what is recorded of them."""

    def __init__(self, table: BoxTable, *, clock: Callable[[], float] = time.time) -> None:
        """Take the table; *clock* is in seconds since the epoch."""
        self.table = table
        self.clock = clock
        self._known: OrderedDict[str, Box] = OrderedDict()
        self._names: dict[tuple[str, str], str] = {}
        self.changes = 0
        """Grows with each change of any box: what was read before one is not to be kept in mind after it."""
        self._before: dict[str, Box] = {}
        """Boxes that are being started, as they were before."""
        self._used: dict[str, float] = {}
        """When boxes were used last, where that is not recorded yet."""
        self._users: Counter[str] = Counter()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def now(self) -> datetime:
        return moment(self.clock())

    def lock(self, box_id: str) -> asyncio.Lock:
        """Held by whoever makes, starts, stops, copies or removes a box."""
        return self._locks.setdefault(box_id, asyncio.Lock())

    async def find(self, actor: Actor, id_or_name: str) -> Box:
        """The record of a box of the actor's account.

        Raises:
            NotFound: there is none, or it is another account's.
        """
        owner = actor.owner
        known = self._known.get(id_or_name) or self._known.get(self._names.get((owner, id_or_name), ""))
        if known is not None and owner_of(known.account_id, known.key_id) == owner:
            return self.shown(known)
        box = await self.table.find(owner, id_or_name)
        if box is None:
            raise NotFound(f"box {id_or_name[:200]} not found")
        return self.shown(box)

    async def here(self, box_id: str) -> Box:
        """The record of a box of this server's, whosever it is.

        Raises:
            NotFound: there is none.
            Unavailable: it is another server's, in the same database; or the database is away.
        """
        known = self._known.get(box_id)
        if known is not None:
            self._known.move_to_end(box_id)
            return known
        before = self.changes
        found = await self.table.get(box_id)
        if found is None:
            raise NotFound(f"box {box_id} not found")
        box, is_here = found
        if not is_here:
            raise Unavailable(f"box {box_id} is on another server of this database; ask that one")
        self.note_unless_changed(box, since=before)
        return box

    async def move(self, box_id: str, from_states: Collection[BoxState], /, **changes: Any) -> Box | None:
        """Change a box, if it is in one of *from_states*; `None` if not. Raises Unavailable."""
        # Of two changes at once, the answer to the later one must not be noted first.
        lock = self._changing.setdefault(box_id, asyncio.Lock())
        async with lock:
            self.changes += 1
            try:
                box = await self.table.move(box_id, from_states, **changes)
            except BaseException:
                self.forget(box_id)  # whether it has been changed is not known
                raise
            self.changes += 1
            if box is not None:
                self.note(box)
            return box

    def note_unless_changed(self, box: Box, *, since: int) -> None:
        """Keep in mind what was read, or shown to others, when `changes` was *since*, if nobody has changed any yet."""
        if since == self.changes:
            self.note(box)

    def note(self, box: Box) -> None:
        """Keep a record in mind."""
        self._known[box.id] = box
        self._known.move_to_end(box.id)
        if box.name is not None:
            self._names[owner_of(box.account_id, box.key_id), box.name] = box.id
        if len(self._known) > _MOST_KNOWN:
            self._drop(next(iter(self._known)))

    def forget(self, box_id: str) -> None:
        """Keep nothing of a box in mind: it is gone, or changed."""
        self.changes += 1
        self._drop(box_id)

    def shown(self, box: Box) -> Box:
        """The record as callers see it: with its last use, and as it was before while it is being started."""
        box = self._before.get(box.id, box)
        used = self._used.get(box.id)
        return box if used is None else replace(box, last_used_at=max(box.last_used_at, moment(used)))

    @contextlib.contextmanager
    def starting(self, box: Box) -> Iterator[None]:
        """During the block callers are told of the box what it was before: its record says already that it runs."""
        self._before[box.id] = box
        try:
            yield
        finally:
            del self._before[box.id]

    def is_starting(self, box_id: str) -> bool:
        """Whether somebody is in the block of `starting`."""
        return box_id in self._before

    def touch(self, box_id: str) -> None:
        """A box is being used."""
        self._used[box_id] = self.clock()

    @contextlib.contextmanager
    def using(self, box_id: str) -> Iterator[None]:
        """A box is in use during the block."""
        self._users[box_id] += 1
        self.touch(box_id)
        try:
            yield
        finally:
            self.touch(box_id)
            self._users[box_id] -= 1
            if not self._users[box_id]:
                del self._users[box_id]

    def idle_s(self, box: Box) -> float:
        """Seconds since a box was used last; 0 while it is in use."""
        if self._users[box.id] > 0:
            return 0.0
        return max(0.0, self.clock() - max(box.last_used_at.timestamp(), self._used.get(box.id, 0.0)))

    async def record_uses(self) -> None:
        """Commit when boxes were used last. Raises Unavailable."""
        used, self._used = self._used, {}
        try:
            await self.table.touch({box_id: moment(at) for box_id, at in used.items()})
        except BaseException:
            self._used = {**used, **self._used}
            raise
        for box_id, at in used.items():
            if (box := self._known.get(box_id)) is not None:
                self._known[box_id] = replace(box, last_used_at=moment(at))

    def _drop(self, box_id: str) -> None:
        box = self._known.pop(box_id, None)
        if box is not None and box.name is not None:
            owner = owner_of(box.account_id, box.key_id)
            if self._names.get((owner, box.name)) == box_id:
                del self._names[owner, box.name]
