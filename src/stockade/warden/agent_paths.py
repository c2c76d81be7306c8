"""Finding files by path, for a process inside a sandbox that has no more rights than the tenant.

No path leads out of a sandbox from inside. What is minded here: links that the kernel makes up (`/proc/<pid>/fd/…`),
whose ends may be the agent's own; what blocks whoever opens it; trees that are deeper than any path; and that all of it
may change at any moment.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from .agent_channel import AgentError

__all__ = [
    "BENEATH",
    "MOST_MEMBERS",
    "clean",
    "delete_tree",
    "describe",
    "describe_path",
    "failure",
    "is_agents_own",
    "is_proc",
    "make_directories",
    "open_at",
    "open_below",
    "open_directory",
    "open_parent",
    "opened",
    "refuse",
    "settle_link",
    "show",
    "walk",
]

MOST_MEMBERS = 1_000_000
"""Entries that one request may touch."""
BENEATH = 0x08
"""RESOLVE_BENEATH of openat2(2): nothing on the way may leave the directory that it starts from."""
_NO_MAGIC_LINKS = 0x02
_NO_LINKS = 0x04
_OPENAT2 = 437  # on every architecture
_LONGEST = 4095  # PATH_MAX, less its NUL
_MOST_LINKS = 40  # as many as the kernel follows
_TRIES = 100
_AT_FDCWD = -100
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_KINDS = {
    errno.ENOENT: ("not_found", "there is no such file or directory"),
    errno.ENOTDIR: ("not_found", "something on the way is no directory"),
    errno.EACCES: ("denied", "permission denied"),
    errno.EPERM: ("denied", "not permitted"),
    errno.EROFS: ("denied", "it cannot be written to"),
    errno.EOVERFLOW: ("denied", "it belongs to the image and cannot be written to"),
    errno.EISDIR: ("invalid", "it is a directory"),
    errno.ELOOP: ("invalid", "it leads through too many links, or through one of the kernel's own"),
    errno.ENAMETOOLONG: ("invalid", "the name is too long"),
    errno.EINVAL: ("invalid", "this cannot be done with it"),
    errno.ENXIO: ("invalid", "it is no regular file"),
    errno.ENODEV: ("invalid", "it is no regular file"),
    errno.EEXIST: ("conflict", "it exists already"),
    errno.ENOTEMPTY: ("conflict", "the directory is not empty"),
    errno.EBUSY: ("conflict", "it is in use"),
    errno.ETXTBSY: ("conflict", "it is in use"),
    errno.ENOSPC: ("limit_exceeded", "no space left: the sandbox's disk is full"),
    errno.EDQUOT: ("limit_exceeded", "no space left: the sandbox's disk is full"),
    errno.EFBIG: ("limit_exceeded", "no space left: it is larger than the sandbox's disk"),
    errno.EXDEV: ("unsupported", "it cannot be moved there without copying it; do that inside the sandbox"),
    errno.EMFILE: ("unavailable", "too many open files"),
    errno.ENFILE: ("unavailable", "too many open files"),
    errno.ENOMEM: ("unavailable", "the sandbox has no memory left"),
}


class _How(ctypes.Structure):
    """struct open_how"""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# Keeps the interpreter lock, as `kernel` does and for the same reason.
_syscall = ctypes.PyDLL(None, use_errno=True)["syscall"]
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)


def show(path: bytes) -> str:
    """*path* for a message."""
    return path.decode("utf-8", "backslashreplace")


def refuse(kind: str, path: bytes, why: str, number: int = 0) -> NoReturn:
    """*number*: the error that the system call would have given; 0 where it would have given none."""
    raise AgentError(kind, f"{show(path)}: {why}", number)


def failure(error: OSError, path: bytes) -> AgentError:
    """What the server is told of a system call that failed."""
    number = error.errno or 0
    kind, why = _KINDS.get(number, ("fault", f"{os.strerror(number)} ({error.errno})"))
    # An owner that has no number inside: to the tenant that is a file which it may not change, and nothing else.
    return AgentError(kind, f"{show(path)}: {why}", errno.EACCES if number == errno.EOVERFLOW else number)


def clean(path: object) -> bytes:
    """A path from a request, without what means nothing in it.

    Raises:
        AgentError: it is no absolute path.
    """
    if not isinstance(path, str):
        raise AgentError("invalid", "path: it must be a text")
    try:
        data = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise AgentError("invalid", f"{path!r}: this is no file name") from None
    if not data.startswith(b"/"):
        refuse("invalid", data, "the path must be absolute")
    if b"\0" in data:
        refuse("invalid", data, "a path holds no NUL character", errno.EINVAL)
    if len(data) > _LONGEST:
        refuse("invalid", data[:64] + b"...", "the path is too long", errno.ENAMETOOLONG)
    return b"/" + b"/".join(part for part in data.split(b"/") if part not in (b"", b"."))


@contextlib.contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close *fd* at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def open_at(directory: int | None, path: bytes, flags: int, mode: int = 0, *, resolve: int = 0) -> int:
    """openat2(2) without the kernel's own links.

    Where the kernel, or a filter around us, does not know that call, nothing of `/proc` is opened, and with `BENEATH`
    no link is followed at all.

    Raises:
        OSError: as open(2); EXDEV where `BENEATH` is left, ELOOP for a link of the kernel's own.
    """
    how = _How(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve | _NO_MAGIC_LINKS)
    for _ in range(_TRIES):
        base = _AT_FDCWD if directory is None else directory
        fd = int(_syscall(_OPENAT2, base, path, ctypes.byref(how), ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            return _open_without(directory, path, flags, mode, resolve)
        if number not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: something was renamed while `..` was looked up
            break
    raise OSError(number, os.strerror(number), path)


def _open_without(directory: int | None, path: bytes, flags: int, mode: int, resolve: int) -> int:
    if not resolve & (BENEATH | _NO_LINKS):
        fd = os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=directory)
        if is_proc(os.fstat(fd)):
            os.close(fd)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        return fd
    parts = [part for part in path.split(b"/") if part not in (b"", b".")] or [b"."]
    if path.startswith(b"/") or b".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    current = os.open(".", os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
    try:
        for part in parts[:-1]:
            following = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = following
        return os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=current)
    finally:
        os.close(current)


def open_below(top: int, path: bytes, flags: int) -> int:
    """Open what was found by walking: no link is followed on the way."""
    return open_at(top, path or b".", flags | os.O_NOFOLLOW | os.O_NONBLOCK, resolve=BENEATH | _NO_LINKS)


def open_directory(path: bytes) -> int:
    """A directory to be listed; links are followed.

    Raises:
        AgentError: it is none.
    """
    with opened(open_at(None, path, os.O_PATH)) as found:
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            refuse("invalid", path, "it is no directory", errno.ENOTDIR)
    directory = open_at(None, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    if is_agents_own(directory):
        os.close(directory)
        refuse("denied", path, "it is about the file agent, not about the sandbox", errno.EACCES)
    return directory


def open_parent(path: bytes, *, make: bool = False) -> tuple[int, bytes]:
    """The directory that *path* is in, and its name there. With *make*, directories that are missing are made (0755).

    Raises:
        AgentError: *path* names no entry of a directory, or what should hold it is no directory.
    """
    above, _, name = path.rpartition(b"/")
    if not name or name == b"..":
        refuse("invalid", path, "it must name something in a directory", errno.EINVAL)
    try:
        return open_at(None, above or b"/", os.O_PATH | os.O_DIRECTORY), name
    except FileNotFoundError:
        if not make:
            raise
    except NotADirectoryError:
        refuse("invalid" if make else "not_found", path, "what should hold it is no directory", errno.ENOTDIR)
    try:
        return make_directories(None, above), name
    except (NotADirectoryError, FileExistsError):
        refuse("invalid", path, "what should hold it is no directory", errno.ENOTDIR)


def make_directories(top: int | None, path: bytes, *, mode: int = 0o755, resolve: int = 0) -> int:
    """Make *path* and what is missing above it (0755); returns it, opened. Without *top*, it starts at the root.

    Step by step: a path may have more parts than Python's stack has room for.
    """
    parts = [part for part in path.split(b"/") if part]
    flags = os.O_PATH | os.O_DIRECTORY
    for known in range(len(parts), -1, -1):
        start = b"/".join(parts[:known])
        try:
            current = open_at(top, b"/" + start if top is None else start or b".", flags, resolve=resolve)
        except FileNotFoundError:
            if not known:
                raise
            continue
        break
    try:
        for number, part in enumerate(parts[known:], known + 1):
            with contextlib.suppress(FileExistsError):  # somebody else made it, or it is a link to nowhere
                os.mkdir(part, mode if number == len(parts) else 0o755, dir_fd=current)
            following = open_at(current, part, flags, resolve=resolve)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def settle_link(path: bytes) -> bytes:
    """Where a file of this path would be written to: the end of the links that stand there, if any.

    Raises:
        AgentError: there are too many, or they are the kernel's own.
    """
    for _ in range(_MOST_LINKS):
        above, _, name = path.rpartition(b"/")
        try:
            parent = open_at(None, above or b"/", os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return path
        with opened(parent):
            try:
                target = os.readlink(name or b".", dir_fd=parent)
            except OSError:
                return path  # no link, or nothing
            if is_proc(os.fstat(parent)):
                refuse("denied", path, "it is one of the kernel's own links", errno.ELOOP)
        path = clean(os.path.join(above or b"/", target).decode("utf-8", "surrogateescape"))
    refuse("invalid", path, "it leads through too many links", errno.ELOOP)


def is_proc(info: os.stat_result) -> bool:
    """Whether it is on the sandbox's `/proc`."""
    try:
        return info.st_dev == os.stat("/proc/self", follow_symlinks=False).st_dev
    except OSError:
        return False


