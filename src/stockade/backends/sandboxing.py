"""What a backend must do for sandboxes that live: an optional protocol beside `backends.base.Backend`.

The engine keeps the records; the backend keeps the sandboxes, outside the server: they and the output of their
processes are there again when the server comes back.
"""

import socket
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Protocol

from stockade.model import DiskMount, Diversion, EndedBy, FileInfo, Limits, Network, Outcome, TerminalSize, Usage
from stockade.model import Protocol as TransportProtocol

__all__ = [
    "MAIN",
    "FileAccess",
    "LiveExec",
    "LiveProcess",
    "LiveSandbox",
    "LiveSpec",
    "Mark",
    "Output",
    "OutputSlice",
    "ProcessEnd",
    "Reading",
    "Refusal",
    "Sandboxing",
    "Streams",
    "in_order",
]

MAIN = "main"
"""Name of the process whose end is the sandbox's end."""


@dataclass(frozen=True, kw_only=True)
class LiveSpec:
    """A sandbox to be made, without a process."""

    image: str
    limits: Limits
    cwd: str
    """Made when it is missing."""
    lifetime_s: float | None
    """Seconds from now after which it is ended, whatever becomes of the server."""
    network: Network = field(default_factory=Network)
    layer: Path | None = None
    """What a build left (`FileAccess.save_layer`): unpacked over the image."""
    layers: tuple[str, ...] = ()
    """The image: names of layers (`backends.disks`), the uppermost first. Empty for `image` itself."""
    disk: str | None = None
    """Where what is changed of the image is kept; `None` for memory, which goes with the sandbox. No other sandbox may
    be using it."""
    mounts: tuple[DiskMount, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    """Names (without `CAP_`) of what root inside shall not have; `ALL` for all."""
    diversion: Diversion | None = None
    """Connections that are handed to somebody else instead of going out."""
    log_bytes: int = 1 << 20
    """Bytes of each output stream of each process that are kept; the oldest are dropped."""
    kept_bytes: int = 64 << 20
    """Bytes of the host's memory that the output of all processes that run may take, and as much again that of all that
    have ended. Where the former would be more, new ones have smaller logs; of the latter, the oldest goes."""
    keep_s: float = 600.0
    """After its end, what is known of it and the output of its processes is kept for so long."""
    backend: str = ""
    """As `base.SandboxSpec.backend`."""


@dataclass(frozen=True, kw_only=True)
class LiveExec:
    """A process to be started."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """The whole environment."""
    cwd: str
    user: str = "user"
    """`user`, `root`, or `UID:GID`, each 0 to 65534."""
    terminal: TerminalSize | None = None
    stdin: bool = True
    """Whether it can be written to; else its standard input is `/dev/null`. With a terminal it always can."""
    keep: bool = False
    """It is remembered after its end, with its output: until it is forgotten, its sandbox is, or `kept_bytes` of the
    sandbox are used up; then those that began first go first, output before facts."""
    log_bytes: int | None = None
    """Bytes of each of its streams that are kept; `None` for the sandbox's own setting."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What somebody who reads a process's output wants."""

    patience_s: float = 5.0
    """How long the process is held back for them, before something is written over that they have not read, when they
    take next to nothing; then they are not waited for any more until they go on, and what they are late for is gone:
    `OutputSlice.dropped` says so. Infinity holds it back as a pipe does; only for who shares its fate."""
    until_closed: bool = False
    """They are told of the process's end only when nobody holds its output open any more, its children included."""


class Refusal(StrEnum):
    """Why a process was never started."""

    CWD = "cwd"
    """Its working directory is not there, or is none."""
    PROGRAM = "program"
    """Its program is not there, or cannot be executed, or its arguments are too long."""


@dataclass(frozen=True, kw_only=True)
class ProcessEnd:
    """How a process of a live sandbox ended."""

    outcome: Outcome
    exit_code: int
    """0 to 255; 128 and the signal's number for one that a signal ended."""
    refusal: Refusal | None = None
    """Set for one that was never started; `exit_code` is then 126 or 127, as a shell's."""


@dataclass(frozen=True, kw_only=True)
class LiveProcess:
    """What the backend knows of a process of a live sandbox."""

    name: str
    argv: tuple[str, ...]
    """As it was asked for; empty for one that was not to be kept."""
    pid: int
    """Inside the sandbox; 0 for one that was never started."""
    started_at: float
    """Seconds since the epoch."""
    ended_at: float | None = None
    end: ProcessEnd | None = None
    """Set once it has ended. (Its output may not be read yet.)"""


@dataclass(frozen=True, kw_only=True)
class LiveSandbox:
    """What the backend knows of a sandbox."""

    name: str
    is_running: bool
    started_at: float
    """Seconds since the epoch."""
    ended_at: float | None = None
    deadline_at: float | None = None
    ended_by: EndedBy | None = None
    outcome: Outcome | None = None
    exit_code: int | None = None
    """Of the main process, where it has one that ended."""
    processes: tuple[str, ...] = ()
    """Names of those whose output is kept; `main` among them."""
    usage: Usage
    """So far. `memory_peak_bytes` is what the kernel counted since the sandbox began."""
    memory_bytes: int = 0
    """Held now."""
    is_paused: bool = False
    """See `backends.disks.Pausing`."""


@dataclass(frozen=True, kw_only=True)
class OutputSlice:
    """Some of a stream."""

    data: bytes
    at: int
    """Offset of `data` in everything that the stream has ever produced."""
    dropped: int = 0
    """Bytes between where the reader asked from and `at` that are no longer kept."""

    @property
    def end(self) -> int:
        return self.at + len(self.data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """When some of a process's output was taken from it."""

    at_ns: int
    """Nanoseconds since the epoch."""
    is_stderr: bool
    end: int
    """Offset at which it ends. It begins where that of the stream's mark before ends."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What there is to read of a process."""

    stdout: OutputSlice
    stderr: OutputSlice
    end: ProcessEnd | None
    """Set once it has ended and both streams are read to their end."""
    marks: tuple[Mark, ...] = ()
    """In which order both slices came, oldest first: every mark that lies in one of them, and for each slice the first
    that ends at its end or beyond. Marks are bounded, too: what has none is older than the first of its stream."""


def in_order(output: Output) -> Iterator[tuple[bool, bytes]]:
    """What was read, as pieces of standard output and standard error (whether it is the latter, and its bytes) in the
    order in which they came.
    """
    slices = (output.stdout, output.stderr)
    told = [0, 0]
    if all(one.data for one in slices):  # else there is only one order
        for is_stderr, marks in groupby(output.marks, key=lambda mark: mark.is_stderr):
            one = slices[is_stderr]
            *_, last = marks
            end = min(last.end - one.at, len(one.data))
            if end > told[is_stderr]:
                yield is_stderr, one.data[told[is_stderr] : end]
                told[is_stderr] = end
    for is_stderr in (False, True):
        if told[is_stderr] < len(slices[is_stderr].data):
            yield is_stderr, slices[is_stderr].data[told[is_stderr] :]


class Streams(Protocol):
    """The input and output of one process, for one reader. Several may be open at once; each gets everything."""

    @property
    def pid(self) -> int:
        """Of the process, inside the sandbox; 0 for one that was never started."""
        ...

    @property
    def refusal(self) -> Refusal | None:
        """Why the process was never started; `None` where it was."""
        ...

    async def read(self, stdout_at: int, stderr_at: int, *, most: int = 1 << 18, least: int = 1) -> Output:
        """What follows these offsets, at most *most* bytes of each stream; waits until there is something.

        *least*: waits until so many bytes of both streams together have come since, or the end; no more than a quarter
        of what is kept of a stream is waited for.

        A reader that keeps asking is waited for: the process then cannot produce more than the log holds beyond what
        was asked for. One that stops asking for more than some seconds is not; what it missed is in `dropped`.

        Raises:
            NotFound: the process's output is no longer kept.
            BackendLost: the warden died.
        """
        ...

    async def write(self, data: bytes) -> bool:
        """Write all of *data* to standard input, waiting while it is full; False when nobody reads it any more."""
        ...

    async def close_stdin(self) -> None:
        """Let the process see the end of its input. Idempotent. With a terminal, an end-of-file character."""
        ...

    async def signal(self, number: int) -> None:
        """Send a signal to the process and its process group. Nothing happens when it has ended."""
        ...

    async def resize(self, size: TerminalSize) -> None:
        """Tell the process's terminal its size."""
        ...

    def close(self) -> None:
        """Let go of it; the process goes on. Idempotent."""
        ...

    def discard(self) -> None:
        """Let go of it, have the process killed where it still runs, with all that it started, and its output dropped.

        Nobody is told whether that worked, and it is not waited for: `Sandboxing.forget_process` is. Idempotent.
        """
        ...


class FileAccess(Protocol):
    """The files of a sandbox, read and written from *inside* it, with a tenant's rights, under a deadline.

    Paths are absolute. Every method raises NotFound, Invalid (a directory where a file is wanted, …), Conflict (it
    exists), Denied (the tenant has no right to it), LimitExceeded (disk full), Unavailable (no answer in time). An
    error that the system inside gave, or would have given, has that OSError as its `__cause__`.
    """

    async def stat(self, path: str) -> FileInfo: ...

    async def list(self, path: str) -> list[FileInfo]:
        """The direct children of a directory, sorted by name; links are not followed, yet said where they lead."""
        ...

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> tuple[FileInfo, AsyncIterator[bytes]]:
        """A regular file (links are followed, inside), and its content from *offset* on."""
        ...

    async def write(
        self, path: str, content: AsyncIterable[bytes], *, mode: int = 0o644, in_place: bool = False
    ) -> int:
        """Write a file under a temporary name and rename it; parents are made (0755). The number of bytes.

        *in_place*: instead as a shell's `>` does: a file that is there is cut to nothing and keeps its mode, owner and
        links; no parents are made.
        """
        ...

    async def delete(self, path: str, *, recursive: bool = False) -> None: ...

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> None:
        """Make a directory; with *parents* also those above, and it may be there already."""
        ...

    async def rename(self, path: str, new_path: str) -> None: ...

    async def read_tar(self, path: str) -> AsyncIterator[bytes]:
        """A tar archive (POSIX pax) of a directory's content, or of one file."""
        ...

    async def write_tar(self, path: str, archive: AsyncIterable[bytes]) -> int:
        """Unpack a tar archive, plain or gzip, into a directory, which is made; the number of members.

        Members that would lie outside, devices, set-id bits and owners are refused or dropped.
        """
        ...

    async def copy_in(self, path: str, archive: AsyncIterable[bytes], *, is_directory: bool | None = None) -> int:
        """Unpack a plain tar archive as `cp -r` would copy what it holds to *path*; the number of members.

        A file goes into *path* where that is a directory or ends with `/`, else it is written at *path*; parents are
        made, what is there is written over. Of a directory, what lies below it goes into *path*.

        Args:
            is_directory: what was packed. `False`: a file, the one entry. `True`: a directory, whose name leads all
                entries: where *path* is there, or ends with `/`, the directory itself goes into it, else it becomes
                *path*. `None`: a file where the archive is one regular file, else what lies below a directory.

        Raises:
            Invalid: also a member that would lie outside, a device, or a damaged archive; what came before it stays.
        """
        ...

    async def copy_out(self, path: str) -> tuple[bool, AsyncIterator[bytes]]:
        """Whether it is a directory, and a tar archive: of a file, its name; else `./` and what lies below."""
        ...

    async def write_layer(
        self,
        path: str,
        archive: AsyncIterable[bytes],
        *,
        keep_set_id: bool = True,
        most_bytes: int | None = None,
        most_members: int | None = None,
    ) -> int:
        """Unpack a plain tar archive, a layer in the OCI image format, into the directory *path*; bytes of its files.

        Owners, modes, times, extended attributes (`user.*`), links and sparse files are kept; whiteouts become those
        of an overlay file system's layer. For root only, into the disk of a sandbox of ours.

        Args:
            keep_set_id: keep set-user-id and set-group-id bits.
            most_bytes, most_members: what it may come to; `None` for any.

        Raises:
            LimitExceeded: it would come to more.
            Invalid: a device outside `dev/`, a member outside, an absolute or climbing hard link, a name too long, a
                damaged archive.
        """
        ...

    async def save_tree(self, path: str, *, as_image_layer: bool = False) -> AsyncIterator[bytes]:
        """The directory *path* as an overlay file system's upper layer, whiteouts included, in a format of ours; or as
        a layer in the OCI image format.
        """
        ...

    async def load_tree(
        self,
        path: str,
        content: AsyncIterable[bytes],
        *,
        most_bytes: int | None = None,
        most_members: int | None = None,
    ) -> int:
        """Put what `save_tree` gave into the directory *path*; bytes of its files.

        Raises:
            Invalid: it is damaged.
            LimitExceeded: it would come to more than it may.
        """
        ...

    async def watch(self, path: str) -> AsyncIterator[tuple[str, str]]:
        """(event, path) of what happens below a directory: `created`, `modified`, `deleted`, `renamed`."""
        ...

    async def save_layer(self, target: int, *, most_bytes: int) -> int:
        """Write all that was changed of the image to the open file *target*; its size. Call it when nothing runs."""
        ...

    def close(self) -> None: ...


class Sandboxing(Protocol):
    """A backend whose sandboxes can live."""

    async def create(self, name: str, spec: LiveSpec) -> LiveSandbox:
        """Make a sandbox.

        Raises:
            Conflict: there is one of that name.
            Invalid, Unsupported, Unavailable, BackendLost, Fault: as `Backend.run`.
        """
        ...

    async def exec(
        self, name: str, process: str, spec: LiveExec, *, reading: Reading = Reading(), gather: int = 0
    ) -> Streams:
        """Start a process called *process* (`MAIN`: the one whose end is the sandbox's), and open its streams.

        A program that cannot be started is no error: it ends at once with 127 (not there) or 126, and says why on
        standard error.

        *gather*: return only when so many bytes have come, or the end: as `read` with *least*, whose first call then
        has its answer already. It takes as long as the process does; whoever stops waiting forgets the process. Its
        output is this reader's alone: once its end has been told, and nobody holds its output open, it is forgotten.

        Raises:
            NotFound: there is no such sandbox.
            Conflict: it has ended, or has a process of that name.
            Unavailable: it has no room for another process.
        """
        ...

    async def open(self, name: str, process: str, *, reading: Reading = Reading()) -> Streams:
        """Raises NotFound: neither runs nor is its output kept."""
        ...

    async def processes(self, name: str) -> list[LiveProcess]:
        """Those that run, and those that are kept, in the order in which they were started. Raises NotFound."""
        ...

    async def signal_process(self, name: str, process: str, number: int, *, tree: bool = False) -> None:
        """Send a signal to a process and its process group; with *tree* also to everything that descends from it.

        Nothing happens when it has ended; what it left behind in its process group gets it, though. Raises NotFound.
        """
        ...

    async def process_ended(self, name: str, process: str) -> LiveProcess:
        """Wait until a process has ended. Raises NotFound, BackendLost."""
        ...

    async def forget_process(self, name: str, process: str) -> None:
        """Kill a process where it runs, with all that it started, and drop its output."""
        ...

    async def inspect(self, name: str) -> LiveSandbox:
        """Raises NotFound."""
        ...

    async def inventory(self) -> list[LiveSandbox]:
        """All that run or are remembered."""
        ...

    async def ended(self, name: str) -> LiveSandbox:
        """Wait until it has ended. Raises NotFound, BackendLost."""
        ...

    async def stop(self, name: str, *, grace_s: float) -> None:
        """SIGTERM to the main process now, SIGKILL to everything when the grace is over, whatever becomes of us."""
        ...

    async def kill(self, name: str) -> None:
        """SIGKILL to everything. Idempotent."""
        ...

    async def extend(self, name: str, lifetime_s: float | None) -> None:
        """Set the time that is left from now on."""
        ...

    async def remove(self, name: str) -> None:
        """Kill it where it runs, and forget it with all output. Idempotent."""
        ...

    async def files(self, name: str, *, user: str = "user") -> FileAccess:
        """Its files, with the rights of *user* (as `LiveExec.user`).

        Raises:
            NotFound: there is no such sandbox.
            Conflict: it has ended.
        """
        ...

    async def dial(self, name: str, port: int, protocol: TransportProtocol) -> socket.socket:
        """A non-blocking socket that is connected (UDP: addressed) to a port inside.

        Raises:
            NotFound: there is no such sandbox.
            Conflict: it has ended.
            Unavailable: nothing listens there (yet).
        """
        ...
