"""One run from the outside: its deadlines, its output, its end."""

import fcntl
import os
import struct
import time
from dataclasses import dataclass, field
from typing import Any

from . import init, protocol
from .cell import Cell
from .cgroups import GroupLimits
from .fields import Refused
from .pools import Pool
from .request import RunRequest
from .walls import MEMORY_BYTES, processes_behind

__all__ = ["Output", "Sandbox"]

_SETUP_S = 20.0  # a sandbox that has not come up by then never will
_LEAST_CPU_CHECK_S = 0.005
_LEAST_SHORT_CHECK_S = 0.05
_SHORT_CPU_S = 0.1  # a run that has used more gives way to those that have not: they are soon done
_MOST_NEWS = 64  # messages of one PID 1 in a turn
_SPLICE = 1 << 20
_SPLICES_A_TURN = 8  # then the other sandboxes have theirs


@dataclass
class Output:
    """One stream: a pipe that is emptied into a memory file, up to a limit."""

    pipe: int | None
    most: int
    file: int | None = None
    """Made with the first byte."""
    size: int = 0
    truncated: bool = False
    error: OSError | None = None
    """Why we could not keep it."""

    def pump(self, null: int, *, to_the_end: bool = False) -> bool:
        """Move what the pipe holds, by reference where the kernel can; False when the pipe has ended.

        What is beyond the limit is thrown away and marks the stream as truncated. Our own memory does not grow.
        """
        if self.pipe is None:
            return False
        turns = _SPLICES_A_TURN
        while turns or to_the_end:
            turns -= 1
            room = self.most - self.size
            try:
                if room > 0:
                    if self.file is None:
                        self.file = protocol.memory_file("output")
                    moved = os.splice(self.pipe, self.file, min(room, _SPLICE), flags=os.SPLICE_F_NONBLOCK)
                    self.size += moved
                else:
                    moved = os.splice(self.pipe, null, _SPLICE, flags=os.SPLICE_F_NONBLOCK)
                    self.truncated = self.truncated or moved > 0
            except BlockingIOError:
                return True
            except OSError as error:  # no memory, no descriptors: this run fails, the others go on
                self.error = self.error or error
                return False
            if moved == 0:
                return False
        return True

    def close_pipe(self) -> None:
        if self.pipe is not None:
            os.close(self.pipe)
            self.pipe = None

    def close(self) -> None:
        self.close_pipe()
        if self.file is not None:
            os.close(self.file)
            self.file = None


