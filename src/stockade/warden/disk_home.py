"""Where disks lie, and how the process that keeps them gets there and gives up the rest.

Before a first disk is touched it has left the host's root: what is in reach then is the directory of the disks and, to
find the user namespaces of sandboxes, `/proc`. A name that is not what it should be leads nowhere.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import btrfs, disk_image, kernel
from .directories import Directories
from .disk_image import Unfit
from .disk_room import Room, spare_bytes
from .disk_store import Driver, Store
from .fields import Refused
from .journal import say_traceback

__all__ = ["Home", "move_in"]

_STAGE = "/tmp"  # any directory that exists: our tmpfs covers it in our namespace only
_DISKS = f"{_STAGE}/disks"
_TREE = "tree"
_SUBVOLUMES = "subvolumes"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY_ID = 0x7000_0000
# What is written is on the host's disk two seconds later: a copy then has little left to write, while a sandbox waits.
_OPTIONS = "discard=async,flushoncommit,commit=2"
_TUNING = {
    # All deletions are accounted, however large: the kernel spares itself those, and all limits with them.
    "qgroups/drop_subtree_threshold": "8",
    # No sandbox can have so much unwritten that others' copies, which are committed together with it, take long.
    "bdi/max_bytes": str(64 << 20),
    "bdi/strict_limit": "1",
}

# To mount, and for all that is done to subvolumes; to delete what belongs to tenants.
_CAPABILITIES = frozenset({kernel.CAP_SYS_ADMIN, kernel.CAP_DAC_OVERRIDE, kernel.CAP_FOWNER})
# To find the user namespace of a sandbox that has ids of its own.
_CAPABILITIES_FOR_IDS = frozenset({kernel.CAP_SYS_PTRACE})
# To make copies that are like what they are copies of: owners, and what a change of them takes away.
_CAPABILITIES_FOR_TREES = frozenset({kernel.CAP_CHOWN, kernel.CAP_FSETID})


@dataclass(frozen=True, kw_only=True)
class Home:
    """Where disks are kept."""

    store: Store
    root: int
    """Descriptor of the directory that the store is in."""
    host: int
    """Descriptor of the directory on the host that all is in, for its lock and its free room."""
    place: str
    """For a human."""
    why: str
    """For a human: why it is not better; empty where it is as good as can be."""
    room: Room | None
    """To be fitted, where there is one."""

    def free_bytes(self) -> int:
        """Room for disks: what the host needs for itself is left out."""
        here = os.fstatvfs(self.root)
        return min(spare_bytes(self.host), here.f_bavail * here.f_frsize)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """What has been found for the disks, and mounted."""

    make_driver: Callable[[int, int], Driver]
    place: str
    why: str = ""
    is_own: bool = False
    """Whether it is a file system of our own."""
    needs_trees: bool = False


def move_in(directory: str, *, kind: str, size_bytes: int | None, own_ids: bool, patience_s: float) -> Home:
    """Find or make the place for disks, and move there for good: into a root of our own, with few capabilities.

    Args:
        patience_s: time for a predecessor that has just ended to let go of the directory.

    Raises:
        Refused: it cannot be done here (`unsupported`), or not now (`unavailable`). Nothing but our mount namespace has
            changed then: try again.
        OSError: this host is not as hosts are.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    host = os.open(directory, _DIRECTORY)
    try:
        if os.fstat(host).st_uid != os.geteuid():
            raise Refused("unsupported", f"{directory} belongs to somebody else than who runs the warden")
        os.fchmod(host, 0o700)  # what sandboxes' root marks as set-uid must be out of everybody's reach
        kept = _apart(host)
        try:
            if not disk_image.lock(kept, patience_s):
                raise Refused("unavailable", f"another warden keeps its disks in {directory}")
            search = _Search(
                host=host, directory=directory, size_bytes=size_bytes, patience_s=patience_s, own_ids=own_ids
            )
            choice = _set_stage(search, kind)
        except BaseException:
            os.close(kept)
            raise
    finally:
        os.close(host)
    try:
        root = _leave_host()
        _give_up_the_rest(own_ids=own_ids, needs_trees=choice.needs_trees)
        store = Store(root, choice.make_driver)
        room = None
        if choice.is_own:
            btrfs.delete_stale_groups(root, store.all_disks())
            room = Room(root, kept)
            room.fit()
    except BaseException:  # there is no way back, and so no second attempt
        say_traceback()
        os._exit(1)
    return Home(store=store, root=root, host=kept, place=choice.place, why=choice.why, room=room)


def _give_up_the_rest(*, own_ids: bool, needs_trees: bool) -> None:
    keep = _CAPABILITIES
    if own_ids:
        keep |= _CAPABILITIES_FOR_IDS
    if needs_trees:
        keep |= _CAPABILITIES_FOR_TREES
    kernel.drop_bounding_set(keep)
    kernel.drop_capabilities(keep)
    kernel.set_no_new_privileges()


def _apart(directory: int) -> int:
    """A descriptor of the same directory, from which no path leads further up."""
    mounted = kernel.open_tree(directory)
    try:
        return os.open(".", _DIRECTORY, dir_fd=mounted)
    finally:
        os.close(mounted)


