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
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
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
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_RDONLY",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "clone",
    "close_range",
    "drop_bounding_set",
    "drop_capabilities",
    "find_process_title",
    "fix_capabilities",
    "mount",
    "pivot_root",
    "seal_process_title",
    "set_attributes",
    "set_dumpable",
    "set_handler",
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
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8
AT_RECURSIVE = 0x8000
AT_FDCWD = -100

# <linux/capability.h>
CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7
CAP_NET_BIND_SERVICE = 10
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
_CLOSE_RANGE = 436
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
