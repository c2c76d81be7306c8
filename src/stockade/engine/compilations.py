"""The compile cache: what a compile step left, kept for the next time that the same is asked.

A compile step counts as a function of its inputs: `compilation_key` says which those are. Only what the compiler
itself decided is kept, success or refusal; a compilation that ran out of a limit or was lost is never.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace

from stockade.backends.base import SandboxSpec
from stockade.engine.digests import digest
from stockade.engine.language_records import Language
from stockade.model import Actor, Bundle, Outcome, ProcessResult, ProcessSpec

__all__ = ["Compilations", "Compiled", "compilation_key"]

ENTRY_BYTES = 1024
"""What an entry costs beside its content, in bytes."""

_SHARE = 4  # no entry may fill more than this part of the cache: it would push all others out

Compile = Callable[[], Awaitable[tuple[ProcessResult, float]]]
"""Compiles; the result with its bundle, and the seconds spent waiting for a place."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compilation, as the one who asked for it sees it."""

    result: ProcessResult
    """As the compiler left it, without its bundle."""
    bundle: Bundle | None
    """What it left in the working directory; stays open until the block ends that this came from."""
    cached: bool
    """Nothing was compiled for this."""
    queued_s: float
    """Seconds spent waiting for a place."""


@dataclass(kw_only=True)
class _Entry:
    """A finished compilation: in the cache, in use, or both. Its bundle is closed when it is neither."""

    result: ProcessResult
    bundle: Bundle | None
    size: int
    users: int = 0
    kept: bool = False

    def close_if_idle(self) -> None:
        if not self.users and not self.kept and self.bundle is not None:
            self.bundle.close()


@dataclass(kw_only=True)
class _Flight:
    """A compilation under way, and those who wait for it."""

    landed: asyncio.Event = field(default_factory=asyncio.Event)
    entry: _Entry | None = None
    """What came of it, when others may have it too."""
    cancelled: bool = False
    """Whoever led it went away: one of those who wait compiles in its place."""


def compilation_key(
    language: Language, toolchain: str, sandbox: SandboxSpec, process: ProcessSpec, actor: Actor | None
) -> str:
    """A name for everything that a compilation depends on.

    Args:
        toolchain: identity of the installed compiler, see `engine.toolchains`.
        process: the whole compile step: command, environment, files.
        actor: whom the result is for; `None` where results are for everybody.
    """
    members: list[str | bytes] = ["all" if actor is None else "one", "" if actor is None else actor.id]
    members += [language.name, str(language.variant), repr(language.compile), toolchain]
    members += [sandbox.image, sandbox.network, sandbox.backend]
    members += [f"{f.name}={getattr(sandbox.limits, f.name)!r}" for f in fields(sandbox.limits)]
    members += [process.cwd, process.on_output_limit, process.stdin]
    # A count before each list: else a word could pass for the first variable of the environment.
    members += [str(len(process.argv)), *process.argv]
    members += [str(len(process.env)), *(word for pair in sorted(process.env.items()) for word in pair)]
    members += [str(len(process.files)), *(word for pair in sorted(process.files.items()) for word in pair)]
    return digest("stockade.compilation", members)


class Compilations:
    """Keeps the compilations used last, bounded by bytes and by number; equal ones at once compile once.

    Made for one event loop: nothing here waits between looking and acting.
    """

    def __init__(self, *, most_bytes: int, most_entries: int, shared: bool = False) -> None:
        """Start empty.

        Args:
            most_bytes: bound on what is kept, in bytes of memory; 0 keeps nothing.
            most_entries: bound on how many are kept: each holds a descriptor.
            shared: whether all actors share results; else each sees only its own.
        """
        self.most_bytes = most_bytes
        self.most_entries = most_entries
        self.shared = shared
        self.bytes = 0
        """Bytes kept now."""
        self.hits = 0
        """Compilations that were spared."""
        self.misses = 0
        """Compilations that were looked for and had to be made."""
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._flights: dict[str, _Flight] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def enabled(self) -> bool:
        return self.most_bytes > 0 and self.most_entries > 0

    @asynccontextmanager
    async def compiled(self, key: str | None, compile: Compile) -> AsyncIterator[Compiled]:
        """The compilation *key*, from the cache or by *compile*; its bundle stays open until the block ends.

        While one compiles, others with the same key wait for it. When it is cancelled, the next goes on. When it fails
        or runs out of a limit, all who wait go on at once, each for itself: one after the other they might wait for
        as many time limits.

        Args:
            key: `None` for a compilation that is not to be kept.

        Raises:
            Whatever *compile* raises.
        """
        entry, cached, queued_s = await self._find_or_make(key if self.enabled else None, compile)
        # No await between taking it from the cache and here: it cannot have been closed.
        entry.users += 1
        try:
            yield Compiled(result=entry.result, bundle=entry.bundle, cached=cached, queued_s=queued_s)
        finally:
            entry.users -= 1
            entry.close_if_idle()

    def close(self) -> None:
        """Keep nothing any more; bundles in use stay open until their use ends."""
        self.most_bytes = 0
        while self._entries:
            self._evict()

    async def _find_or_make(self, key: str | None, compile: Compile) -> tuple[_Entry, bool, float]:
        """The entry, whether it was there, and the seconds spent waiting for a place."""
        while key is not None:
            if (entry := self._entries.get(key)) is not None:
                self._entries.move_to_end(key)
                self.hits += 1
                return entry, True, 0.0
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, compile)
            await flight.landed.wait()
            if flight.entry is not None and (flight.entry.kept or flight.entry.users):
                self.hits += 1
                return flight.entry, True, 0.0
            if not flight.cancelled:
                break
        return await self._make(key, compile)

    async def _lead(self, key: str, compile: Compile) -> tuple[_Entry, bool, float]:
        """Compile while others wait."""
        flight = self._flights[key] = _Flight()
        try:
            made = await self._make(key, compile)
            if _decided_by_the_compiler(made[0].result):
                flight.entry = made[0]
            return made
        except asyncio.CancelledError:
            flight.cancelled = True
            raise
        finally:
            del self._flights[key]
            flight.landed.set()

    async def _make(self, key: str | None, compile: Compile) -> tuple[_Entry, bool, float]:
        if key is not None:
            self.misses += 1
        result, queued_s = await compile()
        bundle = result.bundle
        size = ENTRY_BYTES + len(result.stdout) + len(result.stderr) + (0 if bundle is None else bundle.size)
        entry = _Entry(result=replace(result, bundle=None), bundle=bundle, size=size)
        # A success without files has nothing to run next time.
        if key is not None and _decided_by_the_compiler(result) and (bundle is not None or not result.succeeded):
            self._keep(key, entry)
        return entry, False, queued_s

    def _keep(self, key: str, entry: _Entry) -> None:
        if key in self._entries or entry.size > self.most_bytes // _SHARE:
            return
        entry.kept = True
        self._entries[key] = entry
        self.bytes += entry.size
        while self.bytes > self.most_bytes or len(self._entries) > self.most_entries:
            self._evict()

    def _evict(self) -> None:
        _, entry = self._entries.popitem(last=False)
        self.bytes -= entry.size
        entry.kept = False
        entry.close_if_idle()


def _decided_by_the_compiler(result: ProcessResult) -> bool:
    """Whether the same inputs would give the same again: no limit, signal or loss had a hand in it."""
    return result.outcome is Outcome.EXITED
