"""Sandboxes for programs without an event loop. `asynchronous` has the same for those with one."""

import socket
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from stockade.embedded.records import BoxInfo, Chunk, Result, SnapshotInfo
from stockade.embedded.requests import MOST_OUTPUT_BYTES, Opening, Where, to_bytes, to_command
from stockade.model import BoxState, FileInfo, Outcome, TerminalSize

if TYPE_CHECKING:
    from stockade.embedded.handles import Handle, Running
    from stockade.embedded.session import Session

__all__ = ["Files", "Port", "Process", "Sandbox", "Snapshot"]

T = TypeVar("T")


def session() -> "Session":
    """What this process has open. The parts of an engine, or of a client, are imported with it, when there is need."""
    from stockade.embedded.session import session

    return session()


class Process:
    """A process in a sandbox: its output as it comes, its input as it is wanted. Made by `Sandbox.exec`.

    >>> from stockade import Sandbox
    >>> with Sandbox() as box:
    ...     with box.exec("tr", "a-z", "A-Z", stdin=True) as process:
    ...         process.write("hello")
    ...         process.close_stdin()
    ...         for chunk in process:
    ...             print(chunk.stream, chunk.text)
    ...     process.exit_code
    True
    stdout HELLO
    0

    As behind a pipe, a process is held back while nobody reads what it prints. As a context manager it is killed at the
    end of the block, where it still runs; without, it goes on until it ends, or its sandbox does. One thread may read
    while others write.
    """

    def __init__(self, session: "Session", running: "Running") -> None:
        self._session = session
        self._running = running
        session.watch(self, running)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def __iter__(self) -> Iterator[Chunk]:
        while (chunk := self.read()) is not None:
            yield chunk

    def read(self, *, timeout: float | None = None) -> Chunk | None:
        """The next output, as it comes; `None` when the process has ended and there is no more.

        Raises:
            NoAnswer: it printed nothing for *timeout* seconds; reading may go on.
            Conflict, Unavailable: its sandbox has ended, or was lost.
        """
        return self._session.loop.call(self._running.read(timeout))

    def collect(self, *, timeout: float | None = None, check: bool = False) -> Result:
        """Read to the end and return everything.

        Args:
            timeout: seconds after which it is killed; the result's `outcome` says so.

        Raises:
            ProgramFailed: *check*, and it did not end with 0.
        """
        found = self._session.loop.call(self._running.collect(MOST_OUTPUT_BYTES, timeout))
        return found.check() if check else found

    def wait(self, *, timeout: float | None = None) -> int:
        """Drop what it prints until it ends; its exit code.

        Raises:
            NoAnswer: it has not ended within *timeout* seconds; it goes on.
        """
        return self._session.loop.call(self._running.wait(timeout))

    def write(self, data: bytes | str) -> bool:
        """Write to its standard input, waiting while that is full; False when nobody reads it any more.

        Only to one that was started with `stdin=True`, or a terminal.
        """
        return self._session.loop.call(self._running.write(to_bytes(data)))

    def close_stdin(self) -> None:
        """Let it see the end of its input. Idempotent."""
        self._session.loop.call(self._running.link.close_stdin())

    def send_signal(self, number: int) -> None:
        """Send a signal to its process group; SIGKILL to all that it has started. Nothing happens when it has ended."""
        self._session.loop.call(self._running.link.signal(number))

    def kill(self) -> None:
        """Kill it, with all that it has started; its output can still be read."""
        self.send_signal(9)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal its size."""
        self._session.loop.call(self._running.link.resize(TerminalSize(rows=rows, columns=columns)))

    def close(self) -> None:
        """Kill it where it still runs, and forget it. Idempotent."""
        self._session.loop.call(self._running.close())


class Files:
    """The files of a sandbox, with the rights of its user. A relative path begins at its working directory.

    >>> from stockade import Sandbox
    >>> with Sandbox() as box:
    ...     box.files.write("notes/today.txt", "rain")
    ...     box.files.read_text("notes/today.txt")
    ...     [one.name for one in box.files.list("notes")]
    'rain'
    ['today.txt']
    """

    def __init__(self, session: "Session", handle: "Handle") -> None:
        self._session = session
        self._handle = handle

    def read(self, path: str) -> bytes:
        """A file's whole content. Raises NotFound, Invalid: it is no file; Denied: its user has no right to it."""
        return self._session.loop.call(self._handle.read(path))

    def read_text(self, path: str) -> str:
        """As `read`, as UTF-8."""
        return self.read(path).decode()

    def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file; directories above it are made, and what is there is replaced."""
        self._session.loop.call(self._handle.write(path, to_bytes(content), mode))

    def list(self, path: str = ".") -> tuple[FileInfo, ...]:
        """What is in a directory, by name. Raises NotFound, Invalid: it is none."""
        return self._session.loop.call(self._handle.entries(path))

    def stat(self, path: str) -> FileInfo:
        """What is known of a file, a directory or a link. Raises NotFound."""
        return self._session.loop.call(self._handle.stat(path))

    def exists(self, path: str) -> bool:
        """Whether there is anything at *path*."""
        return self._session.loop.call(self._handle.exists(path))

    def mkdir(self, path: str) -> None:
        """Make a directory and those above it; it may be there already."""
        self._session.loop.call(self._handle.make_directory(path))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or a directory: one that is not empty only with *recursive*. Of a link, the link."""
        self._session.loop.call(self._handle.remove_file(path, recursive=recursive))

    def upload(self, local: str | PathLike[str], path: str) -> None:
        """Copy a file from here to be *path* (or into it, where it is a directory), or a directory's content into the
        directory *path*, which is made. Modes are kept, owners are not.
        """
        self._session.loop.call(self._handle.upload(Path(local), path))

    def download(self, path: str, local: str | PathLike[str]) -> tuple[str, ...]:
        """Copy a file to be *local* here (or into it, where it is a directory), or a directory's content into the
        directory *local*, which is made.

        Returns:
            What was left out, a line for each: devices, and links that lead out of the directory.
        """
        return self._session.loop.call(self._handle.download(path, Path(local)))


