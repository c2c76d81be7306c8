"""A sandbox that lives, from the outside: its processes, their output, its end."""

import contextlib
import fcntl
import json
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
from .logs import HEAD_BYTES, Log, Marks, Reader
from .resident_request import LEAST_RING, SpawnRequest, StayRequest

__all__ = ["MAIN", "Facts", "Process", "Resident", "Wait"]

MAIN = "main"
_TIOCSWINSZ = 0x5414
_KILLED = 128 + signal.SIGKILL
_MOST_PROCESSES = 512
_MOST_REMEMBERED = 64  # processes that have ended and whose output is there still, though nobody asked to keep it
_MOST_PAST = 10_000  # processes of which nothing is kept any more but the facts
_MOST_PAST_BYTES = 8 << 20  # of their command lines
_PAGE_BYTES = 4096
_MOST_NEWS = 64  # messages of one PID 1 in a turn
_OUTCOMES = {"deadline": "wall_time", "kill": "cancelled", "stop": "cancelled", "limit": "memory"}


@dataclass(eq=False)
class Wait:
    """A question that is answered when there is something to tell."""

    client: object
    number: int
    reader: Reader | None = None
    least: int = 1
    """Bytes that are to have come before it is answered."""
    is_opening: bool = False
    """Whether the answer brings the descriptors, too."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a client is told of a process; all that is left of one whose output had to go."""

    name: str
    number: int
    argv: tuple[str, ...]
    pid: int
    began_at: float
    end: dict[str, Any] | None

    @property
    def bytes(self) -> int:
        return sum(map(len, self.argv))

    @property
    def json_bytes(self) -> int:
        """About what it takes in a message."""
        return 300 + (len(json.dumps(self.argv, ensure_ascii=False)) if self.argv else 0)

    def info(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "n": self.number,
            "argv": self.argv,
            "pid": self.pid,
            "began_at": self.began_at,
            "end": self.end,
        }


