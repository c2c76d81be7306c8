"""Layers: all that was changed of an image, read from an overlay's upper directory and put over the same image again.

A layer is a file: a mark, records, an end record. A record is a header (kind, mode, length of the path, length of the
content, modification time, owner), the path relative to the root, the content. Beside files, directories and links
there are directories that hide what the image has there, and names that the image has and that were deleted: how
overlayfs keeps these two is in the kernel's overlayfs.rst.

Both ways run inside a sandbox, with a tenant's rights; what a layer says can do no more than the tenant.
"""

import contextlib
import errno
import os
import stat
import struct

from .agent_channel import AgentError, Outgoing
from .agent_paths import delete_tree, failure, open_at, opened, refuse, walk
from .bundle import BundleError, checked_path, make_directory, write_all

__all__ = ["MARK", "pack", "unpack"]

MARK = b"stockade layer 1\n"
_HEADER = struct.Struct("<cHHQqII")
_FILE, _DIRECTORY, _OPAQUE, _LINK, _WHITEOUT, _END = b"f", b"d", b"o", b"l", b"w", b"."
_OPAQUE_MARK = "user.overlay.opaque"
_SANDBOXS_OWN = (b"etc/resolv.conf",)
"""Written when a sandbox is made, as its network needs it: no part of what a build makes."""
_CHUNK = 1 << 20
_NO_MARK = (errno.ENODATA, errno.EOPNOTSUPP)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(out: Outgoing, upper: int) -> None:
    """Write the layer of the upper directory *upper*. Call it when nothing else runs.

    Sockets, FIFOs and set-id bits are left out.

    Raises:
        AgentError: something cannot be read, or was changed meanwhile.
    """
    out.write(MARK)
    for directory, name, path, info in walk(upper):
        mode = info.st_mode
        if path in _SANDBOXS_OWN:
            continue
        if stat.S_ISDIR(mode):
            _put(out, _OPAQUE if _is_opaque(directory, name, path) else _DIRECTORY, path, info)
        elif stat.S_ISCHR(mode) and info.st_rdev == 0:
            _put(out, _WHITEOUT, path, info)
        elif stat.S_ISLNK(mode):
            _put(out, _LINK, path, info, os.readlink(name, dir_fd=directory))
        elif stat.S_ISREG(mode):
            with opened(_open(directory, name, path, info)) as source:
                size = os.fstat(source).st_size
                _put(out, _FILE, path, info, size=size)
                if not out.file(source, size):
                    refuse("conflict", path, "it became shorter while it was saved")
    out.write(_HEADER.pack(_END, 0, 0, 0, 0, 0, 0))
    out.flush()


def _put(
    out: Outgoing, kind: bytes, path: bytes, info: os.stat_result, content: bytes = b"", size: int | None = None
) -> None:
    mode = stat.S_IMODE(info.st_mode) & (0o1777 if stat.S_ISDIR(info.st_mode) else 0o777)
    length = len(content) if size is None else size
    out.write(_HEADER.pack(kind, mode, len(path), length, info.st_mtime_ns, info.st_uid, info.st_gid))
    out.write(path)
    if content:
        out.write(content)


def _is_opaque(directory: int, name: bytes, path: bytes) -> bool:
    try:
        found = open_at(directory, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise failure(error, path) from error
    with opened(found):
        try:
            return os.getxattr(found, _OPAQUE_MARK) == b"y"
        except OSError as error:
            if error.errno in _NO_MARK:
                return False
            raise failure(error, path) from error


def _open(directory: int, name: bytes, path: bytes, info: os.stat_result) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            return open_at(directory, name, flags)
        except PermissionError:
            if info.st_uid != os.geteuid():
                raise
            # Ours, and yet not readable. The mode that counts is known, and nobody runs any more who could mind.
            os.chmod(name, 0o600, dir_fd=directory)
            return open_at(directory, name, flags)
    except OSError as error:
        raise failure(error, path) from error


def unpack(source: int, directory: str) -> None:
    """Put the layer in descriptor *source* over *directory*, which shows the image that it was made from.

    *source* is read by offset: several sandboxes may unpack it at once. Owners are kept as far as the caller may set
    them. Call it before anything of the tenant's runs.

    Raises:
        BundleError: the layer is damaged.
        OSError: writing failed (disk full, …).
    """
    if os.pread(source, len(MARK), 0) != MARK:
        raise BundleError("this is no layer")
    end = os.fstat(source).st_size
    offset = len(MARK)
    directories: list[tuple[bytes, int, int]] = []
    while True:
        header = os.pread(source, _HEADER.size, offset)
        if len(header) < _HEADER.size:
            raise BundleError("layer is cut off")
        kind, mode, path_length, length, modified_ns, uid, gid = _HEADER.unpack(header)
        offset += _HEADER.size
        if kind == _END:
            break
        if path_length + length > end - offset or kind not in (_FILE, _DIRECTORY, _OPAQUE, _LINK, _WHITEOUT):
            raise BundleError("layer is cut off or damaged")
        name = os.path.join(directory.encode(), checked_path(os.pread(source, path_length, offset)))
        offset += path_length
        if kind in (_DIRECTORY, _OPAQUE):
            _make_way(name, for_directory=kind == _DIRECTORY)
            make_directory(name)
            directories.append((name, mode & 0o1777, modified_ns))
        else:
            _make_way(name)
            make_directory(os.path.dirname(name))
        if kind == _LINK:
            os.symlink(os.pread(source, length, offset), name)
        elif kind == _FILE:
            _write(source, offset, length, name, mode & 0o777, modified_ns)
        if kind != _WHITEOUT:
            _own(name, uid, gid)
        offset += length
    for name, mode, modified_ns in reversed(directories):  # last, the inner ones first: some may not be written to
        _finish_directory(name, mode, modified_ns)


def _make_way(name: bytes, *, for_directory: bool = False) -> None:
    """Take away what the image has there; a directory stays where one shall be."""
    try:
        info = os.lstat(name)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(info.st_mode):
        os.unlink(name)
    elif not for_directory:
        parent = os.open(os.path.dirname(name) or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with opened(parent):
            try:
                delete_tree(parent, os.path.basename(name), name, lambda: None)  # nobody waits for a word from us
            except AgentError as error:
                raise BundleError(error.message) from error


def _write(source: int, offset: int, length: int, name: bytes, mode: int, modified_ns: int) -> None:
    with opened(os.open(name, _NEW_FILE, 0o600)) as target:
        end = offset + length
        while offset < end:
            data = os.pread(source, min(_CHUNK, end - offset), offset)
            if not data:
                raise BundleError("layer is cut off")
            offset += write_all(target, data)
        os.fchmod(target, mode)
        with contextlib.suppress(OverflowError):
            os.utime(target, ns=(modified_ns, modified_ns))


def _own(name: bytes, uid: int, gid: int) -> None:
    info = os.lstat(name)
    if (info.st_uid, info.st_gid) != (uid, gid):
        with contextlib.suppress(OSError):  # without the right to it, what is unpacked is the caller's
            os.lchown(name, uid, gid)


def _finish_directory(name: bytes, mode: int, modified_ns: int) -> None:
    info = os.lstat(name)
    if stat.S_IMODE(info.st_mode) != mode:
        try:
            os.chmod(name, mode)
        except PermissionError:
            if info.st_uid == os.geteuid():
                raise
            # The image's own, or the sandbox's: it has the mode that it always has.
    with contextlib.suppress(OSError, OverflowError):
        os.utime(name, ns=(modified_ns, modified_ns))
