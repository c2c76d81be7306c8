"""What is kept where, so that a death at any moment leaves each disk whole, or not there.

In one directory, which nobody but us may enter:

    disks/<name>/{upper,work}     a disk; `upper` is its content
    layers/<name>/{upper,work}    a layer: a disk that nobody changes any more
    temporary/                    what is being made, and what is being deleted; emptied at the start
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from . import kernel
from .disks import name_from
from .fields import Refused
from .journal import say

__all__ = ["Driver", "Store", "explain"]

PLACES = ("disks", "layers", "temporary")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PAGE = 500
# An overlay file system makes a directory when it is mounted; where it cannot, nothing can be changed, nor deleted.
_TO_MOUNT = 1 << 20
_MOST_OVER = 64 << 20
"""What a disk may come to hold beyond its size, were it filled anew each time that it has just been mounted."""
_LIFTED_S = 2.0


class Driver(Protocol):
    """How a disk is kept. Every *place* is a descriptor of one of the directories, every *disk* one of a disk."""

    @property
    def kind(self) -> str:
        """For `DiskFacts.kind`."""
        ...

    @property
    def shares_blocks(self) -> bool: ...

    @property
    def enforces_size(self) -> bool: ...

    @property
    def copies_at_once(self) -> bool:
        """A copy is whole or not there, durable, and of one moment even where the disk is being changed."""
        ...

    def create(self, place: int, name: str, size_bytes: int) -> None:
        """Make an empty directory that holds at most so much."""
        ...

    def copy(self, source: int, place: int, name: str, size_bytes: int) -> None:
        """Make a copy of disk *source*. Where it fails, parts of it may be left."""
        ...

    def flush(self, disk: int) -> None:
        """Have what is in it survive a crash of the host. A copy that is made then has the less to do."""
        ...

    def delete(self, place: int, name: str) -> None: ...

    def protect(self, disk: int) -> None:
        """Have what is in it be changed by nobody."""
        ...

    def resize(self, disk: int, size_bytes: int) -> None: ...

    def sizes(self, disk: int) -> tuple[int, int]:
        """The most that it may hold, 0 where nothing limits it, and what it holds."""
        ...

    def commit(self) -> None:
        """Have what was made, renamed and deleted survive a crash of the host."""
        ...


class Store:
    """All disks and layers. Orders that name the same disk must not be under way at the same time.

    All methods raise Refused, and OSError as `explain` explains it.
    """

    def __init__(self, root: int, make_driver: Callable[[int, int], Driver]) -> None:
        """Keep disks in the directory of descriptor *root*, which is ours alone. Raises OSError.

        Args:
            make_driver: is given that and the one for what is temporary.
        """
        for name in PLACES:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=root)
        self.disks, self.layers, self._temporary = (os.open(name, _DIRECTORY, dir_fd=root) for name in PLACES)
        self.driver = make_driver(root, self._temporary)
        self._lifted: dict[str, tuple[int, float]] = {}
        """Sizes of disks that may hold more for a moment, and when that is over."""
        self._recover()

    def make(self, name: str, size_bytes: int) -> None:
        self._want_free(name)
        self.driver.create(self._temporary, name, size_bytes)
        try:
            with self._opened(self._temporary, name) as disk:
                for part in ("upper", "work"):
                    os.mkdir(part, 0o755, dir_fd=disk)
            os.rename(name, name, src_dir_fd=self._temporary, dst_dir_fd=self.disks)
        except BaseException:
            self._discard(name)
            raise
        self.driver.commit()

    def copy(self, of: str, name: str, size_bytes: int | None, *, changing: bool = False) -> dict[str, Any]:
        """Copy a disk or layer. *changing*: somebody writes to it meanwhile."""
        self._want_free(name)
        if changing and not self.driver.copies_at_once:
            raise Refused("unsupported", "this host can neither pause a sandbox nor copy its disk while it runs")
        with self.opened(of) as source:
            size = self.driver.sizes(source)[0] if size_bytes is None and self.driver.enforces_size else size_bytes or 0
            place = self.disks if self.driver.copies_at_once else self._temporary
            self._copy(source, place, name, size)
        if place != self.disks:
            os.rename(name, name, src_dir_fd=self._temporary, dst_dir_fd=self.disks)
            self.driver.commit()
        return self.info(name)

    def settle(self, name: str) -> None:
        """Leave a `copy` that follows at once little to do, where that can be."""
        if self.driver.copies_at_once:
            with self.opened(name) as disk:
                self.driver.flush(disk)

    def replace(self, name: str, by: str) -> None:
        with self._opened(self.disks, name) as disk:
            size = self.driver.sizes(disk)[0] if self.driver.enforces_size else 0
        with self.opened(by) as source:
            self._copy(source, self._temporary, name, size)
        kernel.exchange(name, self._temporary, name, self.disks)
        self.driver.commit()
        self._discard(name)

    def seal(self, name: str) -> dict[str, Any]:
        if self._is_in(self.layers, name):
            return self.info(name)
        with self._opened(self.disks, name) as disk:
            self.driver.flush(disk)
        os.rename(name, name, src_dir_fd=self.disks, dst_dir_fd=self.layers)
        with self._opened(self.layers, name) as layer:  # after the move, which a file system may refuse it later
            self.driver.protect(layer)
        self.driver.commit()
        return self.info(name)

    def resize(self, name: str, size_bytes: int) -> None:
        with self.opened(name) as disk:
            self.driver.resize(disk, size_bytes)
        self.driver.commit()

    def delete(self, name: str) -> None:
        for place in (self.disks, self.layers):
            if self._is_in(place, name):
                self.driver.delete(place, name)
                self.driver.commit()

    @property
    def has_lifted(self) -> bool:
        """Whether there is something for `lower`."""
        return bool(self._lifted)

    def lift(self, name: str, disk: int) -> None:
        """Let a disk that is full hold a little more, for it is about to be mounted. `lower` takes that back."""
        size, used = self.driver.sizes(disk)
        if not size or (size - used >= _TO_MOUNT and _can_make(disk)):
            return
        size, _ = self._lifted.get(name, (size, 0.0))
        self._lifted[name] = size, time.monotonic() + _LIFTED_S
        self.driver.resize(disk, max(size, min(used, size + _MOST_OVER)) + _TO_MOUNT)

    def lower(self, now: float) -> None:
        """Give disks their own size back which they have been mounted with. To be called every second or so."""
        for name, (size, until) in list(self._lifted.items()):
            if until <= now:
                del self._lifted[name]
                with contextlib.suppress(Refused, OSError), self.opened(name, layer=False) as disk:
                    self.driver.resize(disk, size)

    def info(self, name: str) -> dict[str, Any]:
        with self.opened(name) as disk:
            size, used = self.driver.sizes(disk)
            size, _ = self._lifted.get(name, (size, 0.0))
        is_layer = self._is_in(self.layers, name)
        return {"disk": name, "size_bytes": size, "used_bytes": used, "is_layer": is_layer}

    def all_disks(self) -> Iterator[int]:
        """A descriptor of each disk and layer, and of what is temporary, closed before the next."""
        for place in (self.disks, self.layers, self._temporary):
            for name in _names(place):
                with self._opened(place, name) as disk:
                    yield disk

    def page(self, after: str, user: int = 0) -> dict[str, Any]:
        """The next of a user's disks and layers, by name."""
        found_here = (n for place in (self.disks, self.layers) for n in _names(place))
        names = sorted(n for n in found_here if n > after and name_from(user, n) is not None)
        found = []
        for name in names[:_PAGE]:
            with contextlib.suppress(Refused, FileNotFoundError):  # deleted meanwhile
                found.append(self.info(name))
        return {"disks": found, "after": names[_PAGE - 1] if len(names) > _PAGE else None}

    @contextlib.contextmanager
    def opened(self, name: str, *, layer: bool | None = None) -> Iterator[int]:
        """A descriptor of a disk or layer; *layer* says which it must be. Raises Refused: there is none."""
        places = {None: (self.disks, self.layers), False: (self.disks,), True: (self.layers,)}[layer]
        for place in places:
            if self._is_in(place, name):
                with self._opened(place, name) as disk:
                    yield disk
                return
        raise Refused("not_found", f"there is no {'layer' if layer else 'disk'} {name}")

    def _copy(self, source: int, place: int, name: str, size_bytes: int) -> None:
        try:
            self.driver.copy(source, place, name, size_bytes)
        except BaseException:
            self._discard(name)
            raise

    def _recover(self) -> None:
        """Throw away what was half made, and finish what was half sealed."""
        for name in _names(self._temporary):
            self._discard(name)
        for name in _names(self.layers):
            with self._opened(self.layers, name) as layer:
                self.driver.protect(layer)

    def _discard(self, name: str) -> None:
        """Delete it from what is temporary, if it is there."""
        try:
            if self._is_in(self._temporary, name):
                self.driver.delete(self._temporary, name)
        except OSError as error:
            say(f"a disk that is no longer wanted takes room until the warden is started again: {error}")

    def _want_free(self, name: str) -> None:
        if self._is_in(self.disks, name) or self._is_in(self.layers, name):
            raise Refused("conflict", f"there is a disk {name} already")

    def _is_in(self, place: int, name: str) -> bool:
        try:
            os.stat(name, dir_fd=place, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def _opened(self, place: int, name: str) -> Iterator[int]:
        try:
            disk = os.open(name, _DIRECTORY, dir_fd=place)
        except FileNotFoundError:
            raise Refused("not_found", f"there is no disk {name}") from None
        try:
            yield disk
        finally:
            os.close(disk)


def _can_make(disk: int) -> bool:
    """Whether its limit lets anything more be made on a disk; what it holds is known only a while after it changes."""
    try:
        with contextlib.suppress(FileExistsError):  # by one who died here
            os.mkdir("room", 0o700, dir_fd=disk)
        os.rmdir("room", dir_fd=disk)
    except OSError as error:
        return error.errno != errno.EDQUOT
    return True


def _names(place: int) -> list[str]:
    """What is in a directory. By a new descriptor: btrfs shows each no more than there was when it was opened."""
    directory = os.open(".", _DIRECTORY, dir_fd=place)
    try:
        return os.listdir(directory)
    finally:
        os.close(directory)


def explain(error: OSError) -> Refused:
    """What to tell whoever asked for something that the file system could not do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused("unavailable", "there is no room for it where the disks lie")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return Refused("unavailable", f"the process that keeps the disks has no room for more: {error.strerror}")
    if error.errno in (errno.EROFS, errno.EIO):
        why = "the file system of the disks takes no changes any more, as when the host's own is full or broken"
        return Refused("unavailable", f"{why}; make room, or see the kernel's log: it is mounted anew with the warden")
    return Refused("fault", f"disks: {error}")
