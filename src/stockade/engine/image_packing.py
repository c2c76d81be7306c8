"""An image as a tar stream: an OCI layout in one, which `DockerArchive` reads again."""

import io
import json
import tarfile
from collections.abc import AsyncGenerator
from typing import Any

from stockade.engine.image_manifests import INDEX_TYPES, MANIFEST_TYPES, sha256_of
from stockade.engine.image_sources import ImageSource, SourceLayer

__all__ = ["packed"]

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_BLOCK = 512


async def packed(source: ImageSource) -> AsyncGenerator[bytes, None]:
    """The image of *source*, whole; nothing of it is held in memory but its configuration.

    Raises:
        As `ImageSource`: also in the middle; what came before is then worth nothing.
    """
    image = await source.describe()
    layers = list({one.digest: one for one in image.layers}.values())
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPES[0],
            "config": _descriptor(_CONFIG, sha256_of(image.config), len(image.config)),
            "layers": [_descriptor(one.media_type or _LAYER, one.digest, one.size) for one in image.layers],
        }
    ).encode()
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPES[0],
        "manifests": [_descriptor(MANIFEST_TYPES[0], sha256_of(manifest), len(manifest))],
    }
    yield _member("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    yield _member("index.json", json.dumps(index).encode())
    for blob in (image.config, manifest):
        yield _member(_blob(sha256_of(blob)), blob)
    for layer in layers:
        async for part in _layer(source, layer):
            yield part
    yield bytes(2 * _BLOCK)


async def _layer(source: ImageSource, layer: SourceLayer) -> AsyncGenerator[bytes, None]:
    yield _header(_blob(layer.digest), layer.size)
    async for part in await source.open(layer):
        yield part
    yield bytes(-layer.size % _BLOCK)


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


def _member(name: str, content: bytes) -> bytes:
    whole = io.BytesIO()
    whole.write(_header(name, len(content)))
    whole.write(content)
    whole.write(bytes(-len(content) % _BLOCK))
    return whole.getvalue()
