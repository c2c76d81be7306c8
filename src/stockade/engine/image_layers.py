"""Layers of images, as disks: made of archives in workshops, known by what they hold, shared by all images with them.

A layer's disk is called after the digest of its archive, and sealed only once it is whole and has that digest. So a
sealed one is right, one that is not is what a server left half-done, and the same archive is unpacked once.

That a layer is here opens it to nobody: who has not shown that they can fetch it has to fetch it, and have it checked,
before their image may stand on the one that is here. Else an image that merely names the digest of a stranger's layer
would show what is in it.
"""

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from stockade.backends.disks import DiskInfo, Disks
from stockade.engine.image_blobs import Archive, BadLayer, Budget
from stockade.engine.image_sources import ImageProgress, ImageSource, SourceLayer
from stockade.engine.tasks import Tasks
from stockade.engine.workshops import Workshops
from stockade.errors import Conflict, Invalid, LimitExceeded, NotFound, StockadeError, Unavailable
from stockade.model import DiskMount
from stockade.model.images import ImageLayer

__all__ = ["ImageLayers", "disk_name"]

T = TypeVar("T")

log = structlog.get_logger()

MOST_MEMBERS = 4_000_000
"""Files, directories and links of one layer."""
_PREFIX = "l"
_LENGTH = 20
"""Of the digest in a disk's name: 100 bits. 127 such names have to fit into the 4096 bytes of a mount's options."""
_DISK_S = 60.0
"""Within which an operation on a disk has to be done."""


def disk_name(diff_id: str) -> str:
    """What the disk of the layer with this digest is called."""
    return _PREFIX + base64.b32encode(bytes.fromhex(diff_id.removeprefix("sha256:"))).decode().lower()[:_LENGTH]


