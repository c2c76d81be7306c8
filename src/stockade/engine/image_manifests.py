"""Manifests and indexes of images, as OCI and Docker write them: read as hostile text, checked, and nothing else.

https://github.com/opencontainers/image-spec/blob/main/manifest.md
"""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stockade.errors import Invalid

__all__ = [
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "MOST_CONFIG_BYTES",
    "MOST_MANIFEST_BYTES",
    "BadManifest",
    "Descriptor",
    "Index",
    "Manifest",
    "Platform",
    "checked_digest",
    "chosen",
    "diff_ids",
    "parsed",
    "sha256_of",
]

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MOST_MANIFEST_BYTES = 4 << 20
"""What registries must take; nobody's are larger."""
MOST_CONFIG_BYTES = 8 << 20
MOST_ENTRIES = 1000
"""Of a list in a manifest or an index."""
MOST_BLOB_BYTES = 1 << 46
"""Beyond this a size is a mistake, or made to overflow something."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}


class BadManifest(Invalid):
    """It is not what a manifest, an index or a configuration must be, or there is none for this machine."""

    code = "image.pull_failed"


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What an image's programs are made for."""

    architecture: str
    """As Go calls it: `amd64`, `arm64`, …"""
    variant: str = ""
    os: str = "linux"

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @staticmethod
    def of_this_machine() -> "Platform":
        """The platform whose programs run here."""
        machine = platform.machine()
        architecture, variant = _MACHINES.get(machine, (machine, ""))
        return Platform(architecture=architecture, variant=variant)


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """Something that a manifest or index refers to."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    """Of an index's entries."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    """The lowest first."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """An image for several platforms."""

    manifests: tuple[Descriptor, ...]


def sha256_of(content: bytes) -> str:
    """The digest of *content*, as manifests write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def checked_digest(digest: object) -> str:
    """*digest*, if it is one that can be checked here.

    Raises:
        BadManifest: it is none, or not SHA-256.
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise BadManifest(f"{str(digest)[:80]!r} is no SHA-256 digest, which is the only kind that is taken here")
    return digest


def parsed(body: bytes, media_type: str = "") -> Manifest | Index:
    """What *body* says.

    Args:
        media_type: what its sender calls it, for where it says nothing of it itself.

    Raises:
        BadManifest: it is neither; also when it could be taken for both, or is of Docker's first schema.
    """
    document = _document(body, "the manifest")
    stated = document.get("mediaType") or media_type.partition(";")[0].strip().lower()
    if document.get("schemaVersion") != 2:
        raise BadManifest(
            "the manifest is not of schema version 2: the image was made by a Docker of before 2016; push it anew"
        )
    has_layers, has_manifests = "layers" in document or "config" in document, "manifests" in document
    if has_layers and has_manifests:
        # Two readers could take it for two images: CVE-2021-41190.
        raise BadManifest("the manifest is an index at the same time, and so is not to be trusted")
    if has_manifests and stated not in MANIFEST_TYPES:
        return Index(manifests=tuple(_descriptor(one, "an entry") for one in _entries(document, "manifests")))
    if has_layers and stated not in INDEX_TYPES:
        config = document.get("config")
        if not isinstance(config, dict):
            raise BadManifest("the manifest names no configuration")
        return Manifest(
            config=_descriptor(config, "the configuration"),
            layers=tuple(_descriptor(one, "a layer") for one in _entries(document, "layers")),
        )
    raise BadManifest("it is neither the manifest of an image nor an index of such")


def chosen(index: Index, wanted: Platform) -> Descriptor:
    """The entry of *index* for a platform; of several, the one of the very variant, then the first.

    Raises:
        BadManifest: there is none; the error lists those that there are.
    """
    fitting = [
        one
        for one in index.manifests
        if one.platform is not None and (one.platform.os, one.platform.architecture) == (wanted.os, wanted.architecture)
    ]
    exact = [one for one in fitting if one.platform is not None and one.platform.variant == wanted.variant]
    # 64-bit Arm has had one variant only for long, and many say none. 32-bit Arm's are not interchangeable.
    loose = fitting if wanted.architecture != "arm" else [one for one in fitting if one.platform == wanted]
    if exact or loose:
        return (exact or loose)[0]
    if len(index.manifests) == 1 and index.manifests[0].platform is None:
        return index.manifests[0]  # nothing is said: its configuration tells
    there = sorted({str(one.platform) for one in index.manifests if one.platform is not None})
    raise BadManifest(f"there is no image for {wanted}; there are: {', '.join(there)[:500] or 'none'}")


def diff_ids(config: bytes, *, wanted: Platform | None = None) -> tuple[str, ...]:
    """What the unpacked layers must be, by an image's configuration, the lowest first.

    Args:
        wanted: the platform that the image must be for.

    Raises:
        BadManifest: it does not say so, or is for another platform.
    """
    document = _document(config, "the configuration")
    if wanted is not None:
        found = Platform(
            os=str(document.get("os") or "linux")[:40], architecture=str(document.get("architecture") or "")[:40]
        )
        if found.os != wanted.os or found.architecture not in ("", wanted.architecture):
            raise BadManifest(f"the image is for {found}, and this machine is {wanted}")
    rootfs = document.get("rootfs")
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(listed, list) or len(listed) > MOST_ENTRIES:
        raise BadManifest("the configuration names no layers (rootfs.diff_ids)")
    return tuple(map(checked_digest, listed))


def _document(body: bytes, what: str) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise BadManifest(f"{what} is no JSON") from None
    if not isinstance(document, dict):
        raise BadManifest(f"{what} is no JSON object")
    return document


def _entries(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    entries = document.get(name)
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise BadManifest(f"`{name}` of the manifest is no list of objects")
    if len(entries) > MOST_ENTRIES:
        raise BadManifest(f"`{name}` of the manifest has more than {MOST_ENTRIES} entries")
    return entries


def _descriptor(entry: Mapping[str, Any], what: str) -> Descriptor:
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MOST_BLOB_BYTES:
        raise BadManifest(f"{what} has no size that could be one")
    told = entry.get("platform")
    made_for = None
    if isinstance(told, dict):
        made_for = Platform(
            os=str(told.get("os") or "")[:40],
            architecture=str(told.get("architecture") or "")[:40],
            variant=str(told.get("variant") or "")[:40],
        )
    return Descriptor(
        digest=checked_digest(entry.get("digest")),
        size=size,
        media_type=str(entry.get("mediaType") or "")[:200],
        platform=made_for,
    )
