"""An image in a registry, as a source of images."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import httpx

from stockade.engine.image_manifests import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MOST_CONFIG_BYTES,
    MOST_MANIFEST_BYTES,
    Descriptor,
    Index,
    Manifest,
    Platform,
    chosen,
    diff_ids,
    parsed,
    sha256_of,
)
from stockade.engine.image_sources import ImageUnavailable, SourceImage, SourceLayer
from stockade.wire.registries.failures import ImageRejected
from stockade.wire.registries.session import Session, read, reason

__all__ = ["RegistrySource"]

MOST_INDEXES = 3
"""An index may lead to another one."""
BREAKS = 5
"""So often in a row a blob's connection may break without that anything came."""
MOST_BREAKS = 100
_BREAK_WAIT_S = 0.5


@dataclass(kw_only=True)
class RegistrySource:
    """One image. All that it asks must be done by the session's deadline."""

    session: Session
    platform: Platform = field(default_factory=Platform.of_this_machine)
    most_bytes: int
    """Of all blobs together, as they are transferred."""
    kind: str = field(default="registry", init=False)

    @property
    def is_private(self) -> bool:
        """Whether somebody's credentials were used, or were at hand."""
        return self.session.login is not None

    async def describe(self) -> SourceImage:
        """Find the manifest for this platform and read its configuration; see `ImageSource`."""
        reference = self.session.reference
        descriptor: Descriptor | None = None
        wanted = reference.digest or reference.tag or "latest"
        for _ in range(MOST_INDEXES):
            body, media_type = await self._manifest(wanted, descriptor)
            found = parsed(body, media_type)
            if isinstance(found, Manifest):
                return await self._described(found, sha256_of(body))
            descriptor = self._chosen(found)
            wanted = descriptor.digest
        raise ImageRejected(f"{reference}: its index leads to another, and so on")

    def _chosen(self, index: Index) -> Descriptor:
        return chosen(index, self.platform)

    async def _described(self, manifest: Manifest, digest: str) -> SourceImage:
        reference = self.session.reference
        size = sum(one.size for one in manifest.layers)
        if size > self.most_bytes:
            raise ImageRejected(
                f"{reference}: its layers are {size} bytes, packed; registries.most_image_bytes is {self.most_bytes}"
            )
        if manifest.config.size > MOST_CONFIG_BYTES:
            raise ImageRejected(f"{reference}: its configuration has more than {MOST_CONFIG_BYTES} bytes")
        parts = [part async for part in self._blob(manifest.config)]
        config = b"".join(parts)
        unpacked = diff_ids(config, wanted=self.platform)
        if len(unpacked) != len(manifest.layers):
            raise ImageRejected(f"{reference}: its manifest and its configuration do not name the same layers")
        return SourceImage(
            digest=digest,
            config=config,
            layers=tuple(
                SourceLayer(digest=one.digest, diff_id=diff_id, size=one.size, media_type=one.media_type)
                for one, diff_id in zip(manifest.layers, unpacked, strict=True)
            ),
            names=(str(reference),),
        )

    async def open(self, layer: SourceLayer) -> AsyncIterator[bytes]:
        """The blob of a layer; see `ImageSource`. A connection that breaks is taken up again where it broke."""
        return self._blob(Descriptor(digest=layer.digest, size=layer.size, media_type=layer.media_type))

    async def close(self) -> None:
        """Nothing is kept open between two requests."""

    async def _manifest(self, wanted: str, descriptor: Descriptor | None) -> tuple[bytes, str]:
        """A manifest or index, checked against the digest that it was asked for by, and what it is called."""
        reference = self.session.reference
        if descriptor is not None and descriptor.size > MOST_MANIFEST_BYTES:
            raise ImageRejected(f"{reference}: a manifest has more than {MOST_MANIFEST_BYTES} bytes")
        response = await self.session.get(
            f"manifests/{wanted}", headers={"Accept": ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))}
        )
        try:
            async with asyncio.timeout(self.session.deadline.left_s()):
                body = await read(response, MOST_MANIFEST_BYTES)
        except TimeoutError:
            raise self.session.deadline.missed(f"{reference}: its manifest") from None
        except httpx.HTTPError as error:
            raise ImageUnavailable(f"{reference}: its manifest broke off: {reason(error)}") from error
        if ":" in wanted and sha256_of(body) != wanted:
            raise ImageRejected(f"{reference}: what came for {wanted} is something else")
        return body, response.headers.get("content-type", "")

    async def _blob(self, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob; ends without an error only when all of them came, and are what the digest says."""
        reference = self.session.reference
        seen = hashlib.sha256()
        got = breaks = idle = 0
        while got < blob.size or breaks == 0:
            before = got
            why = "it ended too early"
            response = await self._from(blob, got)
            passed = 0 if response.status_code == 206 else -got  # a registry without ranges begins anew
            parts = response.aiter_raw()
            try:
                while True:
                    async with asyncio.timeout(self.session.deadline.left_s()):
                        part = await anext(parts, None)
                    if part is None:
                        break
                    passed += len(part)
                    if passed <= 0:
                        continue
                    fresh = part[-passed:] if passed < len(part) else part
                    got += len(fresh)
                    if got > blob.size:
                        raise ImageRejected(f"{reference}: {blob.digest} is longer than the {blob.size} bytes it has")
                    seen.update(fresh)
                    yield fresh
            except TimeoutError:
                raise self.session.deadline.missed(f"{reference}: {blob.digest}") from None
            except httpx.HTTPError as error:
                why = reason(error)
            finally:
                await response.aclose()
            breaks += 1
            if got >= blob.size:
                break
            idle = idle + 1 if got == before else 0
            if idle >= BREAKS or breaks >= MOST_BREAKS:
                raise ImageUnavailable(f"{reference}: {blob.digest} broke off at {got} of {blob.size} bytes: {why}")
            await asyncio.sleep(min(_BREAK_WAIT_S * idle, self.session.deadline.left_s()))
        if f"sha256:{seen.hexdigest()}" != blob.digest:
            raise ImageRejected(f"{reference}: what came for {blob.digest} is something else")

    async def _from(self, blob: Descriptor, offset: int) -> httpx.Response:
        """An answer with the blob from *offset* on (206), or from its beginning (200)."""
        if offset == 0:
            return await self.session.get(f"blobs/{blob.digest}")
        response = await self.session.get(
            f"blobs/{blob.digest}", headers={"Range": f"bytes={offset}-"}, expected=(200, 206)
        )
        told = response.headers.get("content-range", "").lower()
        if response.status_code == 206 and not told.startswith(f"bytes {offset}-"):
            await response.aclose()
            raise ImageRejected(f"{self.session.reference}: asked for the rest of {blob.digest}, something else came")
        return response
