"""Images by name: what a sandbox can be made from, and what it gets where a request says nothing."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from stockade.engine.digests import digest
from stockade.engine.language_records import SANDBOX_PATH
from stockade.errors import Invalid, UnknownImage

__all__ = ["HOST_IMAGE", "Image", "Images", "host_digest"]

RECHECK_S = 5.0
"""How long a digest of what lies on this host is believed, in seconds."""

# What changes when a package of the host is installed, upgraded or removed, or somebody copies a program by hand. Of a
# directory, its own entries count.
_LANDMARKS = (
    "/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite", "/lib/apk/db/installed", "/var/lib/pacman/local",
    "/usr/bin", "/usr/lib", "/usr/local/bin", "/usr/local/lib",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Image:
    """Something that sandboxes are made from, with what they get where a request says nothing."""

    name: str
    """As the backend calls it."""
    command: tuple[str, ...]
    """The main process."""
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    """Lies under the request's own."""

    def environment(self, own: Mapping[str, str], *, user: str, has_terminal: bool = False) -> dict[str, str]:
        """The whole environment of a process: nothing of the server's is in it."""
        base = {**self.env, **({"TERM": "xterm-256color"} if has_terminal else {})}
        if user == "root":
            base |= {"HOME": "/root", "USER": "root", "LOGNAME": "root"}
        return {**base, **own}


HOST_IMAGE = Image(
    name="host",
    command=("/bin/sh",),
    cwd="/home/user",
    env={
        "PATH": ":".join(SANDBOX_PATH),
        "HOME": "/home/user",
        "USER": "user",
        "LOGNAME": "user",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
    },
)


class Images:
    """All images that this server has, by name and alias."""

    def __init__(
        self,
        *,
        images: Iterable[Image] = (HOST_IMAGE,),
        aliases: Mapping[str, str] | None = None,
        host_content: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the images and further names for them.

        Args:
            aliases: the name of an image by the name that requests may use for it as well.
            host_content: tells what the `host` image holds now; by default `host_digest`.
            clock: seconds that only grow; tells when to look again.

        Raises:
            Invalid: an alias leads to no image, or is an image's own name.
        """
        self._images = {image.name: image for image in images}
        self._aliases = dict(aliases or {})
        self._host_content = host_content or host_digest
        self._clock = clock
        self._looked_up: tuple[float, str] | None = None
        for alias, name in self._aliases.items():
            if alias in self._images:
                raise Invalid(f"images.aliases: {alias!r} is an image of its own and cannot stand for {name!r}")
            if name not in self._images:
                raise Invalid(
                    f"images.aliases: {alias!r} leads to {name!r}, which is no image; known: {', '.join(self._images)}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `find` knows."""
        return tuple(sorted((*self._images, *self._aliases)))

    def find(self, name: str) -> Image:
        """The image that *name* stands for.

        Raises:
            UnknownImage: there is none; the error lists all names. Nothing is ever taken in its place.
        """
        image = self._images.get(self._aliases.get(name, name))
        if image is None:
            raise UnknownImage(name, self.names)
        return image

    def digest(self, image: Image) -> str:
        """What *image* holds, as a name that changes with it. That of `host` is looked up again every few seconds."""
        if image.name != HOST_IMAGE.name:
            return digest("stockade.image", [image.name])
        now = self._clock()
        if self._looked_up is None or now - self._looked_up[0] >= RECHECK_S:
            self._looked_up = (now, self._host_content())
        return self._looked_up[1]


def host_digest(host_paths: Iterable[str] = ()) -> str:
    """What the `host` image holds, from traces of what is installed; *host_paths* are directories shown besides."""
    return digest("stockade.image.host", map(_trace, (*_LANDMARKS, *sorted(host_paths))))


def _trace(path: str) -> str:
    """What tells a file or directory from what was there before it."""
    try:
        status = os.stat(path)
    except OSError:
        return f"{path}: none"
    return f"{path}: {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