def _set_stage(search: "_Search", kind: str) -> "_Choice":
    """Mount what is to be our root, with the disks in it; nothing is left of it where that cannot be."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("disks", _STAGE, "tmpfs", flags, "mode=700,size=64k")
    try:
        for name in ("disks", "proc", "old"):
            os.mkdir(f"{_STAGE}/{name}", 0o700)
        choice = search.choose(kind)
        kernel.mount("/proc", f"{_STAGE}/proc", None, kernel.MS_BIND | kernel.MS_REC)
    except BaseException as error:
        kernel.umount(_STAGE, kernel.MNT_DETACH)
        if isinstance(error, Unfit):
            raise Refused("unsupported", f"disks cannot be kept in {search.directory}: {error}") from error
        raise
    return choice


def _leave_host() -> int:
    """Make the stage our root; a descriptor of the directory of the disks."""
    kernel.pivot_root(_STAGE, f"{_STAGE}/old")
    os.chdir("/")
    kernel.umount("/old", kernel.MNT_DETACH)
    os.rmdir("/old")
    return os.open("/disks", _DIRECTORY)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """For the best that this host can do."""

    host: int
    """Descriptor of `directory`."""
    directory: str
    size_bytes: int | None
    patience_s: float
    own_ids: bool

    def choose(self, kind: str) -> _Choice:
        """Mount what disks are kept in: what they have been kept in before, unless *kind* says else.

        Raises:
            Unfit: there is nothing.
        """
        if kind == "directory":
            return self._directories("the configuration wants plain directories (disks.kind)")
        has_image, has_tree = self._has(disk_image.NAME), self._has(f"{_TREE}/disks")
        if kind == "auto" and has_tree and not has_image:
            return self._directories(f"disks have been kept as plain directories in {self.directory} before")
        try:
            if not self.own_ids:
                raise Unfit("only root's warden can mount a file system of its own")
            if btrfs.has_quotas(self.host) and not has_image:
                return self._operators_own()
            return self._image(is_there=has_image)
        except (Unfit, OSError) as error:
            if kind == "btrfs" or has_image:
                raise Unfit(f"btrfs: {error}") from error
            return self._directories(f"no btrfs: {error}")

    def _directories(self, why: str) -> _Choice:
        self._show(_TREE)
        try:
            self._want_owners_shown()
        except Unfit as error:
            raise Unfit(f"{why}; plain directories: {error}") from error
        place = f"{self.directory}/{_TREE}"
        return _Choice(make_driver=Directories, place=place, why=why, needs_trees=True)

    def _operators_own(self) -> _Choice:
        """The operator keeps quotas there; to begin with them is not for us: they slow down who has many snapshots."""
        self._show(_SUBVOLUMES)
        self._want_owners_shown()
        return _Choice(make_driver=btrfs.Subvolumes, place=f"{self.directory}/{_SUBVOLUMES}")

    def _image(self, *, is_there: bool) -> _Choice:
        place = f"{self.directory}/{disk_image.NAME}"
        open_image = disk_image.open_image if is_there else disk_image.make
        image = open_image(self.host, self.size_bytes)
        try:
            # The kernel holds the lock, too, for as long as sandboxes of a predecessor's have mounts of it.
            if not disk_image.lock(image, self.patience_s):
                raise Unfit(f"{place} is still in use: end what has it (see `losetup -j`)")
            _mount_image(image)
            self._want_owners_shown()
        finally:
            os.close(image)  # the loop device has it
        if not is_there:  # from here on: a host that cannot mount it has none, and may have plain directories
            os.rename(disk_image.NEW_NAME, disk_image.NAME, src_dir_fd=self.host, dst_dir_fd=self.host)
            os.fsync(self.host)
        return _Choice(make_driver=btrfs.Subvolumes, place=place, is_own=True)

    def _want_owners_shown(self) -> None:
        if self.own_ids and not _can_show_owners():
            kernel.umount(_DISKS, kernel.MNT_DETACH)
            raise Unfit("the file system cannot show owners as sandboxes see them (it has no idmapped mounts)")

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.host, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _show(self, name: str) -> None:
        """Mount a directory of the host's, made when it is missing."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.host)
        directory = os.open(name, _DIRECTORY, dir_fd=self.host)
        try:
            mounted = kernel.open_tree(directory)
        finally:
            os.close(directory)
        try:
            kernel.set_mount_attributes(mounted, kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV)
            kernel.move_mount(mounted, path=_DISKS)
        finally:
            os.close(mounted)


def _can_show_owners() -> bool:
    """Whether what is mounted for the disks can be mounted with other owners: tried, with a child's user namespace."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            kernel.unshare(kernel.CLONE_NEWUSER)
            os.write(tell, b"!")
            signal.pause()
        os._exit(1)
    os.close(tell)
    try:
        if not os.read(told, 1):
            return False
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                file.write(f"0 {_ANY_ID} 1")
        with _opened(f"/proc/{pid}/ns/user", os.O_RDONLY) as namespace, _opened(_DISKS, _DIRECTORY) as directory:
            mounted = kernel.open_tree(directory)
            try:
                kernel.set_mount_attributes(mounted, 0, userns=namespace)
            finally:
                os.close(mounted)
    except OSError:
        return False
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return True


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _mount_image(image: int) -> None:
    device, path = disk_image.attach(image)
    try:
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOATIME  # a read would part blocks that are shared
        kernel.mount(path, _DISKS, "btrfs", flags, _OPTIONS)
    finally:
        os.close(device)
    try:
        with _opened(_DISKS, _DIRECTORY) as root:
            btrfs.start_quotas(root)
            _tune(root)
    except BaseException:
        kernel.umount(_DISKS, kernel.MNT_DETACH)
        raise


def _tune(root: int) -> None:
    """What mount options cannot say. Where the kernel does not know it, all works without."""
    about = f"/sys/fs/btrfs/{btrfs.file_system_id(root)}"
    for name, value in _TUNING.items():
        with contextlib.suppress(OSError), open(f"{about}/{name}", "w", encoding="ascii") as file:
            file.write(value)
