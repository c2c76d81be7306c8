"""Where `stockade image` works: what it needs of a place, and the data directory as one, where no server runs."""

import os
import tarfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Protocol

from stockade.errors import Invalid

if TYPE_CHECKING:
    from stockade.engine.image_progress import LayerProgress
    from stockade.engine.image_sources import ImageProgress, ImageSource
    from stockade.engine.image_store import ImageStore
    from stockade.model import Actor
    from stockade.model.images import ImageRecord

__all__ = ["Here", "Place", "Steps", "file_source", "import_stream"]

Steps = AsyncGenerator["LayerProgress | Mapping[str, Any]", None]
"""How far each layer is; the last step is the image, as the REST interface tells of one that was pulled."""
_CHUNK = 1 << 20
_BLOCK = 512


class Place(Protocol):
    """Images of one server. What is told of them has the members of the REST interface."""

    def pull(self, reference: str, *, force: bool) -> Steps:
        """Bring an image here from its registry; *force*: ask there, although it is here."""
        ...

    def import_file(self, path: Path, *, name: str | None, reference: str) -> Steps:
        """Bring an image here from a `docker save` archive or an OCI layout; *name*: which of several in it."""
        ...

    def add(self, source: "ImageSource", *, reference: str) -> Steps:
        """Bring an image here from elsewhere."""
        ...

    async def list(self) -> Sequence[Mapping[str, Any]]: ...

    async def show(self, name: str) -> Mapping[str, Any]: ...

    async def alias(self, name: str, alias: str) -> None: ...

    async def unalias(self, name: str, alias: str) -> None: ...

    async def remove(self, name: str) -> None: ...

    async def prune(self, unused_s: float | None) -> Mapping[str, Any]: ...

    async def usage(self) -> Mapping[str, Any]: ...


class Here:
    """The images in a data directory that no server uses meanwhile. What is brought here is everybody's, but for what
    came with credentials.
    """

    def __init__(self, store: "ImageStore", actor: "Actor") -> None:
        """Take them, and on whose behalf: the operator's."""
        self._store = store
        self._actor = actor

    def pull(self, reference: str, *, force: bool) -> Steps:
        bring = self._store.pull if force else self._store.ensure
        return _steps(lambda progress: bring(self._actor, reference, progress=progress))

    def import_file(self, path: Path, *, name: str | None, reference: str) -> Steps:
        return self.add(file_source(path, name), reference=reference)

    async def add(self, source: "ImageSource", *, reference: str) -> Steps:
        try:
            async for step in _steps(lambda progress: self._store.add(source, reference=reference, progress=progress)):
                yield step
        finally:
            await source.close()

    async def list(self) -> Sequence[Mapping[str, Any]]:
        from stockade.dialects.boxlite.image_objects import image_listed

        return [image_listed(one) for one in self._store.list(self._actor)]

    async def show(self, name: str) -> Mapping[str, Any]:
        from stockade.dialects.boxlite.image_objects import image_details

        return image_details(self._store.get(self._actor, name))

    async def alias(self, name: str, alias: str) -> None:
        await self._store.alias(self._actor, name, alias)

    async def unalias(self, name: str, alias: str) -> None:
        self._store.get(self._actor, name)
        await self._store.unalias(self._actor, alias)

    async def remove(self, name: str) -> None:
        await self._store.remove(self._actor, name)

    async def prune(self, unused_s: float | None) -> Mapping[str, Any]:
        gone = await self._store.prune(unused_s)
        return {"removed": [one.reference for one in gone.images], "freed_bytes": gone.freed_bytes}

    async def usage(self) -> Mapping[str, Any]:
        found = self._store.usage(self._actor)
        return {"count": found.count, "limit": found.limit, "known_bytes": found.known_bytes}


async def _steps(bring: "Callable[[ImageProgress], Awaitable[ImageRecord]]") -> Steps:
    from stockade.dialects.boxlite.image_objects import image_pulled
    from stockade.engine.image_progress import LayerProgress, watched

    async for step in watched(bring):
        yield step if isinstance(step, LayerProgress) else image_pulled(step)


def file_source(path: Path, name: str | None) -> "ImageSource":
    """An image in a file or directory."""
    from stockade.engine.image_layouts import DockerArchive, OciLayout

    return OciLayout(path, name=name) if path.is_dir() else DockerArchive(path, name=name)


async def import_stream(path: Path, *, name: str | None) -> AsyncGenerator[bytes, None]:
    """An image in a file or directory, as one tar for a server: as it is, but for one out of several.

    Raises:
        Invalid: it is neither.
        OSError: it cannot be read.
    """
    if name is not None:
        from stockade.engine.image_packing import packed

        source = file_source(path, name)
        try:
            async for part in packed(source):
                yield part
        finally:
            await source.close()
    elif path.is_dir():
        for part in _layout(path):
            yield part
    else:
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                yield part


def _layout(path: Path) -> Iterator[bytes]:
    """The tar of an OCI layout: of what belongs to one, and nothing else that may lie there."""
    if not (path / "index.json").is_file():
        raise Invalid(f"{path}: is no OCI layout: it has no index.json")
    for file in (path / "oci-layout", path / "index.json", *sorted(path.glob("blobs/*/*"))):
        if not file.exists() or not S_ISREG(file.lstat().st_mode):
            continue
        with file.open("rb") as opened:
            member = tarfile.TarInfo(str(file.relative_to(path)))
            member.size = left = os.fstat(opened.fileno()).st_size
            yield member.tobuf(tarfile.PAX_FORMAT)
            while left:
                part = opened.read(min(_CHUNK, left))
                if not part:
                    raise Invalid(f"{file}: became shorter while it was read")
                left -= len(part)
                yield part
            yield bytes(-member.size % _BLOCK)
    yield bytes(2 * _BLOCK)
