"""Cells that are ready before they are asked for: empty ones, and warm ones for each recipe that is in demand.

How many are kept follows the demand: as many as arrive in twice the time that one takes to make. Those of recipes
that nobody asks for any more are let go.
"""

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .cell import Cell, Host, IdRanges
from .cgroups import GroupLimits
from .fields import Refused, is_text
from .gvisor import Shape
from .image import IDS
from .init import FAILED, READY
from .journal import say
from .maker import Maker
from .mason import Mason
from .recipe import FORK, POOL, Recipe
from .template import CELLS
from .walls import MEMORY_BYTES, Walls, processes_behind

__all__ = ["Loop", "Pool", "Pools"]

_MOST_WARM = 32
"""Recipes that are kept warm at once."""
_LEAST_DEMAND = {FORK: 3.0, POOL: 1.3}
"""Recent requests after which a recipe that nobody announced is made warm. One alone is no demand."""
_BREATH_S = 0.02
"""What is taken from a pool is replaced after this time: starting another would slow down the run it was taken for."""
_SHORT_BREATH_S = 0.006
"""The same, for a cell that is quickly made, while at least half of what is to be ready is."""
_MEMORY_SHARE = 8
"""What waits in pools may hold the host's memory divided by this."""
_MEMORY_S = 5.0  # arrivals are forgotten within about this time
_IDLE_S = 120.0  # then what nobody announced is let go, and a pool keeps nothing
_AGAIN_S = (1.0, 5.0, 30.0, 300.0)  # after the first, second, … failure in a row
_MOST_FORKS = 100_000
_START_S = 60.0
_TIDY_S = 0.5
_LONGEST_COMPLAINT = 4000
_LONGEST_SHOWN = 1000
_MOST_WATCHED = 256
"""Places from which a template has read modules, and which are looked at again."""


class Loop(Protocol):
    """The warden's loop."""

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        """Have *handler* called when *fd* is readable or closed at its other end. A later one replaces it."""

    def forget(self, fd: int) -> None:
        """Watch *fd* no more."""

    def bury(self, cell: Cell) -> None:
        """End a cell that runs nothing, and free it once it is dead."""


@dataclass(eq=False)
class Pool:
    """The cells of one recipe, or the empty ones."""

    recipe: Recipe | None
    announced: bool
    """Whether to be ready for it without having been asked."""
    shape: Shape | None = None
    """Of the empty ones behind a second wall: what the last run asked for, in the hope that so will the next."""
    waiting: deque[Any] = field(default_factory=deque)
    """Runs for which a cell is being made: the server's."""
    ready: deque[Cell] = field(default_factory=deque)
    warming: dict[Cell, float] = field(default_factory=dict)
    """Those that exist and are not ready, with the time of their order."""
    ordered: deque[float] = field(default_factory=deque)
    """Times of the orders that are under way."""
    template: "Template | None" = None
    failures: int = 0
    complaint: str = ""
    not_before: float = 0.0
    """No spare ones until then, for one has just failed."""
    making_s: float = 0.02
    """How long one takes to make, lately."""
    each_bytes: int = 64 << 20
    """Memory of one that waits."""
    due: float | None = None
    """When the next are to be ordered, at the earliest."""
    _demand: float = 0.0
    _asked: float = field(default_factory=time.monotonic)

    def ask(self, now: float) -> None:
        """Note that a run wants one."""
        self._demand = self.demand(now) + 1.0
        self._asked = now

    def demand(self, now: float) -> float:
        """Recent requests; those of long ago count less."""
        return self._demand * math.exp((self._asked - now) / _MEMORY_S)

    def idle_s(self, now: float) -> float:
        return now - self._asked

    def spares(self, now: float, base: int, most: int) -> int:
        """How many to keep ready."""
        if now < self.not_before:
            return 0
        if self.is_started and self.idle_s(now) > _IDLE_S:
            base = min(base, 1) if self.announced else 0
        rate = self.demand(now) / _MEMORY_S
        return min(most, base + round(2 * rate * self.making_s))

    @property
    def under_way(self) -> int:
        return len(self.ordered) + len(self.warming)

    @property
    def is_started(self) -> bool:
        """Whether something of size waits in its cells."""
        return self.recipe is not None or self.shape is not None

    @property
    def is_costly(self) -> bool:
        """Whether each of its cells takes memory and a start of its own."""
        return self.shape is not None or (self.recipe is not None and self.recipe.kind == POOL)

    @property
    def can_deliver(self) -> bool:
        """Whether a run had better wait for a warm cell than begin in an empty one."""
        if self.recipe is None:
            return True
        if self.recipe.kind == FORK:
            return self.template is not None and self.template.is_ready
        # Started already, if not for this one, and so long ago that a start from nothing would take longer.
        began = time.monotonic() - self.making_s / 2
        return sum(order < began for order in self.warming.values()) > len(self.waiting)

    def succeeded(self, began: float) -> None:
        self.making_s += 0.2 * (time.monotonic() - began - self.making_s)
        self.failures = 0
        self.complaint = ""

    def failed(self, why: str) -> None:
        """Try again later; later still each time."""
        self.complaint = why
        self.not_before = time.monotonic() + _AGAIN_S[min(self.failures, len(_AGAIN_S) - 1)]
        self.failures += 1


