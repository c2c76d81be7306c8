"""A sandbox from the inside: PID 1, and the tenant's process until it is the tenant's.

The child that `clone` made comes here with all of its new namespaces and no way back. It builds the sandbox around
itself, gives up every privilege, spawns the tenant's process, reaps whatever dies, reports the status that the kernel
gave for the tenant's process, and exits; with PID 1 the kernel ends everything else in the namespace.

PID 1 never reads what the tenant wrote. It speaks to the warden over a socket that the tenant's process does
not inherit, so a result cannot be forged.
"""

import contextlib
import fcntl
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from . import bundle, kernel
from .image import UID, Image
from .mounts import Stage, enter_sandbox_root, fit_sandbox_root

__all__ = [
    "CAPABILITIES",
    "EXITED",
    "EXPENDABLE",
    "FAILED",
    "GO",
    "HOSTNAME",
    "READY",
    "ROOT_CAPABILITIES",
    "STARTED",
    "STARTED_HEAD",
    "STATUS",
    "UNCOLLECTED",
    "Birth",
    "Errand",
    "await_ids",
    "become_root",
    "close_all_but",
    "complain",
    "die_first",
    "end",
    "end_all_others",
    "errand_of",
    "find_program",
    "give_up_privileges",
    "join_groups",
    "lower_limit",
    "mind",
    "run",
    "set_fixed_rlimits",
    "set_rlimits",
    "settle",
    "started",
]

# Messages to the warden: one letter, then a fixed structure.
READY = b"R"
STARTED = b"S"
STARTED_HEAD = struct.Struct("<d")  # monotonic seconds; the text of our CPU counter file follows
GO = b"G"  # to PID 1: its ids are mapped
EXITED = b"X"
STATUS = struct.Struct("<di???")  # monotonic seconds, wait status, disk full, collected, nothing else is left
UNCOLLECTED = b"C"
FAILED = b"F"
HOSTNAME = "sandbox"
EXPENDABLE = b"500"
"""What a sandbox's processes are to the kernel when memory runs out. See proc_pid_oom_score_adj(5)."""
CAPABILITIES = {
    "CHOWN": kernel.CAP_CHOWN,
    "DAC_OVERRIDE": kernel.CAP_DAC_OVERRIDE,
    "FOWNER": kernel.CAP_FOWNER,
    "FSETID": kernel.CAP_FSETID,
    "KILL": kernel.CAP_KILL,
    "NET_BIND_SERVICE": kernel.CAP_NET_BIND_SERVICE,
    "SETGID": kernel.CAP_SETGID,
    "SETUID": kernel.CAP_SETUID,
}
ROOT_CAPABILITIES = frozenset(CAPABILITIES.values())
"""What root of a sandbox that lives may do with the sandbox's own files, ids and processes. Runs have nothing of it."""
_LONGEST_COMPLAINT = 3800  # bytes
_PENDING_SIGNALS = 4096  # timers among them; the kernel has one budget for all forks of a template

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41


@dataclass(frozen=True, kw_only=True)
class Birth:
    """What a PID 1 is born with."""

    stage: Stage
    image: Image
    seccomp: bytes
    own_ids: bool
    """Whether ids other than the tenant's are mapped; not so when we are an ordinary user."""
    processes_in_group: bool
    """Whether a control group counts processes."""
    title: tuple[int, int, int, int]
    """Of `kernel.find_process_title`."""
    control: int
    stdout: int
    stderr: int
    joins: tuple[int, ...]
    cpu_stat: int | None

    @classmethod
    def of_kit(cls, joins: int, descriptors: Sequence[int], **rest: Any) -> "Birth":
        """From the descriptors of an order (`maker.Maker.send_kit`), of which *joins* are for joining groups."""
        control, stdout, stderr, *others = descriptors
        cpu_stat = others[joins] if len(others) > joins else None
        return cls(
            control=control, stdout=stdout, stderr=stderr, joins=tuple(others[:joins]), cpu_stat=cpu_stat, **rest
        )


@dataclass(frozen=True, kw_only=True)
class Errand:
    """What a sandbox is to do: the warden's message, taken apart. The warden has checked it."""

    argv: list[str]
    env: Mapping[str, str]
    cwd: str
    disk_bytes: int
    disk_inodes: int
    processes: int
    open_files: int
    stack_bytes: int
    unpack: list[int]
    """Bundles to unpack into `cwd`, in this order."""
    stdin: int
    collect: int | None
    """Memory file for the working directory's bundle, or `None`."""


