"""Layers over an image, by what they are made of: files, then commands, run in a sandbox of their own.

A build is known by a digest over all that goes into it. The same build is made once, also when a hundred ask for it at
the same moment, and by the server itself, not by the one who asked first: that one may go away. What is in the
directory under its final name is whole: it is written under another name, synced and renamed.

    <digest>.layer   what the build left; its time of modification is when it was used last
    <digest>.log     what its commands printed, the end of it; also of one that failed
"""

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from stockade.backends.sandboxing import LiveSpec, Sandboxing
from stockade.engine.build_steps import BuildFailed, BuildLog, Steps, checked_build, layer_digest
from stockade.engine.images import Image, Images
from stockade.engine.lives import moment
from stockade.engine.sandbox_needs import BuildTable
from stockade.engine.tasks import Tasks
from stockade.errors import Fault, LimitExceeded, StockadeError, Unavailable
from stockade.model import BuildSpec, Limits, Network, NetworkMode
from stockade.model.accounts import ImageBuild

__all__ = ["BuildFailed", "BuildOptions", "Builds"]

log = structlog.get_logger()

SLACK_S = 30.0
"""Time for making a build's sandbox and for packing what it left, beyond the build's own limit."""
_TABLE_S = 10.0
_LAYER, _LOG, _DRAFT = ".layer", ".log", ".draft"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How images are built, and how long what was built is kept."""

    limits: Limits
    """Of a build's sandbox; `wall_s` is the time for the whole build."""
    network: NetworkMode = NetworkMode.OUTGOING
    most_at_once: int = 2
    layer_bytes: int = 2 << 30
    """Largest layer."""
    most_bytes: int = 20 << 30
    """All layers together; those used least recently go first."""
    unused_s: float = 7 * 86400.0
    """A layer that nobody used for so long is removed."""
    is_shared: bool = False
    """Accounts share layers. By the time that an answer takes, one can then tell whether another has built the same."""


@dataclass(kw_only=True)
class _Flight:
    """A build under way, and how many wait for it."""

    task: asyncio.Task[None]
    waiting: int = 0


