"""Output of processes in memory: what is kept of it, marks, and readers, as `Streams` promises them."""

import asyncio
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from stockade.backends.sandboxing import (
    LiveExec,
    LiveProcess,
    Mark,
    Output,
    OutputSlice,
    ProcessEnd,
    Reading,
    Refusal,
)
from stockade.errors import NotFound
from stockade.model import Outcome, TerminalSize
from tests.engine.live_fakes import Backend, Box

__all__ = ["LogReader", "Logged", "LoggedBackend", "Write", "logged"]

Write = tuple[bool, bytes]
"""Whether to standard error, and what."""


@dataclass
class Logged:
    """A process that prints what it is told to."""

    argv: tuple[str, ...] = ("sh",)
    kept: int = 1 << 30
    """Bytes kept of each stream."""
    kept_marks: int = 1 << 30
    pid: int = 7
    refusal: Refusal | None = None
    written: list[bytearray] = field(default_factory=lambda: [bytearray(), bytearray()])
    marks: list[Mark] = field(default_factory=list)
    end: ProcessEnd | None = None
    started_at: float = field(default_factory=time.time)
    is_evicted: bool = False
    news: list[asyncio.Event] = field(default_factory=list)
    readers: int = 0
    """Streams that are open."""

    def write(self, is_stderr: bool, data: bytes) -> None:
        """Print; each call has a mark of its own, one nanosecond after that before."""
        self.written[is_stderr] += data
        at_ns = self.marks[-1].at_ns + 1 if self.marks else 1000
        self.marks.append(Mark(at_ns=at_ns, is_stderr=is_stderr, end=len(self.written[is_stderr])))
        self.tell()

    def finish(self, code: int = 0, outcome: Outcome = Outcome.EXITED) -> None:
        if self.end is None:
            self.end = ProcessEnd(outcome=outcome, exit_code=code)
            self.tell()

    def evict(self) -> None:
        """Its output is dropped."""
        self.is_evicted = True
        self.tell()

    def tell(self) -> None:
        for event in self.news:
            event.set()

    def output(self, stdout_at: int, stderr_at: int, most: int) -> Output:
        slices = []
        for number, asked in enumerate((stdout_at, stderr_at)):
            at = max(asked, len(self.written[number]) - self.kept)
            slices.append(OutputSlice(data=bytes(self.written[number][at : at + most]), at=at, dropped=at - asked))
        found: list[Mark] = []
        wanted = [one.end if one.data else 0 for one in slices]
        for mark in self.marks[-self.kept_marks :]:
            number = int(mark.is_stderr)
            if wanted[number] and mark.end > slices[number].at:
                found.append(mark)
                if mark.end >= wanted[number]:
                    wanted[number] = 0
        is_all = all(one.end == len(self.written[number]) for number, one in enumerate(slices))
        end = self.end if is_all else None
        return Output(stdout=slices[0], stderr=slices[1], end=end, marks=tuple(found))


def logged(writes: Iterable[Write], **members: int) -> Logged:
    """A process that has printed *writes*."""
    process = Logged(**members)  # type: ignore[arg-type]
    for is_stderr, data in writes:
        process.write(is_stderr, data)
    return process


class LogReader:
    """Streams of a `Logged`."""

    def __init__(self, process: Logged) -> None:
        self.process = process
        self.is_closed = False
        self.reads = 0
        process.readers += 1

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def refusal(self) -> Refusal | None:
        return self.process.refusal

    async def read(self, stdout_at: int, stderr_at: int, *, most: int = 1 << 18, least: int = 1) -> Output:
        assert not self.is_closed
        self.reads += 1
        news = asyncio.Event()
        self.process.news.append(news)
        try:
            while True:
                if self.process.is_evicted:
                    raise NotFound("its output is not kept any longer")
                output = self.process.output(stdout_at, stderr_at, most)
                if output.stdout.data or output.stderr.data or output.end is not None:
                    return output
                news.clear()
                await news.wait()
        finally:
            self.process.news.remove(news)

    async def write(self, data: bytes) -> bool:
        return False

    async def close_stdin(self) -> None:
        return None

    async def signal(self, number: int) -> None:
        self.process.finish(128 + number, Outcome.SIGNALED)

    async def resize(self, size: TerminalSize) -> None:
        return None

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.process.readers -= 1

    def discard(self) -> None:
        self.close()
        self.process.finish(137, Outcome.SIGNALED)


class LoggedBackend(Backend):
    """A backend whose further processes are `Logged`."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, dict[str, Logged]] = {}
        """By sandbox and name."""
        self.refuses: Refusal | None = None
        """Why processes are not started."""
        self.signals: list[tuple[str, int, bool]] = []
        self.shrugs_off: set[int] = set()
        """Signals that end nobody."""
        self.specs: dict[str, LiveExec] = {}
        self.readings: list[Reading] = []

    def _processes(self, box: Box) -> dict[str, Logged]:
        return self.logged.setdefault(box.name, {})

    def _process(self, name: str, process: str) -> Logged:
        found = self._processes(self._find(name)).get(process)
        if found is None:
            raise NotFound(f"no process {process}")
        return found

    async def exec(  # type: ignore[override]
        self, name: str, process: str, spec: LiveExec, *, reading: Reading = Reading(), gather: int = 0
    ) -> LogReader:
        if not process.startswith("proc-"):
            return await super().exec(name, process, spec)  # type: ignore[return-value]
        await self._enter("exec", name)
        box = self._alive(name)
        self.specs[process] = spec
        started = self._processes(box)[process] = Logged(argv=spec.argv, refusal=self.refuses)
        if self.refuses is not None:
            started.pid = 0
            started.finish(127)
        return LogReader(started)

    async def open(  # type: ignore[override]
        self, name: str, process: str, *, reading: Reading = Reading()
    ) -> LogReader:
        await self._enter("open", name)
        self.readings.append(reading)
        found = self._process(name, process)
        if found.is_evicted:
            raise NotFound("its output is not kept any longer")
        return LogReader(found)

    async def processes(self, name: str) -> list[LiveProcess]:
        await self._enter("processes", name)
        return [
            self._facts(process, known)
            for process, known in {
                **{process: Logged() for process in self._find(name).processes},
                **self._processes(self._find(name)),
            }.items()
        ]

    async def signal_process(self, name: str, process: str, number: int, *, tree: bool = False) -> None:
        await self._enter("signal_process", name)
        found = self._process(name, process)
        self.signals.append((process, number, tree))
        if number not in self.shrugs_off:
            found.finish(128 + number, Outcome.SIGNALED)

    async def process_ended(self, name: str, process: str) -> LiveProcess:
        await self._enter("process_ended", name)
        found = self._process(name, process)
        news = asyncio.Event()
        found.news.append(news)
        while found.end is None:
            news.clear()
            await news.wait()
        found.news.remove(news)
        return self._facts(process, found)

    async def forget_process(self, name: str, process: str) -> None:
        await super().forget_process(name, process)
        if (known := self._processes(self._find(name)).pop(process, None)) is not None:
            known.finish(128 + signal.SIGKILL, Outcome.SIGNALED)

    @staticmethod
    def _facts(name: str, known: Logged) -> LiveProcess:
        return LiveProcess(
            name=name,
            argv=known.argv,
            pid=known.pid,
            started_at=known.started_at,
            ended_at=None if known.end is None else time.time(),
            end=known.end,
        )