class Port:
    """A way to a port of a sandbox. Made by `Sandbox.port`; it lasts until the sandbox stops."""

    def __init__(self, session: "Session", handle: "Handle", number: int, url: str) -> None:
        self.number = number
        """Inside."""
        self.url = url
        """Of the service, from here: `http://127.0.0.1:…`."""
        self._session = session
        self._handle = handle

    def connect(self, *, wait: float = 0.0) -> socket.socket:
        """A connection to it, a blocking socket.

        Raises:
            Unavailable: nothing listens there, even after *wait* seconds.
        """
        connection = self._session.loop.call(self._handle.dial(self.number, wait))
        connection.setblocking(True)
        return connection


class Snapshot:
    """The disk of a sandbox as it was at one moment. Made by `Sandbox.snapshot`.

    >>> from stockade import Sandbox
    >>> with Sandbox() as box:
    ...     box.files.write("answer", "42")
    ...     ready = box.snapshot("ready")
    ...     box.files.write("answer", "?")
    ...     copies = ready.fork(2)
    ...     [copy.files.read_text("answer") for copy in copies]
    ...     ready.restore()
    ...     box.files.read_text("answer")
    ['42', '42']
    '42'
    """

    def __init__(self, box: "Sandbox", info: SnapshotInfo) -> None:
        self._box = box
        self.name = info.name
        self.size_bytes = info.size_bytes
        """What the disk held."""
        self.created_at: datetime = info.created_at

    def fork(self, count: int = 1) -> "tuple[Sandbox, ...]":
        """As many sandboxes whose disks begin as this one, running; all or none."""
        return self._box.fork(count, snapshot=self.name)

    def clone(self, name: str | None = None) -> "Sandbox":
        """A sandbox whose disk begins as this one; with a *name*, it is kept."""
        return self._box.clone(name, snapshot=self.name)

    def restore(self) -> None:
        """Put the disk of its sandbox back to this; where that runs, it is stopped for it, and started again."""
        self._box._call(self._box._handle.restore(self.name))

    def remove(self) -> None:
        """Remove it; what was made of it stays."""
        self._box._call(self._box._handle.remove_snapshot(self.name))


