"""Images made by hand, as archives, layouts and sources; and disks and workshops in memory."""

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from stockade.backends.disks import DiskFacts, DiskInfo
from stockade.backends.sandboxing import LiveSpec
from stockade.engine.image_manifests import Platform
from stockade.engine.image_sources import SourceImage, SourceLayer
from stockade.errors import Conflict, Invalid, NotFound
from stockade.model import DiskMount, FileInfo, FileKind

__all__ = [
    "FakeDisks",
    "FakeSandboxes",
    "FakeSource",
    "MadeImage",
    "docker_archive",
    "layer",
    "made",
    "oci_layout",
    "sha256",
]


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def layer(files: Mapping[str, bytes | str | None] | None = None, members: Sequence[tarfile.TarInfo] = ()) -> bytes:
    """A plain archive: bytes are a file's content, a text is what a link holds, `None` makes a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (files or {}).items():
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
        for member in members:
            archive.addfile(member)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class MadeImage:
    """An image of this machine's platform, and everything that a source of it has."""

    archives: tuple[bytes, ...]
    blobs: tuple[bytes, ...]
    """The archives as they are packed."""
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def layers(self) -> tuple[SourceLayer, ...]:
        return tuple(SourceLayer(digest=sha256(blob), size=len(blob)) for blob in self.blobs)


PACK: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda archive: archive,
    "gzip": lambda archive: gzip.compress(archive, mtime=0),
    "zstd": lambda archive: zstandard.ZstdCompressor().compress(archive),
}


def made(
    *archives: bytes,
    pack: str = "gzip",
    config: Mapping[str, Any] | None = None,
    diff_ids: Sequence[str] | None = None,
    is_cut_off: bool = False,
) -> MadeImage:
    """An image of these layers, the lowest first.

    Args:
        config: what it says of itself.
        diff_ids: what it claims that its layers are.
        is_cut_off: the end of each blob is missing.
    """
    blobs = tuple(PACK[pack](archive)[: -9 if is_cut_off else None] for archive in archives)
    document = {
        "architecture": Platform.of_this_machine().architecture,
        "os": "linux",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(sha256, archives))},
    }
    content = json.dumps(document).encode()
    kind = "application/vnd.oci.image.layer.v1.tar" + (f"+{pack}" if pack else "")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _descriptor(content, "application/vnd.oci.image.config.v1+json"),
        "layers": [_descriptor(blob, kind) for blob in blobs],
    }
    return MadeImage(archives=archives, blobs=blobs, config=content, manifest=json.dumps(manifest).encode())


def oci_layout(path: Path, *images: MadeImage, names: Sequence[str] = ()) -> Path:
    """An OCI layout of these images in a new directory."""
    (path / "blobs" / "sha256").mkdir(parents=True)
    entries = []
    for number, image in enumerate(images):
        for blob in (image.manifest, image.config, *image.blobs):
            (path / "blobs" / "sha256" / sha256(blob).removeprefix("sha256:")).write_bytes(blob)
        entry = _descriptor(image.manifest, "application/vnd.oci.image.manifest.v1+json")
        if number < len(names):
            entry["annotations"] = {"org.opencontainers.image.ref.name": names[number]}
        entries.append(entry)
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return path


def docker_archive(path: Path, *images: MadeImage, tags: Sequence[str] = ("app:1",), is_old: bool = True) -> Path:
    """What `docker save` writes: before it wrote an OCI layout, or as it does now."""
    entries: list[dict[str, Any]] = []
    pieces: dict[str, bytes] = {}
    for image, tag in zip(images, tags, strict=True):
        names = []
        for archive in image.archives:
            digits = sha256(archive).removeprefix("sha256:")
            names.append(f"{digits[::-1]}/layer.tar" if is_old else f"blobs/sha256/{digits}")
            pieces[names[-1]] = archive
        digits = sha256(image.config).removeprefix("sha256:")
        config = f"{digits}.json" if is_old else f"blobs/sha256/{digits}"
        pieces[config] = image.config
        entries.append({"Config": config, "RepoTags": [tag], "Layers": names})
        if not is_old:
            pieces[f"blobs/sha256/{sha256(image.manifest).removeprefix('sha256:')}"] = image.manifest
    if not is_old:
        kind = "application/vnd.oci.image.manifest.v1+json"
        index = {"schemaVersion": 2, "manifests": [_descriptor(image.manifest, kind) for image in images]}
        pieces["index.json"] = json.dumps(index).encode()
    pieces["manifest.json"] = json.dumps(entries).encode()
    path.write_bytes(layer(pieces))
    return path


def _descriptor(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(content), "size": len(content)}


