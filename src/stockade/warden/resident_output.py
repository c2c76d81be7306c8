"""What processes of sandboxes print: from the pipes into the logs, and on to those who read them."""

import math
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from .fields import Refused, whole
from .logs import Log, Reader, for_reading
from .resident import Process, Resident, Wait
from .resident_request import patience_of

__all__ = ["Answer", "Loop", "Outputs", "Refuse"]

Answer = Callable[[Any, dict[str, Any], tuple[int, ...]], None]
"""Sends a client a message with descriptors, which stay the caller's."""
Refuse = Callable[[Any, int, Refused], None]
"""Tells a client why its question, by its number, cannot be answered."""


_MOST_READERS = 1024


class Loop(Protocol):
    """The warden's loop."""

    def watch(self, fd: int, handler: Callable[[int], None]) -> None: ...

    def forget(self, fd: int) -> None: ...

    def put_off(self, work: Callable[[], None]) -> None: ...


class Outputs:
    """Moves output and answers readers."""

    def __init__(self, loop: Loop, answer: Answer, refuse: Refuse, schedule: Callable[[Resident, float], None]) -> None:
        """*schedule* has a sandbox looked at again at a time."""
        self._loop = loop
        self._answer = answer
        self._refuse = refuse
        self._schedule = schedule

    def watch_all(self, resident: Resident, process: Process) -> None:
        """Take what a process prints; of one with a terminal, that is still to come."""
        for log in process.logs:
            self.watch(resident, process, log)

    def watch(self, resident: Resident, process: Process, log: Log) -> None:
        if log.source is not None:
            self._loop.watch(log.source, lambda _: self.pump(resident, process, log))

    def pump(self, resident: Resident, process: Process, log: Log) -> None:
        source = log.source
        going = log.pump(list(process.readers.values()), process.marks)
        if process.end is not None:
            resident.recharge(process)
        if not going:
            if source is not None:
                self._loop.forget(source)
                log.close_source()
        elif log.blocked and source is not None:
            self._loop.forget(source)
            self._schedule(resident, self.lose_patience(resident, time.monotonic()))
        self._tell(resident, process)

    def lose_patience(self, resident: Resident, now: float) -> float:
        """See to logs that wait for a reader; returns when to look again."""
        due = math.inf
        for process in resident.processes.values():
            for log in process.logs:
                if not log.blocked:
                    continue
                lost = False
                for reader in process.readers.values():
                    if reader.is_waited_for and log.most - (log.end - reader.at[log.number]) <= 0:
                        left = reader.tries_patience(now)
                        lost = lost or left <= 0
                        due = min(due, now + left) if left > 0 else due
                if lost:
                    self.go_on(resident, process)
        return due

    def go_on(self, resident: Resident, process: Process) -> None:
        """Readers have gone on, or away: take what had to wait for them."""
        for log in process.logs:
            if log.blocked and log.source is not None:
                log.blocked = False
                self.watch(resident, process, log)

    def _tell(self, resident: Resident, process: Process, newest: Wait | None = None) -> None:
        """Answer those who wait for output, where there is some; *newest*: that one alone, who has only just come."""
        for wait in list(process.waits) if newest is None else [newest]:
            if wait not in process.waits:
                continue  # an answer to its client has just shown that nobody is there
            assert wait.reader is not None
            position = process.position(wait.reader, wait.least)
            if position is None:
                continue
            process.waits.remove(wait)
            if wait.is_opening:
                self.hand_out(wait, process, position)
            else:
                self._answer(wait.client, {"re": wait.number, "ok": position}, ())
            if process.is_once and process.is_closed and position["end"] is not None:
                self.drop(resident, process)

    def wait(self, resident: Resident, process: Process, wait: Wait) -> None:
        """Answer once there is something to tell. Raises Refused: as many wait as there can be readers."""
        if len(process.waits) >= _MOST_READERS:
            raise Refused("unavailable", f"{_MOST_READERS} questions at once are too many")
        process.waits.append(wait)
        self._tell(resident, process, wait)

    @staticmethod
    def reader_of(client: Any, message: dict[str, Any]) -> tuple[tuple[Any, int], Reader]:
        """The reader that a message speaks for, as one that has just come, and its key. Raises Refused."""
        key = (client, whole(message, "reader", 1 << 53, least=0))
        until_closed = message.get("until_closed") is True
        return key, Reader(at=[0, 0], most_patience_s=patience_of(message), until_closed=until_closed)

    def admit(self, client: Any, message: dict[str, Any], process: Process) -> Reader:
        """The reader that a message speaks for: what is there when it first comes is kept for it. Raises Refused."""
        key, new = self.reader_of(client, message)
        reader = process.readers.get(key)
        if reader is None:
            if len(process.readers) >= _MOST_READERS:
                raise Refused("unavailable", f"{_MOST_READERS} readers of one process are too many")
            reader = process.readers[key] = new
            reader.at = process.starts
        return reader

    def hand_out(self, wait: Wait, process: Process, position: dict[str, Any] | None = None) -> None:
        """Answer with the descriptors by which a process is read and written to."""
        fds: list[int] = []
        try:
            fds.append(for_reading(process.file))
            if process.stdin is not None:
                fds.append(os.dup(process.stdin))
        except OSError as error:
            self._refuse(wait.client, wait.number, Refused("unavailable", f"no descriptors are left: {error}"))
        else:
            answer = {
                "stdin": process.stdin is not None,
                "terminal": process.is_terminal,
                "most": process.logs[0].most,
                "pid": process.pid,
                "refusal": process.end.get("refusal") if process.end is not None else None,
                "position": position,
            }
            self._answer(wait.client, {"re": wait.number, "ok": answer}, tuple(fds))
        finally:
            for fd in fds:
                os.close(fd)

    def drop(self, resident: Resident, process: Process) -> None:
        resident.delist(process)
        starting = resident.asked.pop(process.number, None)
        for wait in (*process.waits, *process.enders, *([starting] if starting is not None else [])):
            self._refuse(wait.client, wait.number, Refused("not_found", "its output is not kept any longer"))
        process.waits.clear()
        process.enders.clear()
        for log in process.logs:
            if log.source is not None:
                self._loop.forget(log.source)
        process.close()
