"""A cell: a finished, empty sandbox whose PID 1 waits for its errand.

Making one takes a few milliseconds, so some are made ahead of demand; each is used once.
"""

import contextlib
import errno
import gc
import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import NoReturn

from . import init, kernel
from .cgroups import Cgroups, Group
from .image import UID
from .mounts import Stage
from .request import Refused

__all__ = ["Cell", "Host", "IdRanges"]

_NAMESPACES = (
    kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
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


@dataclass(eq=False, kw_only=True)
class Cell:
    """PID 1 of a sandbox with what belongs to it: a control socket, control groups, ids, and two pipes for output."""

    host: Host
    image: str
    group: Group
    ids: int | None = None
    pid: int = 0
    pidfd: int = -1
    control: socket.socket
    outputs: tuple[int, int] = (-1, -1)
    """Reading ends of standard output and standard error."""

    @classmethod
    def make(cls, host: Host, image: str, name: str) -> "Cell":
        """Start a cell; returns as soon as its PID 1 exists, which then builds the sandbox around itself.

        Raises:
            Refused: it cannot be had; nothing is left behind.
        """
        if image not in host.stage.images:
            raise Refused("invalid", f"unknown image {image!r}; known: {', '.join(host.stage.images)}")
        theirs: list[int] = []  # closed here in any case: the child has its copies
        try:
            group = host.cgroups.create(name)
        except OSError as error:
            raise _refusal(error) from error
        control, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        theirs.append(inner.detach())
        cell = cls(host=host, image=image, group=group, control=control)
        try:
            cell.ids = host.ids.take() if host.ids is not None else None
            cell._make_pipes(theirs)
            cpu_stat = group.open_cpu_stat()
            if cpu_stat is not None:
                theirs.append(cpu_stat)
            cell.pid = kernel.clone(_NAMESPACES, signal.SIGCHLD)
            if cell.pid == 0:
                cell._be_the_child(theirs, cpu_stat)
            cell.pidfd = os.pidfd_open(cell.pid)
            cell._map_ids()
            control.send(b"G")
            control.setblocking(False)
        except OSError as error:
            cell.discard()
            raise _refusal(error) from error
        except BaseException:
            cell.discard()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
            group.close_joins()
        return cell

    def _make_pipes(self, theirs: list[int]) -> None:
        ends = []
        for _ in range(2):
            read, write = os.pipe2(os.O_CLOEXEC)
            ends.append(read)
            theirs.append(write)
            os.set_blocking(read, False)
            if self.ids is not None:  # so that the program may open /dev/stdout again, by its path
                os.fchown(write, self.ids + UID, self.ids + UID)
        self.outputs = (ends[0], ends[1])

    def _be_the_child(self, fds: list[int], cpu_stat: int | None) -> NoReturn:
        """What `clone` returns into on the other side. Whatever happens, this process never comes back out."""
        try:
            gc.disable()  # a collection would touch, and so copy, every page
            control, stdout, stderr = fds[:3]
            init.live(
                init.Cell(
                    stage=self.host.stage,
                    image=self.host.stage.images[self.image],
                    seccomp=self.host.seccomp,
                    own_uids=self.ids is not None,
                    processes_in_group=self.host.cgroups.tree("pids") is not None,
                    title=self.host.title,
                    control=control,
                    joins=tuple(self.group.joins),
                    cpu_stat=cpu_stat,
                    stdout=stdout,
                    stderr=stderr,
                )
            )
        finally:
            os._exit(1)

    def _map_ids(self) -> None:
        line = f"{UID} 0 1" if self.ids is None else f"0 {self.ids} {_UID_RANGE}"
        for kind in ("uid_map", "gid_map"):
            fd = os.open(f"/proc/{self.pid}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)

    def until_ready(self, within_s: float) -> None:
        """Wait until the sandbox is built. Only for the trial at the start: nothing else may wait.

        Raises:
            Refused: it could not be built, or not in time; the cell is gone.
        """
        if select.select([self.control], [], [], within_s)[0]:
            with contextlib.suppress(OSError):
                news = self.control.recv(8192)
                if news[:1] == init.READY:
                    return
                self.discard()
                raise Refused("fault", news[1:].decode(errors="replace") or "its first process ended at once")
        self.discard()
        raise Refused("fault", f"a trial sandbox was not ready within {within_s:g} s")

    def kill(self) -> None:
        """End the sandbox with everything in it: the kernel ends a pid namespace with its PID 1."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def discard(self) -> None:
        """End and free a cell that was never used."""
        if self.pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # our child, not yet reaped: the id cannot be another's
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        for fd in self.outputs:
            if fd >= 0:
                os.close(fd)
        self.outputs = (-1, -1)
        group = self.free()
        if group is not None:
            self.host.cgroups.held.append(group)

    def free(self) -> Group | None:
        """Free all but the pipes, once PID 1 is reaped; returns the group if the kernel is not done with it yet."""
        self.control.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self.ids is not None and self.host.ids is not None:
            self.host.ids.give_back(self.ids)
            self.ids = None
        return None if self.group.close() else self.group


def _refusal(error: OSError) -> Refused:
    return Refused("unavailable" if error.errno in _BUSY else "fault", f"cannot make a sandbox: {error}")