class Template:
    """The warden's side of a template: a cell that makes cells."""

    def __init__(self, host: Host, mason: Mason, pool: Pool) -> None:
        """Have one begun. Raises as `Mason.order_template`."""
        assert pool.recipe is not None
        self.pool = pool
        self.began = time.monotonic()
        self.is_ready = False
        self.forks = 0
        self.cell = mason.order_template(self, pool.recipe)
        ids = IdRanges(IDS, CELLS) if self.cell.ids is not None else None
        self.maker = Maker(host, self.cell.control, ids, id_base=self.cell.ids or 0, on_news=self._hear)
        self._image = host.stage.images[pool.recipe.image]
        self._watched: dict[str, object] = {}
        host.cgroups.limit_template(self.cell.group)

    def _hear(self, message: dict[str, Any]) -> None:
        self.is_ready = message.get("ready") is True
        path = message.get("path")
        if isinstance(path, list):
            self._watched = {p: self._image.state_of(p) for p in path[:_MOST_WATCHED] if is_text(p)}

    def is_stale(self) -> bool:
        """Whether a fresh one had better take its place: it has forked often, or the image has changed since."""
        return self.forks >= _MOST_FORKS or any(self._image.state_of(p) != old for p, old in self._watched.items())

    def complaint(self) -> str:
        """The end of what it wrote to standard error."""
        text = b""
        with contextlib.suppress(OSError):
            text = os.read(self.cell.outputs[1], 1 << 16)
        return text.decode(errors="replace").strip()[-_LONGEST_COMPLAINT:]


