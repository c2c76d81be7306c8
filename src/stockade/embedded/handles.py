"""What can be done with a sandbox, wherever it is: made of what its place can do. All in the library's event loop.

`Sandbox` and `AsyncSandbox` are this for programs without an event loop, and for those with one.
"""

import asyncio
import contextlib
import secrets
import signal
import socket
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from stockade.embedded.place import Link, Place
from stockade.embedded.records import BoxInfo, BoxSpec, Chunk, Command, Result, SnapshotInfo
from stockade.embedded.requests import MOST_OUTPUT_BYTES
from stockade.errors import Conflict, Invalid, NoAnswer, NotFound, StockadeError, Unavailable
from stockade.model import FileInfo, Outcome
from stockade.sdk import archives
from stockade.sdk.errors import UnsafeArchive

if TYPE_CHECKING:
    from stockade.embedded.languages import Stage

__all__ = ["Handle", "Running"]

_KILLED = 137
_DIAL_AGAIN_S = 0.02


class Handle:
    """A box, and whether it is removed with whoever has made it."""

    def __init__(self, place: Place, info: BoxInfo, *, keep: bool, timeout_s: float | None) -> None:
        self.place = place
        self.info = info
        self.keep = keep
        self.timeout_s = timeout_s
        self.is_gone = False

    @classmethod
    async def make(cls, place: Place, spec: BoxSpec, *, keep: bool, timeout_s: float | None) -> "Handle":
        """Make a box and start it; all or nothing."""
        handle = cls(place, await place.create(spec), keep=keep, timeout_s=timeout_s)
        try:
            handle.info = await place.start(handle.id)
        except BaseException:
            handle.keep = False
            await asyncio.shield(handle.leave())
            raise
        return handle

    def beside(self, info: BoxInfo, *, keep: bool) -> "Handle":
        """Another box of the same place."""
        return Handle(self.place, info, keep=keep, timeout_s=self.timeout_s)

    @property
    def id(self) -> str:
        return self.info.id

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def refresh(self) -> BoxInfo:
        self.info = await self.place.info(self.id)
        return self.info

    async def start(self) -> None:
        self.info = await self.place.start(self.id)

    async def stop(self, grace_s: float | None) -> None:
        self.info = await self.place.stop(self.id, grace_s=grace_s)

    async def pause(self) -> None:
        self.info = await self.place.pause(self.id)

    async def resume(self) -> None:
        self.info = await self.place.resume(self.id)

    async def remove(self) -> None:
        """Also where it is gone already."""
        if not self.is_gone:
            self.is_gone = True
            with contextlib.suppress(NotFound):
                await self.place.remove(self.id)

    async def leave(self) -> None:
        """Stop it, if it is to be kept; else remove it."""
        if not self.keep:
            await self.remove()
        elif not self.is_gone:
            with contextlib.suppress(NotFound):
                await self.stop(None)

    async def abandon(self) -> None:
        """Nobody refers to it any more, and so nobody could be told: remove it, unless it is to be kept."""
        if not self.keep:
            with contextlib.suppress(StockadeError, TimeoutError):
                await self.remove()

    # ── programs ────────────────────────────────────────────────────────────────────────────────────────────────

    async def exec(self, command: Command, stdin: bytes | None) -> "Running":
        """Start a process, and with *stdin* write that to it and end its input."""
        return Running(await self.place.exec(self.id, command), stdin)

    async def run(
        self,
        code: str,
        language: str,
        args: Sequence[str],
        *,
        stdin: bytes,
        env: Mapping[str, str],
        timeout_s: float | None,
        most_bytes: int,
    ) -> Result:
        """Run a text of a language to its end."""
        from stockade.embedded.languages import program  # with it come all parts of the engine

        known = self.place.languages(self.info.image).find(language)
        plan = program(known, code, args, self.info)
        if plan.directory is not None:
            await self.place.make_directory(self.id, plan.directory)
        try:
            for path, content in plan.files.items():
                await self.place.write_file(self.id, path, content, mode=0o644)
            if plan.compile is not None:
                compiled = await self._stage(plan.compile, "compile", b"", env, timeout_s, most_bytes)
                if not (compiled.exit_code == 0 and compiled.outcome is Outcome.EXITED):
                    return compiled
            return await self._stage(plan.run, "run", stdin, env, timeout_s, most_bytes)
        finally:
            left = (plan.directory,) if plan.directory is not None else tuple(plan.files)
            for path in left:
                with contextlib.suppress(StockadeError):  # the program may have removed it, or its box
                    await self.place.remove_file(self.id, path, recursive=plan.directory is not None)

    async def _stage(
        self,
        stage: "Stage",
        step: Literal["compile", "run"],
        stdin: bytes,
        env: Mapping[str, str],
        timeout_s: float | None,
        most_bytes: int,
    ) -> Result:
        command = Command(
            argv=stage.argv,
            env={**stage.env, **env},
            cwd=stage.cwd,
            has_input=bool(stdin),
            timeout_s=timeout_s,
        )
        link = await self.place.exec(self.id, command)
        feeding = asyncio.create_task(_feed(link, stdin)) if stdin else None
        try:
            return await collect(link, most_bytes=most_bytes, step=step)
        finally:
            if feeding is not None:
                feeding.cancel()
                await asyncio.wait([feeding])

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, path: str) -> bytes:
        return await self.place.read_file(self.id, path)

    async def write(self, path: str, content: bytes, mode: int) -> None:
        await self.place.write_file(self.id, path, content, mode=mode)

    async def entries(self, path: str) -> tuple[FileInfo, ...]:
        return tuple(await self.place.entries(self.id, path))

    async def stat(self, path: str) -> FileInfo:
        return await self.place.stat(self.id, path)

    async def exists(self, path: str) -> bool:
        try:
            await self.stat(path)
        except NotFound:
            return False
        return True

    async def make_directory(self, path: str) -> None:
        await self.place.make_directory(self.id, path)

    async def remove_file(self, path: str, *, recursive: bool) -> None:
        await self.place.remove_file(self.id, path, recursive=recursive)

    async def upload(self, local: Path, path: str) -> None:
        """A file to be *path*, or a directory whose content goes there."""
        try:
            is_directory = local.stat().st_mode & 0o170000 == 0o040000
            packed = _led(archives.pack(local)) if is_directory else archives.pack(local)
            await self.place.copy_in(self.id, path, _stepped(packed), is_directory=None if is_directory else False)
        except OSError as error:
            raise Invalid(f"{local}: {error.strerror}") from error

    async def download(self, path: str, local: Path) -> tuple[str, ...]:
        """Put a file, or what is in a directory, at *local*; what had to be left out."""
        async with self.place.copy_out(self.id, path) as (is_directory, content):
            parts = _pulled(content, asyncio.get_running_loop())
            try:
                if is_directory:
                    return tuple(await asyncio.to_thread(archives.unpack, parts, local))
                return tuple(await asyncio.to_thread(_unpack_file, parts, local))
            except UnsafeArchive as error:
                raise Invalid(f"{path}: {error}") from error
            except OSError as error:
                raise Invalid(f"{local}: {error.strerror}") from error

    # ── ports ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def port(self, number: int, wait_s: float) -> str:
        """The URL of a way to a port, on which something listens within *wait_s*."""
        if not 1 <= number <= 65535:
            raise Invalid(f"port: must be 1 to 65535 (got {number})")
        if wait_s > 0:
            (await self.dial(number, wait_s)).close()
        return await self.place.tunnel(self.id, number)

    async def dial(self, number: int, wait_s: float) -> socket.socket:
        """A connection to a port; tried again until *wait_s* are over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            try:
                return await self.place.dial(self.id, number)
            except Unavailable:
                if loop.time() >= deadline:
                    raise
            await asyncio.sleep(_DIAL_AGAIN_S)

    # ── snapshots and copies ────────────────────────────────────────────────────────────────────────────────────

    async def snapshot(self, name: str | None) -> SnapshotInfo:
        return await self.place.snapshot(self.id, name or f"snapshot-{secrets.token_hex(4)}")

    async def snapshots(self) -> tuple[SnapshotInfo, ...]:
        return tuple(await self.place.snapshots(self.id))

    async def remove_snapshot(self, name: str) -> None:
        await self.place.remove_snapshot(self.id, name)

    async def restore(self, name: str) -> None:
        """Stops it, puts the disk back, starts it again where it ran."""
        was_running = (await self.refresh()).state.value in ("running", "paused")
        if was_running:
            await self.stop(0.0)
        await self.place.restore(self.id, name)
        if was_running:
            await self.start()

    async def clone(self, name: str | None, snapshot: str | None) -> "Handle":
        made = self.beside(await self.place.clone(self.id, name=name, snapshot=snapshot), keep=name is not None)
        try:
            await made.start()
        except BaseException:
            made.keep = False
            await asyncio.shield(made.abandon())
            raise
        return made

    async def fork(self, count: int, snapshot: str | None) -> "tuple[Handle, ...]":
        made = await self.place.fork(self.id, count, snapshot=snapshot)
        return tuple(self.beside(one, keep=False) for one in made)

    async def export(self, target: Path) -> None:
        """Write the box to a file, which is there once it is whole."""
        try:
            with _replacing(target) as file:
                async with contextlib.aclosing(self.place.export(self.id)) as content:
                    async for part in content:
                        await asyncio.to_thread(file.write, part)
        except OSError as error:
            raise Invalid(f"{target}: {error.strerror}") from error

    @classmethod
    async def import_(cls, place: Place, source: Path, *, name: str | None, timeout_s: float | None) -> "Handle":
        """A box of a file that `export` wrote."""
        try:
            with source.open("rb") as file:
                info = await place.import_(_stepped(iter(lambda: file.read(1 << 20), b"")), name=name)
        except OSError as error:
            raise Invalid(f"{source}: {error.strerror}") from error
        handle = cls(place, info, keep=name is not None, timeout_s=timeout_s)
        await handle.start()
        return handle


async def collect(
    link: Link,
    read: Sequence[Chunk] = (),
    *,
    most_bytes: int = MOST_OUTPUT_BYTES,
    step: Literal["compile", "run"] = "run",
    began: float | None = None,
) -> Result:
    """Read all of a process's output, behind what was *read* already, and let go of it."""
    began = time.monotonic() if began is None else began
    kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    left, is_truncated = most_bytes, False
    try:
        chunks = read or await link.read()
        while chunks and not is_truncated:
            for chunk in chunks:
                kept[chunk.stream].append(chunk.data[:left])
                is_truncated = is_truncated or len(chunk.data) > left
                left -= min(left, len(chunk.data))
            chunks = await link.read() if not is_truncated else ()
        end = link.end
    finally:
        await link.close()
    return Result(
        exit_code=_KILLED if end is None else end.exit_code,
        outcome=Outcome.OUTPUT if end is None else end.outcome,
        stdout_bytes=b"".join(kept["stdout"]),
        stderr_bytes=b"".join(kept["stderr"]),
        wall_s=time.monotonic() - began,
        step=step,
        is_truncated=is_truncated,
    )


