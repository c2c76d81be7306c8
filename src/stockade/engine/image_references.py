"""Names of images as the whole world writes them: `alpine`, `ghcr.io/team/app:2`, `localhost:5000/a@sha256:…`.

The grammar is that of github.com/distribution/reference, which all registries and clients follow.
"""

import re
from dataclasses import dataclass

from stockade.errors import Invalid

__all__ = ["DOCKER_HUB", "InvalidReference", "Reference", "is_digest"]

DOCKER_HUB = "docker.io"
MOST_LENGTH = 512
"""Characters of a reference in full."""

_MOST_REPOSITORY = 255
_HUB_ALIASES = ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]{{2,39}}\])(?::[0-9]{{1,5}})?", re.ASCII)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class InvalidReference(Invalid):
    """This is no name of an image."""

    code = "image.invalid_reference"

    def __init__(self, text: str, reason: str) -> None:
        shown = text if len(text) <= 100 else text[:100] + "…"
        super().__init__(f"image {shown!r}: {reason}")


def is_digest(text: str) -> bool:
    """Whether it is a digest such as images and layers have: `sha256:` and 64 lower-case digits."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The name of an image, in full. With a digest there is no tag: that would say nothing more."""

    registry: str
    """Host, with its port where it names one; lower case."""
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str, *, default_registry: str = DOCKER_HUB) -> "Reference":
        """The reference that *text* means, with all that it leaves out: registry, `library/`, `latest`.

        Raises:
            InvalidReference: it is none.
        """
        if not text or len(text) > MOST_LENGTH:
            raise InvalidReference(text, f"a reference has 1 to {MOST_LENGTH} characters")
        rest, has_digest, digest = text.partition("@")
        if has_digest and not is_digest(digest):
            raise InvalidReference(text, "what follows the @ must be sha256: and 64 lower-case hexadecimal digits")
        first, has_slash, below = rest.partition("/")
        if has_slash and _is_registry(first):
            registry, rest = first.lower(), below
        else:
            registry = default_registry.lower()
        name, has_tag, tag = rest.partition(":")
        if has_tag and not _TAG.fullmatch(tag):
            raise InvalidReference(text, f"{tag[:140]!r} is no tag: 1 to 128 of A-Z, a-z, 0-9, _, . and -")
        if not _REGISTRY.fullmatch(registry) or len(registry) > 262:
            raise InvalidReference(text, f"{registry[:100]!r} is no registry's host")
        if registry in _HUB_ALIASES:
            registry = DOCKER_HUB
        if not _REPOSITORY.fullmatch(name):
            raise InvalidReference(text, "a repository has lower-case letters and digits, with . _ / or - between")
        if registry == DOCKER_HUB and "/" not in name:
            name = f"library/{name}"
        if len(name) > _MOST_REPOSITORY:
            raise InvalidReference(text, f"a repository has {_MOST_REPOSITORY} characters at most")
        found = cls(
            registry=registry,
            repository=name,
            tag=None if has_digest else tag or "latest",
            digest=digest if has_digest else None,
        )
        if len(str(found)) > MOST_LENGTH:
            raise InvalidReference(text, f"in full it has more than {MOST_LENGTH} characters")
        return found

    def __str__(self) -> str:
        """In full: `docker.io/library/alpine:3.20`."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    @property
    def name(self) -> str:
        """Without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """As short as people write it: `alpine:3.20`."""
        repository = self.repository
        if self.registry == DOCKER_HUB:
            repository = repository.removeprefix("library/") if repository.count("/") == 1 else repository
        else:
            repository = self.name
        return f"{repository}@{self.digest}" if self.digest else f"{repository}:{self.tag}"


def _is_registry(first: str) -> bool:
    """Whether what stands before the first slash is a host, and not the beginning of a repository."""
    return "." in first or ":" in first or first == "localhost" or first != first.lower()
