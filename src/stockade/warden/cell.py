"""A cell: a finished, empty sandbox whose PID 1 waits for its errand.

Making one takes a few milliseconds, so some are made ahead of demand (`pools`); each is used once. Who makes them is
a `maker`; what a cell is made from, its kit, comes from the warden, and with it all that needs the warden's rights.
"""

import contextlib
import os
import select
import signal
import socket
from dataclasses import dataclass, field

from . import init
from .cgroups import Cgroups, Group
from .fields import Refused
from .image import IDS, UID
from .mounts import Stage

__all__ = ["Cell", "Host", "IdRanges"]

_UID_FIRST = 0x7000_0000  # above the ranges of login managers and of systemd-nspawn
_UID_END = 0xFFFE_0000


class IdRanges:
    """Hands out ranges of user ids, the one that has rested longest first."""

    def __init__(self, first: int, slots: int, size: int = IDS) -> None:
        self._first, self._slots, self.size = first, slots, size
        self._next = int.from_bytes(os.urandom(8), "little") % slots
        self._in_use: set[int] = set()

    @classmethod
    def of_host(cls, *, share: int, of: int, size: int = IDS) -> "IdRanges":
        """Part number *share* of *of* of the host's high ids, in ranges of *size*.

        It begins at a random one, so that two wardens on a host are not likely to meet.
        """
        ids = (_UID_END - _UID_FIRST) // of  # the same for every size: else the parts would overlap
        return cls(_UID_FIRST + share * ids, ids // size, size)

    def take(self) -> int:
        """The first id of a range.

        Raises:
            Refused: all are taken.
        """
        if len(self._in_use) >= self._slots:
            raise Refused("unavailable", "all ranges of user ids are taken")
        while self._next in self._in_use:
            self._next = (self._next + 1) % self._slots
        slot, self._next = self._next, (self._next + 1) % self._slots
        self._in_use.add(slot)
        return self._first + slot * self.size

    def give_back(self, first: int) -> None:
        self._in_use.discard((first - self._first) // self.size)


@dataclass(frozen=True, kw_only=True)
class Host:
    """What sandboxes are made from."""

    stage: Stage
    cgroups: Cgroups
    seccomp: bytes
    seccomp_of_wall: bytes
    """The filter under which gVisor runs (`gvisor`), and no tenant's program."""
    own_ids: bool
    """Not so for an ordinary user: there is one user id, and it is mapped to the tenant's."""
    null: int
    """Descriptor of /dev/null, open for writing."""
    title: tuple[int, int, int, int]
    """Where our argument list lies; see `kernel.find_process_title`."""
    processors: int
    template_files: int
    """Bundle of the files with which a template begins (`template`)."""
    children: set[int] = field(default_factory=set)
    """Processes that some cell answers for."""

    def reap_strangers(self) -> None:
        """Reap children that nobody answers for: a template that was ended had just made them.

        They end by themselves, for nobody holds the other end of their control socket.
        """
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in self.children:
                return  # the latter's end is known by its pidfd; what is behind it comes the next time
            os.waitpid(found.si_pid, 0)


@dataclass(eq=False, kw_only=True)
class Cell:
    """The warden's side of a cell: its PID 1 and what belongs to it."""

    host: Host
    group: Group
    ids: int | None
    """First of its user ids; `id_ranges` has it from and gets it back."""
    id_ranges: IdRanges | None
    control: socket.socket
    outputs: tuple[int, int]
    """Reading ends of standard output and standard error, until a `Sandbox` takes them over."""
    kit: tuple[int, ...] = ()
    """Its own ends of those three, until they are sent to the maker."""
    pid: int = 0
    """0 until it has been made."""
    pidfd: int = -1
    purpose: object = None
    """For what it was ordered; whoever did knows."""

    @classmethod
    def kit_for(cls, host: Host, id_ranges: IdRanges | None, *, id_base: int = 0) -> "Cell":
        """Everything that a cell needs but its processes.

        Args:
            id_base: what the ids of *id_ranges* are counted from.

        Raises:
            Refused: no user ids are left.
            OSError: no descriptors, no control groups, …; nothing is left.
        """
        ids = id_ranges.take() if id_ranges is not None else None
        group = None
        opened: list[int] = []
        try:
            group = host.cgroups.take()
            for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC):
                opened.append(end.detach())
            for _ in range(2):
                opened.extend(os.pipe2(os.O_CLOEXEC))
                if ids is not None:  # so that the program may open /dev/stdout again, by its path
                    os.fchown(opened[-1], id_base + ids + UID, id_base + ids + UID)
            for fd in (opened[0], opened[2], opened[4]):
                os.set_blocking(fd, False)
        except BaseException:
            for fd in opened:
                os.close(fd)
            if group is not None:
                host.cgroups.give_back(group)
            if ids is not None and id_ranges is not None:
                id_ranges.give_back(ids)
            raise
        return cls(
            host=host,
            group=group,
            ids=ids,
            id_ranges=id_ranges,
            control=socket.socket(fileno=opened[0]),
            outputs=(opened[2], opened[4]),
            kit=(opened[1], opened[3], opened[5]),
        )

    def sent(self) -> None:
        """The maker has the cell's own ends: close ours of them, so that we hear when the cell closes its."""
        for fd in self.kit:
            os.close(fd)
        self.kit = ()

    def made(self, pid: int) -> None:
        """Its PID 1 exists and its ids are mapped: let it go on.

        Raises:
            OSError: it is dead already, or no child of ours.
        """
        pidfd = os.pidfd_open(pid)
        try:
            if pid in self.host.children:
                raise ChildProcessError("another sandbox's process")
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # ChildProcessError: not ours
        except OSError:
            os.close(pidfd)
            raise
        self.pid, self.pidfd = pid, pidfd
        self.host.children.add(pid)
        with contextlib.suppress(OSError):  # dead: its end comes by the pidfd
            self.control.send(init.GO)

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

    def reap(self, *, wait: bool = True) -> bool:
        """Take the end of its PID 1 from the kernel; whether it has ended."""
        if os.waitpid(self.pid, 0 if wait else os.WNOHANG)[0] == 0:
            return False
        self.host.children.discard(self.pid)
        return True

    def discard(self) -> None:
        """End and free a cell that does not run anything, waiting for its end."""
        self.kill()
        self.reap()
        self.close_outputs()
        self.free()

    def free_unmade(self) -> None:
        """Free everything of a cell that never had a process."""
        self.close_outputs()
        self.free()

    def close_outputs(self) -> None:
        """Close what nobody has taken over of its output. Idempotent."""
        for fd in self.outputs:
            if fd >= 0:
                os.close(fd)
        self.outputs = (-1, -1)

    def free(self) -> None:
        """Free all but the pipes, once PID 1 is reaped or when there never was one."""
        self.sent()
        self.control.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self.ids is not None and self.id_ranges is not None:
            self.id_ranges.give_back(self.ids)
            self.ids = None
        self.host.cgroups.give_back(self.group)