@dataclass(kw_only=True)
class Builds:
    """Makes layers and keeps them in a directory that one server uses."""

    backend: Sandboxing
    images: Images
    table: BuildTable
    directory: Path
    options: BuildOptions
    tasks: Tasks
    """Whose the builds are."""
    clock: Callable[[], float] = time.time
    made: int = 0
    """Builds that succeeded."""
    failed: int = 0
    hits: int = 0
    """Layers that were there when they were asked for."""
    _flights: dict[str, _Flight] = field(default_factory=dict)
    _used: Counter[str] = field(default_factory=Counter)
    """Layers that somebody is about to open, by digest: they must not be removed."""
    _sandboxes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.options.most_at_once)

    def __contains__(self, sandbox_id: str) -> bool:
        """Whether a build runs in the sandbox of this name now."""
        return sandbox_id in self._sandboxes

    def prepare(self) -> None:
        """Make the directory where it is missing, and clear away what a server before left half-done.

        Raises:
            Unavailable: it cannot be made or written to.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self.directory.glob(f".*{_DRAFT}*"):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"the directory of images {self.directory}: {error.strerror}") from error

    @contextlib.asynccontextmanager
    async def layer(
        self, image: Image, spec: BuildSpec, *, account_id: str, base: str, backend: str = ""
    ) -> AsyncIterator[Path | None]:
        """The layer that *spec* makes of *image*, built where it is missing; it stays there until the block ends.

        `None` where nothing is to be built. When the caller is cancelled, the build goes on as long as somebody else
        waits for it.

        Args:
            account_id: whose it is, where accounts do not share layers.
            base: directory that relative paths of files begin from.
            backend: where the build runs, if it has to; a layer is the same wherever it was built.

        Raises:
            Invalid: *spec* cannot be built.
            BuildFailed: its commands or files failed; `log` has the end of what was printed. The next one who asks
                tries again.
            Unavailable: the backend is away, or the disk is full.
            Fault: the layer cannot be written.
        """
        if spec.is_empty:
            yield None
            return
        spec = checked_build(spec, base=base)
        digest = layer_digest(
            self.images.digest(image), spec, scope="" if self.options.is_shared else f"account {account_id}"
        )
        path = self._path(digest, _LAYER)
        self._used[digest] += 1
        try:
            if self._use(path):
                self.hits += 1
                self._note(self.table.touch(digest), digest)
            else:
                await self._built(digest, image, spec, backend)
            yield path
        finally:
            self._used[digest] -= 1
            if not self._used[digest]:
                del self._used[digest]

    async def collect(self) -> int:
        """Remove layers that nobody has used for long, then, while they fill too much, those used least recently.

        How many.
        """
        candidates = await asyncio.to_thread(self._unused)
        removed = [digest for digest in candidates if self._set_aside(digest)]
        await asyncio.to_thread(self._clear, removed)
        for digest in removed:
            log.info("build.removed", digest=digest)
            with contextlib.suppress(StockadeError, TimeoutError):  # a record without a layer does no harm
                async with asyncio.timeout(_TABLE_S):
                    await self.table.forget(digest)
        return len(removed)

    def _path(self, digest: str, suffix: str) -> Path:
        return self.directory / f"{digest}{suffix}"

    def _use(self, path: Path) -> bool:
        """Whether the layer is there; if so, that it is used now is noted."""
        try:
            os.utime(path, (self.clock(), self.clock()))
        except OSError:
            return False
        return True

    def _note(self, work: Coroutine[Any, Any, object], digest: str) -> None:
        """Tell the table something, in the background: no request fails because it cannot be told."""

        async def tell() -> None:
            try:
                async with asyncio.timeout(_TABLE_S):
                    await work
            except (StockadeError, TimeoutError) as error:
                log.warning("build.not_recorded", digest=digest, reason=str(error) or repr(error))

        self.tasks.background(tell(), name=f"record build {digest[:12]}")

    async def _built(self, digest: str, image: Image, spec: BuildSpec, backend: str) -> None:
        """Build, or wait for the same build that is under way."""
        flight = self._flights.get(digest)
        if flight is None:
            task = self.tasks.start(self._build(digest, image, spec, backend), name=f"build {digest[:12]}")
            flight = self._flights[digest] = _Flight(task=task)
            task.add_done_callback(lambda _: self._landed(digest, flight))
        flight.waiting += 1
        try:
            await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                flight.task.cancel()
                self._landed(digest, flight)  # who comes now begins anew

    def _landed(self, digest: str, flight: _Flight) -> None:
        if self._flights.get(digest) is flight:
            del self._flights[digest]

    async def _build(self, digest: str, image: Image, spec: BuildSpec, backend: str) -> None:
        build_log = BuildLog()
        began = time.monotonic()
        outcome = "failed"
        async with self._places:
            try:
                size = await self._in_sandbox(digest, image, spec, build_log, backend)
                outcome = "made"
            finally:
                took_s = round(time.monotonic() - began, 3)
                self.made += outcome == "made"
                self.failed += outcome != "made"
                log.info(f"build.{outcome}", digest=digest, image=image.title, took_s=took_s)
                await asyncio.to_thread(self._write_log, digest, build_log.content)
        now = moment(self.clock())
        build = ImageBuild(
            digest=digest,
            base_image=image.title,
            size_bytes=size,
            duration_s=took_s,
            created_at=now,
            last_used_at=now,
        )
        self._note(self.table.record(build), digest)

    async def _in_sandbox(self, digest: str, image: Image, spec: BuildSpec, build_log: BuildLog, backend: str) -> int:
        options = self.options
        name = f"build-{digest[:12]}-{secrets.token_hex(8)}"
        live = LiveSpec(
            image=image.name,
            layers=image.layers,
            limits=options.limits,
            cwd=image.cwd,
            lifetime_s=options.limits.wall_s,
            network=Network(mode=options.network),
            backend=backend,
        )
        steps = Steps(self.backend, name, image, build_log)
        self._sandboxes.add(name)
        try:
            async with asyncio.timeout(options.limits.wall_s + SLACK_S):
                await self.tasks.settle(self.backend.create(name, live), name=f"start {name}")
                await steps.carry_out(spec)
                if spec.setup:
                    await steps.still()
                return await self._save(digest, name, build_log)
        except TimeoutError:
            raise BuildFailed("the build ran out of time", build_log.tail) from None
        finally:
            await self._remove(name)

    async def _remove(self, name: str) -> None:
        async def remove() -> None:
            try:
                async with asyncio.timeout(_TABLE_S):
                    await self.backend.remove(name)
            except (StockadeError, TimeoutError) as error:  # the next clean-up finds it
                log.warning("build.sandbox_left", sandbox_id=name, reason=str(error) or repr(error))
            finally:
                self._sandboxes.discard(name)

        await self.tasks.settle(remove(), name=f"remove {name}")

    async def _save(self, digest: str, name: str, build_log: BuildLog) -> int:
        """Have the layer written under another name, and rename it once it is whole and on the disk."""
        draft = self.directory / f".{digest}.{secrets.token_hex(4)}{_DRAFT}"
        try:
            with await asyncio.to_thread(open, draft, "xb", buffering=0) as file:
                os.fchmod(file.fileno(), 0o600)
                files = await self.backend.files(name, user="root")
                try:
                    await files.save_layer(file.fileno(), most_bytes=self.options.layer_bytes)
                except LimitExceeded as error:
                    if _free_bytes(self.directory) < self.options.layer_bytes:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                    raise BuildFailed(
                        f"the build left more than {self.options.layer_bytes} bytes", build_log.tail
                    ) from error
                finally:
                    files.close()
                size = os.fstat(file.fileno()).st_size
                if size > self.options.layer_bytes:
                    raise BuildFailed(f"the build left more than {self.options.layer_bytes} bytes", build_log.tail)
                await asyncio.to_thread(os.fsync, file.fileno())
            draft.rename(self._path(digest, _LAYER))
            await asyncio.to_thread(_sync, self.directory)
            return size
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise Unavailable("the server's disk is too full to keep the image that was built") from error
            raise Fault(f"the image that was built cannot be kept: {error.strerror}") from error
        finally:
            draft.unlink(missing_ok=True)

    def _write_log(self, digest: str, content: bytes) -> None:
        draft = self.directory / f".{digest}.{secrets.token_hex(4)}{_DRAFT}"
        try:
            draft.write_bytes(content)
            draft.rename(self._path(digest, _LOG))
        except OSError as error:
            log.warning("build.log_not_kept", digest=digest, reason=error.strerror)
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def _unused(self) -> list[str]:
        """Layers that may go, by digest."""
        old = self.clock() - self.options.unused_s
        layers = sorted(self._files(_LAYER), key=lambda found: found[1].st_mtime)
        total = sum(status.st_size for _, status in layers)
        found = []
        for path, status in layers:
            if status.st_mtime < old or total > self.options.most_bytes:
                total -= status.st_size
                found.append(path.name.removesuffix(_LAYER))
        return found

    def _set_aside(self, digest: str) -> bool:
        """Take a layer away from those that can be used, unless somebody is about to. In the loop: nothing comes
        between looking and acting, and a rename is quick.
        """
        if digest in self._used or digest in self._flights:
            return False
        try:
            self._path(digest, _LAYER).rename(self.directory / f".{digest}{_DRAFT}.old")
        except OSError:
            return False
        return True

    def _clear(self, removed: Iterable[str]) -> None:
        """Remove what was set aside, its logs, and logs of builds that failed once they are old."""
        for digest in removed:
            self._path(digest, _LOG).unlink(missing_ok=True)
        old = self.clock() - self.options.unused_s
        for path in self.directory.glob(f".*{_DRAFT}.old"):
            with contextlib.suppress(OSError):
                path.unlink()
        for path, status in self._files(_LOG):
            if status.st_mtime < old and not path.with_suffix(_LAYER).exists():
                with contextlib.suppress(OSError):
                    path.unlink()

    def _files(self, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.directory.glob(f"[0-9a-f]*{suffix}"):
            with contextlib.suppress(OSError):
                yield path, path.stat()


def _free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _sync(directory: Path) -> None:
    """Make a rename in *directory* outlast a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