def run(birth: Birth, message: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Be PID 1 of a new sandbox until the process that it was told to run has ended. Never returns."""
    try:
        errand = errand_of(message, descriptors)
        fit_sandbox_root(disk_bytes=errand.disk_bytes, disk_inodes=errand.disk_inodes, cwd=errand.cwd)
        give_up_privileges(birth)
        os.write(birth.control, started(birth))
        mind(birth, errand, _start_tenant(birth, errand))
    except BaseException as error:  # whatever it is, the warden must hear of it
        complain(birth, f"{type(error).__name__}: {error}")
    os._exit(1)


def errand_of(message: dict[str, Any], descriptors: list[int]) -> Errand:
    """Put the warden's message and its descriptors together."""
    collect = descriptors.pop() if message.pop("collect") else None
    return Errand(**message, unpack=descriptors[:-1], stdin=descriptors[-1], collect=collect)


def complain(birth: Birth, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(birth.control, FAILED + text.encode(errors="replace")[:_LONGEST_COMPLAINT])


def settle(
    birth: Birth,
    *,
    of_template: bool = False,
    capabilities: frozenset[int] = ROOT_CAPABILITIES,
    enter: Callable[[Stage, Image], int] = enter_sandbox_root,
) -> int:
    """Build the sandbox around ourselves. The order matters; each step says why it stands where it does.

    Args:
        of_template: a template made us, and has done before what is alike for all that it makes.
        capabilities: which of those over our own user namespace anything in the sandbox may ever have.
        enter: builds the root and moves us into it.

    Returns a descriptor of the directory in which the kernel keeps what is changed of the image.
    """
    keep = {birth.control, birth.stdout, birth.stderr, *birth.joins}
    close_all_but(keep | ({birth.cpu_stat} if birth.cpu_stat is not None else set()))
    join_groups(birth)  # first, so that everything from here on is charged to the sandbox
    await_ids(birth)
    kernel.unshare(kernel.CLONE_NEWCGROUP)  # after joining: our groups are the roots of what is seen
    if not of_template:
        die_first()  # while our /proc entries are still ours to write
    become_root(birth)
    kernel.drop_bounding_set(capabilities)
    if not of_template:
        socket.sethostname(HOSTNAME)
    _raise_loopback()
    os.setsid()
    return enter(birth.stage, birth.image)


def join_groups(birth: Birth) -> None:
    for fd in birth.joins:
        os.write(fd, b"0")
        os.close(fd)


def await_ids(birth: Birth) -> None:
    """Wait until the maker has written our id maps.

    Raises:
        OSError: the warden went away.
    """
    if os.read(birth.control, 1) != GO:
        raise OSError("the warden went away")


def become_root(birth: Birth) -> None:
    """Be root of our own user namespace, and end with the warden."""
    if birth.own_ids:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    kernel.set_parent_death_signal(signal.SIGKILL)  # after the ids: changing them clears it


def die_first() -> None:
    """When the *host* runs out of memory, a sandbox goes before the server, whatever our starter's setting is."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, EXPENDABLE)
    finally:
        os.close(fd)


def close_all_but(keep: set[int]) -> None:
    last = -1
    for fd in sorted(keep):
        kernel.close_range(last + 1, fd - 1)
        last = fd
    kernel.close_range(last + 1)


def _raise_loopback() -> None:
    """Set the interface `lo` of our network namespace up; it is the only one there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def give_up_privileges(birth: Birth) -> None:
    """From here on PID 1 can do no more than the tenant.

    It has the tenant's user id and yet is out of its reach: signals from inside do not touch a PID 1 that has no
    handlers (pid_namespaces(7)), and nobody may look into a process that is not dumpable.
    """
    kernel.drop_bounding_set()  # while we have the right to
    if birth.own_ids:
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
    kernel.drop_capabilities()
    kernel.set_no_new_privileges()
    kernel.set_dumpable(dumpable=False)
    kernel.set_parent_death_signal(signal.SIGKILL)  # after the ids: changing them clears it


def started(birth: Birth) -> bytes:
    """The message that the program begins now, with the CPU time that our own work has cost so far."""
    counter = b"" if birth.cpu_stat is None else os.pread(birth.cpu_stat, 2048, 0)
    return STARTED + STARTED_HEAD.pack(time.monotonic()) + counter


def _start_tenant(birth: Birth, errand: Errand) -> int:
    """Put the program's files in place and start it; returns its pid.

    The tenant's process is spawned, not forked: a fork would copy our memory only for execve to throw it away.
    What it inherits beside the three descriptors (limits, filter, ids, working directory) is what we have by now.
    """
    os.chdir(errand.cwd)
    streams: tuple[int, ...] = (errand.stdin, birth.stdout, birth.stderr)
    try:
        for source in errand.unpack:
            bundle.unpack(source, ".")
        close_all_but({*streams, birth.control} | ({errand.collect} if errand.collect is not None else set()))
        # The lowest numbers that are free: posix_spawn refuses those at or above the new RLIMIT_NOFILE.
        streams = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in streams)
        set_rlimits(birth, errand)
        kernel.set_seccomp(birth.seccomp)
        return os.posix_spawn(
            find_program(errand.argv[0], errand.env),
            errand.argv,
            errand.env,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them, and execve would hand that on
        )
    except (OSError, bundle.BundleError) as error:
        # Most likely the tenant's own doing (no such program, disk full): told and counted as a shell does.
        with contextlib.suppress(OSError):
            os.write(birth.stderr, f"cannot start {errand.argv[0]}: {error}\n".encode(errors="replace"))
        end(birth, errand, (127 if isinstance(error, FileNotFoundError) else 126) << 8)


def find_program(name: str, env: Mapping[str, str]) -> str:
    """The program's path, looked for in the tenant's own PATH."""
    if "/" in name:
        return name
    for directory in env.get("PATH", "/usr/bin:/bin").split(":"):
        if os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    raise FileNotFoundError("no such program in the sandbox")


def set_fixed_rlimits() -> None:
    """What is alike for all sandboxes; set once, in the process whose children they are."""
    # Not 0: where the host pipes core dumps to a program, only 1 keeps the kernel from starting it. See core(5).
    lower_limit(resource.RLIMIT_CORE, 1)
    lower_limit(resource.RLIMIT_MEMLOCK, 64 * 1024)
    lower_limit(resource.RLIMIT_MSGQUEUE, 800 * 1024)
    # Not what our starter may have: a real-time process would keep the host from its processors.
    lower_limit(resource.RLIMIT_RTPRIO, 0)
    lower_limit(resource.RLIMIT_NICE, 0)


def lower_limit(kind: int, value: int) -> None:
    """Set a resource limit to *value*, or to what it is where that is less: raising it takes a privilege."""
    hard = resource.getrlimit(kind)[1]
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (most, most))


