"""Boxes as files: exported to a stream of bytes, imported from one, on this host or another.

A file holds what the box is like (`engine.box_manifests`), the layers of its image, and its disk, each packed
(`engine.box_parcels`). Trees are read and written in workshops, by code inside: nothing of a stranger's is unpacked out
here. An import shows nothing until the last byte has come and all of it is right; when it fails, nothing is left.
"""

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import structlog

from stockade.backends.disks import DiskInfo
from stockade.backends.sandboxing import FileAccess
from stockade.engine.box_manifests import BoxManifest, image_configuration, manifest_of, parsed_manifest
from stockade.engine.box_parcels import BadParcel, ParcelReader, ParcelWriter, Part
from stockade.engine.image_manifests import MOST_CONFIG_BYTES, diff_ids, sha256_of
from stockade.engine.image_references import is_digest
from stockade.engine.image_sources import ImageSource, SourceImage, SourceLayer
from stockade.engine.tasks import Tasks
from stockade.engine.ulids import new_ulid
from stockade.errors import Invalid, LimitExceeded, NotFound, StockadeError, Unavailable
from stockade.model import Actor, Box, BoxRequest, DiskMount, Snapshot
from stockade.model.images import ImageRecord

__all__ = ["BoxArchives", "BoxDisks", "BoxExport", "BoxMaker", "Images", "MissingImage", "Workshops"]

log = structlog.get_logger()

_LAYER, _CONFIG, _DISK = "layer", "config", "disk"
_TREE = f"{DiskMount.WORKSHOP}/upper"
_DISK_S = 120.0
"""Within which an operation on a disk has to be done."""
_OVERHEAD = 4 << 30
"""Bytes that an archive of a tree may have beyond its files' own: names, owners, times."""
_AHEAD = 4
"""Pieces that are made before they are asked for."""
_READ_BYTES = 1 << 18


class MissingImage(Invalid):
    """What a box stands on is not here."""

    code = "image.unknown"


class BoxMaker(Protocol):
    """See `engine.boxes.Boxes`."""

    async def create(
        self, actor: Actor, request: BoxRequest, *, fill: Callable[[Box], Awaitable[None]] | None = None
    ) -> Box: ...

    def disk_of(self, actor: Actor, box: Box) -> AbstractAsyncContextManager[str]: ...


class BoxDisks(Protocol):
    """See `backends.disks.Disks`."""

    async def copy(
        self, of: str, name: str, *, size_bytes: int | None = None, sandbox: str | None = None
    ) -> DiskInfo: ...

    async def info(self, name: str) -> DiskInfo: ...

    async def delete(self, name: str) -> None: ...


class Images(Protocol):
    """See `engine.image_store.ImageStore`."""

    def find(self, account_id: str, name: str) -> ImageRecord | None: ...

    async def add(
        self, source: ImageSource, *, reference: str, account_id: str = "", brought_by: str = ""
    ) -> ImageRecord: ...

    async def remove(self, actor: Actor, name: str) -> ImageRecord: ...

    def using(self, digest: str) -> AbstractContextManager[None]: ...


class Workshops(Protocol):
    """See `engine.workshops.Workshops`."""

    def open(
        self, purpose: str, *, disk: str | None = None, layers: tuple[str, ...] = (), read_only: bool = False
    ) -> AbstractAsyncContextManager[FileAccess]: ...


