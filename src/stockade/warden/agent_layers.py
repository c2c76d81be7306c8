"""Unpacking the layers of images, and disks that were saved, into the upper directory of an overlay.

It runs in a sandbox that is made for it and has no tenant: root there owns what it unpacks, and nothing changes it
meanwhile. The archive is nobody's friend: no member lies outside, devices are refused, and what it holds is bounded.

What overlays take for names that are gone (whiteouts), and for directories that hide what lies below (opaque ones), is
in overlayfs.rst of the kernel; how archives say it, in layer.md of the OCI image specification.
"""

import ctypes
import errno
import os
import platform
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .agent_channel import AgentError
from .agent_paths import MOST_MEMBERS, delete_tree, failure, make_directories, open_at, opened, refuse
from .syscall_table import NUMBERS
from .tar_reader import DEVICES, DIRECTORY, FIFO, HARD_LINK, LINK, XATTR, Member, Source, inside, members
from .tar_writer import GONE, OPAQUE, OPAQUE_MARK, OPAQUE_NAME, OVERLAYS_OWN, WHITEOUT

__all__ = ["MOST_BYTES", "LayerUnpacker"]

MOST_BYTES = 1 << 60
"""Bytes of its files, unless the request says less; the disk's own limit comes first."""
_RESERVED = b".wh..wh."
_IN_ROOT = 0x10  # RESOLVE_IN_ROOT of openat2(2): as if the directory were the root
_MOST_ID = 65534
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_RENAME_WHITEOUT = 1 << 2
_NO_RIGHT = (errno.EPERM, errno.EINVAL)
_THE_ARCHIVES = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.EPERM)
)
"""What goes wrong because of what an archive asks for."""

# Keeps the interpreter lock, as `kernel` does and for the same reason.
_syscall = ctypes.PyDLL(None, use_errno=True)["syscall"]
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_RENAMEAT2 = NUMBERS[platform.machine()]["renameat2"] if platform.machine() in NUMBERS else -1


@dataclass
class _Directory:
    """What a directory is to be like once all is in it."""

    mode: int
    uid: int
    gid: int
    modified_ns: int


