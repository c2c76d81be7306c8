"""The system call filter that every sandboxed program runs under.

`build` assembles it, as the classic BPF program that `seccomp(2)` takes, from the policy below: a call that is not
listed is refused. What is allowed is what an ordinary program needs without capabilities; each group that is refused
says why. The filter is the second wall: namespaces, dropped capabilities and control groups hold without it.

What a refused call returns:
  EPERM   the kernel knows the call, the sandbox does not permit it
  ENOSYS  the call is newer than this filter, or (clone3) libc is to fall back to a call whose arguments can be checked
  death   the call was made through another architecture's entry, whose numbers mean other things

A filter sees numbers and never memory, so only arguments passed by value are checked. The kernel cuts those that
are checked here (families, flags, ioctl commands, modes) to 32 bits or less: the filter compares just these bits.
"""

import errno
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from stockade.warden.syscall_table import NUMBERS

__all__ = ["ALLOWED", "ARCHITECTURES", "CHECKED", "REFUSED", "WALL", "Group", "build"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """System calls that are treated alike, and the reason."""

    name: str
    calls: tuple[str, ...]
    why: str


def _group(name: str, calls: str, why: str) -> Group:
    return Group(name=name, calls=tuple(calls.split()), why=why)


# ── policy ───────────────────────────────────────────────────────────────────────────────────────────────────────

ALLOWED: Final = (
    _group(
        "files",
        """read write open close stat fstat lstat lseek pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2
        access faccessat faccessat2 openat openat2 creat newfstatat statx statfs fstatfs getdents getdents64 getcwd
        chdir fchdir rename renameat renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat
        readlink readlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask utime utimes utimensat
        futimesat truncate ftruncate fallocate fadvise64 readahead fsync fdatasync sync_file_range flock fcntl dup
        dup2 dup3 pipe pipe2 close_range sendfile copy_file_range splice tee
        setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr
        lremovexattr fremovexattr setxattrat getxattrat listxattrat removexattrat""",
        "the sandbox's own files; what it may see and write is settled by its mounts",
    ),
    _group(
        "waiting",
        """poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd
        eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime inotify_init inotify_init1
        inotify_add_watch inotify_rm_watch""",
        "event loops",
    ),
    _group(
        "memory",
        """mmap mprotect munmap mremap brk msync mincore madvise mlock mlock2 munlock mlockall munlockall membarrier
        pkey_mprotect pkey_alloc pkey_free memfd_create mseal map_shadow_stack""",
        "counted by the memory control group; locking is bounded by RLIMIT_MEMLOCK",
    ),
    _group(
        "processes",
        """fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill pause getpid getppid gettid getpgid
        setpgid getpgrp getsid setsid getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid
        setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capget capset prctl arch_prctl getrlimit
        getrusage times getpriority setpriority ioprio_get ioprio_set set_tid_address
        set_robust_list get_robust_list rseq futex futex_waitv futex_wake futex_wait futex_requeue restart_syscall
        pidfd_open pidfd_send_signal uname sysinfo getcpu getrandom seccomp landlock_create_ruleset landlock_add_rule
        landlock_restrict_self uretprobe uprobe""",
        "bounded by the pid namespace and the pids control group; identities are those of the sandbox's user "
        "namespace; a program may restrict itself further",
    ),
    _group(
        "scheduling",
        """sched_yield sched_setparam sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max
        sched_get_priority_min sched_rr_get_interval sched_setaffinity sched_getaffinity sched_setattr
        sched_getattr""",
        "within the cpu control group; real-time classes need a capability",
    ),
    _group(
        "signals",
        """rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend
        rt_tgsigqueueinfo sigaltstack""",
        "reach only processes of the sandbox",
    ),
    _group(
        "time",
        """time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep alarm getitimer setitimer timer_create
        timer_settime timer_gettime timer_getoverrun timer_delete""",
        "reading clocks and waiting; see `clocks` for setting them",
    ),
    _group(
        "sockets",
        """connect accept accept4 bind listen shutdown getsockname getpeername setsockopt getsockopt sendto recvfrom
        sendmsg recvmsg sendmmsg recvmmsg""",
        "work on a socket that `socket` or `socketpair`, both checked, has made",
    ),
    _group(
        "ipc",
        """shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink
        mq_timedsend mq_timedreceive mq_notify mq_getsetattr""",
        "System V and POSIX queues of the sandbox's own ipc namespace",
    ),
)

REFUSED: Final = (
    _group(
        "namespaces",
        "unshare setns listns",
        "a new user namespace gives a program every capability inside it, and with them most of the kernel's "
        "privileged code to attack",
    ),
    _group(
        "mounts",
        """mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick
        mount_setattr statmount listmount""",
        "the view of the file system is what keeps the host's files away",
    ),
    _group(
        "handles",
        "name_to_handle_at open_by_handle_at",
        "open a file by its number, past every directory on the way to it",
    ),
    _group(
        "tracing",
        "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd",
        "reach into another process's memory, descriptors or kernel objects",
    ),
    _group(
        "io_uring",
        "io_uring_setup io_uring_enter io_uring_register",
        "makes system calls that no filter sees, sockets of any family among them; many kernel escapes used it",
    ),
    _group(
        "kernel programs",
        "bpf perf_event_open userfaultfd",
        "verifier and counter bugs; userfaultfd stops the kernel in the middle of a copy, the usual aid to win a race",
    ),
    _group(
        "keyrings",
        "add_key request_key keyctl",
        "not separated by any namespace but the user's",
    ),
    _group(
        "secret memory",
        "memfd_secret",
        "pages that the kernel can neither move nor reclaim, nor an operator inspect",
    ),
    _group(
        "async io",
        "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents",
        "fs.aio-max-nr is one budget for the whole host: a sandbox could use it up for everyone",
    ),
    _group(
        "page stealing",
        "vmsplice remap_file_pages",
        "vmsplice hands out pages that stay shared with the kernel (CVE-2020-29374); remap_file_pages is obsolete",
    ),
    _group(
        "cache probing",
        "cachestat",
        "tells which parts of files that many sandboxes share are in memory: what the others do",
    ),
    _group(
        "numa",
        "mbind set_mempolicy get_mempolicy set_mempolicy_home_node migrate_pages move_pages",
        "where memory lies is the operator's choice",
    ),
    _group(
        "host-wide flush",
        "syncfs",
        "writes out the file system below a read-only mount, which is the host's",
    ),
    _group(
        "clocks",
        "settimeofday clock_settime clock_adjtime adjtimex",
        "the host's one clock",
    ),
    _group("names", "sethostname setdomainname", "set when the sandbox is made"),
    _group(
        "administration",
        """reboot kexec_load kexec_file_load init_module finit_module delete_module create_module query_module
        get_kernel_syms swapon swapoff acct quotactl quotactl_fd syslog vhangup fanotify_init fanotify_mark
        lookup_dcookie nfsservctl iopl ioperm lsm_get_self_attr lsm_set_self_attr lsm_list_modules
        file_getattr file_setattr""",
        "the business of whoever runs the host",
    ),
    _group(
        "segments",
        "modify_ldt set_thread_area get_thread_area",
        "16-bit and custom segments: old emulators need them, exploits of the kernel's return path like them",
    ),
    _group(
        "obsolete",
        """uselib ustat sysfs _sysctl getpmsg putpmsg afs_syscall tuxcall security vserver epoll_ctl_old
        epoll_wait_old""",
        "no program of today calls them",
    ),
)

CHECKED: Final = (
    _group(
        "clone3",
        "clone3",
        "its flags lie in memory, where no filter sees them: ENOSYS makes libc fall back to clone",
    ),
    _group("clone", "clone", "refused with any flag that makes a namespace"),
    _group(
        "socket",
        "socket socketpair",
        "local, TCP and UDP sockets, and route netlink (libc lists interfaces by it); no raw or packet sockets, no "
        "vsock (it knows no namespaces), no family whose first use loads a kernel module",
    ),
    _group(
        "ioctl",
        "ioctl",
        "refused for putting input into a terminal (TIOCSTI, TIOCLINUX), taking over the console (TIOCCONS) and "
        "choosing a line discipline (TIOCSETD: loads modules)",
    ),
    _group(
        "personality",
        "personality",
        "only reading it and the plain Linux one: others weaken address randomisation",
    ),
    _group("mknod", "mknod mknodat", "refused for device nodes; pipes and sockets are fine"),
    _group(
        "limits",
        "setrlimit prlimit64",
        "setting RLIMIT_CORE is answered with success and not done: a program that lowers it from 1 to 0 and crashes "
        "makes the kernel start the host's core dump handler, as the host's root (core(5))",
    ),
    _group(
        "sync",
        "sync",
        "answered with success and not done: it flushes the host's disks, a sandbox outlives no crash",
    ),
)

WALL: Final = (
    _group(
        "setting up",
        "unshare mount umount2 pivot_root chroot sethostname setdomainname",
        "gVisor puts its two processes into namespaces and roots of their own before it starts a tenant's program",
    ),
    _group("clone", "clone", "with any flag: the same"),
    _group(
        "tracing",
        "ptrace process_vm_readv process_vm_writev",
        "by its platform `ptrace` it stops a tenant's system calls, and reads what they point to",
    ),
)
"""What is allowed beyond that where gVisor runs (`gvisor`): to itself, for a tenant's program makes no system calls."""

# ── assembler ────────────────────────────────────────────────────────────────────────────────────────────────────
# Each function returns a piece of program in which every path ends in a return, so pieces nest without labels.

Code = tuple[tuple[int, int, int, int], ...]

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = (
    0x20,
    0x05,
    0x15,
    0x35,
    0x45,
    0x54,
    0x06,
)
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, operand
_MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
_NR, _ARCH, _ARGS = 0, 4, 16

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000


def _ret(action: int) -> Code:
    return ((_RETURN, 0, 0, action),)


def _fail(error: int) -> Code:
    return _ret(_ERRNO | error)


def _arg(index: int) -> Code:
    """Load the low 32 bits of an argument (all architectures here are little-endian)."""
    return ((_LOAD, 0, 0, _ARGS + 8 * index),)


def _high(index: int) -> Code:
    """Load the high 32 bits of an argument."""
    return ((_LOAD, 0, 0, _ARGS + 8 * index + 4),)


def _mask(bits: int) -> Code:
    return ((_AND, 0, 0, bits),)


def _when(test: int, operand: int, then: Code, otherwise: Code) -> Code:
    """Compare what is loaded. A branch that is too long for the 8-bit offset is reached over an unconditional jump."""
    if len(then) <= 0xFF:
        return ((test, 0, len(then), operand), *then, *otherwise)
    return ((test, 1, 0, operand), (_JUMP, 0, 0, len(then)), *then, *otherwise)


def _one_of(values: Iterable[int], then: Code, otherwise: Code) -> Code:
    code = otherwise
    for value in sorted(values, reverse=True):
        code = _when(_EQUAL, value, then, code)
    return code


def _search(segments: list[tuple[int, Code]]) -> Code:
    """Binary search: each segment runs from its number to the next one's."""
    if len(segments) == 1:
        return segments[0][1]
    middle = len(segments) // 2
    return _when(
        _AT_LEAST,
        segments[middle][0],
        _search(segments[middle:]),
        _search(segments[:middle]),
    )


# ── checks of arguments ──────────────────────────────────────────────────────────────────────────────────────────

_YES = _ret(_ALLOW)
_NO = _fail(errno.EPERM)
_UNKNOWN = _fail(errno.ENOSYS)

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. (CLONE_NEWTIME shares its bit with the exit signal
# and works in clone3 and unshare only.)
_NEW_NAMESPACE = 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_TYPE_MASK, _SOCK_STREAM, _SOCK_DGRAM = (
    0xF,
    1,
    2,
)  # above the mask: SOCK_CLOEXEC, SOCK_NONBLOCK
_IPPROTO_DEFAULT, _IPPROTO_TCP, _IPPROTO_UDP = 0, 6, 17
_NETLINK_ROUTE = 0
_RLIMIT_CORE = 4
_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423
# btrfs: a subvolume in a volume would be no part of it, neither for its limit nor for a snapshot. What is left is what
# all file systems have under its letter: FICLONE, FICLONERANGE, FIDEDUPERANGE.
_IOCTL_LETTER, _BTRFS = 0xFF00, 0x9400
_CLONES = (0x4004_9409, 0x4020_940D, 0xC018_9436)
_S_IFCHR = 0o020000  # also set in S_IFBLK, in no type that mknod may make without privileges

_INTERNET = (
    *_arg(1),
    *_mask(_SOCK_TYPE_MASK),
    *_one_of(
        (_SOCK_STREAM, _SOCK_DGRAM),
        # Other protocols of these types (SCTP, UDP-Lite, L2TP, MPTCP) load modules. Go asks for MPTCP and takes TCP
        # when it gets this answer.
        (
            *_arg(2),
            *_one_of(
                (_IPPROTO_DEFAULT, _IPPROTO_TCP, _IPPROTO_UDP),
                _YES,
                _fail(errno.EPROTONOSUPPORT),
            ),
        ),
        _NO,
    ),
)
_NETLINK = (*_arg(2), *_one_of((_NETLINK_ROUTE,), _YES, _fail(errno.EPROTONOSUPPORT)))
_NO_FAMILY = _fail(errno.EAFNOSUPPORT)

_CHECKS: Final[dict[str, Code]] = {
    "clone3": _UNKNOWN,
    "clone": (*_arg(0), *_when(_ANY_BIT, _NEW_NAMESPACE, _NO, _YES)),
    "socket": (
        *_arg(0),
        *_one_of(
            (_AF_UNIX,),
            _YES,
            _one_of(
                (_AF_INET, _AF_INET6),
                _INTERNET,
                _one_of((_AF_NETLINK,), _NETLINK, _NO_FAMILY),
            ),
        ),
    ),
    "socketpair": (*_arg(0), *_one_of((_AF_UNIX,), _YES, _NO_FAMILY)),
    "ioctl": (
        *_arg(1),
        *_one_of(
            (_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD),
            _NO,
            _one_of(_CLONES, _YES, (*_mask(_IOCTL_LETTER), *_when(_EQUAL, _BTRFS, _NO, _YES))),
        ),
    ),
    "personality": (*_arg(0), *_one_of((0, 0xFFFFFFFF), _YES, _NO)),
    "mknod": (*_arg(1), *_when(_ANY_BIT, _S_IFCHR, _NO, _YES)),
    "mknodat": (*_arg(2), *_when(_ANY_BIT, _S_IFCHR, _NO, _YES)),
    "setrlimit": (*_arg(0), *_one_of((_RLIMIT_CORE,), _fail(0), _YES)),
    # prlimit64(pid, resource, new, old): without `new`, a pointer, it only reads.
    "prlimit64": (
        *_arg(1),
        *_one_of(
            (_RLIMIT_CORE,),
            (*_arg(2), *_one_of((0,), (*_high(2), *_one_of((0,), _YES, _fail(0))), _fail(0))),
            _YES,
        ),
    ),
    "sync": _fail(0),
}

# ── the filter ───────────────────────────────────────────────────────────────────────────────────────────────────

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

ARCHITECTURES: Final = tuple(_AUDIT_ARCH)
"""What `build` knows, by the names of `platform.machine()`."""


def _policy(*, of_wall: bool) -> dict[str, Code]:
    policy = dict(_CHECKS)
    for groups, code in ((ALLOWED, _YES), (REFUSED, _NO), (WALL if of_wall else (), _YES)):
        for group in groups:
            policy.update(dict.fromkeys(group.calls, code))
    return policy


def _segments(arch: str, *, of_wall: bool) -> list[tuple[int, Code]]:
    """What to do from which number on. Numbers that mean nothing, or nothing yet, are answered with ENOSYS.

    x32 needs no rule of its own: its calls have bit 30 set, and so are above every known number.
    """
    policy = _policy(of_wall=of_wall)
    names = {number: name for name, number in NUMBERS[arch].items()}
    segments: list[tuple[int, Code]] = []
    for number in range(max(names) + 2):
        code = policy[names[number]] if number in names else _UNKNOWN
        if not segments or segments[-1][1] != code:
            segments.append((number, code))
    return segments


def build(arch: str | None = None, *, of_wall: bool = False) -> bytes:
    """Assemble the filter for *arch*, by default this machine's: an array of `struct sock_filter`, 8 bytes each.

    Args:
        of_wall: the one under which gVisor runs, which may do more (`WALL`), and not a tenant's program.

    Raises:
        ValueError: there is no filter for the architecture; it is not one of `ARCHITECTURES`.
    """
    if arch is None:
        arch = platform.machine()
    if arch not in ARCHITECTURES:
        raise ValueError(
            f"no system call filter for the architecture {arch!r}; there is one for {', '.join(ARCHITECTURES)}"
        )
    calls = _search(_segments(arch, of_wall=of_wall))
    code = (
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[arch]),
        *_ret(_KILL_PROCESS),
        (_LOAD, 0, 0, _NR),
        *calls,
    )
    if len(code) > _MOST_INSTRUCTIONS:
        raise ValueError(f"the filter has {len(code)} instructions; the kernel takes {_MOST_INSTRUCTIONS}")
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)