class BoxExport:
    """The bytes of a file of a box, as they are made. Close it.

    A task of its own makes them, as fast as they are taken: what it holds has deadlines that are that task's, whichever
    takes the bytes.
    """

    def __init__(self, make: Callable[["BoxExport"], AsyncGenerator[bytes, None]], tasks: Tasks) -> None:
        self._make = make
        self._tasks = tasks
        self._pieces: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(_AHEAD)
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self.size_hint: int | None = None
        """Once the first piece is there: about how many bytes it would take if it were not packed."""

    def __aiter__(self) -> "BoxExport":
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        if self._task is None:
            self._task = self._tasks.start(self._produce(), name="export a box")
        piece = await self._pieces.get()
        if isinstance(piece, bytes):
            return piece
        self._is_over = True
        await self.aclose()
        if piece is None:
            raise StopAsyncIteration
        raise piece

    async def aclose(self) -> None:
        """Make no more of it, and wait until all that it took is given back. Idempotent."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _produce(self) -> None:
        ending: BaseException | None = None
        try:
            async with contextlib.aclosing(self._make(self)) as pieces:
                async for piece in pieces:
                    await self._pieces.put(piece)
        except Exception as error:  # told to whoever takes the pieces
            ending = error
        except asyncio.CancelledError:
            while not self._pieces.empty():  # they are worth nothing without what would have followed
                self._pieces.get_nowait()
            self._pieces.put_nowait(Unavailable("the export was broken off: the server is ending"))
            raise
        await self._pieces.put(ending)


@dataclass(kw_only=True)
class BoxArchives:
    """Exports and imports of all accounts."""

    boxes: BoxMaker
    disks: BoxDisks
    images: Images | None
    """`None` where there are none but the server's own."""
    workshops: Workshops
    tasks: Tasks
    spool: Path
    """A directory for what has to wait until it is known what it is; unnamed files, as large as images."""
    version: str
    own_images: frozenset[str] = frozenset({"host"})
    """Digests or names of images that every server has: nothing of them is in a file."""
    most_image_bytes: int = 16 << 30
    most_at_once: int = 2
    """Exports and imports of one account that are under way."""
    _under_way: Counter[str] = field(default_factory=Counter)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def export(self, actor: Actor, box: Box, *, snapshot: Snapshot | None = None, with_image: bool = True) -> BoxExport:
        """The file of a box as it is at the moment of the first piece; while it runs, as a snapshot would show it.

        Args:
            snapshot: one of the box, whose disk is meant instead of the box's own.
            with_image: put the image into it. Without it, it can be imported only where that is.

        Raises (with the first piece, or later, when the file is worth nothing):
            NotFound: the box, the snapshot or the image is gone.
            LimitExceeded: the account has as many exports and imports under way as it may have.
            Unavailable: there is no room, or something does not answer.
        """
        return BoxExport(lambda told: self._pieces(told, actor, box, snapshot, with_image), self.tasks)

    async def _pieces(
        self, told: BoxExport, actor: Actor, box: Box, snapshot: Snapshot | None, with_image: bool
    ) -> AsyncGenerator[bytes, None]:
        writer = ParcelWriter()
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._place(actor))
            image = self._image_of(box) if with_image else None
            if image is not None and self.images is not None:
                stack.enter_context(self.images.using(image.digest))
            if snapshot is None:
                disk = await stack.enter_async_context(self.boxes.disk_of(actor, box))
            else:
                disk = await stack.enter_async_context(self._copy(snapshot.disk))
            async with asyncio.timeout(_DISK_S):
                disk_bytes = (await self.disks.info(disk)).used_bytes
            told.size_hint = disk_bytes + (0 if image is None else image.size_bytes)
            made_at = datetime.now(UTC)
            yield writer.begin(manifest_of(box, disk_bytes=disk_bytes, made_at=made_at, version=self.version))
            if image is not None:
                async for piece in self._image_parts(writer, image):
                    yield piece
            async with self.workshops.open("export", disk=disk, read_only=True) as files:
                tree = await files.save_tree(_TREE)
                async for piece in writer.part({"kind": _DISK}, tree):
                    yield piece
            yield writer.end()

    def _image_of(self, box: Box) -> ImageRecord | None:
        """The image that a box stands on, where it is not every server's. Raises NotFound: it is gone."""
        if box.image_digest in self.own_images:
            return None
        found = None if self.images is None else self.images.find(_owner(box.account_id, box.key_id), box.image_digest)
        if found is None:
            raise NotFound(f"the image {box.image} of box {box.id} is not here any more")
        return found

    async def _image_parts(self, writer: ParcelWriter, image: ImageRecord) -> AsyncGenerator[bytes, None]:
        """The layers, the lowest first, and then what the image says of itself: only then their digests are known."""
        digests = []
        for layer in image.layers:
            digest = hashlib.sha256()
            async with (
                self._copy(layer.disk) as disk,
                self.workshops.open("export", disk=disk, read_only=True) as files,
            ):
                tree = _noted(await files.save_tree(_TREE, as_image_layer=True), digest)
                async for piece in writer.part({"kind": _LAYER}, tree):
                    yield piece
            digests.append(f"sha256:{digest.hexdigest()}")
        async for piece in writer.part({"kind": _CONFIG}, _once(image_configuration(image.config, digests))):
            yield piece

    @contextlib.asynccontextmanager
    async def _copy(self, of: str) -> AsyncIterator[str]:
        """A copy of a disk or layer that nobody writes to, during the block."""
        name = (
            f"t{new_ulid().lower()}"  # as `engine.box_disks` calls such copies, which clears away what a crash leaves
        )
        try:
            async with asyncio.timeout(_DISK_S):
                await self.disks.copy(of, name)
            yield name
        finally:
            await self.tasks.settle(self._delete(name), name=f"delete disk {name}")

    async def _delete(self, name: str) -> None:
        try:
            async with asyncio.timeout(_DISK_S):
                await self.disks.delete(name)
        except (StockadeError, TimeoutError) as error:  # the next start deletes it
            log.warning("box_archive.disk_left", disk=name, reason=str(error) or repr(error))

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def import_(
        self, actor: Actor, content: AsyncIterable[bytes], *, name: str | None = None, dialect: str = "boxlite"
    ) -> Box:
        """Make a box of a file; durable when this returns. Where its image is not here, it comes with the file.

        What *content* raises is passed on.

        Raises:
            BadParcel: it is no such file, or damaged, or cut off.
            MissingImage: the image is neither here nor in the file.
            Invalid, Conflict, LimitExceeded, Unavailable: as `Boxes.create`; or the account has as many exports and
                imports under way as it may have.
        """
        with self._place(actor):
            reader = ParcelReader(content)
            told = parsed_manifest(await reader.header(), name=name, dialect=dialect)
            async with contextlib.AsyncExitStack() as stack:
                image, disk = await self._image(actor, told, reader, stack)
                request = replace(told.request, image=image)

                async def fill(box: Box) -> None:
                    await self._load(box, request, disk, reader)

                return await self.boxes.create(actor, request, fill=fill)

    async def _load(self, box: Box, request: BoxRequest, disk: Part, reader: ParcelReader) -> None:
        most = request.limits.disk_bytes
        async with self.workshops.open("import", disk=box.disk) as files:
            try:
                await files.load_tree(_TREE, disk.content(most_bytes=most + _OVERHEAD), most_bytes=most)
            except BadParcel:
                raise
            except Invalid as error:
                raise BadParcel(f"the export of the box is damaged: {error}") from error
        if not disk.is_over or await reader.part() is not None:
            raise BadParcel("the export of the box is damaged: it has no end")

    async def _image(
        self, actor: Actor, told: BoxManifest, reader: ParcelReader, stack: contextlib.AsyncExitStack
    ) -> tuple[str, Part]:
        """What the box's image is called here, and the part that follows, which is its disk's.

        On *stack* goes what keeps the image until there is the box; and what takes it away if there will be none.
        """
        owner = _owner(actor.account_id, actor.id)
        known = told.image_digest in self.own_images
        record = None
        if not known and self.images is not None and is_digest(told.image_digest):
            record = self.images.find(owner, told.image_digest)
        with contextlib.ExitStack() as spooled:
            layers: list[_Layer] = []
            configuration: bytes | None = None
            left = self.most_image_bytes
            while (part := await reader.part()) is not None:
                kind = part.facts.get("kind")
                if kind == _DISK:
                    break
                if kind not in (_LAYER, _CONFIG) or configuration is not None:
                    raise BadParcel("the export of the box is damaged: it has a part that is not known here")
                if known or record is not None:
                    await part.skip(most_bytes=self.most_image_bytes)
                elif kind == _CONFIG:
                    pieces = [piece async for piece in part.content(most_bytes=MOST_CONFIG_BYTES)]
                    configuration = b"".join(pieces)
                else:
                    file = spooled.enter_context(_unnamed(self.spool))
                    layers.append(await _spooled(part, file, most_bytes=left))
                    left -= layers[-1].told.size
            if part is None:
                raise BadParcel("the export of the box is damaged: it has no disk")
            if known:
                return told.image_digest, part
            if record is None:
                record = await self._bring(actor, told, configuration, layers, stack)
        if self.images is not None:
            stack.enter_context(self.images.using(record.digest))
            for name in (told.image, record.reference):  # as it was asked for, where that means the same here
                same = self.images.find(owner, name) if name else None
                if same is not None and same.digest == record.digest:
                    return name, part
        return record.digest, part

    async def _bring(
        self,
        actor: Actor,
        told: BoxManifest,
        configuration: bytes | None,
        layers: list["_Layer"],
        stack: contextlib.AsyncExitStack,
    ) -> ImageRecord:
        """Put the image of a file beside the others, for the actor's account alone."""
        if configuration is None or not layers or self.images is None:
            raise MissingImage(
                f"the box stands on image {told.image[:200]!r} ({told.image_digest[:80]}), which is neither here nor "
                "in the file: bring it here first, or export the box with its image"
            )
        images, owner = self.images, _owner(actor.account_id, actor.id)
        source = _FileSource(configuration, layers)
        digest = (await source.describe()).digest
        was_here = images.find(owner, digest) is not None
        record = await images.add(
            source,
            reference=f"localhost/imported:{digest.removeprefix('sha256:')[:12]}",
            account_id=owner,
            brought_by=owner,
        )

        async def undo(kind: object, *_: object) -> None:
            if kind is not None and not was_here:
                with contextlib.suppress(StockadeError):  # another box stands on it by now
                    await images.remove(actor, digest)

        stack.push_async_exit(undo)
        return record

    @contextlib.contextmanager
    def _place(self, actor: Actor) -> Iterator[None]:
        owner = _owner(actor.account_id, actor.id)
        if self._under_way[owner] >= self.most_at_once:
            raise LimitExceeded(
                f"{self.most_at_once} exports and imports are under way, which is the most of an account: wait for one"
            )
        self._under_way[owner] += 1
        try:
            yield
        finally:
            self._under_way[owner] -= 1
            if not self._under_way[owner]:
                del self._under_way[owner]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer of a file, kept until it is known what to do with it."""

    told: SourceLayer
    file: int


class _FileSource:
    """The image in a file, as `engine.image_sources.ImageSource` has images."""

    kind = "archive"
    is_private = True

    def __init__(self, configuration: bytes, layers: list[_Layer]) -> None:
        self._configuration = configuration
        self._layers = layers

    async def describe(self) -> SourceImage:
        digests = diff_ids(self._configuration)
        if len(digests) != len(self._layers):
            raise BadParcel("the export of the box is damaged: its image has other layers than it says")
        layers = tuple(
            replace(layer.told, diff_id=diff_id) for layer, diff_id in zip(self._layers, digests, strict=True)
        )
        return SourceImage(digest=sha256_of(self._configuration), config=self._configuration, layers=layers)

    async def open(self, layer: SourceLayer) -> AsyncIterator[bytes]:
        (file, *_) = (one.file for one in self._layers if one.told.digest == layer.digest)
        return _read(file, layer.size)

    async def close(self) -> None:
        return None


@contextlib.contextmanager
def _unnamed(directory: Path) -> Iterator[int]:
    """A new file that is gone with the block, and with us."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=directory) as file:
        yield file.fileno()


async def _spooled(part: Part, file: int, *, most_bytes: int) -> _Layer:
    digest = hashlib.sha256()
    size = 0
    async for piece in part.packed(most_bytes=most_bytes):
        digest.update(piece)
        await asyncio.to_thread(_write_all, file, piece)
        size += len(piece)
    return _Layer(told=SourceLayer(digest=f"sha256:{digest.hexdigest()}", size=size), file=file)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


async def _read(file: int, size: int) -> AsyncGenerator[bytes, None]:
    at = 0
    while at < size:
        piece = await asyncio.to_thread(os.pread, file, _READ_BYTES, at)
        if not piece:
            raise BadParcel("the export of the box is damaged: a layer is cut off")
        at += len(piece)
        yield piece


async def _noted(pieces: AsyncIterator[bytes], digest: "hashlib._Hash") -> AsyncGenerator[bytes, None]:
    async for piece in pieces:
        digest.update(piece)
        yield piece


async def _once(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


def _owner(account_id: str, key_id: str) -> str:
    """Whose images are looked for: the account's, or the key's own where there is none."""
    return account_id or key_id