@dataclass(eq=False, kw_only=True)
class Sandbox:
    """A cell with its errand. `finish` is called when its PID 1 has been reaped."""

    request: RunRequest
    cell: Cell
    stdout: Output = field(init=False)
    stderr: Output = field(init=False)
    bundle: int | None = None
    reason: str | None = None
    """Why we ended it: the first limit that was reached, or `cancelled`."""
    failure: Refused | None = None
    """Why it could not be built, or what it left could not be kept."""
    began: float = field(default_factory=time.monotonic)
    started: float | None = None
    ended: float | None = None
    status: int | None = None
    disk_full: bool = False
    collected: bool = False
    alone: bool = False
    """Whether PID 1 reported that nothing else is alive inside."""
    _cpu_base: tuple[int, int] = (0, 0)
    _memory_base: int = 0

    def __post_init__(self) -> None:
        out, err = self.cell.outputs
        self.cell.outputs = (-1, -1)  # ours now
        self.stdout = Output(pipe=out, most=self.request.output_bytes)
        self.stderr = Output(pipe=err, most=self.request.output_bytes)

    def begin(self, descriptors: list[int]) -> None:
        """Set the limits and send PID 1 on its errand. *descriptors* stay the caller's.

        Raises:
            OSError: the cell is dead, or its limits cannot be set; end it.
        """
        request, cell = self.request, self.cell
        if request.is_watched:
            *descriptors, out, err = descriptors
            self.stdout.file, self.stderr.file = os.dup(out), os.dup(err)
        # One more process than asked for: PID 1 is ours.
        memory, processes = request.memory_bytes, request.processes + 1
        if request.wall:
            self._memory_base = cell.group.memory_bytes()  # what gVisor has taken to start is not the tenant's
            memory, processes = memory + self._memory_base + MEMORY_BYTES, processes_behind(processes)
        cell.group.limit(GroupLimits(memory_bytes=memory, processes=processes, cpus=request.cpus))
        passed = list(descriptors)
        if request.collect:
            self.bundle = protocol.memory_file("bundle")
            passed.append(self.bundle)
        is_warm = isinstance(cell.purpose, Pool) and cell.purpose.recipe is not None
        protocol.send(cell.control, request.warm_errand() if is_warm else request.errand(), tuple(passed))

    @property
    def oom_event(self) -> int | None:
        return self.cell.group.oom_event

    def kill(self, reason: str) -> None:
        """End the sandbox with everything in it; the first reason stands."""
        if self.reason is None:
            self.reason = reason
            if self.ended is None:
                self.ended = time.monotonic()
        self.cell.kill()

    def read_control(self) -> bool:
        """Take the news from PID 1; False when there will be no more, or when what it says makes no sense."""
        for _ in range(_MOST_NEWS):
            try:
                message = self.cell.control.recv(8192)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not message:
                return False
            try:
                self._learn(message[:1], message[1:], time.monotonic())
            except (struct.error, LookupError, ValueError) as error:
                self.failure = Refused("fault", f"the sandbox's first process does not make sense: {error}")
                self.kill("setup")
                return False
        return True

    def _learn(self, kind: bytes, body: bytes, now: float) -> None:
        """One piece of news. No deadline is put off by what PID 1 says, nor is anything counted that was not yet.

        Raises:
            struct.error, LookupError, ValueError: it is none that an init of ours sends.
        """
        if kind == init.STARTED and self.started is None:
            (at,) = init.STARTED_HEAD.unpack_from(body)
            self._cpu_base = self._parse_cpu(body[init.STARTED_HEAD.size :])
            self.started = at if self.began <= at <= now else now
        elif kind == init.EXITED and self.status is None:
            at, self.status, self.disk_full, self.collected, self.alone = init.STATUS.unpack(body)
            if self.reason is None:
                self.ended = at if (self.started or self.began) <= at <= now else now
            self.cell.kill()  # it is about to end by itself; no deadline is looked at any more, should it not be
        elif kind in (init.FAILED, init.UNCOLLECTED) and self.failure is None:
            self.failure = Refused("fault" if kind == init.FAILED else "invalid", body.decode(errors="replace"))

    @staticmethod
    def _parse_cpu(text: bytes) -> tuple[int, int]:
        values = dict(line.split() for line in text.splitlines() if line.count(b" ") == 1)
        if values:
            return int(values[b"user_usec"]), int(values[b"system_usec"])
        return 0, int(text or 0) // 1000

    def check(self, now: float) -> float:
        """Enforce the deadlines; returns when to check again."""
        if self.reason is not None or self.status is not None:
            return now + 1.0
        if self.started is None:
            if now >= self.began + _SETUP_S:
                self.failure = Refused("unavailable", f"the sandbox was not ready within {_SETUP_S:g} s")
                self.kill("setup")
            return self.began + _SETUP_S
        wall_end = self.started + self.request.wall_s
        if now >= wall_end:
            self.kill("wall_time")
            return now + 1.0
        used_s = sum(self._cpu_us()) / 1e6
        left_s = self.request.cpu_s - used_s
        if left_s <= 0:
            self.kill("cpu_time")
            return now + 1.0
        if used_s >= _SHORT_CPU_S:
            self.cell.group.give_way()
        else:
            left_s = min(left_s, max(_LEAST_SHORT_CHECK_S, _SHORT_CPU_S - used_s))
        # It cannot use the rest up any sooner than on all processors at once.
        rate = min(self.request.cpus, self.cell.host.processors)
        return min(wall_end, now + max(_LEAST_CPU_CHECK_S, left_s / rate))

    def _cpu_us(self) -> tuple[int, int]:
        if self.started is None:  # what is counted by then is ours, and that of the group's uses before
            return 0, 0
        user, system = self.cell.group.cpu_us()
        # No more than there was when we first looked, whatever PID 1 says that its own work has cost.
        self._cpu_base = min(self._cpu_base[0], user), min(self._cpu_base[1], system)
        return max(0, user - self._cpu_base[0]), max(0, system - self._cpu_base[1])

    def _memory_peak(self) -> int | None:
        peak = self.cell.group.memory_peak()
        if peak is None or not self.request.wall:
            return peak
        # What gVisor takes for itself while the program runs cannot be told from what it takes for the program.
        return min(max(0, peak - self._memory_base), self.request.memory_bytes)

    def finish(self) -> tuple[dict[str, Any], list[int]]:
        """What came of it, once nothing of the tenant's is alive: the answer and its descriptors."""
        for output in (self.stdout, self.stderr):
            output.pump(self.cell.host.null, to_the_end=True)
            if output.error is not None and self.failure is None:
                self.failure = Refused("unavailable", f"cannot keep the output: {output.error}")
        now = time.monotonic()
        user, system = self._cpu_us()
        descriptors = [o.file for o in (self.stdout, self.stderr) if o.size and o.file is not None]
        if self.collected and self.bundle is not None:
            fcntl.fcntl(self.bundle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
            descriptors.append(self.bundle)
        answer = {
            "reason": self.reason,
            "status": self.status,
            "oom_kills": self.cell.group.oom_kills(),
            "forks_refused": self.cell.group.forks_refused(),
            "disk_full": self.disk_full,
            "sizes": [self.stdout.size, self.stderr.size],
            "truncated": [self.stdout.truncated, self.stderr.truncated],
            "wall_s": max(0.0, (self.ended or now) - (self.started if self.started is not None else self.began)),
            "cpu_user_us": user,
            "cpu_system_us": system,
            "memory_peak": self._memory_peak(),
            "collected": self.collected,
        }
        return answer, descriptors

    def close(self) -> None:
        """Free everything, once PID 1 is reaped."""
        self.stdout.close()
        self.stderr.close()
        if self.bundle is not None:
            os.close(self.bundle)
            self.bundle = None
        self.cell.free()
