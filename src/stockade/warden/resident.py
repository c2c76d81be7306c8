"""A sandbox that lives, from the outside: its processes, their output, its end."""

import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import protocol
from .cell import Cell
from .cgroups import GroupLimits
from .fields import Refused
from .image import UID
from .logs import Log, Reader
from .resident_request import SpawnRequest, StayRequest

__all__ = ["MAIN", "Process", "Resident", "Wait"]

MAIN = "main"
_TIOCSWINSZ = 0x5414
_KILLED = 128 + signal.SIGKILL
_MOST_PROCESSES = 512
_MOST_REMEMBERED = 64  # processes that have ended and whose output is kept, beside the main one
_FULL_RINGS = 32  # of as many processes; with more of them, those that come later have smaller ones
_LEAST_RING = 64 << 10
_MOST_NEWS = 64  # messages of one PID 1 in a turn
_OUTCOMES = {"deadline": "wall_time", "kill": "cancelled", "stop": "cancelled", "limit": "memory"}


@dataclass(eq=False)
class Wait:
    """A question that is answered when there is something to tell."""

    client: object
    number: int
    reader: Reader | None = None


@dataclass(eq=False, kw_only=True)
class Process:
    """One process of a sandbox, with its output; also after its end."""

    name: str
    number: int
    logs: tuple[Log, Log]
    stdin: int | None
    """Writing end of its input's pipe, or the master side of its terminal."""
    is_terminal: bool
    oom_kills: int
    """What the sandbox had lost for want of memory when it began."""
    started: bool = False
    end: dict[str, Any] | None = None
    """How it ended."""
    readers: dict[tuple[object, int], Reader] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)

    @property
    def ends(self) -> list[int]:
        return [log.end for log in self.logs]

    @property
    def starts(self) -> list[int]:
        return [log.start for log in self.logs]

    @property
    def is_told(self) -> bool:
        """Whether it has ended and all that it printed is in its logs."""
        return self.end is not None and all(log.is_drained for log in self.logs)

    def position(self, at: list[int]) -> dict[str, Any] | None:
        """The answer to a reader who has read up to *at*; `None` when there is nothing to tell yet."""
        ends = self.ends
        if ends == at and not self.is_told:
            return None
        return {"at": at, "ends": ends, "end": self.end if self.is_told else None}

    def close_stdin(self) -> None:
        if self.stdin is not None and not self.is_terminal:
            os.close(self.stdin)
            self.stdin = None

    def resize(self, rows: int, columns: int) -> None:
        if self.is_terminal and self.stdin is not None:
            fcntl.ioctl(self.stdin, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        for log in self.logs:
            log.close()
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None


@dataclass(eq=False, kw_only=True)
class Resident:
    """A cell that was told to live. What it needs of the warden's loop it is given by `Residents`."""

    request: StayRequest
    owner: int
    """User id of the client that made it."""
    cell: Cell
    creator: Wait | None
    """Who waits for it to be up."""
    began: float = field(default_factory=time.monotonic)
    up: float | None = None
    born_at: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    deadline: float | None = None
    stop_at: float | None = None
    reason: str | None = None
    """What ended it: `itself`, `stop`, `kill`, `deadline`, `limit`, `failure`."""
    main_end: dict[str, Any] | None = None
    ended: float | None = None
    """When its end was decided, ..."""
    buried: float | None = None
    """... and when nothing of it was left."""
    failure: str = ""
    processes: dict[str, Process] = field(default_factory=dict)
    by_number: dict[int, Process] = field(default_factory=dict)
    asked: dict[int, Wait] = field(default_factory=dict)
    """Who waits for an answer of PID 1's, by its number."""
    enders: list[Wait] = field(default_factory=list)
    """Who waits for the sandbox's end."""
    traffic: tuple[int, int] = (0, 0)
    """Bytes that came in from outside and that went out."""
    last_usage: dict[str, Any] = field(default_factory=dict)
    _count: int = 0
    _cpu_base: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return self.request.name

    def is_for(self, uid: int) -> bool:
        """Whether a client of that user may use it: its maker's, and root's, which may become its maker's user."""
        return uid in (self.owner, 0)

    def begin(self, layer: list[int]) -> None:
        """Set the limits and tell PID 1 to stay. *layer*'s descriptor stays the caller's.

        Raises:
            OSError: the cell is dead, or its limits cannot be set; end it.
        """
        request, cell = self.request, self.cell
        for fd in cell.outputs:
            os.close(fd)
        cell.outputs = (-1, -1)
        # One more process than asked for: PID 1 is ours.
        cell.group.limit(
            GroupLimits(
                memory_bytes=request.memory_bytes,
                processes=request.processes + 1,
                cpus=request.cpus,
                die_together=False,
            )
        )
        self._cpu_base = cell.group.cpu_us()
        cell.group.shed()
        protocol.send(cell.control, {"stay": request.stay()}, tuple(layer))

    def order(self, order: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Tell PID 1 something.

        Raises:
            Refused: it has ended, or is too busy to listen.
        """
        self.demand_alive()
        try:
            protocol.send(self.cell.control, order, descriptors)
        except BlockingIOError:
            raise Refused("unavailable", f"sandbox {self.name} is too busy to take orders") from None
        except protocol.ProtocolError as error:
            raise Refused("invalid", str(error)) from error
        except OSError as error:
            raise Refused("conflict", f"sandbox {self.name} has ended") from error

    def demand_alive(self) -> None:
        """Raises Refused (`conflict`) when it has ended."""
        if self.up is None or self.ended is not None:
            raise Refused("conflict", f"sandbox {self.name} has ended")

    def next_number(self) -> int:
        self._count += 1
        return self._count

    def process(self, name: str) -> Process:
        """Raises Refused (`not_found`)."""
        found = self.processes.get(name)
        if found is None:
            raise Refused("not_found", f"sandbox {self.name} has no process {name!r}")
        return found

    def spawn(self, request: SpawnRequest, wait: Wait) -> Process:
        """Have a process started; its number is answered by PID 1.

        Raises:
            Refused: there is one of that name, there are too many, or no descriptors are left.
        """
        self.demand_alive()
        if request.process in self.processes:
            raise Refused("conflict", f"sandbox {self.name} has a process {request.process!r} already")
        if len(self.processes) >= _MOST_PROCESSES:
            raise Refused("unavailable", f"{_MOST_PROCESSES} processes in one sandbox are too many")
        number = self.next_number()
        theirs: list[int] = []
        ours: list[int] = []
        process = None
        try:
            if request.terminal is None:
                self._make_pipes(ours, theirs, root=request.root)
            stdin, out, err = ours or (None, None, None)
            most = self._ring(request.process)
            process = Process(
                name=request.process,
                number=number,
                logs=(
                    Log(number=0, most=most, source=out, is_terminal=not ours),
                    Log(number=1, most=most, source=err),
                ),
                stdin=stdin,
                is_terminal=not ours,
                oom_kills=self._oom_kills(),
            )
            ours = []
            order = {
                "do": "spawn",
                "n": number,
                "argv": request.argv,
                "env": request.env,
                "cwd": request.cwd,
                "root": request.root,
                "terminal": request.terminal,
            }
            self.order(order, tuple(theirs))
        except (OSError, Refused) as error:
            _close_all(ours)
            if process is not None:
                process.close()
            if isinstance(error, Refused):
                raise
            raise Refused("unavailable", f"cannot start a process: {error}") from error
        finally:
            _close_all(theirs)
        self.processes[process.name] = process
        self.by_number[number] = process
        self.asked[number] = wait
        return process

    def _ring(self, process: str) -> int:
        """Bytes of each stream of a new process that are kept. They are the host's memory, not the sandbox's."""
        full = self.request.log_bytes
        if process == MAIN:
            return full
        return min(full, max(_LEAST_RING, full * _FULL_RINGS // (len(self.processes) + 1)))

    def _make_pipes(self, ours: list[int], theirs: list[int], *, root: bool) -> None:
        """Standard input, output and error: our ends and the tenant's, which belong to the tenant's user."""
        for n in range(3):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            ours.append(writing if n == 0 else reading)
            theirs.append(reading if n == 0 else writing)
            os.set_blocking(ours[-1], False)
            if self.cell.ids is not None:  # so that the program may open /dev/stdin and its like by their paths
                user = self.cell.ids + (0 if root else UID)
                os.fchown(theirs[-1], user, user)

    def forget_some(self, drop: Callable[[Process], None]) -> None:
        """Let *drop* go of the oldest processes that have ended, where many have."""
        over = [one for one in self.processes.values() if one.is_told and not one.readers and one.name != MAIN]
        for one in over[: max(0, len(over) - _MOST_REMEMBERED)]:
            drop(one)

    def hear(self) -> tuple[list[tuple[dict[str, Any], list[int]]], bool]:
        """News from PID 1 (descriptors are the caller's to close), and whether there may be more."""
        news: list[tuple[dict[str, Any], list[int]]] = []
        while len(news) < _MOST_NEWS:
            try:
                received = protocol.receive(self.cell.control)
            except BlockingIOError:
                return news, True
            except (OSError, protocol.ProtocolError):
                return news, False
            if received is None:
                return news, False
            news.append(received)
        return news, True

    def exited(self, process: Process, status: int, at: float, *, disk_full: bool) -> None:
        """The kernel has said how a process ended."""
        code = os.waitstatus_to_exitcode(status)
        outcome = "exited" if code >= 0 else "signaled"
        if code == -signal.SIGKILL and self._oom_kills() > process.oom_kills:
            outcome = "memory"
        elif code > 0 and disk_full:
            outcome = "disk"
        process.end = {"outcome": outcome, "exit_code": code if code >= 0 else 128 - code, "at": at}
        if process.name == MAIN:
            self.main_end = process.end

    def _oom_kills(self) -> int:
        kills = self.cell.group.oom_kills()
        self.cell.group.shed()
        return kills

    def kill(self, reason: str) -> None:
        """End it with everything in it; the first reason stands."""
        if self.ended is None:
            self.reason = self.reason or reason
            self.ended = time.monotonic()
        self.cell.kill()

    def why_dead(self) -> str:
        """What has ended PID 1, which does not end by itself, and was not told to."""
        return "limit" if self._oom_kills() else "itself"

    def settle_end(self) -> None:
        """PID 1 is gone: every process that has not been told as ended was killed with it."""
        if self.ended is None:
            self.ended = time.monotonic()
            self.reason = self.reason or self.why_dead()
        self.last_usage = self.usage()
        now = time.monotonic()
        for process in self.processes.values():
            if process.end is None:
                outcome = _OUTCOMES.get(self.reason or "", "signaled")
                process.end = {"outcome": outcome, "exit_code": _KILLED, "at": now}
                if process.name == MAIN:
                    self.main_end = process.end
        self.buried = now

    def usage(self) -> dict[str, Any]:
        """What it has used so far, from the kernel's counters."""
        if self.buried is not None:
            return self.last_usage
        group = self.cell.group
        user, system = group.cpu_us()
        usage = {
            "wall_s": (self.ended or time.monotonic()) - self.began,
            "cpu_user_us": max(0, user - self._cpu_base[0]),
            "cpu_system_us": max(0, system - self._cpu_base[1]),
            "memory_peak": group.memory_peak() or 0,
            "memory": group.memory_bytes(),
            "bytes_in": self.traffic[0],
            "bytes_out": self.traffic[1],
        }
        group.shed()
        return usage

    def info(self, *, in_full: bool = True) -> dict[str, Any]:
        """What a client is told of it; *in_full*: with what it uses now, which takes some reading."""
        now, wall = time.monotonic(), time.time()
        end = self.main_end
        outcome = None
        if self.buried is not None:
            if self.reason in ("itself", "stop") and end is not None:
                outcome = end["outcome"]
            else:
                outcome = _OUTCOMES.get(self.reason or "", "signaled")
        return {
            "sandbox": self.name,
            # Whoever asks for this one alone may have seen its main process's end.
            "running": self.ended is None if in_full else self.buried is None,
            "buried": self.buried is not None,
            "started_at": self.born_at,
            "ended_at": None if self.ended is None else wall - (now - self.ended),
            "deadline_at": None if self.deadline is None else wall + self.deadline - now,
            "reason": self.reason if self.ended is not None else None,
            "outcome": outcome,
            "exit_code": end["exit_code"] if end is not None else (_KILLED if self.buried is not None else None),
            "processes": list(self.processes)[:_MOST_PROCESSES],
            "failure": self.failure,
            "usage": self.usage() if in_full or self.buried is not None else None,
        }


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