class Demand(Protocol):
    """The limits of one process, as errands and their like have them."""

    @property
    def disk_bytes(self) -> int: ...
    @property
    def open_files(self) -> int: ...
    @property
    def stack_bytes(self) -> int: ...
    @property
    def processes(self) -> int: ...


def set_rlimits(birth: Birth, demand: Demand) -> None:
    """Second walls beside the control groups, and what those do not cover. See getrlimit(2)."""
    for kind, value in (
        (resource.RLIMIT_FSIZE, demand.disk_bytes),
        (resource.RLIMIT_NOFILE, demand.open_files),
        (resource.RLIMIT_STACK, demand.stack_bytes),
        (resource.RLIMIT_SIGPENDING, _PENDING_SIGNALS),
        # Counted in our user namespace alone since Linux 5.14. Where there is a control group it shall refuse first,
        # for it keeps count of that: hence the room, which forks under way at the same moment use up.
        (resource.RLIMIT_NPROC, demand.processes * 2 + 16 if birth.processes_in_group else demand.processes + 1),
    ):
        lower_limit(kind, value)


def mind(birth: Birth, errand: Errand | None, tenant: int) -> NoReturn:
    """Reap until the tenant's process has ended, then report it and take the rest of the sandbox with us."""
    keep = {birth.control}
    if errand is not None and errand.collect is not None:
        keep.add(errand.collect)
    close_all_but(keep)
    while True:
        pid, status = os.wait()
        if pid == tenant:
            break
    end(birth, errand, status)


def end(birth: Birth, errand: Errand | None, status: int) -> NoReturn:
    """Report the wait status of the tenant's process and end, with everything that is left in the sandbox."""
    ended = time.monotonic()
    alone = _is_alone()
    disk = os.statvfs("/dev/shm")  # the same file system as everything that can be written
    collected = False
    if errand is not None and errand.collect is not None and status == 0:
        end_all_others()
        try:
            bundle.collect(errand.cwd, errand.collect, errand.disk_bytes)
            collected = True
        except (bundle.BundleError, OSError) as error:
            os.write(birth.control, UNCOLLECTED + str(error).encode(errors="replace")[:_LONGEST_COMPLAINT])
    os.write(
        birth.control, EXITED + STATUS.pack(ended, status, disk.f_bfree == 0 or disk.f_ffree == 0, collected, alone)
    )
    os._exit(0)


def _is_alone() -> bool:
    """Whether nothing else is alive in the sandbox: orphans are our children, so having none says it."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def end_all_others() -> None:
    """End everything in the sandbox but us, and wait until it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
