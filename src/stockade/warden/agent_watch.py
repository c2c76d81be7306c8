"""Watching a directory and all below it, by inotify(7).

Events are pairs: `created`, `modified`, `deleted`, `renamed` (the old name; the new one is `created`), and the path.
`overflow` says that some were lost below a path: more happened than the kernel keeps, or there is more than can be
watched. A directory that appears with files in it may have these told twice.
"""

import contextlib
import ctypes
import errno
import os
import select
import struct
from collections.abc import Iterator

from .agent_channel import AgentError
from .agent_paths import failure, is_proc, open_at, open_below, opened, show

__all__ = ["MOST_WATCHED", "Watch"]

MOST_WATCHED = 8192
"""Directories below one; the rest is said to overflow. The kernel's budget (fs.inotify.max_user_watches) is shared."""

_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = (
    0x2,
    0x40,
    0x80,
    0x100,
    0x200,
    0x400,
    0x800,
)
_OVERFLOW, _IGNORED, _UNMOUNT, _IS_DIRECTORY = 0x4000, 0x8000, 0x2000, 0x4000_0000
_ONLY_DIRECTORIES, _NOT_UNLINKED = 0x0100_0000, 0x0400_0000
_MASK = _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLY_DIRECTORIES | _NOT_UNLINKED
_EVENT = struct.Struct("=iIII")
_BUFFER = 64 << 10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_NAMES = {_CREATE: "created", _MOVED_TO: "created", _MODIFY: "modified", _DELETE: "deleted", _MOVED_FROM: "renamed"}

_libc = ctypes.PyDLL(None, use_errno=True)
_init = _libc["inotify_init1"]
_init.argtypes = (ctypes.c_int,)
_add = _libc["inotify_add_watch"]
_add.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_remove = _libc["inotify_rm_watch"]
_remove.argtypes = (ctypes.c_int, ctypes.c_int)

Event = tuple[str, bytes]


class Watch:
    """One directory and what is below it. Close it.

    Raises:
        AgentError: the kernel has no watchers left.
        OSError: it is no directory, or may not be read.
    """

    def __init__(self, top: int, path: bytes) -> None:
        """*top* is the directory, *path* what it is called in events."""
        self._top = top
        self._path = path
        self._below: dict[int, bytes] = {}
        """Watch → path from *top*."""
        self._fd = int(_init(os.O_CLOEXEC | os.O_NONBLOCK))
        if self._fd < 0:
            number = ctypes.get_errno()
            if number in (errno.EMFILE, errno.ENFILE):
                raise AgentError("unavailable", f"{show(path)}: this host has no more watchers to give")
            raise OSError(number, os.strerror(number))
        try:
            self._lost = [event for event in self._add_tree(b"") if event[0] == "overflow"]
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    def wait(self, other: int, within_s: float) -> bool:
        """Wait for events, for something to read at *other*, or so long. Whether *other* has something."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(other, select.POLLIN)
        ready = dict(poll.poll(0 if self._lost else within_s * 1000))
        return other in ready

    def is_there(self) -> bool:
        """Whether the directory is still where it was. (Of one that we hold open the kernel does not say it.)"""
        try:
            with opened(open_at(None, self._path, os.O_PATH)) as found:
                return os.path.samestat(os.fstat(found), os.fstat(self._top))
        except OSError:
            return False

    def events(self) -> list[Event]:
        """What has happened since it was asked last."""
        found, self._lost = self._lost, []
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return found
        offset = 0
        while offset < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            self._take(watch, mask, data[offset - length : offset].rstrip(b"\0"), found)
        return found

    def _take(self, watch: int, mask: int, name: bytes, found: list[Event]) -> None:
        if mask & _OVERFLOW:
            found.append(("overflow", self._path))
            return
        above = self._below.get(watch)
        if above is None:
            return
        if mask & _IGNORED:
            del self._below[watch]
        path = above + b"/" + name if above else name
        event = next((text for bit, text in _NAMES.items() if mask & bit), None)
        if event is None or not name:
            return
        told = (event, self._full(path))
        if not found or found[-1] != told:
            found.append(told)
        if mask & _IS_DIRECTORY:
            if mask & (_CREATE | _MOVED_TO):
                found.extend(self._add_tree(path))
            elif mask & _MOVED_FROM:
                self._forget(path)

    def _full(self, path: bytes) -> bytes:
        return self._path.rstrip(b"/") + b"/" + path if path else self._path

    def _add_tree(self, start: bytes) -> Iterator[Event]:
        """Watch a directory and all below it; what is in it already is told as made."""
        pending = [start]
        while pending:
            path = pending.pop()
            try:
                directory = open_below(self._top, path, _DIRECTORY)
            except OSError:
                if not path:
                    raise
                continue  # gone again, a link by now, or not ours to look into
            with opened(directory):
                if path and is_proc(os.fstat(directory)):
                    continue
                if len(self._below) >= MOST_WATCHED or not self._add(directory, path):
                    yield "overflow", self._full(path)
                    return
                with contextlib.suppress(OSError), os.scandir(directory) as entries:
                    for entry in entries:
                        inner = os.fsencode(entry.name)
                        inner = path + b"/" + inner if path else inner
                        if start:
                            yield "created", self._full(inner)
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(inner)

    def _add(self, directory: int, path: bytes) -> bool:
        # By its descriptor: the name may mean something else by now.
        watch = int(_add(self._fd, b"/proc/self/fd/%d" % directory, _MASK))
        if watch < 0:
            number = ctypes.get_errno()
            if not path:
                raise failure(OSError(number, os.strerror(number)), self._path)
            return False
        self._below[watch] = path
        return True

    def _forget(self, path: bytes) -> None:
        for watch, found in list(self._below.items()):
            if found == path or found.startswith(path + b"/"):
                _remove(self._fd, watch)
                del self._below[watch]
