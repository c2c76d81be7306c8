"""Sets of files on their way into and out of a sandbox.

A bundle is a memory file: a sequence of records, each a header (kind, mode, length of the path, length of the
content), the path relative to the working directory, the content. It is packed and unpacked *inside* a sandbox,
by a process that has already given up what it could misuse; the warden and the server pass it on unread.
"""

import os
import stat
import struct
from collections.abc import Iterable, Mapping

__all__ = ["BundleError", "checked_path", "collect", "make_directory", "pack", "unpack", "write_all"]

_HEADER = struct.Struct("<cHIQ")
_FILE = b"f"
_DIRECTORY = b"d"
_LINK = b"l"
_CHUNK = 1 << 20
_LONGEST_PATH = 4096  # PATH_MAX
MOST_MEMBERS = 20_000


class BundleError(Exception):
    """The bundle, or what is to be packed into one, is not acceptable."""


def pack(files: Mapping[str, bytes]) -> list[bytes]:
    """The pieces of a bundle that holds *files*, to be written one after the other.

    Raises:
        BundleError: a path is absolute, empty, not text, or leads out by `..`.
    """
    pieces: list[bytes] = []
    for name, content in files.items():
        try:
            path = checked_path(name.encode())
        except UnicodeEncodeError as error:
            raise BundleError(f"not a file name: {name!r}") from error
        pieces += [_HEADER.pack(_FILE, 0o644, len(path), len(content)), path, content]
    return pieces


def unpack(source: int, directory: str) -> None:
    """Write the files of the bundle in descriptor *source* below *directory*, as the calling user.

    *source* is read by offset: several sandboxes may unpack it at once. Existing files are replaced.

    Raises:
        BundleError: the bundle is damaged.
        OSError: writing failed (disk full, …).
    """
    offset = 0
    end = os.fstat(source).st_size
    directories: list[tuple[bytes, int]] = []
    while offset < end:
        header = os.pread(source, _HEADER.size, offset)
        if len(header) < _HEADER.size:
            raise BundleError("bundle is cut off")
        kind, mode, path_length, length = _HEADER.unpack(header)
        offset += _HEADER.size
        if path_length > _LONGEST_PATH or length > end - offset - path_length:
            raise BundleError("bundle is cut off")
        name = os.path.join(directory.encode(), checked_path(os.pread(source, path_length, offset)))
        offset += path_length
        if kind == _DIRECTORY:
            make_directory(name)
            directories.append((name, mode))
        elif kind == _LINK:
            make_directory(os.path.dirname(name))
            os.symlink(os.pread(source, length, offset), name)
        elif kind != _FILE:
            raise BundleError(f"bundle has a record of an unknown kind: {kind!r}")
        else:
            _write(source, offset, length, name, mode)
        offset += length
    for name, mode in reversed(directories):  # last, the inner ones first: some may not be written to
        os.chmod(name, mode)


def collect(directory: str, target: int, most_bytes: int) -> None:
    """Pack everything below *directory* into descriptor *target*: regular files, directories and symbolic links.

    Call it when nothing else runs in the sandbox. Sockets, FIFOs and devices are left out.

    Raises:
        BundleError: there is more than *most_bytes*, or more than 20,000 members.
    """
    written = members = 0
    for kind, name, mode, source in _walk(directory.encode()):
        members += 1
        if members > MOST_MEMBERS:
            raise BundleError(f"the working directory holds more than {MOST_MEMBERS} files")
        path = os.path.relpath(name, directory.encode())
        if isinstance(source, bytes):
            written += write_all(target, _HEADER.pack(kind, mode, len(path), len(source)), path, source)
            continue
        with open(source, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if written + size > most_bytes:
                raise BundleError(f"the working directory holds more than {most_bytes} bytes")
            written += write_all(target, _HEADER.pack(kind, mode, len(path), size), path)
            left = size
            while left:
                sent = os.sendfile(target, file.fileno(), None, min(left, _CHUNK))
                if not sent:
                    raise BundleError("a file shrank while it was packed")
                left -= sent
            written += size


def _walk(top: bytes) -> Iterable[tuple[bytes, bytes, int, bytes | int]]:
    stack = [top]  # no recursion: a hostile tree may be deeper than Python's stack
    while stack:
        current = stack.pop()
        with os.scandir(current) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                mode = stat.S_IMODE(info.st_mode) & 0o777
                if stat.S_ISDIR(info.st_mode):
                    yield _DIRECTORY, entry.path, mode, b""
                    stack.append(entry.path)
                elif stat.S_ISLNK(info.st_mode):
                    yield _LINK, entry.path, 0o777, os.readlink(entry.path)
                elif stat.S_ISREG(info.st_mode):
                    yield _FILE, entry.path, mode, os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def write_all(target: int, *pieces: bytes) -> int:
    """Write all of *pieces* to a descriptor; their length."""
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(target, view) :]
    return sum(map(len, pieces))


def _write(source: int, offset: int, length: int, name: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        target = os.open(name, flags, 0o600)
    except FileNotFoundError:
        make_directory(os.path.dirname(name))
        target = os.open(name, flags, 0o600)
    try:
        end = offset + length
        while offset < end:
            data = os.pread(source, min(_CHUNK, end - offset), offset)
            if not data:
                raise BundleError("bundle is cut off")
            offset += write_all(target, data)
        os.fchmod(target, mode)
    finally:
        os.close(target)


def make_directory(name: bytes) -> None:
    """Make a directory with its parents, where they are missing.

    No recursion: a path may be deeper than Python's stack.

    Raises:
        OSError: it cannot be made; also where a link to nowhere is in the way.
    """
    missing, settled = [name], b""
    while missing:
        try:
            os.mkdir(missing[-1])
            settled = missing.pop()
        except FileExistsError:
            settled = missing.pop()
        except FileNotFoundError:
            above = os.path.dirname(missing[-1])
            if above == settled:
                raise
            missing.append(above)


def checked_path(path: bytes) -> bytes:
    """*path* itself.

    Raises:
        BundleError: it is absolute, empty, no path at all, or leads out by `..`.
    """
    if not path or path.startswith(b"/") or b"\0" in path or b".." in path.split(b"/"):
        raise BundleError(f"not a path below the working directory: {path!r}")
    return path