class Running:
    """A process, read chunk by chunk or as a whole."""

    def __init__(self, link: Link, stdin: bytes | None) -> None:
        self.link = link
        self._waiting: deque[Chunk] = deque()
        self._began = time.monotonic()
        self._feeding = None if stdin is None else asyncio.create_task(_feed(link, stdin))

    async def read(self, timeout_s: float | None) -> Chunk | None:
        """The next output, `None` at its end. Raises NoAnswer: none came in time; it may be asked for again."""
        try:
            async with asyncio.timeout(timeout_s):
                if not self._waiting:
                    self._waiting.extend(await self.link.read())
        except TimeoutError:
            raise NoAnswer(f"the process printed nothing within {timeout_s:g} s") from None
        return self._waiting.popleft() if self._waiting else None

    async def wait(self, timeout_s: float | None) -> int:
        """Read and drop what is left of its output; its exit code. Raises NoAnswer: it has not ended in time."""
        try:
            async with asyncio.timeout(timeout_s):
                self._waiting.clear()
                while await self.link.read():
                    pass
        except TimeoutError:
            raise NoAnswer(f"the process did not end within {timeout_s:g} s") from None
        if self.link.end is None:
            raise Conflict("the process was let go of before its end")
        return self.link.end.exit_code

    async def collect(self, most_bytes: int, timeout_s: float | None) -> Result:
        """All of its output that has not been read yet, and how it ended; killed after *timeout_s*."""
        waiting, self._waiting = list(self._waiting), deque()
        killing = None if timeout_s is None else asyncio.create_task(self._kill_after(timeout_s))
        try:
            found = await collect(self.link, waiting, most_bytes=most_bytes, began=self._began)
        finally:
            if killing is not None:
                is_late = killing.done()
                killing.cancel()
                await asyncio.wait([killing])
        return replace(found, outcome=Outcome.WALL_TIME) if killing is not None and is_late else found

    async def _kill_after(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)
        with contextlib.suppress(StockadeError):  # whoever reads it is told
            await self.link.signal(signal.SIGKILL)

    async def write(self, data: bytes) -> bool:
        return await self.link.write(data)

    async def close(self) -> None:
        """Kill it where it still runs."""
        await self._fed()
        await self.link.close()

    async def detach(self) -> None:
        """Let go of it; it goes on."""
        await self._fed()
        await self.link.detach()

    async def _fed(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.wait([self._feeding])


async def _feed(link: Link, stdin: bytes) -> None:
    with contextlib.suppress(StockadeError):  # whoever reads it is told
        if not stdin or await link.write(stdin):
            await link.close_stdin()


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of *target* once the block has ended well."""
    folder = target.absolute().parent
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{target.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            Path(file.name).replace(target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _led(parts: Iterator[bytes]) -> Iterator[bytes]:
    """An archive that says of itself that it is one of a directory, also where only one file is in there."""
    head = tarfile.TarInfo("./")
    head.type, head.mode = tarfile.DIRTYPE, 0o755
    yield head.tobuf(tarfile.PAX_FORMAT)
    yield from parts


async def _stepped(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """*parts*, each made in a thread."""
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield part


def _pulled(parts: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """*parts* for a thread that is not the loop's."""

    async def following() -> bytes | None:
        return await anext(parts, None)

    while (part := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
        yield part


def _unpack_file(parts: Iterator[bytes], local: Path) -> list[str]:
    """Write the one file of an archive to *local*, or into it where that is a directory."""
    parent = local if local.is_dir() else local.parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=".download-") as folder:
        left_out = archives.unpack(parts, Path(folder))
        found = next(Path(folder).iterdir(), None)
        if found is not None:
            found.replace(local / found.name if local.is_dir() else local)
        return left_out
