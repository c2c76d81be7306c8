"""Images in files: OCI layouts, and what `docker save` writes, before and since it writes an OCI layout, too.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md
https://github.com/moby/docker-image-spec/blob/main/spec.md#combined-image-json--filesystem-changeset-format
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from stockade.engine.image_archives import Directory, Pieces, TarFile
from stockade.engine.image_manifests import (
    MOST_CONFIG_BYTES,
    MOST_MANIFEST_BYTES,
    BadManifest,
    Descriptor,
    Index,
    Manifest,
    Platform,
    checked_digest,
    chosen,
    diff_ids,
    parsed,
    sha256_of,
)
from stockade.engine.image_sources import ImageUnavailable, SourceImage, SourceLayer
from stockade.errors import Invalid

__all__ = ["DockerArchive", "OciLayout"]

T = TypeVar("T")

_INDEX, _DOCKER = "index.json", "manifest.json"
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_DEEPEST = 4
"""Indexes within indexes."""


class _Files:
    """One image in pieces; what both kinds have in common."""

    is_private = False

    def __init__(self, path: Path, *, name: str | None) -> None:
        """Take a path.

        Args:
            name: which of several images; as the file calls it. `None` where there is only one.
        """
        self._path = path
        self._name = name
        self._pieces: Pieces | None = None
        self._places: dict[str, str] = {}

    async def describe(self) -> SourceImage:
        """See `ImageSource.describe`."""
        return await self._told(self._describe)

    async def open(self, layer: SourceLayer) -> AsyncIterator[bytes]:
        """See `ImageSource.open`."""
        place = self._places.get(layer.digest)
        if place is None or self._pieces is None:
            raise BadManifest(f"{self._path}: has no layer {layer.digest}")
        return self._blob(layer, self._pieces.chunks(place))

    async def close(self) -> None:
        """See `ImageSource.close`."""
        if self._pieces is not None:
            await asyncio.to_thread(self._pieces.close)
            self._pieces = None

    async def _blob(self, layer: SourceLayer, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
        found, size = hashlib.sha256(), 0

        def next_chunk() -> bytes | None:
            chunk = next(chunks, None)
            if chunk is not None:
                found.update(chunk)
            return chunk

        while (chunk := await self._told(next_chunk)) is not None:
            size += len(chunk)
            yield chunk
        if size != layer.size or f"sha256:{found.hexdigest()}" != layer.digest:
            raise BadManifest(f"{self._path}: the layer {layer.digest} is damaged")

    async def _told(self, work: Callable[[], T]) -> T:
        """What *work* returns, done in a thread, its errors in our words."""
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise ImageUnavailable(f"{self._path}: {error.strerror or error}") from error

    def _describe(self) -> SourceImage:
        raise NotImplementedError

    def _of_layout(self, pieces: Pieces) -> SourceImage:
        body = pieces.read(_INDEX, most=MOST_MANIFEST_BYTES)
        digest, media_type = "", ""
        names: tuple[str, ...] = ()
        for depth in range(_DEEPEST + 1):
            document = parsed(body, media_type)
            if isinstance(document, Manifest):
                return self._of_manifest(pieces, digest, document, names)
            if depth == 0:
                entry, names = self._named(document, body)
            else:
                entry = chosen(document, Platform.of_this_machine())
            digest, media_type = entry.digest, entry.media_type
            body = self._document(pieces, digest, most=MOST_MANIFEST_BYTES)
        raise BadManifest(f"{self._path}: its indexes lead to no image")

    def _named(self, index: Index, body: bytes) -> tuple[Descriptor, tuple[str, ...]]:
        """The entry of the layout's own index that is wanted, and what it is called."""
        called = [_names_of(entry) for entry in json.loads(body)["manifests"]]
        if self._name is None:
            if len({entry.digest for entry in index.manifests}) > 1 and len(set(called)) > 1:
                raise Invalid(f"{self._path}: has several images: name one of {_listed(called)}")
            fitting = list(index.manifests)
        else:
            fitting = [one for one, names in zip(index.manifests, called, strict=True) if self._name in names]
            if not fitting:
                raise Invalid(f"{self._path}: has no image {self._name!r}; it has {_listed(called)}")
        entry = fitting[0] if len(fitting) == 1 else chosen(Index(manifests=tuple(fitting)), Platform.of_this_machine())
        return entry, called[index.manifests.index(entry)]

    def _of_manifest(self, pieces: Pieces, digest: str, manifest: Manifest, names: tuple[str, ...]) -> SourceImage:
        self._places = {layer.digest: _blob_name(layer.digest) for layer in manifest.layers}
        layers = tuple(
            SourceLayer(digest=layer.digest, size=layer.size, media_type=layer.media_type) for layer in manifest.layers
        )
        config = self._document(pieces, manifest.config.digest, most=MOST_CONFIG_BYTES)
        return SourceImage(digest=digest, config=config, layers=layers, names=names)

    def _document(self, pieces: Pieces, digest: str, *, most: int) -> bytes:
        content = pieces.read(_blob_name(checked_digest(digest)), most=most)
        if sha256_of(content) != digest:
            raise BadManifest(f"{self._path}: {digest} is damaged")
        return content


