"""Workshops: sandboxes of ours in which a disk is filled or read, or an image looked into.

What is in a disk, or comes from elsewhere to be put there, is a stranger's: no code of the server's ever handles it
from outside. A workshop is an ordinary sandbox without network and without any process of a stranger's; its file agent
does the work, and whatever it can be brought to do happens inside.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import structlog

from stockade.backends.sandboxing import FileAccess, LiveSpec, Sandboxing
from stockade.engine.images import HOST_IMAGE
from stockade.engine.tasks import Tasks
from stockade.errors import StockadeError, Unavailable
from stockade.model import DiskMount, Limits

__all__ = ["Workshops"]

log = structlog.get_logger()

_MAKE_S = 60.0
_REMOVE_S = 20.0
_SLACK_S = 30.0
"""What a workshop outlives its work by, should the server be gone by then."""


@dataclass(kw_only=True)
class Workshops:
    """Makes workshops, and knows those that there are."""

    backend: Sandboxing
    limits: Limits
    """Of each; `wall_s` is the longest time that the work in one may take."""
    tasks: Tasks
    _open: set[str] = field(default_factory=set)

    def __contains__(self, sandbox_id: str) -> bool:
        """Whether the sandbox of this name is a workshop of ours: no record is to be looked for."""
        return sandbox_id in self._open

    @contextlib.asynccontextmanager
    async def open(
        self, purpose: str, *, disk: str | None = None, layers: tuple[str, ...] = (), read_only: bool = False
    ) -> AsyncIterator[FileAccess]:
        """The files of a new workshop, as root, during the block; after it the workshop is gone and *disk* free.

        Args:
            purpose: goes into its name: `[a-z0-9]`, at most 12 characters.
            disk: seen at `DiskMount.WORKSHOP`, its tree below `upper/` there.
            layers: the image in it, the uppermost first; none for the host's.
            read_only: *disk* cannot be written to.

        Raises:
            Unavailable: the backend is away, or the time is over.
            NotFound, Conflict, Unsupported: as `Sandboxing.create`, because of *disk* or *layers*.
        """
        name = f"workshop-{purpose}-{secrets.token_hex(8)}"
        spec = LiveSpec(
            image=HOST_IMAGE.name,
            limits=self.limits,
            cwd="/",
            lifetime_s=self.limits.wall_s + _SLACK_S,
            layers=layers,
            mounts=()
            if disk is None
            else (DiskMount(disk=disk, path=DiskMount.WORKSHOP, read_only=read_only, is_whole=True),),
        )
        self._open.add(name)
        try:
            async with asyncio.timeout(self.limits.wall_s):
                async with asyncio.timeout(_MAKE_S):
                    await self.tasks.settle(self.backend.create(name, spec), name=f"start {name}")
                    files = await self.backend.files(name, user="root")
                try:
                    yield files
                finally:
                    files.close()
        except TimeoutError:
            raise Unavailable(f"the work in {name} was not done within {self.limits.wall_s:g} s") from None
        finally:
            await self.tasks.settle(self._remove(name), name=f"remove {name}")

    async def _remove(self, name: str) -> None:
        try:
            async with asyncio.timeout(_REMOVE_S):
                await self.backend.remove(name)
        except (StockadeError, TimeoutError) as error:  # the next clean-up finds it
            log.warning("workshop.left", sandbox_id=name, reason=str(error) or repr(error))
        finally:
            self._open.discard(name)
