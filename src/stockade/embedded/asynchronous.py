"""Sandboxes for programs with an event loop (asyncio). What each of these does is said in `synchronous`."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable, Mapping
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from stockade.embedded.records import BoxInfo, Chunk, Result, SnapshotInfo
from stockade.embedded.requests import MOST_OUTPUT_BYTES, Opening, Where, to_bytes, to_command
from stockade.embedded.synchronous import session
from stockade.errors import Conflict
from stockade.model import BoxState, FileInfo, Outcome, TerminalSize

if TYPE_CHECKING:
    from stockade.embedded.handles import Handle, Running
    from stockade.embedded.session import Session

__all__ = ["AsyncFiles", "AsyncPort", "AsyncProcess", "AsyncSandbox", "AsyncSnapshot"]

T = TypeVar("T")


class AsyncProcess:
    """See `Process`. One task may read while others write.

    >>> import asyncio
    >>> from stockade import AsyncSandbox
    >>> async def main() -> None:
    ...     async with AsyncSandbox() as box:
    ...         async with await box.exec("sh", "-c", "echo one; echo two >&2") as process:
    ...             parts = sorted([(chunk.stream, chunk.text) async for chunk in process])
    ...         print(parts, process.exit_code)
    >>> asyncio.run(main())
    [('stderr', 'two\\n'), ('stdout', 'one\\n')] 0
    """

    def __init__(self, session: "Session", running: "Running") -> None:
        self._session = session
        self._running = running
        session.watch(self, running)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def exit_code(self) -> int | None:
        """Once it has ended and its output is read to the end; 128 and a signal's number where one ended it."""
        end = self._running.link.end
        return None if end is None else end.exit_code

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; as `exit_code`."""
        end = self._running.link.end
        return None if end is None else end.outcome

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while (chunk := await self.read()) is not None:
            yield chunk

    async def read(self, *, timeout: float | None = None) -> Chunk | None:
        """The next output, as it comes; `None` when the process has ended and there is no more.

        Raises:
            NoAnswer: it printed nothing for *timeout* seconds; reading may go on.
            Conflict, Unavailable: its sandbox has ended, or was lost.
        """
        return await self._session.loop.acall(self._running.read(timeout))

    async def collect(self, *, timeout: float | None = None, check: bool = False) -> Result:
        """Read to the end and return everything; see `Process.collect`."""
        found = await self._session.loop.acall(self._running.collect(MOST_OUTPUT_BYTES, timeout))
        return found.check() if check else found

    async def wait(self, *, timeout: float | None = None) -> int:
        """Drop what it prints until it ends; its exit code. Raises NoAnswer: it has not ended in time; it goes on."""
        return await self._session.loop.acall(self._running.wait(timeout))

    async def write(self, data: bytes | str) -> bool:
        """Write to its standard input, waiting while that is full; False when nobody reads it any more."""
        return await self._session.loop.acall(self._running.write(to_bytes(data)))

    async def close_stdin(self) -> None:
        """Let it see the end of its input. Idempotent."""
        await self._session.loop.acall(self._running.link.close_stdin())

    async def send_signal(self, number: int) -> None:
        """Send a signal to its process group; SIGKILL to all that it has started. Nothing happens when it has ended."""
        await self._session.loop.acall(self._running.link.signal(number))

    async def kill(self) -> None:
        """Kill it, with all that it has started; its output can still be read."""
        await self.send_signal(9)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal its size."""
        await self._session.loop.acall(self._running.link.resize(TerminalSize(rows=rows, columns=columns)))

    async def close(self) -> None:
        """Kill it where it still runs, and forget it. Idempotent."""
        await self._session.loop.acall(self._running.close())


class AsyncFiles:
    """See `Files`."""

    def __init__(self, session: "Session", handle: "Handle") -> None:
        self._session = session
        self._handle = handle

    async def read(self, path: str) -> bytes:
        """A file's whole content."""
        return await self._session.loop.acall(self._handle.read(path))

    async def read_text(self, path: str) -> str:
        """As `read`, as UTF-8."""
        return (await self.read(path)).decode()

    async def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file; directories above it are made, and what is there is replaced."""
        await self._session.loop.acall(self._handle.write(path, to_bytes(content), mode))

    async def list(self, path: str = ".") -> tuple[FileInfo, ...]:
        """What is in a directory, by name."""
        return await self._session.loop.acall(self._handle.entries(path))

    async def stat(self, path: str) -> FileInfo:
        """What is known of a file, a directory or a link."""
        return await self._session.loop.acall(self._handle.stat(path))

    async def exists(self, path: str) -> bool:
        """Whether there is anything at *path*."""
        return await self._session.loop.acall(self._handle.exists(path))

    async def mkdir(self, path: str) -> None:
        """Make a directory and those above it; it may be there already."""
        await self._session.loop.acall(self._handle.make_directory(path))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or a directory: one that is not empty only with *recursive*. Of a link, the link."""
        await self._session.loop.acall(self._handle.remove_file(path, recursive=recursive))

    async def upload(self, local: str | PathLike[str], path: str) -> None:
        """Copy a file, or a directory's content, from here; see `Files.upload`."""
        await self._session.loop.acall(self._handle.upload(Path(local), path))

    async def download(self, path: str, local: str | PathLike[str]) -> tuple[str, ...]:
        """Copy a file, or a directory's content, to here; see `Files.download`."""
        return await self._session.loop.acall(self._handle.download(path, Path(local)))


