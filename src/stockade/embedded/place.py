"""What sandboxes need of the place they are in. There are two: `local` (an engine of this process) and `remote`.

Everything is called in one event loop, that of `background`. What goes wrong is an error of `stockade.errors`, wherever
the sandbox is.
"""

import socket
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from stockade.embedded.records import BoxInfo, BoxSpec, Chunk, Command, End, SnapshotInfo
from stockade.model import FileInfo, TerminalSize

if TYPE_CHECKING:
    from stockade.engine.languages import Languages

__all__ = ["Link", "Place"]


class Link(Protocol):
    """The input and output of one process, for one reader."""

    @property
    def end(self) -> End | None:
        """Once the process has ended and its output is read to the end."""
        ...

    async def read(self) -> Sequence[Chunk]:
        """What it printed next, in order; nothing once it has ended and all is read. It is held back meanwhile."""
        ...

    async def write(self, data: bytes) -> bool:
        """Write to its standard input, waiting while that is full; False when nobody reads it any more."""
        ...

    async def close_stdin(self) -> None: ...

    async def signal(self, number: int) -> None:
        """SIGKILL to all that descends from it; others to its process group. Nothing happens when it has ended."""
        ...

    async def resize(self, size: TerminalSize) -> None: ...

    async def detach(self) -> None:
        """Let go of it; it goes on. Idempotent."""
        ...

    async def close(self) -> None:
        """Kill it where it still runs, and forget it. Idempotent."""
        ...


class Place(Protocol):
    """Somewhere with boxes. All names of boxes are ids, or names."""

    is_passing: bool
    """Whatever is in it goes with this process: nothing need be removed at its end."""

    def languages(self, image: str) -> "Languages":
        """The languages that `run` knows in a box of that image."""
        ...

    async def create(self, spec: BoxSpec) -> BoxInfo:
        """Make a box; it does not run yet."""
        ...

    async def info(self, box: str) -> BoxInfo:
        """Raises NotFound."""
        ...

    async def list(self) -> Sequence[BoxInfo]:
        """All of them, the newest first."""
        ...

    async def start(self, box: str) -> BoxInfo: ...

    async def stop(self, box: str, *, grace_s: float | None) -> BoxInfo: ...

    async def pause(self, box: str) -> BoxInfo: ...

    async def resume(self, box: str) -> BoxInfo: ...

    async def remove(self, box: str) -> None:
        """Whether it runs or not. Raises NotFound."""
        ...

    async def exec(self, box: str, command: Command) -> Link:
        """Start a process; a program that cannot be started ends with 126 or 127 and says why."""
        ...

    async def snapshot(self, box: str, name: str) -> SnapshotInfo: ...

    async def snapshots(self, box: str) -> Sequence[SnapshotInfo]:
        """The oldest first."""
        ...

    async def remove_snapshot(self, box: str, name: str) -> None: ...

    async def restore(self, box: str, name: str) -> None:
        """Of a box that does not run."""
        ...

    async def clone(self, box: str, *, name: str | None, snapshot: str | None) -> BoxInfo: ...

    async def fork(self, box: str, count: int, *, snapshot: str | None) -> Sequence[BoxInfo]:
        """As many copies, of one moment, that run; all or none."""
        ...

    async def stat(self, box: str, path: str) -> FileInfo: ...

    async def entries(self, box: str, path: str) -> Sequence[FileInfo]: ...

    async def read_file(self, box: str, path: str) -> bytes: ...

    async def write_file(self, box: str, path: str, content: bytes, *, mode: int) -> None: ...

    async def make_directory(self, box: str, path: str) -> None: ...

    async def remove_file(self, box: str, path: str, *, recursive: bool) -> None: ...

    async def copy_in(self, box: str, path: str, archive: AsyncIterable[bytes], *, is_directory: bool | None) -> None:
        """See `FileAccess.copy_in`."""
        ...

    def copy_out(self, box: str, path: str) -> AbstractAsyncContextManager[tuple[bool, AsyncIterator[bytes]]]:
        """Whether it is a directory, and a tar archive: of a file, its name; else `./` and what lies below."""
        ...

    async def tunnel(self, box: str, port: int) -> str:
        """URL of an address that leads to the port, until the box stops."""
        ...

    async def dial(self, box: str, port: int) -> socket.socket:
        """A non-blocking socket, connected. Raises Unavailable: nothing listens there (yet)."""
        ...

    def export(self, box: str) -> AsyncGenerator[bytes, None]:
        """The box as one file."""
        ...

    async def import_(self, content: AsyncIterable[bytes], *, name: str | None) -> BoxInfo:
        """A box of what `export` gave."""
        ...
