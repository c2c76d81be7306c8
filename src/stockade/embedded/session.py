"""What the library has open in this process: engines, servers that are spoken to, sandboxes to be removed."""

import asyncio
import contextlib
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from stockade.embedded.background import Background, background
from stockade.embedded.handles import Handle, Running
from stockade.embedded.place import Place
from stockade.embedded.records import BoxInfo
from stockade.embedded.requests import Opening, Where
from stockade.errors import Invalid

if TYPE_CHECKING:
    from stockade.embedded.engines import Engines
    from stockade.embedded.remote import RemotePlace

__all__ = ["Session", "session"]

_REMOVED_S = 10.0


class Session:
    """All of it; its coroutines are called in the loop of `background`."""

    def __init__(self, loop: Background) -> None:
        self.loop = loop
        self._engines: Engines | None = None
        self._servers: dict[tuple[str, str], RemotePlace] = {}
        self._handles: set[Handle] = set()
        """Those whose owners are there still."""
        loop.at_end(self._close)

    async def place(self, where: Where) -> Place:
        """The place itself, opened where it is not yet. Raises as `Engines.place`."""
        if where.url is None:
            if self._engines is None:
                from stockade.embedded.engines import Engines  # all of the server, but for its HTTP

                self._engines = Engines()
            return await self._engines.place(None if where.data_dir is None else Path(where.data_dir))
        if where.data_dir is not None:
            raise Invalid("data_dir and url: a sandbox is either here or on a server")
        key = where.api_key or os.environ.get("STOCKADE_API_KEY", "")
        found = self._servers.get((where.url, key))
        if found is None:
            from stockade.embedded.remote import RemotePlace

            found = self._servers[where.url, key] = RemotePlace(where.url, key)
        return found

    async def open(self, opening: Opening) -> Handle:
        """Make a sandbox, and start it."""
        place = await self.place(opening.where)
        return await Handle.make(place, opening.spec(), keep=opening.is_kept, timeout_s=opening.timeout_s)

    async def find(self, where: Where, name: str, timeout_s: float | None) -> Handle:
        """A sandbox that is there. Raises NotFound."""
        place = await self.place(where)
        return Handle(place, await place.info(name), keep=True, timeout_s=timeout_s)

    async def boxes(self, where: Where) -> tuple[BoxInfo, ...]:
        """What is known of all of a place."""
        return tuple(await (await self.place(where)).list())

    async def load(self, where: Where, file: Path, name: str | None, timeout_s: float | None) -> Handle:
        """A sandbox of a file."""
        return await Handle.import_(await self.place(where), file, name=name, timeout_s=timeout_s)

    def own(self, owner: object, handle: Handle) -> "weakref.finalize[..., object]":
        """See to *handle* when nobody refers to *owner* any more, or the process ends."""
        self._handles.add(handle)
        finalizer = weakref.finalize(owner, self._abandoned, handle)
        finalizer.atexit = False  # `_close` sees to it, with all others
        return finalizer

    def watch(self, owner: object, running: Running) -> None:
        """Let go of a process, which goes on, when nobody refers to *owner* any more."""
        weakref.finalize(owner, self._unwatched, running).atexit = False

    def _unwatched(self, running: Running) -> None:
        self.loop.start(running.detach())

    def disown(self, handle: Handle) -> None:
        """It is seen to."""
        self._handles.discard(handle)

    def _abandoned(self, handle: Handle) -> None:
        self._handles.discard(handle)
        self.loop.start(handle.abandon())

    async def _close(self) -> None:
        left = [one for one in self._handles if not one.place.is_passing]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REMOVED_S):
                await asyncio.gather(*(one.abandon() for one in left))
        for server in self._servers.values():
            await server.close()
        if self._engines is not None:
            await self._engines.close()


_lock = threading.Lock()
_made: Session | None = None


def session() -> Session:
    """That of this process."""
    global _made
    loop = background()
    with _lock:
        if _made is None or _made.loop is not loop:
            _made = Session(loop)
        return _made


def _forked() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)
