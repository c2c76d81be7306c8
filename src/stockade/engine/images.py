"""Images by name: what a sandbox can be made from, and what it gets where a request says nothing."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from stockade.engine.digests import digest
from stockade.engine.language_records import SANDBOX_PATH
from stockade.errors import Invalid, UnknownImage
from stockade.model.images import ImageRecord, ImageUser

__all__ = ["HOST_IMAGE", "Image", "Images", "StoredImages", "host_digest", "image_of"]

STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of images that set none."""
RECHECK_S = 5.0
"""How long a digest of what lies on this host is believed, in seconds."""

# What changes when a package of the host is installed, upgraded or removed, or somebody copies a program by hand. Of a
# directory, its own entries count.
_LANDMARKS = (
    "/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite", "/lib/apk/db/installed", "/var/lib/pacman/local",
    "/usr/bin", "/usr/lib", "/usr/local/bin", "/usr/local/lib",
)  # fmt: skip
_USER_ID = 1000
"""What sandboxes know `user` by; `UID` of the warden's image."""


class StoredImages(Protocol):
    """Images that were brought here: see `image_store`."""

    def find(self, account_id: str, name: str, /) -> ImageRecord | None:
        """The image of that reference, alias or digest which an account may use, its own before everybody's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Image:
    """Something that sandboxes are made from, with what they get where a request says nothing."""

    name: str
    """As the backend calls it; of one that was brought here, what its layers replace."""
    command: tuple[str, ...]
    """The main process, entrypoint included; empty for none."""
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    """Lies under the request's own."""
    user: str = "user"
    """As `ExecSpec.user`."""
    layers: tuple[str, ...] = ()
    """Names of its layers, as `LiveSpec.layers`: the uppermost first."""
    digest: str = ""
    """Of one that was brought here: `sha256:` and 64 digits."""
    reference: str = ""
    """Of one that was brought here: by which it was asked for first, in full."""
    entrypoint: tuple[str, ...] = ()
    """What `command` begins with, whatever follows."""
    users: Mapping[str, ImageUser] = field(default_factory=dict)
    """Of its own `/etc/passwd`, by name."""
    exposed_ports: tuple[str, ...] = ()
    """`80/tcp`, …"""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What a human knows it by."""
        return self.reference or self.name

    def environment(self, own: Mapping[str, str], *, user: str, has_terminal: bool = False) -> dict[str, str]:
        """The whole environment of a process: nothing of the server's is in it.

        Args:
            user: as `ExecSpec.user`.
        """
        base = {**self.env, **({"TERM": "xterm-256color"} if has_terminal else {})}
        if self.layers:  # as other engines have it: what the image says, and where its user is at home
            base = {"PATH": STANDARD_PATH, "HOME": self._home(user), **base}
        elif user == "root":
            base |= {"HOME": "/root", "USER": "root", "LOGNAME": "root"}
        return {**base, **own}

    def _home(self, user: str) -> str:
        number = {"root": 0, "user": _USER_ID}.get(user)
        if number is None:
            number = int(user.partition(":")[0])
        homes = (one.home for one in self.users.values() if one.uid == number)
        return next(homes, "/root" if number == 0 else "/")


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
        stored: StoredImages | None = None,
        has_users: bool = True,
        host_content: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the images and further names for them.

        Args:
            aliases: the name of an image by the name that requests may use for it as well.
            stored: images that were brought here; asked for what is neither an image nor an alias of these.
            has_users: sandboxes have root and any other user. Where they do not (a server of an ordinary user's has one
                id to give), programs of an image run as `user`, to whom all of it belongs, whatever it asks for.
            host_content: tells what the `host` image holds now; by default `host_digest`.
            clock: seconds that only grow; tells when to look again.

        Raises:
            Invalid: an alias leads to no image, or is an image's own name.
        """
        self._images = {image.name: image for image in images}
        self._aliases = dict(aliases or {})
        self._stored = stored
        self._has_users = has_users
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

    def find(self, name: str, account_id: str = "") -> Image:
        """The image that *name* stands for: one of the server's own, an alias, or one that was brought here.

        Args:
            account_id: who asks, as `Actor.owner` has it.

        Raises:
            UnknownImage: there is none; the error lists the server's own names. Nothing is ever taken in its place.
        """
        image = self._images.get(self._aliases.get(name, name))
        if image is not None:
            return image
        record = self._stored.find(account_id, name) if self._stored is not None else None
        if record is None:
            raise UnknownImage(name, self.names)
        return image_of(record) if self._has_users else replace(image_of(record), user="user")

    def is_own(self, name: str) -> bool:
        """Whether *name* is one of the server's own images, or an alias of one: nothing is ever pulled for it."""
        return name in self._images or name in self._aliases

    def digest(self, image: Image) -> str:
        """What *image* holds, as a name that changes with it. That of `host` is looked up again every few seconds."""
        if image.digest:
            return image.digest
        if image.name != HOST_IMAGE.name:
            return digest("stockade.image", [image.name])
        now = self._clock()
        if self._looked_up is None or now - self._looked_up[0] >= RECHECK_S:
            self._looked_up = (now, self._host_content())
        return self._looked_up[1]


def image_of(record: ImageRecord) -> Image:
    """What sandboxes are made from, of an image that was brought here."""
    config = record.config
    return Image(
        name=HOST_IMAGE.name,
        command=(*config.entrypoint, *config.command),
        cwd=config.cwd,
        env=config.env,
        user=config.user,
        layers=tuple(layer.disk for layer in reversed(record.layers)),
        digest=record.digest,
        reference=record.reference,
        entrypoint=config.entrypoint,
        users=config.users,
        exposed_ports=config.exposed_ports,
        labels=config.labels,
    )


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