def is_agents_own(fd: int) -> bool:
    """Whether it is a file of `/proc` about this very process: our memory is nobody's business."""
    if not is_proc(os.fstat(fd)):
        return False
    name = os.readlink(f"/proc/self/fd/{fd}")
    return f"{name}/".startswith(f"/proc/{os.getpid()}/")


def describe_path(path: bytes) -> dict[str, Any]:
    """`describe`, of a path."""
    above, _, name = path.rpartition(b"/")
    if not name or name == b"..":
        with opened(open_at(None, path, os.O_PATH)) as directory:
            return describe(directory, b".", path)
    with opened(open_at(None, above or b"/", os.O_PATH | os.O_DIRECTORY)) as parent:
        return describe(parent, name, path)


def describe(directory: int, name: bytes, path: bytes) -> dict[str, Any]:
    """What `FileInfo` holds, of an entry of a directory; links are not followed, yet it is said where they lead."""
    info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    found: dict[str, Any] = {
        "name": (path.rpartition(b"/")[2] or b"/").decode("utf-8", "surrogateescape"),
        "path": path.decode("utf-8", "surrogateescape"),
        "kind": _kind(info.st_mode),
        "size": info.st_size if stat.S_ISREG(info.st_mode) else 0,
        "mode": stat.S_IMODE(info.st_mode),
        "modified_at": info.st_mtime,
        "uid": info.st_uid,
        "gid": info.st_gid,
    }
    if stat.S_ISLNK(info.st_mode):
        found["target"] = os.readlink(name, dir_fd=directory).decode("utf-8", "surrogateescape")
        with contextlib.suppress(OSError), opened(open_at(directory, name, os.O_PATH)) as target:
            end = os.fstat(target)
            found["target_kind"] = _kind(end.st_mode)
            found["target_size"] = end.st_size if stat.S_ISREG(end.st_mode) else 0
            found["target_mode"] = stat.S_IMODE(end.st_mode)
    return found


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def walk(top: int) -> Iterator[tuple[int, bytes, bytes, os.stat_result]]:
    """All below a directory, as (directory it is in, name, path from *top*, lstat): sorted, each before what is in it.

    What vanishes meanwhile is left out. `/proc` is not entered.

    Raises:
        AgentError: something lies deeper than a path can name, or there are more than `MOST_MEMBERS`.
    """
    pending = [b""]
    members = 0
    while pending:
        above = pending.pop()
        try:
            directory = open_below(top, above, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link has taken its place
                continue
            raise failure(error, above) from error
        deeper = []
        with opened(directory):
            with os.scandir(directory) as entries:
                names = sorted(os.fsencode(entry.name) for entry in entries)
            for name in names:
                path = above + b"/" + name if above else name
                members += 1
                if members > MOST_MEMBERS:
                    refuse("limit_exceeded", path, f"there are more than {MOST_MEMBERS} files")
                if len(path) > _LONGEST:
                    refuse("invalid", path[:64] + b"...", "it lies deeper than a path can name")
                try:
                    info = os.stat(name, dir_fd=directory, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield directory, name, path, info
                if stat.S_ISDIR(info.st_mode) and not is_proc(info):
                    deeper.append(path)
        pending.extend(reversed(deeper))


def delete_tree(parent: int, name: bytes, path: bytes, alive: Callable[[], None]) -> None:
    """Delete a directory with all that is in it. Links are deleted, not followed.

    It goes down and up again step by step, with one descriptor: a tree may be deeper than a path can name, and than
    descriptors go round. On its way up it makes sure of being where it came from.

    Raises:
        AgentError: the tree was changed meanwhile, or has more than `MOST_MEMBERS` entries.
        OSError: something may not be deleted.
    """
    members = 0

    def empty(directory: int) -> list[bytes]:
        """Delete what is no directory; the names of those that are."""
        nonlocal members
        inner = []
        with os.scandir(directory) as entries:
            listed = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
        for entry, is_directory in listed:
            members += 1
            if members > MOST_MEMBERS:
                refuse("limit_exceeded", path, f"there are more than {MOST_MEMBERS} files")
            if is_directory:
                inner.append(entry)
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=directory)
            alive()
        return inner

    current = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        trail = [(name, _identity(current), empty(current))]
        while True:
            here, _, inner = trail[-1]
            if inner:
                following = inner.pop()
                with contextlib.suppress(FileNotFoundError):
                    below = os.open(following, _DIRECTORY, dir_fd=current)
                    os.close(current)
                    current = below
                    trail.append((following, _identity(current), empty(current)))
                continue
            trail.pop()
            if not trail:
                break
            above = os.open("..", _DIRECTORY, dir_fd=current)
            os.close(current)
            current = above
            if _identity(current) != trail[-1][1]:
                refuse("conflict", path, "it was changed while it was deleted")
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(here, dir_fd=current)
            alive()
    finally:
        os.close(current)
    os.rmdir(name, dir_fd=parent)


def _identity(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino
