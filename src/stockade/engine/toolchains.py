"""Toolchains: which compiler is installed, and directories that it fills once so that no sandbox has to again.

A cache directory is made by the toolchain itself, in a sandbox, from nothing that a tenant wrote; sandboxes see it
read-only. It is made in the background when its language is first asked for; until it is there, and where it cannot be
made, the plain compile step is in force, which does the same, only slower.
"""

import asyncio
import glob
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import structlog

from stockade.backends.base import SandboxSpec
from stockade.engine.digests import digest
from stockade.engine.language_records import SANDBOX_PATH, Cache, Language, Step
from stockade.engine.languages import RECHECK_S, RunInSandbox
from stockade.engine.limits import LimitPolicy
from stockade.errors import StockadeError
from stockade.model import Bundle, LimitOverrides, OnOutputLimit, ProcessResult, ProcessSpec

__all__ = ["CacheStore", "Toolchains", "identity"]

log = structlog.get_logger()

SLACK_S = 30.0
"""Time for building a sandbox, beyond the time limit of what runs in it."""

# A compiler is more than its command: headers, archives, linker. They change when packages do, and where people copy
# things by hand. Of a directory, its own entries count.
_LANDMARKS = (
    "/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite", "/lib/apk/db/installed", "/var/lib/pacman/local",
    "/usr/include", "/usr/lib", "/usr/local/bin", "/usr/local/include", "/usr/local/lib",
)  # fmt: skip


class CacheStore(Protocol):
    """Where cache directories lie."""

    def path(self, name: str) -> str:
        """Where a sandbox sees the directory *name*, whether it is there or not."""
        ...

    def has(self, name: str) -> bool:
        """Whether the directory *name* is there, whole."""
        ...

    def use(self, name: str) -> None:
        """Note that the directory *name* is in use; what is not for long may be removed.

        Raises:
            OSError: it is gone.
        """
        ...

    def put(self, name: str, bundle: Bundle) -> None:
        """Make the directory *name* from *bundle*: wholly or not at all. Blocks.

        Raises:
            OSError: it cannot be written.
            Invalid: *bundle* holds what a cache must not.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What was found out about a language's toolchain."""

    at: float
    identity: str