@dataclass
class _Turn:
    """Who may see to a layer now, and how many want to."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted: int = 0


@dataclass(kw_only=True)
class ImageLayers:
    """Makes layers, and knows those that are here."""

    disks: Disks
    workshops: Workshops
    tasks: Tasks
    most_bytes: int
    """Size of a layer's disk."""
    _here: dict[str, ImageLayer] = field(default_factory=dict)
    """Whole layers, by disk."""
    _held: Counter[str] = field(default_factory=Counter)
    """Disks that must not be removed, since an image is about to stand on them."""
    _locks: dict[str, _Turn] = field(default_factory=dict)

    def adopt(self, layers: Iterable[ImageLayer]) -> None:
        """Take layers for whole: those of a server before that are on record."""
        self._here |= {layer.disk: layer for layer in layers}

    @contextlib.contextmanager
    def holding(self, diff_ids: Collection[str]) -> Iterator[None]:
        """Keep these layers, and those that become them, during the block."""
        names = {disk_name(one) for one in diff_ids}
        self._held.update(names)
        try:
            yield
        finally:
            self._held.subtract(names)
            self._held += Counter()  # without those that nobody holds

    async def bring(
        self,
        source: ImageSource,
        layer: SourceLayer,
        diff_id: str,
        *,
        is_known: bool,
        budget: Budget,
        progress: ImageProgress,
    ) -> ImageLayer:
        """Have a layer here: from *source*, unless it is.

        Args:
            is_known: who asks has an image with this very layer, and so need not fetch it once more.

        Raises:
            BadLayer: it is damaged, hostile or too large, or not what it should be. Nothing of it is left.
            Unavailable: the source, the backend or the disks are away.
        """
        name = disk_name(diff_id)
        async with self._locked(name):
            found = self._here.get(name)
            if found is None:
                found = await self._make(name, source, layer, diff_id, budget=budget, progress=progress)
            elif found.diff_id != diff_id:
                raise BadLayer(f"the layer {diff_id} cannot be told from {found.diff_id}, which is here")
            elif not is_known:
                async with self._archive(source, layer, diff_id, budget=budget, progress=progress) as archive:
                    await archive.finish()
        progress.finished(layer.digest)
        return found

    async def missing(self, layers: Iterable[ImageLayer]) -> list[ImageLayer]:
        """Which of *layers* somebody removed; they are no longer taken for here. Raises Unavailable, Unsupported."""
        wanted = list(layers)
        sealed = {disk.name for disk in await self._listed() if disk.is_layer}
        return [layer for layer in wanted if layer.disk not in sealed and await self._is_gone(layer.disk)]

    async def collect(self, kept: Collection[str]) -> None:
        """Remove all layers but those of *kept*, by disk, and those that are being made or held.

        What a sandbox still stands on stays until the next time. Raises Unavailable, Unsupported.
        """
        kept = set(kept)
        for disk in await self._listed():
            if disk.name not in kept:
                await self.drop(disk.name)

    async def drop(self, name: str) -> None:
        """Remove a layer's disk, unless it is held or a sandbox stands on it."""
        if self._held[name]:
            return
        async with self._locked(name):
            if not self._held[name]:
                await self._delete(name)

    async def _is_gone(self, name: str) -> bool:
        async with self._locked(name):  # it may have been made since the list was
            try:
                found = await _in_time(self.disks.info(name))
            except NotFound:
                found = None
            if found is not None and found.is_layer:
                return False
            self._here.pop(name, None)
            return True

    async def _listed(self) -> list[DiskInfo]:
        return [disk for disk in await _in_time(self.disks.list()) if disk.name.startswith(_PREFIX)]

    @contextlib.asynccontextmanager
    async def _locked(self, name: str) -> AsyncIterator[None]:
        """One at a time for each layer: whoever comes second finds it made, or makes it when the first failed."""
        turn = self._locks.setdefault(name, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._locks[name]

    async def _make(
        self,
        name: str,
        source: ImageSource,
        layer: SourceLayer,
        diff_id: str,
        *,
        budget: Budget,
        progress: ImageProgress,
    ) -> ImageLayer:
        await self._delete(name)  # what a server before left half-done
        is_made = False
        try:
            await self._settled(self.disks.make(name, size_bytes=self.most_bytes), f"make disk {name}")
            async with (
                self.workshops.open("layer", disk=name) as files,
                self._archive(source, layer, diff_id, budget=budget, progress=progress) as archive,
            ):
                try:
                    size = await files.write_layer(
                        f"{DiskMount.WORKSHOP}/upper",
                        archive,
                        most_bytes=self.most_bytes,
                        most_members=MOST_MEMBERS,
                    )
                except LimitExceeded as error:
                    raise BadLayer(f"the layer {layer.digest} is too large: {error}") from error
                except BadLayer:
                    raise
                except Invalid as error:
                    raise BadLayer(f"the layer {layer.digest}: {error}") from error
                await archive.finish()  # an archive may go on after its end mark
            await self._settled(self.disks.seal(name), f"seal disk {name}")
            is_made = True
        finally:
            if not is_made:
                await self.tasks.settle(self._delete(name), name=f"delete disk {name}")
        found = self._here[name] = ImageLayer(diff_id=diff_id, disk=name, size_bytes=size)
        return found

    @contextlib.asynccontextmanager
    async def _archive(
        self, source: ImageSource, layer: SourceLayer, diff_id: str, *, budget: Budget, progress: ImageProgress
    ) -> AsyncIterator[Archive]:
        blob = await source.open(layer)
        archive = Archive(
            blob, diff_id=diff_id, budget=budget, fetched=lambda size: progress.fetched(layer.digest, size)
        )
        try:
            yield archive
        finally:
            await archive.close()

    async def _settled(self, work: Coroutine[Any, Any, object], name: str) -> None:
        await self.tasks.settle(_in_time(work), name=name)

    async def _delete(self, name: str) -> None:
        try:
            await _in_time(self.disks.delete(name))
        except Conflict:
            return  # a sandbox stands on it; the next clean-up tries again
        except StockadeError as error:
            log.warning("image.layer_left", disk=name, reason=str(error) or repr(error))
            return
        self._here.pop(name, None)


async def _in_time(work: Coroutine[Any, Any, T]) -> T:
    try:
        async with asyncio.timeout(_DISK_S):
            return await work
    except TimeoutError:
        raise Unavailable(f"the disks did not answer within {_DISK_S:g} s") from None