class OciLayout(_Files):
    """An image in a directory: an OCI layout, such as `skopeo copy … oci:DIRECTORY` makes."""

    kind = "layout"

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        """Take the directory; see `DockerArchive` for *name*."""
        super().__init__(path, name=name)

    def _describe(self) -> SourceImage:
        pieces = self._pieces = Directory(self._path)
        if pieces.size(_INDEX) is None:
            raise Invalid(f"{self._path}: is no OCI layout: it has no {_INDEX}")
        return self._of_layout(pieces)


class DockerArchive(_Files):
    """An image in a tar archive that `docker save`, `podman save` or `skopeo` wrote, or an OCI layout in one."""

    kind = "archive"

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        """Take the file, which is not to change meanwhile.

        Args:
            name: which of several images, as the archive calls it; `None` where there is only one.
        """
        super().__init__(path, name=name)

    def _describe(self) -> SourceImage:
        pieces = self._pieces = TarFile(self._path)
        if pieces.size(_DOCKER) is not None:
            return self._of_docker(pieces)
        if pieces.size(_INDEX) is not None:
            return self._of_layout(pieces)
        raise Invalid(f"{self._path}: is no image: it has neither {_DOCKER} nor {_INDEX}")

    def _of_docker(self, pieces: Pieces) -> SourceImage:
        """The image that `manifest.json` tells of: where it has an OCI manifest as well, the digest is that one's."""
        entry = self._entry(pieces)
        names = _texts(entry.get("RepoTags"))
        config_name, layer_names = entry.get("Config"), _texts(entry.get("Layers"))
        if not isinstance(config_name, str):
            raise BadManifest(f"{self._path}: {_DOCKER} names no configuration")
        config = pieces.read(config_name, most=MOST_CONFIG_BYTES)
        digests = diff_ids(config)
        if len(digests) != len(layer_names):
            raise BadManifest(f"{self._path}: {len(layer_names)} layers, and {len(digests)} in its configuration")
        layers = []
        for digest, name in zip(digests, layer_names, strict=True):
            size = self._size(pieces, name)
            # Packed, it lies under the digest of what it is packed to; plain, that is the configuration's.
            is_packed = not name.endswith(f"/{digest.removeprefix('sha256:')}") and _is_packed(pieces, name)
            blob_digest = _digest_of(pieces, name) if is_packed else digest
            self._places[blob_digest] = name
            layers.append(SourceLayer(digest=blob_digest, diff_id=digest, size=size))
        return SourceImage(
            digest=self._manifest_digest(pieces, sha256_of(config)), config=config, layers=tuple(layers), names=names
        )

    def _entry(self, pieces: Pieces) -> Mapping[str, Any]:
        try:
            entries = json.loads(pieces.read(_DOCKER, most=MOST_MANIFEST_BYTES))
        except (ValueError, RecursionError):
            raise BadManifest(f"{self._path}: {_DOCKER} is no JSON") from None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BadManifest(f"{self._path}: {_DOCKER} is no list of images")
        found: list[Mapping[str, Any]] = entries
        called = [_texts(entry.get("RepoTags")) for entry in found]
        if self._name is None:
            if len(found) != 1:
                raise Invalid(f"{self._path}: has {len(found)} images: name one of {_listed(called)}")
            return found[0]
        for entry, names in zip(found, called, strict=True):
            if self._name in names:
                return entry
        raise Invalid(f"{self._path}: has no image {self._name!r}; it has {_listed(called)}")

    def _manifest_digest(self, pieces: Pieces, config_digest: str) -> str:
        """The digest of the OCI manifest of this configuration, where there is one; else the configuration's."""
        if pieces.size(_INDEX) is None:
            return config_digest
        try:
            pending = list(_descriptors(pieces.read(_INDEX, most=MOST_MANIFEST_BYTES)))
            for _ in range(_DEEPEST):
                found, pending = pending, []
                for one in found:
                    if pieces.size(_blob_name(one.digest)) is None:
                        continue
                    body = self._document(pieces, one.digest, most=MOST_MANIFEST_BYTES)
                    document = parsed(body, one.media_type)
                    if isinstance(document, Index):
                        pending += document.manifests
                    elif document.config.digest == config_digest:
                        return one.digest
        except BadManifest:
            pass  # what the image is, is known without it
        return config_digest

    def _size(self, pieces: Pieces, name: str) -> int:
        size = pieces.size(name)
        if size is None:
            raise BadManifest(f"{self._path}: the layer {name} is missing")
        return size


def _descriptors(body: bytes) -> tuple[Descriptor, ...]:
    document = parsed(body)
    return document.manifests if isinstance(document, Index) else ()


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _is_packed(pieces: Pieces, name: str) -> bool:
    head = next(pieces.chunks(name), b"")
    return head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))


def _digest_of(pieces: Pieces, name: str) -> str:
    total = hashlib.sha256()
    for chunk in pieces.chunks(name):
        total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def _names_of(entry: Any) -> tuple[str, ...]:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    if not isinstance(annotations, dict):
        return ()
    return _texts([annotations[name] for name in _NAMES if name in annotations])


def _texts(value: object) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _listed(called: list[tuple[str, ...]]) -> str:
    return ", ".join(name for names in called for name in names)[:500] or "none with a name"
