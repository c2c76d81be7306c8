"""Makers of cells: the warden's side. Orders go out, cells come back in the same order.

There are two kinds: the mason, a child of the warden's, makes empty ones; a template, an interpreter that is warm
already, makes cells in which a fork of it waits for a program. Whatever they make are the warden's children
(CLONE_PARENT), which reaps them and with which they die.
"""

import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from . import protocol
from .cell import Cell, Host, IdRanges
from .fields import Refused, said

__all__ = ["Maker"]


class Maker:
    """A process that makes cells, at the other end of *channel*."""

    def __init__(
        self,
        host: Host,
        channel: socket.socket,
        id_ranges: IdRanges | None,
        *,
        id_base: int = 0,
        on_news: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Take orders for *channel*.

        Args:
            id_base: what the ids of *id_ranges* are counted from, in the warden's own user namespace.
            on_news: is told what it says while nothing is on order.
        """
        self.host = host
        self.channel = channel
        self._id_ranges = id_ranges
        self._id_base = id_base
        self._on_news = on_news
        self._ordered: deque[Cell] = deque()
        channel.setblocking(False)

    @property
    def under_way(self) -> int:
        """How many are on order."""
        return len(self._ordered)

    def order(self, purpose: object, **what: Any) -> Cell:
        """Have a cell made; it is as good as nothing until it has been delivered.

        Args:
            purpose: becomes `Cell.purpose`.
            what: members of the order: what shall be in the cell; empty by default.

        Raises:
            Refused: no user ids, descriptors or control groups are left; what shall be in it is too long to say.
            BlockingIOError: so many are on order that no more fit into the socket.
            BrokenPipeError: the maker is dead.
        """
        return self.place(purpose, self._id_ranges, what)

    def place(self, purpose: object, id_ranges: IdRanges | None, message: dict[str, Any]) -> Cell:
        """Send an order with all that the cell is to be made from."""
        try:
            cell = Cell.kit_for(self.host, id_ranges, id_base=self._id_base)
        except OSError as error:
            raise Refused("unavailable", f"cannot make a sandbox: {error}") from error
        try:
            cpu_stat = cell.group.cpu_stat()
            descriptors = (*cell.kit, *cell.group.joins, *(() if cpu_stat is None else (cpu_stat,)))
            order = {"ids": cell.ids, "joins": len(cell.group.joins), **message}
            protocol.send(self.channel, order, descriptors)
        except BaseException as error:
            cell.free_unmade()
            if isinstance(error, protocol.UNSENDABLE):
                raise Refused("invalid", f"cannot make a sandbox: {error}") from error
            raise
        cell.sent()
        cell.purpose = purpose
        self._ordered.append(cell)
        return cell

    def delivered(self) -> Iterator[tuple[Cell, Refused | None]]:
        """What has been made by now, or why it could not be: then nothing is left of it.

        Raises:
            EOFError: the maker is dead.
        """
        while True:
            try:
                received = protocol.receive(self.channel)
            except BlockingIOError:
                return
            except (OSError, protocol.ProtocolError) as error:
                raise EOFError(f"a maker of sandboxes went away: {error}") from error
            if received is None:
                raise EOFError("a maker of sandboxes is dead")
            message, descriptors = received
            for fd in descriptors:  # none are expected
                os.close(fd)
            if not self._ordered:
                if self._on_news is None:
                    raise EOFError("a maker of sandboxes delivered what nobody had ordered")
                self._on_news(message)
                continue
            cell = self._ordered.popleft()
            yield cell, self._finish(cell, message)

    def _finish(self, cell: Cell, message: dict[str, Any]) -> Refused | None:
        pid = message.get("pid")
        if type(pid) is int and 0 < pid < 1 << 31:  # else `pidfd_open` raises what is no OSError
            try:
                cell.made(pid)
            except OSError as error:
                cell.free_unmade()
                return Refused("fault", f"cannot make a sandbox: {error}")
            if "error" not in message:
                return None
            cell.discard()
        else:
            cell.free_unmade()
        kind, why = message.get("kind", "fault"), said(message.get("error", "the maker does not say why"), 2000)
        return Refused(kind if kind in ("unavailable", "fault") else "fault", f"cannot make a sandbox: {why}")

    def abandon(self) -> None:
        """Free what was on order; the maker has ended, or will when its channel is closed."""
        while self._ordered:
            self._ordered.popleft().free_unmade()


def end(pid: int) -> None:
    """End a child and wait for its end."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