class Sandbox:
    """A fresh Linux sandbox, in this process or on a server.

    >>> from stockade import Sandbox
    >>> with Sandbox() as box:
    ...     result = box.run("print(6 * 7)")
    >>> result.stdout
    '42\\n'

    Without a *url* it is made by an engine of this process's own, which starts with the first sandbox and ends with the
    process: nothing has to be installed, configured or left running beside it. With one, it is a server's. All else is
    the same.

    At the end of a `with` block it is removed, or, where it is kept, stopped. One that nobody refers to any more, and
    that is not kept, is removed.

    Args:
        image: `host`: this machine's own programs, read-only, with nothing else of it. Or a reference such as
            `python:3.12-slim`, which is fetched where it is not there yet.
        name: to find it by again (`Sandbox.find`); of no other sandbox of the place. What has a name is kept.
        memory: bytes, or text such as `"256M"`.
        cpus: how many processors' worth of time; of a server, a whole number.
        disk: bytes, or text, that it may write; 2 GiB where it says nothing.
        network: whether it may connect to the public internet; or the names (`"*.example.org"`), addresses and networks
            to which alone it may.
        env: laid over the image's environment, for every process.
        cwd: working directory, made where it is missing; the image's where it is not given.
        user: `root`, `user`, a name that the image knows, or `UID:GID`; the image's where it is not given.
        labels: texts of yours, told by `info`.
        timeout: seconds after which a program of `run` or `exec` is killed, where the call says nothing of it.
        auto_stop: seconds without use after which it is stopped; its next use starts it again.
        keep: whether it outlives the block; by default what has a name does. It is of use with *data_dir* or *url*.
        data_dir: directory in which kept sandboxes, their snapshots and images are found again. One process at a time
            may use it. By default everything goes with the process.
        url: of a server, `http://127.0.0.1:8080`.
        api_key: for that server; by default what STOCKADE_API_KEY holds.

    Raises:
        Invalid: something that was asked for can never be; UnknownImage, InvalidLimit, … are kinds of it.
        Conflict: there is a sandbox of that name; or another process uses *data_dir*.
        CannotEnforce, Unsupported: this host lacks a protection, or disks; the text says what to do about it.
        Denied: the server does not know the key.
        Unavailable: there is no room now, or the server does not answer.
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
        opening = Opening(
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
        found = session()
        self._take(found, found.loop.call(found.open(opening)))

    def _take(self, session: "Session", handle: "Handle") -> None:
        self._session = session
        self._handle = handle
        session.own(self, handle)

    @classmethod
    def _of(cls, session: "Session", handle: "Handle") -> Self:
        made = cls.__new__(cls)
        made._take(session, handle)
        return made

    @classmethod
    def find(
        cls,
        name: str,
        *,
        timeout: float | None = None,
        data_dir: str | PathLike[str] | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> Self:
        """A sandbox that is there, by its name or id; it is kept. Its first use starts it.

        Raises:
            NotFound: there is none.
        """
        found = session()
        where = Where(data_dir=data_dir, url=url, api_key=api_key)
        return cls._of(found, found.loop.call(found.find(where, name, timeout)))

    @staticmethod
    def list(
        *, data_dir: str | PathLike[str] | None = None, url: str | None = None, api_key: str | None = None
    ) -> "tuple[BoxInfo, ...]":
        """What is known of all sandboxes of a place, the newest first."""
        found = session()
        return found.loop.call(found.boxes(Where(data_dir=data_dir, url=url, api_key=api_key)))

    @classmethod
    def load(
        cls,
        file: str | PathLike[str],
        *,
        name: str | None = None,
        timeout: float | None = None,
        data_dir: str | PathLike[str] | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> Self:
        """A sandbox of a file that `save` wrote, here or elsewhere; with a *name*, it is kept.

        Raises:
            Invalid: the file is damaged, or none of ours.
        """
        found = session()
        where = Where(data_dir=data_dir, url=url, api_key=api_key)
        return cls._of(found, found.loop.call(found.load(where, Path(file), name, timeout)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sandbox {self.name or self.id} of {self._handle.info.image}>"

    @property
    def id(self) -> str:
        return self._handle.id

    @property
    def name(self) -> str | None:
        return self._handle.info.name

    @property
    def files(self) -> Files:
        """Its files."""
        return Files(self._session, self._handle)

    # ── programs ────────────────────────────────────────────────────────────────────────────────────────────────

    def run(
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
        """Run a program to its end, and return what became of it.

        >>> with Sandbox() as box:
        ...     box.run("echo $((6 * 7))", "bash").stdout
        '42\\n'

        What an interpreter reads lies in the working directory under a name of its own, and is removed afterwards; what
        is compiled is made and run in a directory of its own below `/tmp`. How the program ends is no error, unless
        *check* says so.

        Args:
            language: a name or alias, as `stockade languages` tells; the image must have it.
            timeout: seconds after which it is killed; the sandbox's own where it is not given.

        Raises:
            UnknownLanguage: no language has that name.
            ProgramFailed: *check*, and it did not run, or not end with 0.
            Conflict, Unavailable: the sandbox has ended, or was lost.
        """
        work = self._handle.run(
            code,
            language,
            tuple(args),
            stdin=to_bytes(stdin),
            env=dict(env or {}),
            timeout_s=self._handle.timeout_s if timeout is None else timeout,
            most_bytes=MOST_OUTPUT_BYTES,
        )
        found = self._call(work)
        return found.check() if check else found

    def exec(
        self,
        *argv: str,
        stdin: bytes | str | bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        terminal: bool | tuple[int, int] = False,
        timeout: float | None = None,
    ) -> Process:
        """Start a process. A program that cannot be started ends with 126 or 127, and says why.

        >>> with Sandbox() as box:
        ...     box.exec("sh", "-c", "echo out; echo err >&2; exit 3").collect().exit_code
        3

        Args:
            argv: the program and its arguments; no shell reads them.
            stdin: what it reads; or True, to write to it later.
            terminal: give it one, of so many rows and columns. Standard error then comes as standard output.
            timeout: seconds after which it is killed; the sandbox's own where it is not given.

        Raises:
            Invalid: it can never be started so.
            Conflict, Unavailable: the sandbox has ended, or was lost.
        """
        command, given = to_command(
            argv, stdin, env, cwd, user, terminal, self._handle.timeout_s if timeout is None else timeout
        )
        return Process(self._session, self._call(self._handle.exec(command, given)))

    # ── ports ───────────────────────────────────────────────────────────────────────────────────────────────────

    def port(self, number: int, *, wait: float = 0.0) -> Port:
        """A way to a port on which something inside listens (TCP), on all its addresses or on the loopback.

        >>> import urllib.request
        >>> with Sandbox() as box:
        ...     server = box.exec("python3", "-m", "http.server", "8000")
        ...     urllib.request.urlopen(box.port(8000, wait=30).url).status
        200

        Raises:
            Unavailable: nothing listens there, even after *wait* seconds; 0 does not look.
        """
        return Port(self._session, self._handle, number, self._call(self._handle.port(number, wait)))

    # ── snapshots and copies ────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self, name: str | None = None) -> Snapshot:
        """Keep its disk as it is now; its processes stand still meanwhile. It goes with the sandbox."""
        return Snapshot(self, self._call(self._handle.snapshot(name)))

    def snapshots(self) -> "tuple[Snapshot, ...]":
        """Those it has, the oldest first."""
        return tuple(Snapshot(self, one) for one in self._call(self._handle.snapshots()))

    def fork(self, count: int = 1, *, snapshot: str | None = None) -> "tuple[Sandbox, ...]":
        """As many copies, with the disk as it is now (or as in a snapshot), running; all or none.

        Processes are not copied, only what is on the disk.
        """
        made = self._call(self._handle.fork(count, snapshot))
        return tuple(self._of(self._session, one) for one in made)

    def clone(self, name: str | None = None, *, snapshot: str | None = None) -> "Sandbox":
        """A copy, as `fork` makes; with a *name*, it is kept."""
        return self._of(self._session, self._call(self._handle.clone(name, snapshot)))

    def save(self, file: str | PathLike[str]) -> None:
        """Write it to one file, with its disk and image, for `load`."""
        self._call(self._handle.export(Path(file)))

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    def info(self) -> BoxInfo:
        """What is known of it now."""
        return self._call(self._handle.refresh())

    @property
    def state(self) -> BoxState:
        """Whether it runs, is paused, stopped, …; asked for each time."""
        return self.info().state

    def start(self) -> None:
        """Start it, where it does not run. Its disk is as it was."""
        self._call(self._handle.start())

    def stop(self, *, grace: float | None = None) -> None:
        """End its processes, after *grace* seconds with SIGKILL; its disk stays."""
        self._call(self._handle.stop(grace))

    def pause(self) -> None:
        """Let no process of it have any processor time until `resume`, or its next use."""
        self._call(self._handle.pause())

    def resume(self) -> None:
        """Let it go on."""
        self._call(self._handle.resume())

    def remove(self) -> None:
        """Remove it, with its disk and snapshots, kept or not. Idempotent."""
        self._call(self._handle.remove())
        self._session.disown(self._handle)

    def close(self) -> None:
        """Remove it, or stop it where it is kept, as the end of a `with` block does. Idempotent."""
        self._call(self._handle.leave())
        self._session.disown(self._handle)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._session.loop.call(work)
