"""Engines of this process: one for each data directory, started when it is first used, ended with the process."""

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from stockade.app import lock
from stockade.app.engine import build_engine, prepare_data_dir
from stockade.app.records import STATE, open_records, prepare_records, with_sandboxes
from stockade.config import Config, load
from stockade.embedded.local import LocalPlace
from stockade.engine.tasks import Tasks
from stockade.errors import Conflict, Unsupported
from stockade.store.identity import server_id

__all__ = ["Engines"]

_PREFIX = "stockade-library-"
_LIFE_S = 366 * 86400.0
"""Longest time that a sandbox may run: it ends with the process anyway."""
_HEARD = ("SANDBOX", "DISKS", "BOXES", "IMAGES", "REGISTRIES", "NETWORK", "PORTS")
"""Sections of settings that count here, from the environment; those of a server do not."""
_NOT_HEARD = ("STOCKADE_SANDBOX_WARDEN_SOCKET", "STOCKADE_SANDBOX_MAXIMUM_")


class Engines:
    """All engines of the process. Everything is called in one event loop."""

    def __init__(self) -> None:
        self._places: dict[Path | None, asyncio.Future[LocalPlace]] = {}
        self._running: dict[Path | None, asyncio.Task[None]] = {}
        self._ending = asyncio.Event()

    async def place(self, data_dir: Path | None) -> LocalPlace:
        """The boxes of a data directory; without one, those that end with the process.

        Raises:
            Conflict: another process, or a server, uses the data directory.
            CannotEnforce: the host lacks a protection; the text says what to do about it.
            Unsupported, Unavailable, Invalid, Fault: the engine cannot be started.
        """
        key = None if data_dir is None else data_dir.absolute()
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = asyncio.get_running_loop().create_future()
            self._running[key] = asyncio.create_task(self._run(key, found), name=f"engine of {key}")
        return await asyncio.shield(found)

    async def close(self) -> None:
        """End all of them, and what runs in them."""
        self._ending.set()
        if self._running:
            await asyncio.wait(self._running.values())

    async def _run(self, key: Path | None, ready: "asyncio.Future[LocalPlace]") -> None:
        try:
            with _directory(key) as directory:
                async with _engine(directory, is_passing=key is None) as place:
                    ready.set_result(place)
                    await self._ending.wait()
        except BaseException as error:
            if not ready.done():
                del self._places[key], self._running[key]  # who asks again may have better luck
                ready.set_exception(error)
                ready.exception()  # it is told to whoever still waits
            if not isinstance(error, Exception):
                raise


@contextlib.contextmanager
def _directory(kept: Path | None) -> Iterator[Path]:
    """*kept* itself, or a directory that goes at the end of the block."""
    if kept is not None:
        yield kept
        return
    _clear()
    made = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _clear() -> None:
    """Remove what processes that were killed have left: nobody holds the lock of it."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            file = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(file)


def _config(directory: Path, environ: Mapping[str, str]) -> Config:
    """The defaults, with what the environment says of sandboxes; no file is read. All of the host may be used."""
    heard = {
        name: value
        for name, value in environ.items()
        if name.startswith(tuple(f"STOCKADE_{one}_" for one in _HEARD)) and not name.startswith(_NOT_HEARD)
    }
    config = load(file=Path(os.devnull), environ=heard, options={"data_dir": str(directory)})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    maximum = replace(config.sandbox.maximum, memory_bytes=max(memory, config.sandbox.maximum.memory_bytes))
    return replace(
        config,
        sandbox=replace(config.sandbox, maximum=maximum),
        live=replace(config.live, most_lifetime_s=_LIFE_S),
    )


@contextlib.asynccontextmanager
async def _engine(directory: Path, *, is_passing: bool) -> AsyncIterator[LocalPlace]:
    """An engine with boxes, and a warden of this process's own, during the block."""
    _quieten()
    config = _config(directory, os.environ)
    prepare_data_dir(config.data_dir)
    async with contextlib.AsyncExitStack() as stack:
        try:
            stack.enter_context(lock.exclusive(config.data_dir))
        except Conflict as error:
            raise Conflict(f"{error} (data_dir=…)") from None
        instance = server_id(config.data_dir / STATE)
        # The database is made while the warden starts.
        preparing = asyncio.create_task(prepare_records(config, with_key=False))
        stack.push_async_callback(_settle, preparing)
        runs = await stack.enter_async_context(build_engine(config, embedded=True, instance=instance))
        await preparing
        records = await stack.enter_async_context(open_records(config))
        engine = await stack.enter_async_context(with_sandboxes(config, runs, records))
        if engine.boxes is None or engine.sandboxes is None:
            raise Unsupported(
                "this host has no disks for sandboxes, which the library needs: `stockade doctor` says why, and "
                "STOCKADE_DISKS_KIND=none must not be set"
            )
        stack.push_async_callback(engine.sandboxes.end_all)
        tasks = Tasks()
        await stack.enter_async_context(tasks.running())
        late = await stack.enter_async_context(contextlib.AsyncExitStack())
        yield LocalPlace(engine, tasks, late, is_passing=is_passing)


async def _settle(preparing: "asyncio.Task[str | None]") -> None:
    preparing.cancel()
    await asyncio.wait([preparing])


class _Loggers(structlog.stdlib.LoggerFactory):
    """Our events go to `logging`, as a library's do; those of the program's own loggers to where they went."""

    def __call__(self, *args: object) -> logging.Logger:
        found = super().__call__(*args)
        is_ours = found.name.partition(".")[0] == "stockade"
        return found if is_ours else structlog.PrintLogger()  # type: ignore[return-value]  # it has the same methods


def _quieten() -> None:
    """Print nothing by ourselves. A program that has set structlog up has said what it wants."""
    logging.getLogger("stockade").addHandler(logging.NullHandler())
    if not structlog.is_configured():
        structlog.configure(logger_factory=_Loggers())
