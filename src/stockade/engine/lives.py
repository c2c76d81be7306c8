"""Sandboxes that live now: every change of state, and the end of each, recorded once.

A change of state is one conditional UPDATE: of two who want to move the same sandbox, one does. Each sandbox that runs
is watched by a task; when it has ended, its ports are closed, the end is committed (again and again while the database
is away; the backend keeps the facts meanwhile) and whoever waits for it is told.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from stockade.backends.sandboxing import LiveSandbox, Sandboxing
from stockade.engine.sandbox_needs import OnEnded, Ports, SandboxOptions, SandboxTable
from stockade.engine.tasks import Tasks
from stockade.errors import NotFound, StockadeError, Unavailable
from stockade.model import LEGAL_MOVES, EndedBy, Outcome, Sandbox, SandboxState

__all__ = ["BACK_OFF_S", "EXECUTION", "Lives", "legal_from", "moment"]

T = TypeVar("T")

log = structlog.get_logger()

EXECUTION = "exec-"
"""How names of processes begin that somebody started who waits for them."""
BACK_OFF_S = (0.05, 5.0)
"""First and longest pause between attempts at something that is away for a while."""


def moment(seconds: float) -> datetime:
    """A time in seconds since the epoch as records have it."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def legal_from(state: SandboxState) -> frozenset[SandboxState]:
    """The states from which a sandbox may move to *state*."""
    return frozenset(old for old, new in LEGAL_MOVES.items() if state in new)


@dataclass(kw_only=True)
class _Life:
    """A sandbox that is watched."""

    sandbox: Sandbox
    """Its record as we know it."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the record is changed: of two changes at once, the answer to the later one must not be noted first."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its end is committed; then `sandbox` says how. Also when it is no longer watched."""


