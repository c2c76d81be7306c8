"""System calls that the standard library lacks, over ctypes.

`PyDLL` keeps the interpreter lock: the warden has one thread, and a child that is forked inside a call must
find the lock as it was.
"""

import contextlib
import ctypes
import os
import platform
import signal as signals
from collections.abc import Callable
from typing import Any

__all__ = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "CLONE_PARENT",
    "DEFAULT_HANDLER",
    "MNT_DETACH",
    "MOUNT_ATTR_IDMAP",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_RDONLY",
    "MS_BIND",
    "MS_NOATIME",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
    "clone",
    "close_range",
    "drop_bounding_set",
    "drop_capabilities",
    "exchange",
    "find_process_title",
    "fix_capabilities",
    "mount",
    "move_mount",
    "open_tree",
    "openat2",
    "pivot_root",
    "seal_process_title",
    "set_attributes",
    "set_dumpable",
    "set_handler",
    "set_mount_attributes",
    "set_no_new_privileges",
    "set_parent_death_signal",
    "set_seccomp",
    "trim_memory",
    "umount",
    "unshare",
]

# <linux/sched.h>
CLONE_PARENT = 0x0000_8000
CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

# <linux/mount.h>
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8
MOUNT_ATTR_IDMAP = 0x0010_0000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x0004
MOVE_MOUNT_T_EMPTY_PATH = 0x0040
RENAME_EXCHANGE = 2
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_FDCWD = -100

# <linux/openat2.h>
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# <linux/capability.h>
CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
CAP_NET_BIND_SERVICE = 10
CAP_SYS_CHROOT = 18
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_MKNOD = 27
CAP_SETFCAP = 31

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

_CLONE, _PIVOT_ROOT = {"x86_64": (56, 155), "aarch64": (220, 41)}[platform.machine()]
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_CLOSE_RANGE = 436
_OPENAT2 = 437
_MOUNT_SETATTR = 442

_libc = ctypes.PyDLL(None, use_errno=True)


def _function(name: str, *types: Any) -> Any:
    """A function of libc with its argument types set: each call then costs no wrapper objects."""
    function = _libc[name]  # a fresh object at each look-up, so that `syscall` can have several signatures
    function.argtypes = types
    function.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    return function