@dataclass(eq=False, kw_only=True)
class Process:
    """One process of a sandbox, with its output; also after its end."""

    name: str
    number: int
    argv: tuple[str, ...]
    """Empty where it is not to be kept."""
    file: int
    """Where its output is; see `logs`."""
    logs: tuple[Log, Log]
    marks: Marks
    stdin: int | None
    """Writing end of its input's pipe, or the master side of its terminal."""
    is_terminal: bool
    oom_kills: int
    """What the sandbox had lost for want of memory when it began."""
    keep: bool = False
    charged: int = 0
    """Bytes that `Resident` counts for it, ..."""
    charged_as_ended: bool = False
    """... and among which."""
    ids: tuple[int, int] = (UID, UID)
    """User and group with which it was started."""
    is_once: bool = False
    """Whether it is forgotten once its end has been told: its output is for one reader alone."""
    started: bool = False
    pid: int = 0
    """Inside the sandbox; 0 where it was never started."""
    began_at: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    end: dict[str, Any] | None = None
    """How it ended."""
    readers: dict[tuple[object, int], Reader] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    enders: list[Wait] = field(default_factory=list)
    """Who waits for its end alone."""

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

    @property
    def is_idle(self) -> bool:
        """Whether it has ended and nobody is at it: it may go where room is needed."""
        return self.is_told and not self.readers and self.name != MAIN

    @property
    def is_closed(self) -> bool:
        """Whether it has ended and nobody holds its output open."""
        return self.end is not None and all(log.source is None for log in self.logs)

    @property
    def kept_bytes(self) -> int:
        """What its output takes, or may come to take, of the host's memory."""
        if self.end is None:
            return sum(log.most for log in self.logs)
        used = (min(log.end, log.most) for log in self.logs)
        return sum(-(-one // _PAGE_BYTES) * _PAGE_BYTES for one in (*used, self.marks.bytes, HEAD_BYTES))

    def position(self, reader: Reader, least: int) -> dict[str, Any] | None:
        """The answer to a reader who waits; `None` when there is nothing to tell yet."""
        ends = self.ends
        is_over = self.is_closed if reader.until_closed else self.is_told
        if not is_over:
            news = sum(ends) - sum(reader.at)
            if not news:
                return None
            if news < min(least, self.logs[0].most // 4) and not any(log.blocked for log in self.logs):
                return None
        return {"at": reader.at, "ends": ends, "end": self.end if is_over else None, "marks": self.marks.count}

    def facts(self) -> Facts:
        """What there is to tell of it."""
        return Facts(
            name=self.name,
            number=self.number,
            argv=self.argv,
            pid=self.pid,
            began_at=self.began_at,
            end=self.end,
        )

    def close_stdin(self) -> None:
        if self.stdin is not None and not self.is_terminal:
            os.close(self.stdin)
            self.stdin = None

    def resize(self, rows: int, columns: int) -> None:
        if self.is_terminal and self.stdin is not None:
            fcntl.ioctl(self.stdin, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        for log in self.logs:
            log.close_source()
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
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
    past: dict[str, Facts] = field(default_factory=dict)
    """Kept processes whose output had to go, in the order of their start."""
    asked: dict[int, Wait] = field(default_factory=dict)
    """Who waits for an answer of PID 1's, by its number."""
    enders: list[Wait] = field(default_factory=list)
    """Who waits for the sandbox's end, ..."""
    removers: list[Wait] = field(default_factory=list)
    """... and who does to have it gone."""
    paused_at: float | None = None
    """Since when it has been standing still, because a client said so."""
    holds: int = 0
    """How many want it to stand still now: a client's pause, and copies of its disk that are being made."""
    refusal: Refused | None = None
    """Why it could not be made, where its creator is to be told so."""
    traffic: tuple[int, int] = (0, 0)
    """Bytes that came in from outside and that went out."""
    last_usage: dict[str, Any] = field(default_factory=dict)
    _late: list[tuple[Process, tuple[int, ...]]] = field(default_factory=list)
    """Forgotten processes that are still to be killed, and their pipes."""
    _past_bytes: int = 0
    _may_take: int = 0
    """Bytes that the output of processes that run may come to take, and ..."""
    _is_taken: int = 0
    """... that of those that have ended takes: kept, since to add them up for each process that is started would take
    longer than to start it. Each may be `kept_bytes`, so that neither has to make room for the other."""
    _passing: int = 0
    """Processes that are not to be kept."""
    _count: int = 0
    _cpu_base: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return self.request.name

    def is_for(self, uid: int) -> bool:
        """Whether a client of that user may use it: its maker's, and root's, which may become its maker's user."""
        return uid in (self.owner, 0)

    def begin(self, descriptors: list[int]) -> None:
        """Set the limits and tell PID 1 to stay. *descriptors* (a build's layer, its ground) stay the caller's.

        Raises:
            OSError: the cell is dead, or its limits cannot be set; end it.
        """
        request, cell = self.request, self.cell
        cell.close_outputs()
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
        protocol.send(cell.control, {"stay": request.stay()}, tuple(descriptors))

    def order(self, order: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Tell PID 1 something.

        Raises:
            Refused: it has ended, is paused, or is too busy to listen.
        """
        self.demand_alive()
        if self.paused_at is not None:
            raise Refused("conflict", f"sandbox {self.name} is paused; resume it first")
        try:
            protocol.send(self.cell.control, order, descriptors)
        except BlockingIOError:
            raise Refused("unavailable", f"sandbox {self.name} is too busy to take orders") from None
        except protocol.ProtocolError as error:
            raise Refused("invalid", str(error)) from error
        except OSError as error:
            raise Refused("conflict", f"sandbox {self.name} has ended") from error

    def signal(self, process: Process, number: int, *, tree: bool, holding: tuple[int, ...] = ()) -> None:
        """Have a process, and its process group, sent a signal; with *tree* also what descends from it. Raises Refused.

        Of one that has ended, what it left in its process group gets it. *holding*: descriptors that stay open until
        it has been sent.
        """
        if process.end is not None and not process.pid:
            return
        order = {
            "do": "signal",
            "n": process.number,
            "pid": process.pid,
            "signal": number,
            "tree": tree,
            "ids": process.ids,
        }
        self.order(order, holding)

    def kill_tree(self, process: Process) -> bool:
        """Have a process killed with all that descends from it, though nothing is known of it from now on.

        Its pipes break only then: else it may end of that, and what has a session of its own is no longer found below
        it. False when PID 1 is too busy now: call `kill_late` until that is True.
        """
        pipes = tuple(log.source for log in process.logs if log.source is not None)
        try:
            self.signal(process, signal.SIGKILL, tree=True, holding=pipes)
        except Refused:
            if self.ended is not None:
                return True
            held: list[int] = []
            with contextlib.suppress(OSError):  # no descriptors are left: then they break
                for one in pipes:
                    held.append(os.dup(one))
            self._late.append((process, tuple(held)))
            return False
        return True

    def kill_late(self) -> bool:
        """Kill those for which PID 1 was too busy; whether it was not this time."""
        while self._late:
            process, pipes = self._late[0]
            try:
                self.signal(process, signal.SIGKILL, tree=True, holding=pipes)
            except Refused:
                if self.ended is None:
                    return False
            del self._late[0]
            _close_all(list(pipes))
        return True

    def hold(self) -> None:
        """Have all its processes, PID 1 included, stand still until `let_go` is called as often.

        Raises:
            Refused: the host cannot (`unsupported`).
        """
        if not self.holds:
            self.cell.group.freeze()
        self.holds += 1

    def let_go(self) -> None:
        """Take a `hold` back."""
        self.holds -= 1
        if not self.holds:
            self.cell.group.thaw()

    def pause(self) -> None:
        """Let it stand still until `resume`; its deadline waits. Raises Refused."""
        self.demand_alive()
        if self.paused_at is None:
            self.hold()
            self.paused_at = time.monotonic()

    def resume(self) -> None:
        """Let it go on. Nothing happens where it does."""
        if self.paused_at is not None:
            paused_s, self.paused_at = time.monotonic() - self.paused_at, None
            if self.deadline is not None:
                self.deadline += paused_s
            self.let_go()

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

    def spawn(
        self,
        request: SpawnRequest,
        wait: Wait,
        *,
        watch: Callable[[Process], None],
        drop: Callable[[Process], None],
    ) -> Process:
        """Have a process started; its number is answered by PID 1.

        Args:
            watch: has its output taken. Called before it can have any: only then the kernel tells which of its
                streams had some first.
            drop: lets go of a process: of one that has ended, to make room, or of this, where it cannot be started.

        Raises:
            Refused: there is one of that name, there are too many, or no descriptors are left.
        """
        self.demand_alive()
        if request.process in self.processes or request.process in self.past:
            raise Refused("conflict", f"sandbox {self.name} has a process {request.process!r} already")
        self._make_room(drop)
        if len(self.processes) >= _MOST_PROCESSES:
            raise Refused("unavailable", f"{_MOST_PROCESSES} processes in one sandbox are too many")
        number = self.next_number()
        theirs: list[int] = []
        ours: list[int] = []
        process = None
        try:
            file = protocol.memory_file("log")
            ours.append(file)
            stdin = out = err = None
            if request.terminal is None:
                stdin, out, err = self._make_pipes(ours, theirs, user=request.ids[0], stdin=request.stdin)
            most = self._ring(request)
            process = Process(
                name=request.process,
                number=number,
                argv=request.argv if request.keep else (),
                file=file,
                logs=(
                    Log(number=0, most=most, source=out, file=file, is_terminal=request.terminal is not None),
                    Log(number=1, most=most, source=err, file=file),
                ),
                marks=Marks(file=file, place=HEAD_BYTES + 2 * most),
                stdin=stdin,
                is_terminal=request.terminal is not None,
                oom_kills=self._oom_kills(),
                keep=request.keep,
                ids=request.ids,
            )
            ours = []
            order = {
                "do": "spawn",
                "n": number,
                "argv": request.argv,
                "env": request.env,
                "cwd": request.cwd,
                "ids": request.ids,
                "terminal": request.terminal,
            }
            watch(process)
            self.order(order, tuple(theirs))
        except (OSError, Refused) as error:
            _close_all(ours)
            if process is not None:
                drop(process)
            if isinstance(error, Refused):
                raise
            raise Refused("unavailable", f"cannot start a process: {error}") from error
        finally:
            _close_all(theirs)
        self._enlist(process)
        self.asked[number] = wait
        return process

    def _make_room(self, drop: Callable[[Process], None]) -> None:
        """Let go of the output of processes that have ended, the oldest first, where all of it together is too much."""
        if self._passing > _MOST_REMEMBERED:
            idle = [one for one in self.processes.values() if one.is_idle and not one.keep]
            for one in idle[: max(0, len(idle) - _MOST_REMEMBERED)]:
                drop(one)
        for one in list(self.processes.values()) if self._is_full else []:
            if one.is_idle:
                self.remember(one)
                drop(one)
                if not self._is_full:
                    return

    @property
    def _is_full(self) -> bool:
        return self._is_taken > self.request.kept_bytes or len(self.processes) >= _MOST_PROCESSES

    def _enlist(self, process: Process) -> None:
        self.processes[process.name] = process
        self.by_number[process.number] = process
        self._passing += not process.keep
        self.recharge(process)

    def delist(self, process: Process) -> None:
        """Know nothing of a process any more. Its descriptors stay open."""
        if self.processes.pop(process.name, None) is process:
            self._passing -= not process.keep
            self._charge(process, 0)
        self.by_number.pop(process.number, None)

    def recharge(self, process: Process) -> None:
        """Count anew what a process's output takes: it has just begun or ended, or has printed after its end."""
        if self.processes.get(process.name) is process:
            self._charge(process, process.kept_bytes)

    def _charge(self, process: Process, size: int) -> None:
        if process.charged_as_ended:
            self._is_taken -= process.charged
        else:
            self._may_take -= process.charged
        process.charged, process.charged_as_ended = size, process.end is not None
        if process.charged_as_ended:
            self._is_taken += size
        else:
            self._may_take += size

    def remember(self, process: Process) -> None:
        """Keep the facts of a process whose output is about to go, if it is one to be kept."""
        if not process.keep or process.end is None:
            return
        past = self.past[process.name] = process.facts()
        self._past_bytes += past.bytes
        while len(self.past) > _MOST_PAST or self._past_bytes > _MOST_PAST_BYTES:
            oldest = self.past.pop(next(iter(self.past)))
            self._past_bytes -= oldest.bytes

    def forget_past(self, name: str) -> None:
        """Forget the facts of a process, too."""
        past = self.past.pop(name, None)
        if past is not None:
            self._past_bytes -= past.bytes

    def _ring(self, request: SpawnRequest) -> int:
        """Bytes of each stream of a new process that are kept. They are the host's memory, not the sandbox's."""
        full = request.log_bytes or self.request.log_bytes
        if request.process == MAIN:
            return full
        left = self.request.kept_bytes - self._may_take
        return min(full, max(LEAST_RING, left // 8))  # so that those that come later have some, too

    def _make_pipes(self, ours: list[int], theirs: list[int], *, user: int, stdin: bool) -> tuple[int | None, int, int]:
        """Our ends of standard input (where it is wanted), output and error; the tenant's belong to the tenant."""
        ends: list[int | None] = [None, None, None]
        for n in range(0 if stdin else 1, 3):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            mine, other = (writing, reading) if n == 0 else (reading, writing)
            ours.append(mine)
            theirs.append(other)
            ends[n] = mine
            os.set_blocking(mine, False)
            if self.cell.ids is not None:  # so that the program may open /dev/stdin and its like by their paths
                owner = self.cell.ids + user
                os.fchown(other, owner, owner)
        assert ends[1] is not None
        assert ends[2] is not None
        return ends[0], ends[1], ends[2]

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

    def exited(self, process: Process, code: int, at: float, *, disk_full: bool) -> None:
        """The kernel has said how a process ended: its exit code, or the negative number of a signal."""
        outcome = "exited" if code >= 0 else "signaled"
        if code == -signal.SIGKILL and self._oom_kills() > process.oom_kills:
            outcome = "memory"
        elif code > 0 and disk_full:
            outcome = "disk"
        process.end = {
            "outcome": outcome,
            "exit_code": code if code >= 0 else 128 - code,
            "ended_at": time.time() - (time.monotonic() - at),
        }
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
                process.end = {"outcome": outcome, "exit_code": _KILLED, "ended_at": time.time()}
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
            "deadline_at": None if self.deadline is None else wall + self.deadline - (self.paused_at or now),
            "paused": self.paused_at is not None,
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
