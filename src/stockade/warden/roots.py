"""The root of a sandbox that stands on more than the host image and memory: layers, a disk, volumes.

A cell is made ahead, with the host image and a disk in memory. What it is to stand on instead comes as mounts that are
attached nowhere yet (`disks`), in which files belong to whom they belong to *inside*. PID 1 builds another root from
them and moves into it, while nothing of the tenant's runs. The tree under it was written by tenants, or by whoever made
the image: nothing is mounted, made or written by a path that could lead elsewhere through it.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import kernel
from .agent_paths import opened
from .image import UID
from .mounts import furnish_empty_disk

__all__ = ["Ground", "Mount", "enter"]

_BUILT_IN = "/mnt"  # any directory of the cell's first root: what is mounted there goes with it
_STANDARD = (("tmp", 0o1777), ("run", 0o755), ("var", 0o755), ("etc", 0o755), ("root", 0o700))
_FILES = {
    "hosts": b"127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n",
    "hostname": b"sandbox\n",
}
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_STAY_BELOW = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A volume."""

    source: int
    """Descriptor of a mount that is attached nowhere."""
    path: str
    """Absolute, as the sandbox sees it."""
    is_users: bool = False
    """An empty one is root's; this one becomes the sandbox's user's then."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What a sandbox is to stand on."""

    layers: Sequence[str]
    """Names, the uppermost first; empty for the host image."""
    layers_source: int | None
    """Descriptor of the mount in which those are."""
    disk_source: int | None
    """Descriptor of the disk's mount; `None` for memory."""
    mounts: Sequence[Mount]
    binds: Iterable[str]
    """Paths, without their first slash, that the host image shows from elsewhere."""
    memory_bytes: int
    """Size of what is in memory: `/dev/shm`, and all that is written where there is no disk."""
    memory_inodes: int


def enter(ground: Ground) -> int:
    """Build the root and move this process into it. Runs as root of the sandbox's user namespace.

    Returns a descriptor of the directory in which the kernel keeps what is changed of the image.

    Raises:
        OSError: it cannot be built so.
    """
    os.umask(0)
    kernel.mount(
        "disk", _BUILT_IN, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV,
        f"mode=755,size={ground.memory_bytes},nr_inodes={ground.memory_inodes}",
    )  # fmt: skip
    for name in ("layers", "disk", "root"):
        os.mkdir(f"{_BUILT_IN}/{name}", 0o755)
    os.mkdir(f"{_BUILT_IN}/shm", 0o1777)
    lower = "/"
    if ground.layers and ground.layers_source is not None:
        kernel.move_mount(ground.layers_source, path=f"{_BUILT_IN}/layers")
        os.chdir(f"{_BUILT_IN}/layers")  # names are relative to it: all options together have to fit one page
        lower = ":".join(f"{name}/upper" for name in ground.layers)
    if ground.disk_source is not None:
        kernel.move_mount(ground.disk_source, path=f"{_BUILT_IN}/disk")
        if not ground.layers:
            furnish_empty_disk(f"{_BUILT_IN}/disk/upper")
    else:
        for name in ("upper", "work"):
            os.mkdir(f"{_BUILT_IN}/disk/{name}", 0o755)
    root = f"{_BUILT_IN}/root"
    kernel.mount(
        "root", root, "overlay", kernel.MS_NOSUID | kernel.MS_NODEV,
        f"lowerdir={lower},upperdir={_BUILT_IN}/disk/upper,workdir={_BUILT_IN}/disk/work,userxattr,xino=off",
    )  # fmt: skip
    if os.statvfs(root).f_flag & os.ST_RDONLY:  # it could not make the directory that it works in
        raise OSError(errno.ENOSPC, "there is no room left on the disk, or where the disks lie")
    os.chdir("/")
    upper = os.open(f"{_BUILT_IN}/disk/upper", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if ground.layers:
        _complete(top)
    else:
        for path in ground.binds:
            with opened(_make_directory(top, path)) as target:
                kernel.mount(f"/{path}", f"/proc/self/fd/{target}", None, kernel.MS_BIND | kernel.MS_REC)
    for mount in ground.mounts:
        with opened(_make_directory(top, mount.path)) as target:
            if os.path.samestat(os.fstat(target), os.fstat(top)):  # by a link: it would take the place of all the rest
                raise OSError(errno.EBUSY, "a volume cannot be mounted over the root", mount.path)
            kernel.move_mount(mount.source, target)
        source = f"/proc/self/fd/{mount.source}"
        if mount.is_users and os.stat(source).st_uid == 0:
            with contextlib.suppress(OSError):  # it may be shown read-only
                os.chown(source, UID, UID)
    # Last, and at the top of what is there: nothing can be laid over them.
    for name in ("dev", "proc"):
        with opened(_own_directory(top, name)) as target:
            kernel.mount(f"/{name}", f"/proc/self/fd/{target}", None, kernel.MS_BIND | kernel.MS_REC)
    kernel.mount(f"{_BUILT_IN}/shm", f"{root}/dev/shm", None, kernel.MS_BIND)
    os.close(top)
    os.chdir(root)
    # Both at one place: the old root lands on top of the new one and is detached from there. See pivot_root(2).
    kernel.pivot_root(".", ".")
    kernel.umount(".", kernel.MNT_DETACH)
    os.chdir("/")
    os.umask(0o022)
    return upper


def _make_directory(top: int, path: str) -> int:
    """A descriptor of the directory *path*, made where it is missing; links lead nowhere but below *top*."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    parts = [part for part in path.split("/") if part]
    with contextlib.suppress(FileNotFoundError):
        return kernel.openat2(top, "/".join(parts), flags, _STAY_BELOW)
    for count in range(1, len(parts) + 1):
        part = "/".join(parts[:count])
        try:
            os.close(kernel.openat2(top, part, flags, _STAY_BELOW))
        except FileNotFoundError:
            above = kernel.openat2(top, "/".join(parts[: count - 1]) or ".", flags, _STAY_BELOW)
            with opened(above):
                os.mkdir(parts[count - 1], 0o755, dir_fd=above)
    return kernel.openat2(top, "/".join(parts), flags, _STAY_BELOW)


def _own_directory(top: int, name: str) -> int:
    """A descriptor of the directory *name* in *top*, put in place of whatever else is there."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=top)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=top)
    return os.open(name, flags, dir_fd=top)


def _complete(top: int) -> None:
    """Make what programs expect and an image may lack: directories, and who we are on the network."""
    for name, mode in _STANDARD:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=top)
    try:
        etc = os.open("etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    except OSError:
        return  # a link, or a file: the image's own affair
    with opened(etc):
        for name, text in _FILES.items():
            with contextlib.suppress(FileExistsError), opened(os.open(name, _NEW, 0o644, dir_fd=etc)) as file:
                os.write(file, text)