@dataclass
class LayerUnpacker:
    """Unpacks one archive into the directory *top*, which is empty or another layer's."""

    top: int
    alive: Callable[[], None]
    """Called often once all has been read: whoever waits for us hears nothing else then."""
    is_ours: bool = False
    """It comes from `tar_writer.pack_upper`: names are taken as they are, and records of ours count."""
    keep_set_id: bool = True
    most_bytes: int = MOST_BYTES
    most_members: int = MOST_MEMBERS
    count: int = 0
    size: int = 0
    """Bytes of files so far."""
    _directories: dict[bytes, _Directory] = field(default_factory=dict)
    _parent: int = -1
    """The directory that the last member went into, as the next one mostly does."""
    _above: bytes | None = None

    def unpack(self, pieces: Iterable[memoryview]) -> int:
        """Bytes of the files.

        Raises:
            AgentError: the archive is damaged, one of its members is not acceptable, or the disk is full; what came
                before it stays.
        """
        source = Source(pieces)
        try:
            for member in members(source):
                self._count(member)
                try:
                    self._put(member, source)
                except OSError as error:
                    raise _failure(error, member.name) from error
            source.finish()
            self._finish()
        finally:
            self._forget_parent()
        return self.size

    def _count(self, member: Member) -> None:
        self.count += 1
        if self.count > self.most_members:
            raise AgentError("limit_exceeded", f"the layer holds more than {self.most_members} members")
        self.size += member.stored
        if self.size > self.most_bytes:
            raise AgentError("limit_exceeded", f"the layer's files have more than {self.most_bytes} bytes")
        if not self.keep_set_id:
            member.mode &= 0o1777
        # A sandbox has 65536 ids; what is beyond belongs to nobody, in the kernel's sense.
        member.uid, member.gid = min(member.uid, _MOST_ID), min(member.gid, _MOST_ID)

    # ── members ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _put(self, member: Member, source: Source) -> None:
        path = inside(member.name, member.name, is_root=True)
        above, _, name = path.rpartition(b"/")
        if self.is_ours:
            is_gone = member.records.get(WHITEOUT) == b"1"
        elif name.startswith(_RESERVED) or b"/" + _RESERVED in b"/" + above:
            member.skip(source)
            if name == OPAQUE_NAME:
                self._hide(self._enter(above))
            return  # the others are notes of AUFS for itself
        else:
            is_gone = name.startswith(GONE)
            name = name.removeprefix(GONE)
        if is_gone:
            member.skip(source)
            if name in (b"", b".", b".."):
                refuse("invalid", member.name, "it deletes nothing that could be")
            self._delete(self._enter(above), name)
        elif member.kind == DIRECTORY:
            self._put_directory(member, path, above, name)
        elif not name:
            refuse("invalid", member.name, "a file needs a name")
        elif member.kind in DEVICES:
            if self.is_ours or path.partition(b"/")[0] != b"dev":
                refuse("invalid", member.name, "it is a device")
            # Whatever an image has there, a sandbox sees its own /dev.
        else:
            parent = self._enter(above)
            self._make_way(parent, name, path)
            self._put_other(member, source, parent, name)

    def _put_directory(self, member: Member, path: bytes, above: bytes, name: bytes) -> None:
        known = _Directory(member.mode, member.uid, member.gid, member.modified_ns)
        if not path:
            self._directories[b""] = known
            self._mark(self.top, member)
            return
        parent = self._enter(above)
        hides = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                hides = _is_whiteout(found)
                self._make_way(parent, name, path)
                os.mkdir(name, 0o700, dir_fd=parent)
        self._directories[path] = known
        if hides or (self.is_ours and OPAQUE in member.records) or _xattrs(member):
            with opened(open_at(parent, name, _DIRECTORY)) as directory:
                self._mark(directory, member)
                if hides:
                    self._hide(directory)

    def _put_other(self, member: Member, source: Source, parent: int, name: bytes) -> None:
        if member.kind == HARD_LINK:
            self._link(member, parent, name)
            return
        if member.kind == LINK:
            os.symlink(member.link, name, dir_fd=parent)
        elif member.kind == FIFO:
            os.mkfifo(name, 0o600, dir_fd=parent)
        else:
            with opened(open_at(parent, name, _NEW_FILE, 0o600)) as target:
                member.write(source, target)
                _own(target, member.uid, member.gid)  # first: it takes set-id bits away
                os.fchmod(target, member.mode)
                self._mark(target, member)
                os.utime(target, ns=(member.modified_ns, member.modified_ns))
            return
        _own(name, member.uid, member.gid, parent)
        if member.kind == FIFO:
            os.chmod(name, member.mode, dir_fd=parent)
        os.utime(name, ns=(member.modified_ns, member.modified_ns), dir_fd=parent, follow_symlinks=False)

    def _link(self, member: Member, parent: int, name: bytes) -> None:
        above, _, target = inside(member.link, member.name).rpartition(b"/")
        if not target:
            refuse("invalid", member.name, "it is a link to nothing")
        with opened(open_at(self.top, above or b".", os.O_PATH | os.O_DIRECTORY, resolve=_IN_ROOT)) as directory:
            if _is_whiteout(os.stat(target, dir_fd=directory, follow_symlinks=False)):
                refuse("invalid", member.name, "it is a link to nothing")
            os.link(target, name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)

    # ── directories ──────────────────────────────────────────────────────────────────────────────────────────────

    def _enter(self, above: bytes) -> int:
        """The directory of this path, made where it is missing; ours to close. Links in it lead nowhere outside."""
        if above != self._above:
            self._forget_parent()
            try:
                self._parent = make_directories(self.top, above, resolve=_IN_ROOT)
            except NotADirectoryError:
                self._uncover(above)
                self._parent = make_directories(self.top, above, resolve=_IN_ROOT)
            self._above = above
        return self._parent

    def _uncover(self, path: bytes) -> None:
        """Where a name on the way was said to be gone: then it is a directory in which nothing is that was there."""
        at = -1
        while (at := path.find(b"/", at + 1)) >= 0 or path:
            above, _, name = (path[:at] if at >= 0 else path).rpartition(b"/")
            flags = os.O_PATH | os.O_DIRECTORY
            with opened(open_at(self.top, above or b".", flags, resolve=_IN_ROOT)) as parent:
                if _is_whiteout(os.stat(name, dir_fd=parent, follow_symlinks=False)):
                    os.unlink(name, dir_fd=parent)
                    os.mkdir(name, 0o755, dir_fd=parent)
                    with opened(open_at(parent, name, _DIRECTORY)) as directory:
                        self._hide(directory)
                    return
            if at < 0:
                return

    def _forget_parent(self) -> None:
        if self._parent >= 0:
            os.close(self._parent)
        self._parent, self._above = -1, None

    def _make_way(self, parent: int, name: bytes, path: bytes) -> None:
        """Take away what an earlier member has left by this name."""
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            delete_tree(parent, name, path, self.alive)
        self._directories.pop(path, None)

    def _finish(self) -> None:
        """Give directories what only counts once they are filled: the inner ones first."""
        for path in sorted(self._directories, reverse=True):
            known = self._directories[path]
            self.alive()
            try:
                with opened(open_at(self.top, path or b".", _DIRECTORY, resolve=_IN_ROOT)) as directory:
                    _own(directory, known.uid, known.gid)
                    os.fchmod(directory, known.mode)
                    os.utime(directory, ns=(known.modified_ns, known.modified_ns))
            except (FileNotFoundError, NotADirectoryError):
                continue  # a later member took the place of one above it
            except OSError as error:
                raise _failure(error, path) from error

    # ── marks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _delete(self, parent: int, name: bytes) -> None:
        """Let a name be gone in what lies below; what this layer has by that name, it has."""
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            _whiteout(parent, name)
            return
        if stat.S_ISDIR(found.st_mode):
            with opened(open_at(parent, name, _DIRECTORY)) as directory:
                self._hide(directory)

    def _hide(self, directory: int) -> None:
        """Let nothing of what lies below be seen in an open directory."""
        with opened(open_at(directory, b".", _DIRECTORY)) as readable:
            os.setxattr(readable, OPAQUE_MARK, b"y")

    def _mark(self, target: int, member: Member) -> None:
        """Extended attributes of an open file; those that mean something to the system, or to overlays, are dropped."""
        for name, value in _xattrs(member):
            os.setxattr(target, name, value)
        if self.is_ours and member.kind == DIRECTORY and OPAQUE in member.records:
            self._hide(target)


def _xattrs(member: Member) -> list[tuple[bytes, bytes]]:
    found = []
    for key, value in member.records.items():
        name = key.removeprefix(XATTR)
        if name == key or not name.startswith(b"user.") or b"\0" in name:
            continue
        # Of an overlay mounted inside another, the latter keeps the attributes under a longer name: these mean nothing
        # to it.
        own = OVERLAYS_OWN.encode()
        if not name.startswith(own) or name.startswith(own + b"overlay."):
            found.append((name, value))
    return found


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _whiteout(parent: int, name: bytes) -> None:
    """Make the device that stands for a name that is gone.

    By renaming a file in a way that leaves one behind, as overlays themselves do: mknod(2) is not for sandboxes.
    """
    temporary = b".stockade-" + os.urandom(8).hex().encode()
    os.close(open_at(parent, name, _NEW_FILE, 0o600))
    try:
        if _syscall(_RENAMEAT2, parent, name, parent, temporary, _RENAME_WHITEOUT):
            number = ctypes.get_errno()
            raise AgentError("unsupported", f"this file system keeps no whiteouts: {os.strerror(number)}")
    except AgentError:
        os.unlink(name, dir_fd=parent)
        raise
    os.unlink(temporary, dir_fd=parent)


def _own(target: int | bytes, uid: int, gid: int, parent: int | None = None) -> None:
    try:
        os.chown(target, uid, gid, dir_fd=parent, follow_symlinks=isinstance(target, int))
    except OSError as error:
        if error.errno not in _NO_RIGHT:
            raise
        # An ordinary user's warden has one id only: all is that one's.


def _failure(error: OSError, path: bytes) -> AgentError:
    found = failure(error, path)
    if error.errno in _THE_ARCHIVES:
        return AgentError("invalid", found.message, found.number)
    if error.errno == errno.EOPNOTSUPP:
        return AgentError("unsupported", f"{found.message}: it keeps no extended attributes")
    return found