class Lives:
    """The sandboxes of this server that run, and how they end."""

    def __init__(
        self,
        *,
        table: SandboxTable,
        backend: Sandboxing,
        ports: Ports,
        on_ended: OnEnded,
        options: SandboxOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take what it needs; nothing is watched yet.

        Args:
            on_ended: told of each sandbox that has ended, after its end was committed; at least once.
            clock: seconds since the epoch.
        """
        self.table = table
        self.backend = backend
        self.ports = ports
        self.options = options or SandboxOptions()
        self.clock = clock
        self.tasks = Tasks()
        self._on_ended = on_ended
        self._lives: dict[str, _Life] = {}
        self._by_secret: dict[str, str] = {}
        """Ids of those that are watched and have not ended, by the digest of the secret that opens them."""
        self._kept: OrderedDict[str, float] = OrderedDict()
        """Ended sandboxes whose output the backend keeps, with the time until when, in that order."""
        self._deleted: Counter[str] = Counter()
        """Sandboxes that are being killed: their end is recorded as that of a deleted one, in the same commit."""

    def __len__(self) -> int:
        return len(self._lives)

    def __contains__(self, sandbox_id: str) -> bool:
        """Whether it is watched: it runs here, or its end has yet to be recorded."""
        return sandbox_id in self._lives

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all that are watched."""
        return tuple(self._lives)

    def find(self, sandbox_id: str) -> Sandbox | None:
        """The record of a sandbox that runs here, from memory; `None` for any other."""
        life = self._lives.get(sandbox_id)
        return None if life is None else life.sandbox

    def find_by_secret(self, digest: str) -> Sandbox | None:
        """As `find`, by the digest of its secret; one that has ended is not found so."""
        sandbox_id = self._by_secret.get(digest)
        return None if sandbox_id is None else self.find(sandbox_id)

    def bound_port(self, sandbox_id: str) -> int | None:
        """The port inside that is bound, of a sandbox that runs here."""
        row = self.find(sandbox_id)
        return None if row is None else row.bound_port

    async def move(self, sandbox_id: str, to: SandboxState, /, **changes: Any) -> Sandbox | None:
        """Move a sandbox to another state, if it is in one from which that is legal; `None` if not.

        Raises:
            Unavailable: the database is away; whether it has been moved is not known.
        """
        moved = await self._change(sandbox_id, lambda: self.table.move(sandbox_id, legal_from(to), state=to, **changes))
        if moved is not None:
            log.info("sandbox.moved", sandbox_id=sandbox_id, state=to.value)
        return moved

    async def amend(self, sandbox_id: str, /, **changes: Any) -> Sandbox | None:
        """Change what is known of a sandbox that has not ended, its state left alone; `None` if it has ended."""
        unended = set(SandboxState) - {SandboxState.ENDED}
        return await self._change(sandbox_id, lambda: self.table.move(sandbox_id, unended, **changes))

    async def bind(self, sandbox_id: str, port: int) -> Sandbox | None:
        """Bind a port of a sandbox that runs, if none is bound; `None` if not.

        Raises:
            Unavailable: the database is away; whether it has been bound is not known.
        """
        return await self._change(sandbox_id, lambda: self.table.bind(sandbox_id, port))

    async def look_up(self, sandbox_id: str) -> Sandbox | None:
        """The record as the database has it, which is noted.

        Raises:
            Unavailable: the database is away.
        """
        return await self._change(sandbox_id, lambda: self.table.get(sandbox_id))

    def watch(self, sandbox: Sandbox) -> None:
        """Watch a sandbox until it has ended, and record that."""
        life = _Life(sandbox=sandbox)
        self._lives[sandbox.id] = life
        if sandbox.secret_digest is not None:
            self._by_secret[sandbox.secret_digest] = sandbox.id
        self.tasks.background(self._watch(life), name=f"watch {sandbox.id}")

    async def ended(self, sandbox_id: str, *, within_s: float) -> Sandbox | None:
        """Wait until the end of a sandbox that is watched is recorded; its record, or `None` when it is not in time."""
        life = self._lives.get(sandbox_id)
        if life is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await life.over.wait()
            return life.sandbox if life.sandbox.state is SandboxState.ENDED else None
        row = await self.table.get(sandbox_id)
        return row if row is not None and row.state is SandboxState.ENDED else None

    async def record_end(self, sandbox_id: str, facts: LiveSandbox) -> Sandbox | None:
        """Commit the end of a sandbox that the backend tells of, however long that takes; `None` if there is none."""

        def changes(sandbox: Sandbox) -> Mapping[str, object]:
            return _end_of(sandbox, facts, now=self.clock())

        return await self._record(sandbox_id, changes, leaves_output=True)

    async def record_failure(
        self, sandbox_id: str, by: EndedBy, message: str, *, outcome: Outcome | None = None
    ) -> Sandbox | None:
        """Commit that a sandbox has ended of which the backend knows nothing: it is lost, or never came to be."""

        def changes(_: Sandbox) -> Mapping[str, object]:
            return {"ended_by": by, "message": message, "outcome": outcome, "ended_at": moment(self.clock())}

        return await self._record(sandbox_id, changes, leaves_output=False)

    @contextlib.contextmanager
    def deleting(self, sandbox_id: str) -> Iterator[None]:
        """An end of the sandbox that is recorded during the block deletes it, too."""
        self._deleted[sandbox_id] += 1
        try:
            yield
        finally:
            self._deleted[sandbox_id] -= 1
            if not self._deleted[sandbox_id]:
                del self._deleted[sandbox_id]

    def forget_output(self, sandbox_id: str) -> None:
        """Note that the backend has been told to forget an ended sandbox."""
        self._kept.pop(sandbox_id, None)

    def keep_output(self, sandbox_id: str, *, since: float) -> None:
        """Note that the backend keeps the output of a sandbox that ended at *since* (seconds since the epoch)."""
        self._kept.setdefault(sandbox_id, since + self.options.retention_s)

    def keeps_output(self, sandbox_id: str) -> bool:
        """Whether `overdue` will name this sandbox in time."""
        return sandbox_id in self._kept

    def overdue(self) -> list[str]:
        """Ended sandboxes whose output is not to be kept any longer."""
        surplus = max(0, len(self._kept) - self.options.most_kept)
        now = self.clock()
        return [name for place, (name, until) in enumerate(self._kept.items()) if place < surplus or until <= now]

    async def _change(self, sandbox_id: str, work: Callable[[], Awaitable[Sandbox | None]]) -> Sandbox | None:
        """Do what changes a record, or reads it, and note what it is now."""
        life = self._lives.get(sandbox_id)
        if life is None:  # it is being made, by one task
            return await work()
        async with life.changing:
            row = await work()
            if row is not None:
                self._note(row)
            return row

    def _note(self, sandbox: Sandbox) -> None:
        life = self._lives.get(sandbox.id)
        # An end is the last that can be said, whoever hears something else of it later.
        if life is not None and life.sandbox.state is not SandboxState.ENDED:
            life.sandbox = sandbox
            if sandbox.state is SandboxState.ENDED:
                self._forget_secret(sandbox)
                life.over.set()

    def _forget_secret(self, sandbox: Sandbox) -> None:
        digest = sandbox.secret_digest
        # It may be another one's already: a secret can be given again as soon as an end is committed.
        if digest is not None and self._by_secret.get(digest) == sandbox.id:
            del self._by_secret[digest]

    def _keep(self, sandbox_id: str) -> None:
        self.keep_output(sandbox_id, since=self.clock())
        if len(self._kept) > self.options.most_kept:
            name, _ = self._kept.popitem(last=False)
            self.tasks.background(self._remove(name), name=f"remove {name}")

    async def _remove(self, sandbox_id: str) -> None:
        with contextlib.suppress(StockadeError, TimeoutError):  # the next clean-up sees to it
            async with asyncio.timeout(self.options.answer_s):
                await self.backend.remove(sandbox_id)

    async def _watch(self, life: _Life) -> None:
        sandbox_id = life.sandbox.id
        try:
            facts = await self._end_from_backend(sandbox_id)
            self.ports.close(sandbox_id)
            if facts is None:
                await self.record_failure(
                    sandbox_id, EndedBy.LOST, "the host or its warden ended", outcome=Outcome.LOST
                )
            else:
                await self.record_end(sandbox_id, facts)
        finally:
            self._lives.pop(sandbox_id, None)
            self._forget_secret(life.sandbox)
            life.over.set()

    async def _end_from_backend(self, sandbox_id: str) -> LiveSandbox | None:
        """Wait until a sandbox has ended; `None` when it is lost."""
        while True:
            try:
                # No deadline: it takes as long as the sandbox lives, and a connection that breaks says so.
                return await self.backend.ended(sandbox_id)
            except NotFound:
                return None
            except Unavailable:  # the warden died, or only our connection to it did
                if await self._found_again(sandbox_id) is None:
                    return None

    async def _found_again(self, sandbox_id: str) -> LiveSandbox | None:
        """What the backend knows of a sandbox once it answers again; `None` when that is nothing, or it does not."""
        give_up_at = time.monotonic() + self.options.lost_after_s
        pause, longest = BACK_OFF_S
        while time.monotonic() < give_up_at:
            try:
                async with asyncio.timeout(self.options.answer_s):
                    return await self.backend.inspect(sandbox_id)
            except NotFound:
                return None
            except (Unavailable, TimeoutError):
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest / 5)
        return None

    async def _record(
        self, sandbox_id: str, changes: Callable[[Sandbox], Mapping[str, object]], *, leaves_output: bool
    ) -> Sandbox | None:
        async def attempt() -> Sandbox | None:
            row = self.find(sandbox_id)
            while True:
                if row is None:
                    row = await self.table.get(sandbox_id)
                if row is None or row.state is SandboxState.ENDED:
                    return row
                # From the very state that the changes were made for: a stop may come in between.
                ended = await self.table.move(
                    sandbox_id,
                    {row.state},
                    state=SandboxState.ENDED,
                    is_deleted=sandbox_id in self._deleted,
                    **changes(row),
                )
                if ended is not None:
                    log.info(
                        "sandbox.ended",
                        sandbox_id=sandbox_id,
                        ended_by=ended.ended_by,
                        outcome=ended.outcome,
                        exit_code=ended.exit_code,
                    )
                    return ended
                row = None

        ended = await self._until_done(attempt, sandbox_id)
        if ended is not None:
            self._note(ended)  # who waits for the end need not wait for its accounting
            if leaves_output and not ended.is_deleted:
                self._keep(sandbox_id)  # only now: until it is recorded, the backend is who knows of it
            await self.tell_ended(ended)
        return ended

    async def tell_ended(self, ended: Sandbox) -> None:
        """Tell of an end that is committed, again and again until it is heard."""
        await self._until_done(lambda: self._on_ended(ended), ended.id)

    async def _until_done(self, attempt: Callable[[], Awaitable[T]], sandbox_id: str) -> T:
        """Attempt something until it succeeds: an end must not be lost, whatever the reason."""
        pause, longest = BACK_OFF_S
        told = False
        while True:
            try:
                return await attempt()
            except Exception as error:  # a mistake of ours must not lose it either: it is said, and tried again
                if not told or not isinstance(error, StockadeError):
                    told = True
                    log.warning("sandbox.end_not_recorded", sandbox_id=sandbox_id, reason=str(error) or repr(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)


def _end_of(sandbox: Sandbox, facts: LiveSandbox, *, now: float) -> dict[str, object]:
    """What the record of a sandbox says of its end."""
    by = facts.ended_by or EndedBy.ITSELF
    if sandbox.state is SandboxState.STOPPING and by not in (EndedBy.KILL, EndedBy.LOST):
        by = EndedBy.STOP  # whatever came first: who asked has been told that it was stopped
    return {
        "ended_by": by,
        "outcome": facts.outcome,
        "exit_code": facts.exit_code,
        "started_at": sandbox.started_at or moment(facts.started_at),
        "ended_at": moment(facts.ended_at if facts.ended_at is not None else now),
        "usage": facts.usage,
    }
