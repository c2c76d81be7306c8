"""A job that a worker has: from its claim until the store knows what came of it."""

import asyncio
import time
from enum import StrEnum

from stockade.backends.base import Glimpse
from stockade.model import RunResult
from stockade.model.jobs import Job
from stockade.worker.output import printed

__all__ = ["CutShort", "Held"]

MOST_SAVED_BYTES = 1 << 20
"""Of each stream of a job that is cancelled."""


class CutShort(StrEnum):
    """Why a worker has ended a run of its own."""

    CANCELLED = "cancelled"
    """Somebody wanted it."""
    LOST = "lost"
    """Another worker has the job by now."""
    LAPSED = "lapsed"
    """The store was away for so long that another worker may have it."""
    DRAINING = "draining"
    """The worker ends."""


class Held:
    """One claimed job, and what this worker does with it."""

    def __init__(self, job: Job, *, lease_ends: float) -> None:
        self.job = job
        self.lease_ends = lease_ends
        """On the monotonic clock, counted from before the claim was asked for: the store's own ends later."""
        self.run: asyncio.Task[RunResult] | None = None
        self.is_running = True
        """It takes a place: until its run has ended."""
        self.cut_short: CutShort | None = None
        self.saved: tuple[bytes, bytes] = (b"", b"")
        """What it had printed when it was cancelled."""
        self.is_watched = asyncio.Event()
        self.glimpse: Glimpse | None = None
        self.began = time.monotonic()

    def look(self, glimpse: Glimpse) -> None:
        """Take what shows the run's output."""
        self.glimpse = glimpse

    def end(self, why: CutShort) -> None:
        """End the run; the first reason counts. Without effect once it has ended by itself."""
        if self.cut_short is None and self.is_running:
            self.cut_short = why
            if why is CutShort.CANCELLED and self.glimpse is not None:
                self.saved = printed(self.glimpse, MOST_SAVED_BYTES)
            if self.run is not None:
                self.run.cancel()
