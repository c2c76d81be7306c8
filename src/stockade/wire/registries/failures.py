"""Why an image could not be read from a registry. All have codes of images; `ImageUnavailable` passes, these do not."""

from stockade.errors import Denied, Invalid

__all__ = ["ImageMissing", "ImageRejected", "RegistryNotAllowed"]


class ImageRejected(Invalid):
    """What the registry has, or how it answers, is not to be used; asking again does not help."""

    code = "image.pull_failed"


class ImageMissing(Invalid):
    """The registry has no such image, or none for who asks."""

    code = "image.not_found"


class RegistryNotAllowed(Denied):
    """The registry, or where it leads, may not be asked from here."""

    code = "image.not_allowed"
