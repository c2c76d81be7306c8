"""What an image is read from, before it is here: the protocol of all sources. What they are is in modules of their own:
`image_layouts` (OCI layouts and `docker save` archives), `image_debian`, `registry`.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from stockade.errors import Unavailable

__all__ = [
    "ImageProgress",
    "ImageRegistries",
    "ImageSource",
    "ImageUnavailable",
    "Silent",
    "SourceImage",
    "SourceLayer",
]


class ImageUnavailable(Unavailable):
    """The image could not be brought here; the message says what failed, and what the other side said."""

    code = "image.pull_failed"


@dataclass(frozen=True, kw_only=True)
class SourceLayer:
    """A layer as its source has it: one blob."""

    digest: str
    """`sha256:` and 64 digits: of the blob as it is."""
    diff_id: str | None = None
    """As `digest`, of the archive in it; `None` where only the configuration says so."""
    size: int
    """Bytes of the blob."""
    media_type: str = ""


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """An image as its source has it."""

    digest: str
    """`sha256:` and 64 digits: of its manifest (this platform's), or of its configuration where it has none."""
    config: bytes
    """The configuration: JSON, whose digest has been checked where the source has one."""
    layers: tuple[SourceLayer, ...]
    """The lowest first, as in the configuration."""
    names: tuple[str, ...] = ()
    """References that the source has for it."""


class ImageProgress(Protocol):
    """Told how far an image has come; in the event loop, and by no means to block there."""

    def began(self, layers: Sequence[SourceLayer]) -> None:
        """These are its layers. Of those that are here already `finished` is told next, without `fetched`."""
        ...

    def fetched(self, digest: str, size: int) -> None:
        """So many bytes more of the blob of this digest came, and have been unpacked."""
        ...

    def finished(self, digest: str) -> None:
        """This layer is here, whole and checked."""
        ...


class Silent:
    """Progress that nobody watches."""

    def began(self, layers: Sequence[SourceLayer]) -> None:
        return None

    def fetched(self, digest: str, size: int) -> None:
        return None

    def finished(self, digest: str) -> None:
        return None


class ImageSource(Protocol):
    """One image, somewhere else. Belongs to whoever made it, who closes it.

    Everything raises Invalid (it is damaged, of another platform, or none of ours), ImageUnavailable (it cannot be
    read; with what the other side said), UnknownImage, Denied.
    """

    @property
    def kind(self) -> str:
        """For a human: `registry`, `layout`, `archive`, `debian`."""
        ...

    @property
    def is_private(self) -> bool:
        """It was read with somebody's credentials: only their account may have it. Known once it is described."""
        ...

    async def describe(self) -> SourceImage:
        """Find it and read its configuration; the first call of all."""
        ...

    async def open(self, layer: SourceLayer) -> AsyncIterator[bytes]:
        """The blob of a layer as it is: plain, gzip or zstd. Several may be open at once.

        The iterator raises Invalid at the end when what came has not the layer's digest or size: what came before is
        not to be believed until it has ended.
        """
        ...

    async def close(self) -> None:
        """Let go of files, connections and what was made for it. Idempotent."""
        ...


class ImageRegistries(Protocol):
    """Where images are pulled from."""

    async def source(self, reference: str, *, account_id: str) -> ImageSource:
        """The image of a full reference, with the credentials that an account has for it, if any.

        Raises:
            Denied: requests may not name this registry (`image.not_allowed`).
            ImageUnavailable: it cannot be asked.
        """
        ...
