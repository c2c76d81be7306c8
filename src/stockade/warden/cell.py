"""A cell: a finished, empty sandbox whose PID 1 waits for its errand.

Making one takes a few milliseconds, so some are made ahead of demand (`mason`); each is used once.
"""

import contextlib
import errno
import os
import select
import signal
import socket
from dataclasses import dataclass

from . import init, kernel
from .cgroups import Cgroups, Group
from .image import UID
from .mounts import Stage
from .request import Refused

__all__ = ["Cell", "Host", "IdRanges", "build"]

_NAMESPACES = (
    kernel.CLONE_PARENT | kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
)  # fmt: skip
_UID_FIRST = 0x7000_0000  # above the ranges of login managers and of systemd-nspawn
_UID_RANGE = 65536
_UID_SLOTS = (0xFFFE_0000 - _UID_FIRST) // _UID_RANGE
_BUSY = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EUSERS)


class IdRanges:
    """Hands out ranges of host user ids, the one that has rested longest first.

    Begins at a random one, so that two wardens on a host are not likely to meet.
    """

    def __init__(self) -> None:
        self._next = int.from_bytes(os.urandom(8), "little") % _UID_SLOTS
        self._in_use: set[int] = set()

    def take(self) -> int:
        if len(self._in_use) >= _UID_SLOTS:
            raise Refused("unavailable", "all ranges of user ids are taken")
        while self._next in self._in_use:
            self._next = (self._next + 1) % _UID_SLOTS
        slot, self._next = self._next, (self._next + 1) % _UID_SLOTS
        self._in_use.add(slot)
        return _UID_FIRST + slot * _UID_RANGE

    def give_back(self, first: int) -> None:
        self._in_use.discard((first - _UID_FIRST) // _UID_RANGE)


@dataclass(frozen=True, kw_only=True)
class Host:
    """What sandboxes are made from."""

    stage: Stage
    cgroups: Cgroups
    seccomp: bytes
    ids: IdRanges | None
    """`None` for an ordinary user: there is one user id and it is mapped to the tenant's."""
    null: int
    """Descriptor of /dev/null, open for writing."""
    title: tuple[int, int, int, int]
    """Where our argument list lies; see `kernel.find_process_title`."""
    processors: int


def build(host: Host, image: str, name: str, ids: int | None) -> tuple[int, tuple[int, int, int, int]]:
    """Start a cell; returns as soon as its PID 1 exists, which then builds the sandbox around itself.

    The new process is a sibling of the caller's. Returns its pid and four descriptors, the caller's to close: control
    socket, reading ends of standard output and standard error, pidfd.

    Raises:
        Refused: it cannot be had. Control groups of that name may be left; its `pid`, where there is one, is dead and
            for the parent to reap.
    """
    pid = 0
    theirs: list[int] = []  # closed here in any case: the child has its copies
    ours: list[int] = []
    try:
        group = host.cgroups.create(name)
        theirs += group.joins
        control, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.append(control.detach())
        theirs.append(inner.detach())
        stdout, stderr = (_output_pipe(ids, ours, theirs) for _ in range(2))
        cpu_stat = group.open_cpu_stat()
        if cpu_stat is not None:
            theirs.append(cpu_stat)
        birth = init.Cell(
            stage=host.stage,
            image=host.stage.images[image],
            seccomp=host.seccomp,
            own_uids=ids is not None,
            processes_in_group=host.cgroups.tree("pids") is not None,
            title=host.title,
            control=theirs[len(group.joins)],
            joins=tuple(group.joins),
            cpu_stat=cpu_stat,
            stdout=stdout,
            stderr=stderr,
        )
        pid = kernel.clone(_NAMESPACES, signal.SIGCHLD)
        if pid == 0:
            try:
                init.live(birth)
            finally:
                os._exit(1)  # whatever happens, this process never comes back out
        ours.append(os.pidfd_open(pid))
        _map_ids(pid, ids)
        os.write(ours[0], init.GO)
    except BaseException as error:
        for fd in ours:
            os.close(fd)
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # not yet reaped: the id cannot be another's
        if not isinstance(error, OSError):
            raise
        kind = "unavailable" if error.errno in _BUSY else "fault"
        raise Refused(kind, f"cannot make a sandbox: {error}", pid=max(0, pid)) from error
    finally:
        for fd in theirs:
            os.close(fd)
    return pid, (ours[0], ours[1], ours[2], ours[3])


def _output_pipe(ids: int | None, ours: list[int], theirs: list[int]) -> int:
    read, write = os.pipe2(os.O_CLOEXEC)
    ours.append(read)
    theirs.append(write)
    os.set_blocking(read, False)
    if ids is not None:  # so that the program may open /dev/stdout again, by its path
        os.fchown(write, ids + UID, ids + UID)
    return write


def _map_ids(pid: int, ids: int | None) -> None:
    line = f"{UID} 0 1" if ids is None else f"0 {ids} {_UID_RANGE}"
    # All three: a map that is left empty is one that the tenant may write.
    for kind in ("uid_map", "gid_map", "projid_map"):
        fd = os.open(f"/proc/{pid}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


@dataclass(eq=False, kw_only=True)
class Cell:
    """The warden's side of a cell: its PID 1 and what belongs to it."""

    host: Host
    image: str
    group: Group
    ids: int | None
    pid: int
    pidfd: int
    control: socket.socket
    outputs: tuple[int, int]
    """Reading ends of standard output and standard error, until a `Sandbox` takes them over."""

    def __post_init__(self) -> None:
        self.control.setblocking(False)

    def until_ready(self, within_s: float) -> None:
        """Wait until the sandbox is built. Only for the trial at the start: nothing else may wait.

        Raises:
            Refused: it could not be built, or not in time; the cell is gone.
        """
        why = f"a trial sandbox was not ready within {within_s:g} s"
        if select.select([self.control], [], [], within_s)[0]:
            with contextlib.suppress(OSError):
                news = self.control.recv(8192)
                if news[:1] == init.READY:
                    return
                why = news[1:].decode(errors="replace") or "its first process ended at once"
        self.discard()
        raise Refused("fault", f"a trial sandbox could not be built: {why}")

    def kill(self) -> None:
        """End the sandbox with everything in it: the kernel ends a pid namespace with its PID 1."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def discard(self) -> None:
        """End and free a cell that does not run anything, waiting for its end."""
        self.kill()
        os.waitpid(self.pid, 0)
        for fd in self.outputs:
            if fd >= 0:
                os.close(fd)
        self.outputs = (-1, -1)
        self.free()

    def free(self) -> None:
        """Free all but the pipes, once PID 1 is reaped."""
        self.control.close()
        os.close(self.pidfd)
        self.pidfd = -1
        if self.ids is not None and self.host.ids is not None:
            self.host.ids.give_back(self.ids)
            self.ids = None
        if not self.group.close():
            self.host.cgroups.held.append(self.group)