class AsyncPort:
    """See `Port`."""

    def __init__(self, session: "Session", handle: "Handle", number: int, url: str) -> None:
        self.number = number
        """Inside."""
        self.url = url
        """Of the service, from here: `http://127.0.0.1:…`."""
        self._session = session
        self._handle = handle

    async def connect(self, *, wait: float = 0.0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to it. Raises Unavailable: nothing listens there, even after *wait* seconds."""
        connection = await self._session.loop.acall(self._handle.dial(self.number, wait))
        return await asyncio.open_connection(sock=connection)


class AsyncSnapshot:
    """See `Snapshot`."""

    def __init__(self, box: "AsyncSandbox", info: SnapshotInfo) -> None:
        self._box = box
        self.name = info.name
        self.size_bytes = info.size_bytes
        """What the disk held."""
        self.created_at: datetime = info.created_at

    async def fork(self, count: int = 1) -> "tuple[AsyncSandbox, ...]":
        """As many sandboxes whose disks begin as this one, running; all or none."""
        return await self._box.fork(count, snapshot=self.name)

    async def clone(self, name: str | None = None) -> "AsyncSandbox":
        """A sandbox whose disk begins as this one; with a *name*, it is kept."""
        return await self._box.clone(name, snapshot=self.name)

    async def restore(self) -> None:
        """Put the disk of its sandbox back to this; where that runs, it is stopped for it, and started again."""
        await self._box._call(self._box._handle.restore(self.name))

    async def remove(self) -> None:
        """Remove it; what was made of it stays."""
        await self._box._call(self._box._handle.remove_snapshot(self.name))


class AsyncSandbox:
    """A fresh Linux sandbox, in this process or on a server; `Sandbox` says what the arguments are.

    >>> import asyncio
    >>> from stockade import AsyncSandbox
    >>> async def main() -> None:
    ...     async with AsyncSandbox() as box:
    ...         results = await asyncio.gather(*(box.run(f"print({n} ** 2)") for n in range(3)))
    ...     print([result.stdout for result in results])
    >>> asyncio.run(main())
    ['0\\n', '1\\n', '4\\n']

    It is made when its block is entered, or where there is none, when it is awaited: `box = await AsyncSandbox()`.
    Methods may be called from any event loop of the process.
    """

    def __init__(
        self,
        image: str = "host",
        *,
        name: str | None = None,
        memory: int | str = "512M",
        cpus: float = 1,
        disk: int | str | None = None,
        network: bool | Iterable[str] = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
        auto_stop: float | None = None,
        keep: bool | None = None,
        data_dir: str | PathLike[str] | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> None:
        self._opening: Opening | None = Opening(
            where=Where(data_dir=data_dir, url=url, api_key=api_key),
            image=image,
            name=name,
            memory=memory,
            cpus=cpus,
            disk=disk,
            network=network,
            env=env,
            cwd=cwd,
            user=user,
            labels=labels,
            timeout_s=timeout,
            auto_stop_s=auto_stop,
            keep=keep,
        )

    def _take(self, session: "Session", handle: "Handle") -> None:
        self._opening = None
        self._session = session
        self._made = handle
        session.own(self, handle)

    @classmethod
    def _of(cls, session: "Session", handle: "Handle") -> Self:
        made = cls.__new__(cls)
        made._take(session, handle)
        return made

    async def _open(self) -> Self:
        if self._opening is not None:
            opening, self._opening = self._opening, None
            found = session()
            try:
                self._take(found, await found.loop.acall(found.open(opening)))
            except BaseException:
                self._opening = opening
                raise
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    @classmethod
    async def find(
        cls,
        name: str,
        *,
        timeout: float | None = None,
        data_dir: str | PathLike[str] | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> Self:
        """A sandbox that is there, by its name or id; see `Sandbox.find`."""
        found = session()
        where = Where(data_dir=data_dir, url=url, api_key=api_key)
        return cls._of(found, await found.loop.acall(found.find(where, name, timeout)))

    @staticmethod
    async def list(
        *, data_dir: str | PathLike[str] | None = None, url: str | None = None, api_key: str | None = None
    ) -> tuple[BoxInfo, ...]:
        """What is known of all sandboxes of a place, the newest first."""
        found = session()
        return await found.loop.acall(found.boxes(Where(data_dir=data_dir, url=url, api_key=api_key)))

    @classmethod
    async def load(
        cls,
        file: str | PathLike[str],
        *,
        name: str | None = None,
        timeout: float | None = None,
        data_dir: str | PathLike[str] | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> Self:
        """A sandbox of a file that `save` wrote; see `Sandbox.load`."""
        found = session()
        where = Where(data_dir=data_dir, url=url, api_key=api_key)
        return cls._of(found, await found.loop.acall(found.load(where, Path(file), name, timeout)))

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        if self._opening is not None:
            return f"<AsyncSandbox of {self._opening.image}, not made yet>"
        return f"<AsyncSandbox {self.name or self.id} of {self._handle.info.image}>"

    @property
    def _handle(self) -> "Handle":
        if self._opening is not None:
            raise Conflict("the sandbox is not made yet: `async with` it, or await it")
        return self._made

    @property
    def id(self) -> str:
        return self._handle.id

    @property
    def name(self) -> str | None:
        return self._handle.info.name

    @property
    def files(self) -> AsyncFiles:
        """Its files."""
        handle = self._handle
        return AsyncFiles(self._session, handle)

    # ── programs ────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(
        self,
        code: str,
        language: str = "python",
        *,
        args: Iterable[str] = (),
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> Result:
        """Run a program to its end, and return what became of it; see `Sandbox.run`."""
        handle = self._handle
        work = handle.run(
            code,
            language,
            tuple(args),
            stdin=to_bytes(stdin),
            env=dict(env or {}),
            timeout_s=handle.timeout_s if timeout is None else timeout,
            most_bytes=MOST_OUTPUT_BYTES,
        )
        found = await self._call(work)
        return found.check() if check else found

    async def exec(
        self,
        *argv: str,
        stdin: bytes | str | bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        terminal: bool | tuple[int, int] = False,
        timeout: float | None = None,
    ) -> AsyncProcess:
        """Start a process; see `Sandbox.exec`."""
        handle = self._handle
        command, given = to_command(
            argv, stdin, env, cwd, user, terminal, handle.timeout_s if timeout is None else timeout
        )
        return AsyncProcess(self._session, await self._call(handle.exec(command, given)))

    # ── ports ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def port(self, number: int, *, wait: float = 0.0) -> AsyncPort:
        """A way to a port on which something inside listens; see `Sandbox.port`."""
        url = await self._call(self._handle.port(number, wait))
        return AsyncPort(self._session, self._handle, number, url)

    # ── snapshots and copies ────────────────────────────────────────────────────────────────────────────────────

    async def snapshot(self, name: str | None = None) -> AsyncSnapshot:
        """Keep its disk as it is now; its processes stand still meanwhile. It goes with the sandbox."""
        return AsyncSnapshot(self, await self._call(self._handle.snapshot(name)))

    async def snapshots(self) -> tuple[AsyncSnapshot, ...]:
        """Those it has, the oldest first."""
        return tuple(AsyncSnapshot(self, one) for one in await self._call(self._handle.snapshots()))

    async def fork(self, count: int = 1, *, snapshot: str | None = None) -> "tuple[AsyncSandbox, ...]":
        """As many copies, with the disk as it is now (or as in a snapshot), running; all or none."""
        made = await self._call(self._handle.fork(count, snapshot))
        return tuple(self._of(self._session, one) for one in made)

    async def clone(self, name: str | None = None, *, snapshot: str | None = None) -> "AsyncSandbox":
        """A copy, as `fork` makes; with a *name*, it is kept."""
        return self._of(self._session, await self._call(self._handle.clone(name, snapshot)))

    async def save(self, file: str | PathLike[str]) -> None:
        """Write it to one file, with its disk and image, for `load`."""
        await self._call(self._handle.export(Path(file)))

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def info(self) -> BoxInfo:
        """What is known of it now."""
        return await self._call(self._handle.refresh())

    async def state(self) -> BoxState:
        """Whether it runs, is paused, stopped, …"""
        return (await self.info()).state

    async def start(self) -> None:
        """Start it, where it does not run. Its disk is as it was."""
        await self._call(self._handle.start())

    async def stop(self, *, grace: float | None = None) -> None:
        """End its processes, after *grace* seconds with SIGKILL; its disk stays."""
        await self._call(self._handle.stop(grace))

    async def pause(self) -> None:
        """Let no process of it have any processor time until `resume`, or its next use."""
        await self._call(self._handle.pause())

    async def resume(self) -> None:
        """Let it go on."""
        await self._call(self._handle.resume())

    async def remove(self) -> None:
        """Remove it, with its disk and snapshots, kept or not. Idempotent."""
        await self._call(self._handle.remove())
        self._session.disown(self._handle)

    async def close(self) -> None:
        """Remove it, or stop it where it is kept, as the end of a block does. Idempotent."""
        await self._call(self._handle.leave())
        self._session.disown(self._handle)

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._session.loop.acall(work)