class Pools:
    """All pools, and the makers that fill them."""

    def __init__(
        self,
        host: Host,
        mason: Mason,
        loop: Loop,
        *,
        first: Cell,
        spares: int,
        supply: Callable[[Pool, Cell], bool],
        refuse: Callable[[Pool, Refused], None],
        give_up: Callable[[], None],
    ) -> None:
        """Begin with one empty cell that is ready.

        Args:
            spares: how many to keep of each kind when there is little demand.
            supply: gives a cell to a run that waits for one of that pool; whether there was one.
            refuse: tells a run that waits, if any does, that its cell could not be made.
            give_up: the mason is dead.
        """
        self._host = host
        self._mason = mason
        self._loop = loop
        self._spares = spares
        self._most = max(spares, 8 * host.processors)
        self._memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MEMORY_SHARE
        self._supply = supply
        self._refuse = refuse
        self._give_up = give_up
        self._warm: dict[Recipe, Pool] = {}
        self._closed = False
        self.tidy_at = math.inf
        """When `tidy` is to be called."""
        self.empty = Pool(None, announced=True)
        self.walls = Walls(host.stage.images["host"], own_ids=host.own_ids)
        self.walled = Pool(None, announced=False)
        """Empty cells behind a second wall."""
        first.purpose = self.empty
        self._watch(first)
        self.empty.ready.append(first)
        loop.watch(mason.channel.fileno(), lambda _: self._receive(mason))

    # ── for the server ──────────────────────────────────────────────────────────────────────────────────────────

    def announce(self, recipe: Recipe) -> None:
        """Be ready for runs of that recipe.

        Raises:
            Refused: there is no such image.
        """
        self._demand_image(recipe.image)
        pool = self._warm.get(recipe) or self._add(recipe)
        if pool is not None:
            pool.announced = True
            self.refill(pool)

    def choose(self, image: str, recipe: Recipe | None) -> Pool:
        """The pool from which a run is to take its cell.

        Raises:
            Refused: there is no such image.
        """
        self._demand_image(image)
        now = time.monotonic()
        pool = None if recipe is None else self._warm.get(recipe) or self._add(recipe)
        if pool is not None:
            pool.ask(now)
            if pool.ready or pool.can_deliver:
                return pool
            self.refill(pool)
        self.empty.ask(now)
        return self.empty

    def choose_walled(self, image: str, shape: Shape) -> Pool:
        """The same, for a run behind a second wall.

        Raises:
            Refused: there is no such image, or no gVisor that works here.
        """
        self._demand_image(image)
        self.walls.find()
        self.walled.shape = shape
        self.walled.ask(time.monotonic())
        return self.walled

    def take(self, pool: Pool) -> Cell | None:
        """A cell that is ready, the caller's from now on. Its control socket stays watched until it is forgotten."""
        return pool.ready.popleft() if pool.ready else None

    def refill(self, pool: Pool, *, breath_s: float = _SHORT_BREATH_S) -> None:
        """Have cells made, for those who wait and ahead of demand; the latter not where one has just failed.

        Args:
            breath_s: time until an empty cell that was taken is replaced, while at least half of them are ready.
        """
        if self._closed or (pool is self.walled and pool.shape is None):
            return
        now = time.monotonic()
        maker: Maker = self._mason
        what: dict[str, Any] = {}
        self.tidy_at = min(self.tidy_at, now + _TIDY_S)
        missing = self._target(pool, now) + len(pool.waiting) - len(pool.ready) - pool.under_way
        if pool.is_costly:
            if pool.waiting:
                for cell in pool.warming:
                    cell.group.hurry()
            unserved = len(pool.waiting) - pool.under_way
            missing = max(unserved, min(missing, self._startable(pool)))
            if missing > 0 and unserved <= 0 and not self._is_due(pool, now, _BREATH_S):
                return
            what = {"pool": pool.recipe.to_message()} if pool.recipe is not None else self._walled_order(pool)
        elif pool.recipe is not None:
            template = self._template(pool, now)
            if template is None:
                pool.due = None
                return
            maker = template.maker
        if missing <= 0:
            pool.due = None
            return
        is_short = len(pool.ready) < missing or bool(pool.waiting)
        if not what and not is_short and not self._is_due(pool, now, breath_s):
            return
        try:
            for _ in range(missing):
                cell = maker.order(pool, **what)
                if pool.shape is not None:
                    cell.group.limit(self._room_of_wall())
                pool.ordered.append(now)
        except (Refused, BlockingIOError):
            pass  # many are on order, or in use: we go on as they come in
        except OSError as error:
            self._lose(maker, str(error))

    def tidy(self, now: float) -> None:
        """Let go what nobody asks for, and begin a fresh template where one is worn."""
        for pool in [self.empty, self.walled, *self._warm.values()]:
            target = self._target(pool, now)
            # With a margin: demand goes up and down.
            while len(pool.ready) > (target + 1 + target // 4 if target else 0):
                self._throw_away(pool.ready.pop())
            template = pool.template
            if template is not None and not template.is_ready and now > template.began + _START_S:
                self._lose(template.maker, f"it was not ready within {_START_S:g} s")
            elif template is not None and template.is_ready and template.is_stale():
                self._end_template(pool)
            is_idle = not pool.announced and pool.idle_s(now) > _IDLE_S and not pool.waiting and not pool.under_way
            if is_idle and pool.recipe is not None:
                self._remove(pool)
            else:
                self.refill(pool)
        more = self._host.cgroups.trim() or bool(self._warm or self.walled.ready or self.walled.under_way)
        more = more or len(self.empty.ready) > self._spares
        dues = [
            pool.due
            for pool in (self.empty, self.walled, *self._warm.values())
            if pool.due is not None and pool.due > now
        ]
        self.tidy_at = min([*dues, now + _TIDY_S if more else math.inf])

    def report(self) -> list[dict[str, Any]]:
        """What is kept warm, for humans: of all of it together so much that it fits into an answer."""
        return [
            {
                "command": _shown(recipe.argv),
                "kind": recipe.kind,
                "preload": _shown(recipe.preload),
                "ready": len(pool.ready),
                "under_way": pool.under_way,
                "forks": pool.template.forks if pool.template else 0,
                "complaint": pool.complaint[:_LONGEST_SHOWN],
            }
            for recipe, pool in self._warm.items()
        ]

    def close(self) -> None:
        """End all that nobody uses, and the makers."""
        self._closed = True
        for pool in [*self._warm.values(), self.walled, self.empty]:
            for cell in (*pool.ready, *pool.warming):
                self._throw_away(cell)
            pool.ready.clear()
            pool.warming.clear()
            self._end_template(pool)
        self._loop.forget(self._mason.channel.fileno())
        self._mason.close()

    # ── pools and templates ─────────────────────────────────────────────────────────────────────────────────────

    def _demand_image(self, image: str) -> None:
        if image not in self._host.stage.images:
            raise Refused("invalid", f"unknown image {image!r}; known: {', '.join(self._host.stage.images)}")

    def _target(self, pool: Pool, now: float) -> int:
        base = self._spares
        if pool.is_costly:
            # What a template makes costs little; what is started by itself is kept only where it is in demand.
            base = int(pool.announced or len(pool.ready) > 0 or pool.demand(now) >= _LEAST_DEMAND[POOL])
        return pool.spares(now, base, self._most)

    def _startable(self, pool: Pool) -> int:
        """How many more of that pool may be started now: memory is bounded, and more than run at once help nobody."""
        pools = [one for one in (self.walled, *self._warm.values()) if one.is_costly]
        held = sum(one.each_bytes * (len(one.ready) + one.under_way) for one in pools)
        idle = self._host.processors - sum(one.under_way for one in pools)
        return min(idle, (self._memory - held) // pool.each_bytes)

    def _walled_order(self, pool: Pool) -> dict[str, Any]:
        assert pool.shape is not None
        return {"wall": self.walls.order(pool.shape)}

    def _room_of_wall(self) -> GroupLimits:
        """Until a run's own limits come: what gVisor takes to start."""
        cores = float(self._host.processors)
        return GroupLimits(memory_bytes=4 * MEMORY_BYTES, processes=processes_behind(8), cpus=cores)

    def _is_due(self, pool: Pool, now: float, breath_s: float) -> bool:
        """Whether it is time to order; else it will be, soon."""
        if pool.due is None:
            pool.due = now + breath_s
        if now < pool.due:
            self.tidy_at = min(self.tidy_at, pool.due)
            return False
        pool.due = None
        return True

    def _add(self, recipe: Recipe) -> Pool | None:
        if len(self._warm) >= _MOST_WARM:
            now = time.monotonic()
            free = [p for p in self._warm.values() if not p.announced and not p.waiting and not p.under_way]
            idlest = max(free, key=lambda p: p.idle_s(now), default=None)
            if idlest is None or idlest.idle_s(now) < _MEMORY_S:
                return None
            self._remove(idlest)
        pool = self._warm[recipe] = Pool(recipe, announced=False)
        return pool

    def _remove(self, pool: Pool) -> None:
        assert pool.recipe is not None
        del self._warm[pool.recipe]
        while pool.ready:
            self._throw_away(pool.ready.pop())
        self._end_template(pool)

    def _template(self, pool: Pool, now: float) -> Template | None:
        """The pool's, if it is ready; begins one where it is time for that."""
        if pool.template is None:
            wanted = pool.announced or pool.demand(now) >= _LEAST_DEMAND[FORK]
            if wanted and now >= pool.not_before:
                try:
                    pool.template = Template(self._host, self._mason, pool)
                except (Refused, OSError) as error:
                    pool.failed(str(error))
        return pool.template if pool.template is not None and pool.template.is_ready else None

    def _lose(self, maker: Maker, why: str) -> None:
        """A maker is dead, or no good. Those who wait for cells of a template's begin in empty ones."""
        if maker is self._mason:
            self._give_up()
            return
        pool = next((p for p in self._warm.values() if p.template is not None and p.template.maker is maker), None)
        if pool is None or pool.template is None or pool.recipe is None:
            return
        pool.failed(pool.template.complaint() or why)
        say(f"no template for {' '.join(_shown(pool.recipe.argv))!r}: {pool.complaint}")
        self._end_template(pool)
        self.empty.waiting.extend(pool.waiting)
        pool.waiting.clear()
        self.refill(self.empty)

    def _end_template(self, pool: Pool) -> None:
        template, pool.template = pool.template, None
        if template is None:
            return
        pool.ordered.clear()
        template.maker.abandon()
        if template.cell.pid:  # else it is still on order, and is thrown away when it comes
            self._loop.forget(template.cell.control.fileno())
            self._loop.bury(template.cell)

    # ── cells ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, maker: Maker) -> None:
        """Take what a maker has made."""
        pools: dict[Pool, None] = {}
        try:
            for cell, refusal in maker.delivered():
                if isinstance(cell.purpose, Template):
                    self._take_template(cell.purpose, refusal)
                elif isinstance(cell.purpose, Pool):
                    self._take_cell(cell.purpose, cell, refusal)
                    pools[cell.purpose] = None
        except EOFError as error:
            self._lose(maker, str(error))
        for pool in pools or self._warm.values():  # news that are no delivery: a template is ready
            self.refill(pool)

    def _take_template(self, template: Template, refusal: Refused | None) -> None:
        is_wanted = template.pool.template is template and not self._closed
        if refusal is not None:
            if is_wanted:
                template.pool.failed(str(refusal))
                template.pool.template = None
        elif is_wanted:
            self._loop.watch(template.cell.control.fileno(), lambda _: self._receive(template.maker))
        else:
            self._loop.bury(template.cell)

    def _take_cell(self, pool: Pool, cell: Cell, refusal: Refused | None) -> None:
        ordered = pool.ordered.popleft() if pool.ordered else time.monotonic()
        if refusal is not None:
            self._failed(pool, refusal)
            return
        if pool.template is not None:
            pool.template.forks += 1
        self._watch(cell)
        if self._closed or (pool.recipe is not None and self._warm.get(pool.recipe) is not pool):
            self._throw_away(cell)
        else:
            pool.warming[cell] = ordered
            if pool.is_costly and not pool.waiting:
                cell.group.be_patient()

    def _watch(self, cell: Cell) -> None:
        self._loop.watch(cell.control.fileno(), lambda _: self._hear(cell))

    def _hear(self, cell: Cell) -> None:
        """News from a cell that nobody uses yet: it is ready, or dead."""
        try:
            news = cell.control.recv(_LONGEST_COMPLAINT)
        except BlockingIOError:
            return
        except OSError as error:
            news = FAILED + str(error).encode()
        pool = cell.purpose
        assert isinstance(pool, Pool)
        if news[:1] == READY and cell in pool.warming:
            pool.succeeded(pool.warming.pop(cell))
            pool.each_bytes = max(1 << 20, cell.group.memory_peak() or pool.each_bytes)
            if not self._supply(pool, cell):
                pool.ready.append(cell)
            return
        was_ready = cell in pool.ready
        if was_ready:
            pool.ready.remove(cell)
        else:
            pool.warming.pop(cell, None)
        self._throw_away(cell)
        if not was_ready:
            why = news[1:].decode(errors="replace") or "its first process ended at once"
            self._failed(pool, Refused("fault", f"a sandbox could not be built: {why}"))
        self.refill(pool)

    def _failed(self, pool: Pool, refusal: Refused) -> None:
        pool.failed(str(refusal))
        if pool.recipe is None:
            self._refuse(pool, refusal)
            return
        # An empty cell will do.
        if pool.waiting:
            self.empty.waiting.append(pool.waiting.popleft())
            self.refill(self.empty)

    def _throw_away(self, cell: Cell) -> None:
        self._loop.forget(cell.control.fileno())
        self._loop.bury(cell)


def _shown(words: Sequence[str]) -> list[str]:
    """Of a list that a client wrote, what a human wants to see of it."""
    shown: list[str] = []
    left = _LONGEST_SHOWN
    for word in words:
        if left < len(word):
            return [*shown, "…"]
        shown.append(word)
        left -= len(word) + 1
    return shown