_int, _uint, _long, _ulong = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_ulong
_text, _pointer = ctypes.c_char_p, ctypes.c_void_p
_clone = _function("syscall", _long, _ulong, _pointer, _pointer, _pointer, _pointer)
_unshare = _function("unshare", _int)
_mount = _function("mount", _text, _text, _text, _ulong, _text)
_umount2 = _function("umount2", _text, _int)
_pivot_root = _function("syscall", _long, _text, _text)
_mount_setattr = _function("syscall", _long, _int, _text, _uint, _pointer, ctypes.c_size_t)
_open_tree = _function("syscall", _long, _int, _text, _uint)
_move_mount = _function("syscall", _long, _int, _text, _int, _text, _uint)
_renameat2 = _function("renameat2", _int, _text, _int, _text, _uint)
_openat2 = _function("syscall", _long, _int, _text, _pointer, ctypes.c_size_t)
_close_range = _function("syscall", _long, _uint, _uint, _uint)
_prctl = _function("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_prctl_text = _function("prctl", _int, _text)
_prctl_pointer = _function("prctl", _int, _ulong, _pointer, _ulong, _ulong)
_capset = _function("capset", _pointer, _pointer)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def clone(flags: int, signal: int) -> int:
    """Fork into the namespaces of *flags* at once: the child's pid in the caller, 0 in the child. See clone(2)."""
    return _check(_clone(_CLONE, flags | signal, None, None, None, None), "clone")


def unshare(flags: int) -> None:
    """See unshare(2)."""
    _check(_unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    """See mount(2)."""
    result = _mount(
        source.encode(),
        target.encode(),
        None if kind is None else kind.encode(),
        flags,
        None if options is None else options.encode(),
    )
    if result < 0:
        _check(result, f"mount {kind or 'bind'} on {target}")


def umount(target: str, flags: int) -> None:
    """See umount2(2)."""
    _check(_umount2(target.encode(), flags), "umount")


def pivot_root(new_root: str, put_old: str) -> None:
    """See pivot_root(2)."""
    _check(_pivot_root(_PIVOT_ROOT, new_root.encode(), put_old.encode()), "pivot_root")


def set_attributes(path: str, attributes: int) -> None:
    """Set `MOUNT_ATTR_…` on the mount at *path* and on all below it. See mount_setattr(2), Linux 5.12."""
    attr = _MountAttr(attr_set=attributes)
    result = _mount_setattr(
        _MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, ctypes.byref(attr), ctypes.sizeof(attr)
    )
    _check(result, f"mount_setattr {path}")


def open_tree(directory: int, path: str = "") -> int:
    """A descriptor of a new mount, attached nowhere, of what *path* below a descriptor is; empty for that itself.

    Nothing that is mounted below comes along, and it is gone with its last descriptor unless `move_mount` attaches it.
    See open_tree(2), Linux 5.2.
    """
    result = _open_tree(_OPEN_TREE, directory, os.fsencode(path), OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH)
    return _check(result, f"open_tree {path}")


def move_mount(mounted: int, directory: int = AT_FDCWD, path: str = "") -> None:
    """Attach what `open_tree` gave at *path* below a descriptor; empty for that itself. See move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    _check(_move_mount(_MOVE_MOUNT, mounted, b"", directory, os.fsencode(path), flags), f"move_mount {path}")


def set_mount_attributes(mounted: int, attributes: int, *, userns: int = -1, recursive: bool = False) -> None:
    """Set `MOUNT_ATTR_…` on the mount that a descriptor is of. See mount_setattr(2).

    Args:
        userns: a descriptor of the user namespace by whose maps owners are shown (`MOUNT_ATTR_IDMAP` is then set, too):
            only on a mount that is attached nowhere yet. Linux 5.12; for tmpfs 6.3.
    """
    attr = _MountAttr(attr_set=attributes)
    if userns >= 0:
        attr.attr_set |= MOUNT_ATTR_IDMAP
        attr.userns_fd = userns
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _mount_setattr(_MOUNT_SETATTR, mounted, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))
    _check(result, "mount_setattr")


def openat2(directory: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open with `RESOLVE_…` saying what the path may go through; close-on-exec. See openat2(2), Linux 5.6."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    result = _openat2(_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    return _check(result, f"openat2 {os.fsdecode(path)}")


def exchange(name: str, directory: int, other: str, other_directory: int) -> None:
    """Let two files of one file system change places, in one step. See renameat2(2)."""
    result = _renameat2(directory, os.fsencode(name), other_directory, os.fsencode(other), RENAME_EXCHANGE)
    _check(result, f"exchange {name}")


def close_range(first: int, last: int = 0xFFFF_FFFF) -> None:
    """Close every descriptor from *first* to *last*. See close_range(2), Linux 5.9."""
    if first <= last:
        _check(_close_range(_CLOSE_RANGE, first, last, 0), "close_range")


DEFAULT_HANDLER = int(signals.SIG_DFL)
set_handler: Callable[[int, int | Callable[[int, Any], object]], object] = getattr(
    signals.signal, "__wrapped__", signals.signal
)
"""`signal.signal` without its conversions to and from enumerations, for plain numbers: in a process that has just been
forked, looking those up copies some ten pages of memory, which stay its own for as long as it lives."""


def set_parent_death_signal(signal: int) -> None:
    """Have the kernel send *signal* to us when our parent dies. Any change of ids clears it: set it after those."""
    _check(_prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl PR_SET_PDEATHSIG")


def set_dumpable(*, dumpable: bool) -> None:
    """Whether others of our uid may read our memory and `/proc` entries."""
    _check(_prctl(PR_SET_DUMPABLE, int(dumpable), 0, 0, 0), "prctl PR_SET_DUMPABLE")


def set_no_new_privileges() -> None:
    """No execve of ours or of our children gains privileges from now on."""
    _check(_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl PR_SET_NO_NEW_PRIVS")


def set_seccomp(program: bytes) -> None:
    """Install a filter (`seccomp.build`); there is no way back. Needs `set_no_new_privileges` first."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = _FilterProgram(length=len(program) // 8, filter=ctypes.addressof(buffer))
    _check(
        _prctl_pointer(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(fprog), 0, 0),
        "prctl PR_SET_SECCOMP",
    )


def drop_bounding_set(keep: frozenset[int] = frozenset()) -> None:
    """Take every capability but *keep* out of the bounding set, so that no file can give one back."""
    for capability in range(64):
        if capability not in keep and _prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            return  # EINVAL: one past the last that this kernel knows


def drop_capabilities(keep: frozenset[int] = frozenset()) -> None:
    """Leave only *keep* in the effective and permitted sets, and nothing to be inherited. See capset(2)."""
    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    low = sum(1 << capability for capability in keep)
    data = (ctypes.c_uint32 * 6)(low, low)
    _check(_capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def fix_capabilities() -> None:
    """Have changes of our user id neither take nor give capabilities; for good, and for our children as well.

    SECBIT_NO_SETUID_FIXUP, locked: see capabilities(7). Needs CAP_SETPCAP.
    """
    _check(_prctl(PR_SET_SECUREBITS, 1 << 2 | 1 << 3, 0, 0, 0), "prctl PR_SET_SECUREBITS")


def trim_memory() -> None:
    """Give back to the kernel what malloc holds and does not use. See malloc_trim(3); nothing where libc has none."""
    with contextlib.suppress(AttributeError):
        _function("malloc_trim", ctypes.c_size_t)(0)


def find_process_title() -> tuple[int, int, int, int]:
    """Where our argument list and our initial environment lie in memory: two (start, end) pairs.

    Fields 48-51 of proc_pid_stat(5). They are the same in a child, which so need not look them up.
    """
    with open("/proc/self/stat", "rb") as stat:
        numbers = stat.read().rpartition(b")")[2].split()  # the name, before it, may hold blanks
    start, end, env_start, env_end = (int(n) for n in numbers[45:49])
    return start, end, env_start, env_end


def seal_process_title(title: str, where: tuple[int, int, int, int]) -> None:
    """Overwrite our argument list and initial environment in memory, where `/proc/<pid>/cmdline` reads them.

    They stay readable to those who may look at the process; ours name paths of the host.
    """
    _prctl_text(PR_SET_NAME, title.encode()[:15])
    start, end, env_start, env_end = where
    if start and end > start:
        text = title.encode()[: end - start - 1]
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))
    if env_start and env_end > env_start:
        ctypes.memset(env_start, 0, env_end - env_start)
