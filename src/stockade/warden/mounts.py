"""Mounts: the warden's own bare root, and the root of each sandbox.

The warden leaves the host's file system behind when it starts: its mount namespace holds the images, a few device
nodes, `/proc`, and nothing else. A sandbox's namespace is a copy of that one, so that there is little to copy and
nothing of the host to reach if the last step were ever to go wrong.
"""

import contextlib
import os
import stat
from dataclasses import dataclass, replace

from . import kernel
from .image import HOME, UID, Image, make_host_image

__all__ = [
    "Stage",
    "enter_sandbox_root",
    "enter_template_root",
    "enter_wall_root",
    "fit_sandbox_root",
    "furnish_empty_disk",
    "furnish_sandbox_root",
    "make_stage",
]

_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# Windows into the host that anybody may look through (Docker's list, and what else tells of other tenants). What only
# root may open needs no mask: the host's root is nobody in a sandbox's user namespace.
_MASKED = (
    "acpi", "asound", "diskstats", "interrupts", "kcore", "key-users", "keys", "latency_stats", "locks", "partitions",
    "pressure", "sched_debug", "schedstat", "scsi", "softirqs", "swaps", "sysrq-trigger", "timer_list", "timer_stats",
)  # fmt: skip
_STAGE = "/tmp"  # any directory that exists: our tmpfs covers it in our namespace only
_WALL_OPTIONS = "mode=755,size=16m,nr_inodes=128"
_STAGE_IN_TEMPLATE = "/.stage"
_TERMINALS = 128
_SPARE_INODES = 48  # beyond the limit: for the directories that we make ourselves
# What a tenant may write to, made before there is anything of the image's: (path, mode, is the tenant's).
_OWN_DIRECTORIES = (
    (HOME, 0o700, True),
    ("/root", 0o700, False),
    ("/code", 0o755, True),
    ("/tmp", 0o1777, False),
    ("/var/tmp", 0o1777, False),
)
# What belongs to the user of a sandbox that lives: a machine of their own, but for the programs of the image.
_TENANTS_DIRECTORIES = (
    "/", "/etc", "/home", "/media", "/mnt", "/opt", "/run", "/srv", "/var", "/var/cache", "/var/lib", "/var/log",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the warden prepared, as paths in its own bare root."""

    images: dict[str, Image]
    masked: tuple[tuple[str, str], ...]
    """(empty source, path) pairs for `/proc`."""
    dev: str = "/dev"
    disk: str = "/sandbox"
    """Where a sandbox's disk is mounted while its root is built."""
    wall: str = "/wall"
    """Where the root of a cell with a second wall is built."""
    empty: str = "/empty"

    def below(self, top: str) -> "Stage":
        """The same, where that bare root is seen at *top*."""
        return Stage(
            images={name: image.below(top) for name, image in self.images.items()},
            masked=tuple((top + source, path) for source, path in self.masked),
            dev=top + self.dev,
            disk=top + self.disk,
            wall=top + self.wall,
            empty=top + self.empty,
        )


def make_stage(host_paths: tuple[str, ...]) -> Stage:
    """Move this process into a bare root that holds the images. Needs CAP_SYS_ADMIN in our user namespace.

    Order: private mount namespace; tmpfs; images and devices on it; pivot; the host's tree is detached.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("stockade", _STAGE, "tmpfs", kernel.MS_NOSUID, "mode=755,size=64m")
    for name in ("dev", "proc", "empty", "sandbox", "wall", "image", "old"):
        os.mkdir(f"{_STAGE}/{name}", 0o755)
    with open(f"{_STAGE}/nothing", "wb"):
        pass
    os.chmod(f"{_STAGE}/nothing", 0o444)
    # All of it: the kernel lets a user namespace mount a new /proc only where it already sees a whole one.
    kernel.mount("/proc", f"{_STAGE}/proc", None, kernel.MS_BIND | kernel.MS_REC)
    _make_devices(f"{_STAGE}/dev")
    host = make_host_image(f"{_STAGE}/image/host", "", host_paths)
    kernel.pivot_root(_STAGE, f"{_STAGE}/old")
    os.chdir("/")
    kernel.umount("/old", kernel.MNT_DETACH)
    os.rmdir("/old")
    host = replace(
        host,
        lower=host.lower.removeprefix(_STAGE),
        binds=tuple((source.removeprefix(_STAGE), target) for source, target in host.binds),
    )
    masked = tuple(
        ("/empty" if os.path.isdir(f"/proc/{name}") else "/nothing", f"proc/{name}")
        for name in _MASKED
        if os.path.lexists(f"/proc/{name}") and os.stat(f"/proc/{name}").st_mode & stat.S_IROTH
    )
    return Stage(
        images={"host": host},
        masked=masked,
    )


def _make_devices(directory: str) -> None:
    """A `/dev` for all sandboxes to share, read-only: nodes where we may make them, else the host's own, bound."""
    for name, (major, minor) in _DEVICES.items():
        path = f"{directory}/{name}"
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            os.chmod(path, 0o666)
        except PermissionError:  # in a user namespace nobody may make device nodes
            with open(path, "wb"):
                pass
            kernel.mount(f"/dev/{name}", path, None, kernel.MS_BIND)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"{directory}/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"{directory}/{name}", 0o755)
    # A mount of its own, so that one bind shows it with its flags.
    kernel.mount(directory, directory, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.set_attributes(directory, kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC)


def enter_sandbox_root(stage: Stage, image: Image) -> int:
    """Build the root of a sandbox and move this process into it. Runs as root of the sandbox's user namespace.

    One tmpfs holds everything that can be written: its size and inode limits are the disk's, and its pages are
    charged to the sandbox's memory.

    Returns a descriptor of the directory in which the kernel keeps what is changed of the image.
    """
    root = _build_root(stage, image, UID)
    proc_flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    # hidepid: other users' processes (ours, PID 1) are not listed and cannot be looked into.
    kernel.mount("proc", f"{root}/proc", "proc", proc_flags, "hidepid=invisible")
    for source, target in stage.masked:
        kernel.mount(source, f"{root}/{target}", None, kernel.MS_BIND)
    # The rest of /proc that can be written belongs to the host's root; of this, parts belong to the namespace's.
    sysctls = f"{root}/proc/sys"
    kernel.mount(sysctls, sysctls, None, kernel.MS_BIND)
    kernel.mount("none", sysctls, None, kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY | proc_flags)
    upper = os.open(f"{stage.disk}/upper", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(root)
    # Both at one place: the old root lands on top of the new one and is detached from there. See pivot_root(2).
    kernel.pivot_root(".", ".")
    kernel.umount(".", kernel.MNT_DETACH)
    os.chdir("/")
    os.umask(0o022)
    return upper


def enter_wall_root(stage: Stage, image: Image, *, program: str) -> int:
    """Build the root of a sandbox, below one that has gVisor and nothing else; move this process into the latter.

    *program* is shown there as `/runsc`, the sandbox's root as `/tenant`; `/state` and `/bundle` are gVisor's own. Its
    `/proc` is a whole one, for gVisor mounts one for itself; no program of a tenant's ever sees it.

    Returns a descriptor of the directory in which the kernel keeps what is changed of the image.
    """
    root = _build_root(stage, image, UID, own_inodes=False)  # gVisor watches and locks by its own
    upper = os.open(f"{stage.disk}/upper", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    kernel.mount("wall", stage.wall, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _WALL_OPTIONS)
    os.umask(0o077)
    for name in ("proc", "dev", "tenant", "state", "bundle", "tmp"):
        os.mkdir(f"{stage.wall}/{name}", 0o755)
    with open(f"{stage.wall}/runsc", "xb"):
        pass
    kernel.mount(program, f"{stage.wall}/runsc", None, kernel.MS_BIND)
    kernel.mount("proc", f"{stage.wall}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.mount(stage.dev, f"{stage.wall}/dev", None, kernel.MS_BIND | kernel.MS_REC)
    kernel.mount(root, f"{stage.wall}/tenant", None, kernel.MS_BIND | kernel.MS_REC)
    os.chdir(stage.wall)
    kernel.pivot_root(".", ".")  # as in `enter_sandbox_root`
    kernel.umount(".", kernel.MNT_DETACH)
    os.chdir("/")
    os.umask(0o022)
    return upper


def enter_template_root(stage: Stage, image: Image) -> Stage:
    """Build the root of a template and move this process into it; the stage stays in reach, for cells to be made from.

    Returns the stage as it is seen from there. `/proc` is the stage's: a template has no pid namespace of its own.
    """
    root = _build_root(stage, image, 0)
    os.mkdir(f"{root}{_STAGE_IN_TEMPLATE}", 0o700)
    shown = tuple((f"/{target}", target) for _, target in image.binds)
    kernel.mount("/proc", f"{root}/proc", None, kernel.MS_BIND | kernel.MS_REC)
    kernel.pivot_root(root, f"{root}{_STAGE_IN_TEMPLATE}")
    os.chdir("/")
    os.umask(0o022)
    below = stage.below(_STAGE_IN_TEMPLATE)
    # What it makes is to see the very files that it has itself: its program is one of them.
    own = replace(below.images[image.name], binds=shown, whole=())
    return replace(below, images={**below.images, image.name: own})


def _build_root(stage: Stage, image: Image, user: int, *, own_inodes: bool = True) -> str:
    """Everything but `/proc`; returns where it is. *user* has what is a tenant's: in a template that is its own.

    Args:
        own_inodes: see `_show`.
    """
    disk = stage.disk
    kernel.mount(
        "disk",
        disk,
        "tmpfs",
        kernel.MS_NOSUID | kernel.MS_NODEV,
        "mode=755,size=1m,nr_inodes=80",  # just for what we make ourselves; `fit_sandbox_root` sets the real size
    )
    os.umask(0)
    for name, mode in (("upper", 0o755), ("work", 0o755), ("root", 0o755), ("shm", 0o1777)):
        os.mkdir(f"{disk}/{name}", mode)
    for path, mode, is_tenants in _OWN_DIRECTORIES:
        os.makedirs(f"{disk}/upper{os.path.dirname(path)}", 0o755, exist_ok=True)
        _make_directory(f"{disk}/upper{path}", mode, user if is_tenants else 0)
    for path in _TENANTS_DIRECTORIES[1:]:
        os.makedirs(f"{disk}/upper{path}", 0o755, exist_ok=True)
    root = f"{disk}/root"
    # userxattr: in a user namespace overlayfs cannot keep its marks in trusted attributes. See overlayfs.rst.
    kernel.mount(
        "root",
        root,
        "overlay",
        kernel.MS_NOSUID | kernel.MS_NODEV,
        f"lowerdir={image.lower},upperdir={disk}/upper,workdir={disk}/work,userxattr,xino=off",
    )
    for source, target in image.binds:
        _show(stage, source, f"{root}/{target}", own_inodes=own_inodes and target in image.whole)
    kernel.mount(stage.dev, f"{root}/dev", None, kernel.MS_BIND | kernel.MS_REC)
    # The kernel has some 3,000 terminals for all sandboxes together: max, so that one cannot take them all.
    pts_options = f"newinstance,ptmxmode=0666,mode=620,max={_TERMINALS}"
    kernel.mount("devpts", f"{root}/dev/pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, pts_options)
    kernel.mount(f"{disk}/shm", f"{root}/dev/shm", None, kernel.MS_BIND)
    return root


def _show(stage: Stage, source: str, place: str, *, own_inodes: bool) -> None:
    """Show a part of an image, read-only.

    Args:
        own_inodes: by inodes that nobody else has; the pages of the files are shared all the same. On the host's own, a
            watch (inotify) would tell a tenant what the host and other tenants open and execute, and a lock (flock)
            would be one for all. Made anew for each sandbox: an overlay does not notice that what lies below it has
            changed, as when the host gets new packages.
    """
    if own_inodes:
        flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        with contextlib.suppress(OSError):  # this kernel has none of overlays, or of further ones upon each other
            kernel.mount("image", place, "overlay", flags, f"lowerdir={source}:{stage.empty},userxattr,xino=off")
            return
    kernel.mount(source, place, None, kernel.MS_BIND | kernel.MS_REC)


def fit_sandbox_root(*, disk_bytes: int, disk_inodes: int, cwd: str, user: int = UID, is_kept: bool = False) -> None:
    """Give the disk its real size and make the working directory: what differs from one sandbox to the next.

    Runs inside, before anything of the tenant's runs there, while this process still has its privileges.

    Args:
        is_kept: what is there was written by a tenant before, or by whoever made an image. A working directory that
            cannot be made is none then: whoever starts something there is told.
    """
    kernel.mount(
        "none", "/dev/shm", None, kernel.MS_REMOUNT | kernel.MS_NOSUID | kernel.MS_NODEV,
        f"size={disk_bytes},nr_inodes={disk_inodes + _SPARE_INODES}",
    )  # fmt: skip
    if os.path.isdir(cwd):
        return
    if not is_kept:
        os.makedirs(os.path.dirname(cwd), 0o755, exist_ok=True)
        _make_directory(cwd, 0o755, user)
        return
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(cwd), 0o755, exist_ok=True)
        os.mkdir(cwd, 0o755)  # not where a link or a file is: those keep their owner
        os.chown(cwd, user, user, follow_symlinks=False)


def furnish_sandbox_root(user: int = UID, *, is_kept: bool = False) -> None:
    """Give what a machine's user may write to, to the user of a sandbox that lives. Inside, with privileges.

    *is_kept*: see `fit_sandbox_root`; what is not there any more is nobody's, and links are not followed.
    """
    for path in _TENANTS_DIRECTORIES:
        with contextlib.suppress(*((OSError,) if is_kept else ())):
            found = os.lstat(path)
            if (found.st_uid, found.st_gid) != (user, user):
                os.chown(path, user, user, follow_symlinks=False)


def furnish_empty_disk(upper: str, user: int = UID) -> None:
    """Make the directories that `furnish_sandbox_root` would give away, on a disk with nothing on it: they need not be
    copied from the image then, one by one. Inside, before anything is merged with it; nothing happens to other disks.
    """
    with contextlib.suppress(OSError):  # a disk with next to no room
        if not os.listdir(upper):
            for path in _TENANTS_DIRECTORIES[1:]:
                os.mkdir(f"{upper}{path}", 0o755)
                os.chown(f"{upper}{path}", user, user)


def _make_directory(path: str, mode: int, owner: int) -> None:
    """A directory that may be written to, made in the upper layer before anything is merged with it.

    What the image has there is owned by a user whom this namespace does not know: nothing could be made in it. And
    a link in an image cannot lead us astray where there is no image yet.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    os.chmod(path, mode)
    if owner:
        os.chown(path, owner, owner)