@dataclass
class FakeSource:
    """A source in memory. `gate` holds back all blobs, `broken` ends them with an error."""

    image: MadeImage
    kind: str = "registry"
    is_private: bool = False
    gate: asyncio.Event | None = None
    broken: Exception | None = None
    opened: list[str] = field(default_factory=list)
    is_closed: bool = False

    async def describe(self) -> SourceImage:
        return SourceImage(digest=self.image.digest, config=self.image.config, layers=self.image.layers)

    async def open(self, layer: SourceLayer) -> AsyncIterator[bytes]:
        self.opened.append(layer.digest)
        return self._blob(next(blob for blob in self.image.blobs if sha256(blob) == layer.digest))

    async def close(self) -> None:
        self.is_closed = True

    async def _blob(self, blob: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(blob), 4096):
            yield blob[at : at + 4096]
            if self.gate is not None:
                await self.gate.wait()
            if self.broken is not None:
                raise self.broken


@dataclass
class FakeDisks:
    """Disks in memory: of each, what was unpacked into it."""

    content: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sealed: set[str] = field(default_factory=set)
    in_use: set[str] = field(default_factory=set)
    made: list[str] = field(default_factory=list)

    async def facts(self) -> DiskFacts:
        return DiskFacts(kind="directory", shares_blocks=False, enforces_size=False, free_bytes=1 << 40, place="memory")

    async def make(self, name: str, *, size_bytes: int) -> None:
        await asyncio.sleep(0)
        if name in self.content:
            raise Conflict(f"there is a disk {name}")
        self.made.append(name)
        self.content[name] = {}

    async def copy(self, of: str, name: str, *, size_bytes: int | None = None, sandbox: str | None = None) -> DiskInfo:
        self.content[name] = dict(self.content[of])
        return await self.info(name)

    async def replace(self, name: str, by: str) -> None:
        self.content[name] = dict(self.content[by])

    async def seal(self, name: str) -> DiskInfo:
        await asyncio.sleep(0)
        if name in self.in_use:
            raise Conflict(f"a sandbox writes to {name}")
        self.sealed.add(name)
        return await self.info(name)

    async def resize(self, name: str, *, size_bytes: int) -> None:
        return None

    async def delete(self, name: str) -> None:
        await asyncio.sleep(0)
        if name in self.in_use:
            raise Conflict(f"a sandbox uses {name}")
        self.content.pop(name, None)
        self.sealed.discard(name)

    async def info(self, name: str) -> DiskInfo:
        if name not in self.content:
            raise NotFound(f"there is no disk {name}")
        return DiskInfo(name=name, size_bytes=0, used_bytes=0, is_layer=name in self.sealed)

    async def list(self) -> list[DiskInfo]:
        return [DiskInfo(name=name, size_bytes=0, used_bytes=0, is_layer=name in self.sealed) for name in self.content]


class _Files:
    def __init__(self, disks: FakeDisks, spec: LiveSpec) -> None:
        self._disks = disks
        self._spec = spec

    async def write_layer(self, path: str, archive: AsyncIterable[bytes], *, most_bytes: int, most_members: int) -> int:
        assert path == f"{DiskMount.WORKSHOP}/upper"
        content = b"".join([piece async for piece in archive])
        tree = self._disks.content[self._spec.mounts[0].disk]
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as opened:
                for member in opened:
                    if member.isdev():
                        raise Invalid(f"{member.name}: is a device")
                    file = opened.extractfile(member) if member.isreg() else None
                    tree[member.name] = file.read() if file else b""
        except tarfile.TarError as error:
            raise Invalid(f"is no archive: {error}") from error
        return sum(map(len, tree.values()))

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> tuple[FileInfo, AsyncIterator[bytes]]:
        for disk in self._spec.layers:
            content = self._disks.content[disk].get(path.lstrip("/"))
            if content is not None:
                info = FileInfo(
                    name=path, path=path, kind=FileKind.FILE, size=len(content), mode=0, modified_at=0, uid=0, gid=0
                )
                return info, self._once(content)
        raise NotFound(f"{path}: there is none")

    def close(self) -> None:
        return None

    async def _once(self, content: bytes) -> AsyncIterator[bytes]:
        yield content


@dataclass
class FakeSandboxes:
    """As much of a backend as workshops need."""

    disks: FakeDisks
    alive: dict[str, LiveSpec] = field(default_factory=dict)

    async def create(self, name: str, spec: LiveSpec) -> None:
        await asyncio.sleep(0)
        self.alive[name] = spec
        self.disks.in_use.update(mount.disk for mount in spec.mounts)

    async def files(self, name: str, *, user: str = "user") -> _Files:
        assert user == "root"
        return _Files(self.disks, self.alive[name])

    async def remove(self, name: str) -> None:
        await asyncio.sleep(0)
        spec = self.alive.pop(name, None)
        if spec is not None:
            self.disks.in_use.difference_update(mount.disk for mount in spec.mounts)


async def until(condition: Callable[[], Any], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {within_s:g} s"
        await asyncio.sleep(0.002)