class Toolchains:
    """Knows the installed compilers and keeps their caches filled."""

    def __init__(
        self,
        *,
        store: CacheStore | None,
        limits: LimitPolicy,
        run: RunInSandbox,
        work_dir: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what it needs; nothing is looked up yet.

        Args:
            store: where caches lie; `None` where there are none.
            run: `Backend.run`.
            work_dir: where programs are compiled; caches are made in a directory of the same name, which some
                compilers write down.
            clock: seconds that only grow; tells when to look again.
        """
        self._store = store
        self._limits = limits
        self._run = run
        self._work_dir = work_dir
        self._clock = clock
        self._known: dict[tuple[str, int], _Known] = {}
        self._proven: set[str] = set()
        self._given_up: set[str] = set()
        self._wanted: dict[str, Language] = {}
        self._wake = asyncio.Event()

    def identity(self, language: Language) -> str:
        """Which toolchain compiles *language*; another one after any change to it, seen within seconds."""
        now = self._clock()
        known = self._known.get((language.name, language.variant))
        if known is None or now - known.at >= RECHECK_S:
            known = _Known(at=now, identity=identity(language))
            self._known[language.name, language.variant] = known
        return known.identity

    def compile_step(self, language: Language) -> Step | None:
        """The compile step in force: with the cache when it is there, else the plain one.

        A missing cache is noted; `keep_filled` will make it.
        """
        cache = language.cache
        if cache is None or self._store is None:
            return language.compile
        name = self._name(language, cache)
        # Looked up each time: somebody may have cleared it away.
        if name in self._proven and self._store.has(name):
            return cache.compile.with_cache(self._store.path(name))
        if name not in self._given_up and name not in self._wanted:
            self._wanted[name] = language
            self._wake.set()
        return language.compile

    async def keep_filled(self) -> None:
        """Make the caches that are asked for, one at a time, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._wanted:
                name, language = next(iter(self._wanted.items()))
                try:
                    await self.fill(language)
                finally:
                    self._wanted.pop(name, None)

    async def fill(self, language: Language) -> bool:
        """Make the cache of *language* unless it is there, and see that a sandbox can use it.

        Whether it is usable now. Where it is not, that is logged, and is not tried again until the toolchain changes
        or the server is started again.
        """
        cache = language.cache
        if cache is None or self._store is None:
            return False
        name = self._name(language, cache)
        began = self._clock()
        try:
            made = not self._store.has(name)
            if made:
                await self._make(language, cache, name, self._store)
            await self._prove(language, cache, name, self._store)
            self._store.use(name)
        except (StockadeError, TimeoutError, OSError) as error:
            self._given_up.add(name)
            log.warning("toolchain.no_cache", language=language.name, cache=name, reason=str(error) or repr(error))
            return False
        self._proven.add(name)
        log.info(
            "toolchain.cached", language=language.name, cache=name, made=made, took_s=round(self._clock() - began, 3)
        )
        return True

    def _name(self, language: Language, cache: Cache) -> str:
        return f"{language.name}-{digest('stockade.cache', [self.identity(language), repr(cache)])[:16]}"

    async def _make(self, language: Language, cache: Cache, name: str, store: CacheStore) -> None:
        result = await self._in_sandbox(
            language, cache.fill.with_cache(store.path(name)), cache.files, cache.limits, collect=True
        )
        if result.bundle is None:
            raise _NoCache("filling it failed", result)
        try:
            await asyncio.to_thread(store.put, name, result.bundle)
        finally:
            result.bundle.close()

    async def _prove(self, language: Language, cache: Cache, name: str, store: CacheStore) -> None:
        """Compile the language's example with it: a warden that others started may not show the directory."""
        files = {language.main_file: language.examples["hello"].code.encode(), **language.files}
        step = cache.compile.with_cache(store.path(name))
        seen = await self._in_sandbox(
            language, Step(argv=("test", "-d", store.path(name)), env=step.env), {}, language.compile_limits
        )
        if not seen.succeeded:
            raise _NoCache(f"sandboxes do not see {store.path(name)}", seen)
        result = await self._in_sandbox(language, step, files, language.compile_limits)
        if not result.succeeded:
            raise _NoCache("the example does not compile with it", result)

    async def _in_sandbox(
        self,
        language: Language,
        step: Step,
        files: dict[str, bytes],
        wishes: LimitOverrides,
        *,
        collect: bool = False,
    ) -> ProcessResult:
        limits = self._limits.resolve(wishes, LimitOverrides())
        process = ProcessSpec(
            argv=step.command(limits),
            cwd=self._work_dir,
            env=language.environment(step, limits),
            files=files,
            collect=collect,
            on_output_limit=OnOutputLimit.DROP,
        )
        async with asyncio.timeout(limits.wall_s + SLACK_S):
            return await self._run(SandboxSpec(image=language.image, limits=limits), process)


class _NoCache(StockadeError):
    """A cache cannot be had; nothing is lost but time."""

    def __init__(self, reason: str, result: ProcessResult) -> None:
        # Nothing of a tenant's was there: what it said may be logged.
        said = result.stderr.decode(errors="replace").strip()[-500:]
        super().__init__(f"{reason}: {result.outcome.value}, status {result.exit_code}: {said or 'it said nothing'}")


def identity(language: Language) -> str:
    """Which toolchain compiles *language*, from what lies on this host.

    Of another image than `host` its name is believed: that names its content.
    """
    if language.image != "host":
        return digest("stockade.toolchain", [language.image])
    places = [*_commands(language), *_LANDMARKS]
    return digest("stockade.toolchain", [language.image, *map(_trace, places)])


def _commands(language: Language) -> Iterator[str]:
    for requirement in language.requires:
        if requirement.startswith("/"):
            yield from sorted(glob.iglob(requirement))
        else:
            yield from (f"{directory}/{requirement}" for directory in SANDBOX_PATH)


def _trace(path: str) -> str:
    """What tells a file from what was there before it."""
    try:
        real = os.path.realpath(path)
        status = os.stat(real)
    except OSError:
        return f"{path}: none"
    return f"{path}: {real} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
