"""What happens to a job, as it happens: changes of its state, and what it prints."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from stockade.errors import NotFound
from stockade.model.jobs import Job, JobResult, JobState, OutputPiece
from stockade.store.jobs import JobStore

__all__ = ["JobEvent", "StateChanged", "follow", "until_ended"]

WATCH_S = 20.0
"""Time for which a worker is asked to note output; asked again while somebody listens."""
SHORTEST_LOOK_S = 0.05
LONGEST_LOOK_S = 1.0
"""The store may miss a change; so long after it at most we see it all the same."""
PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class StateChanged:
    """The job is in another state, has another attempt, or somebody has asked for its end."""

    job: Job


JobEvent = StateChanged | OutputPiece


async def until_ended(store: JobStore, job: Job, *, timeout_s: float) -> Job:
    """The job once it has ended, or as it is after *timeout_s*.

    Raises:
        NotFound: it was forgotten meanwhile.
        Unavailable: the store is away.
    """
    give_up = time.monotonic() + timeout_s
    look_s = SHORTEST_LOOK_S
    while not job.has_ended and (left_s := give_up - time.monotonic()) > 0:
        await store.wait_for_change(job.id, min(look_s, left_s))
        look_s = min(2 * look_s, LONGEST_LOOK_S)
        job = await _again(store, job)
    return job


async def follow(store: JobStore, job: Job, *, nudge: Callable[[], None]) -> AsyncIterator[JobEvent]:
    """What happens to *job* from now on, beginning with how it is and ending with the ended job.

    Output comes in pieces while an attempt runs, and what is left of it just before the end. Pieces of another attempt
    than the last `StateChanged` told of are never given.

    Args:
        nudge: makes workers of this process look soon at what is asked of them.

    Raises:
        NotFound: it was forgotten meanwhile.
        Unavailable: the store is away.
    """
    yield StateChanged(job=job)
    if job.has_ended:
        return
    heard = _Heard(job.fence)
    watch_again = 0.0
    look_s = SHORTEST_LOOK_S
    while not job.has_ended:
        if time.monotonic() >= watch_again:
            await store.watch(job.id, for_s=WATCH_S)
            watch_again = time.monotonic() + WATCH_S / 2
            nudge()
        changed = await store.wait_for_change(job.id, look_s)
        look_s = SHORTEST_LOOK_S if changed else min(2 * look_s, LONGEST_LOOK_S)
        if job.state is JobState.RUNNING:
            for piece in await store.output_after(job.id, heard.number):
                if piece.fence == heard.fence:
                    heard.take(piece)
                    yield piece
        now = await _again(store, job)
        if now.fence != heard.fence:
            heard = _Heard(now.fence)
        if now.result is not None:
            # One after another, and the event loop breathes in between: it can be megabytes.
            for piece in heard.rest_of(now.result):
                yield piece
                await asyncio.sleep(0)
        if _told(now) != _told(job):
            if now.state is JobState.RUNNING:
                nudge()
            yield StateChanged(job=now)
        job = now


async def _again(store: JobStore, job: Job) -> Job:
    found = await store.get(job.id)
    if found is None:
        raise NotFound(f"job {job.id} has been removed")
    return found


def _told(job: Job) -> tuple[object, ...]:
    return job.state, job.fence, job.attempts, job.cancel_requested


class _Heard:
    """What of an attempt's output has been passed on."""

    def __init__(self, fence: int) -> None:
        self.fence = fence
        self.number = 0
        self._lengths = {False: 0, True: 0}
        self._digests = {False: hashlib.sha256(), True: hashlib.sha256()}

    def take(self, piece: OutputPiece) -> None:
        self.number = piece.number
        self._lengths[piece.is_stderr] += len(piece.data)
        self._digests[piece.is_stderr].update(piece.data)

    def rest_of(self, result: JobResult) -> Iterator[OutputPiece]:
        """The output that has not been passed on."""
        for is_stderr, whole in ((False, result.stdout), (True, result.stderr)):
            begin = self._lengths[is_stderr]
            # Else it is another output (a compiler's, say): the ended job has it all.
            if hashlib.sha256(memoryview(whole)[:begin]).digest() != self._digests[is_stderr].digest():
                continue
            for offset in range(begin, len(whole), PIECE_BYTES):
                self.number += 1
                yield OutputPiece(
                    number=self.number,
                    fence=self.fence,
                    is_stderr=is_stderr,
                    data=whole[offset : offset + PIECE_BYTES],
                )
