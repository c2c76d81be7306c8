"""Where a job's path through a worker can be seen: counted, measured, traced."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from stockade.model.jobs import Job, JobResult
from stockade.worker.results import Verdict

__all__ = ["Observer", "Observers"]


class Observer:
    """Told of every step; this one makes nothing of it. Methods return at once and raise nothing."""

    @contextmanager
    def attempting(self, job: Job) -> Iterator[None]:
        """Around all that a worker does with a job that it has claimed."""
        yield

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        """Around a job's run, from the moment that a worker has it; within `attempting`."""
        yield

    def decided(self, job: Job, verdict: Verdict) -> None:
        """It was decided what came of a run; between `running` and `storing`."""

    @contextmanager
    def storing(self, job: Job) -> Iterator[None]:
        """Around the storing of its result; within `attempting`."""
        yield

    def ended(self, job: Job, result: JobResult) -> None:
        """A result was stored; *job* is as it was while it ran."""

    def given_back(self, job: Job, reason: str) -> None:
        """A job was released, to be run again: `busy`, `lost`, `unavailable`, `lapsed`, `draining`."""

    def reaped(self, queued_again: int, ended: Sequence[Job]) -> None:
        """Leases of workers that have died had run out: so many jobs were queued again, others ended as dead, or as
        cancelled.
        """

    @contextmanager
    def telling(self, job: Job) -> Iterator[None]:
        """Around an attempt to tell of a job's end."""
        yield

    def told(self, outcome: str) -> None:
        """A webhook was `delivered`, has `failed` and is tried again, or was `given_up`; within `telling`."""


class Observers(Observer):
    """Passes everything on to several, of which the first is the outermost."""

    def __init__(self, *all: Observer) -> None:
        self._all = all

    @contextmanager
    def attempting(self, job: Job) -> Iterator[None]:
        with ExitStack() as stack:
            for one in self._all:
                stack.enter_context(one.attempting(job))
            yield

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        with ExitStack() as stack:
            for one in self._all:
                stack.enter_context(one.running(job))
            yield

    def decided(self, job: Job, verdict: Verdict) -> None:
        for one in self._all:
            one.decided(job, verdict)

    @contextmanager
    def storing(self, job: Job) -> Iterator[None]:
        with ExitStack() as stack:
            for one in self._all:
                stack.enter_context(one.storing(job))
            yield

    def ended(self, job: Job, result: JobResult) -> None:
        for one in self._all:
            one.ended(job, result)

    def given_back(self, job: Job, reason: str) -> None:
        for one in self._all:
            one.given_back(job, reason)

    def reaped(self, queued_again: int, ended: Sequence[Job]) -> None:
        for one in self._all:
            one.reaped(queued_again, ended)

    @contextmanager
    def telling(self, job: Job) -> Iterator[None]:
        with ExitStack() as stack:
            for one in self._all:
                stack.enter_context(one.telling(job))
            yield

    def told(self, outcome: str) -> None:
        for one in self._all:
            one.told(outcome)
