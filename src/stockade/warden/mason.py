"""The process that makes cells, so that the warden's loop never waits for one to be made.

A child of the warden's, forked before the first client comes: its memory, and with it that of every PID 1, never
held a tenant's data. The processes it makes are the warden's children (CLONE_PARENT), which reaps them and with which
they die.
"""

import contextlib
import gc
import os
import signal
import socket
from collections.abc import Iterator
from typing import NoReturn

from . import init, kernel, protocol
from .cell import Cell, Host, build
from .request import Refused

__all__ = ["Mason"]


class Mason:
    """The warden's side: orders go out, cells come back in the same order."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._count = 0
        self.under_way = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ours.close()
                _work(host, theirs)
            finally:
                os._exit(1)
        theirs.close()
        self.channel = ours

    def order(self, image: str) -> None:
        """Have a cell made.

        Raises:
            Refused: there is no such image, or no user ids are left.
            BlockingIOError: so many are on order that no more fit into the socket.
        """
        if image not in self._host.stage.images:
            raise Refused("invalid", f"unknown image {image!r}; known: {', '.join(self._host.stage.images)}")
        ids = self._host.ids.take() if self._host.ids is not None else None
        self._count += 1
        try:
            protocol.send(self.channel, {"image": image, "name": f"cell-{self._count}", "ids": ids})
        except OSError:
            if ids is not None and self._host.ids is not None:
                self._host.ids.give_back(ids)
            raise
        self.under_way += 1

    def delivered(self) -> Iterator[Cell | Refused]:
        """What has been made by now, or why it could not be.

        Raises:
            EOFError: the mason is dead.
        """
        while True:
            try:
                received = protocol.receive(self.channel)
            except BlockingIOError:
                return
            if received is None:
                raise EOFError("the mason is dead")
            self.under_way -= 1
            yield self._unpack(*received)

    def _unpack(self, message: dict[str, object], fds: list[int]) -> Cell | Refused:
        name, ids, pid = str(message["name"]), message["ids"], message["pid"]
        assert ids is None or isinstance(ids, int)
        assert isinstance(pid, int)
        group = self._host.cgroups.find(name)
        if fds:
            control, out, err, pidfd = fds
            return Cell(
                host=self._host,
                image=str(message["image"]),
                group=group,
                ids=ids,
                pid=pid,
                pidfd=pidfd,
                control=socket.socket(fileno=control),
                outputs=(out, err),
            )
        if pid:
            os.waitpid(pid, 0)  # killed already
        if ids is not None and self._host.ids is not None:
            self._host.ids.give_back(ids)
        if not group.close():
            self._host.cgroups.held.append(group)
        return Refused(str(message["kind"]), str(message["error"]))

    def close(self) -> None:
        """End the mason."""
        self.channel.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _work(host: Host, channel: socket.socket) -> NoReturn:
    kernel.set_parent_death_signal(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the warden ends us when it has ended
    kernel.seal_process_title("stockade-mason", host.title)
    init.set_fixed_rlimits()
    gc.disable()
    while True:
        received = protocol.receive(channel)
        if received is None:
            os._exit(0)
        order, _ = received
        try:
            pid, fds = build(host, order["image"], order["name"], order["ids"])
        except Refused as refusal:
            failed = {"pid": refusal.pid, "kind": refusal.kind, "error": str(refusal)}
            protocol.send(channel, {**order, **failed})
            continue
        protocol.send(channel, {**order, "pid": pid}, fds)
        for fd in fds:
            os.close(fd)
