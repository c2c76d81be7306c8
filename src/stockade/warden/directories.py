"""Disks as plain directories: for hosts without btrfs, and for ordinary users. Nothing limits what they hold.

`Directories` is one of the two ways in which `disk_store` keeps disks.
"""

import contextlib
import ctypes
import os
import queue
import threading
import time

from .fields import Refused
from .journal import say
from .trees import clone_file, copy_tree, remove_tree, used_bytes

__all__ = ["Directories"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTS = ("upper", "work")
_libc = ctypes.CDLL(None, use_errno=True)  # other threads go on during its calls


class Directories:
    """See `disk_store.Driver`."""

    kind = "directory"
    enforces_size = False
    copies_at_once = False

    def __init__(self, root: int, temporary: int) -> None:
        """Keep disks in directory *root*; *temporary* is one in it, for what is soon gone."""
        self._root = root
        self._temporary = temporary
        self._gone: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._remover: threading.Thread | None = None
        self.shares_blocks = self._can_clone()

    def create(self, place: int, name: str, size_bytes: int) -> None:
        os.mkdir(name, 0o755, dir_fd=place)

    def copy(self, source: int, place: int, name: str, size_bytes: int) -> None:
        links = f".links-{name}"
        os.mkdir(name, 0o755, dir_fd=place)
        os.mkdir(links, 0o700, dir_fd=self._temporary)
        opened: list[int] = []
        try:
            opened.append(os.open(name, _DIRECTORY, dir_fd=place))
            opened.append(os.open(links, _DIRECTORY, dir_fd=self._temporary))
            for part in _PARTS:
                os.mkdir(part, 0o755, dir_fd=opened[0])
            # `work` is the kernel's own; its content is of no use to another mount.
            opened.append(os.open("upper", _DIRECTORY, dir_fd=source))
            opened.append(os.open("upper", _DIRECTORY, dir_fd=opened[0]))
            copy_tree(opened[2], opened[3], opened[1])
        finally:
            for fd in opened:
                os.close(fd)
            remove_tree(self._temporary, links)
        self._sync()

    def delete(self, place: int, name: str) -> None:
        """Out of the way at once, and gone when there is time."""
        gone = f".deleted-{time.time_ns()}-{name.strip('.')}"
        os.rename(name, gone, src_dir_fd=place, dst_dir_fd=self._temporary)
        self._gone.put(gone)
        if self._remover is None:
            self._remover = threading.Thread(target=self._remove, daemon=True)
            self._remover.start()

    def flush(self, disk: int) -> None:
        self._sync()

    def protect(self, disk: int) -> None:
        """Nothing: that nobody changes it is up to its mounts."""

    def resize(self, disk: int, size_bytes: int) -> None:
        """Nothing enforces it."""

    def sizes(self, disk: int) -> tuple[int, int]:
        upper = os.open("upper", _DIRECTORY, dir_fd=disk)
        try:
            return 0, used_bytes(upper)
        except Refused:  # as much as can be told
            return 0, 0
        finally:
            os.close(upper)

    def commit(self) -> None:
        for name in ("disks", "layers"):
            directory = os.open(name, _DIRECTORY, dir_fd=self._root)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _sync(self) -> None:
        """Have all that was written survive a crash of the host. See syncfs(2)."""
        if _libc.syncfs(self._root) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _remove(self) -> None:
        while True:
            name = self._gone.get()
            try:
                remove_tree(self._temporary, name)
            except OSError as error:
                say(f"what is left of a deleted disk takes room until the warden is started again: {error}")

    def _can_clone(self) -> bool:
        files: list[int] = []
        try:
            for name in (".clone-of", ".clone"):
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                files.append(os.open(name, flags, 0o600, dir_fd=self._temporary))
                os.unlink(name, dir_fd=self._temporary)
            os.write(files[0], bytes(4096))
            return clone_file(files[0], files[1])
        except OSError:
            return False
        finally:
            for fd in files:
                with contextlib.suppress(OSError):
                    os.close(fd)
