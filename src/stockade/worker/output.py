"""What a running job prints, passed on piece by piece while somebody watches."""

import asyncio
from collections.abc import Sequence

import structlog

from stockade.backends.base import Glimpse
from stockade.errors import StockadeError
from stockade.model.jobs import Job, OutputPiece
from stockade.store.jobs import JobStore

__all__ = ["EVERY_S", "OutputNotes", "printed"]

log = structlog.get_logger()

EVERY_S = 0.2
PIECE_BYTES = 64 * 1024
MOST_AT_ONCE = 16
"""Pieces that are noted together."""


class OutputNotes:
    """Notes a job's output, from the beginning of the attempt on, for as long as somebody watches."""

    def __init__(self, store: JobStore, job: Job) -> None:
        self._store = store
        self._job = job
        self._number = 0
        self._offsets = {False: 0, True: 0}

    async def keep(self, glimpse: Glimpse, is_watched: asyncio.Event) -> None:
        """Note what *glimpse* shows, until nobody watches any more."""
        while is_watched.is_set():
            if pieces := self._next(glimpse):
                try:
                    await self._store.note_output(self._job.id, pieces)
                except StockadeError as error:
                    # Whoever watches gets the whole output with the result.
                    log.debug("job.output_not_noted", job_id=self._job.id, reason=str(error))
                if len(pieces) == MOST_AT_ONCE:
                    continue
            await asyncio.sleep(EVERY_S)

    def _next(self, glimpse: Glimpse) -> Sequence[OutputPiece]:
        pieces: list[OutputPiece] = []
        for is_stderr in (False, True):
            while len(pieces) < MOST_AT_ONCE:
                data = glimpse.read(is_stderr=is_stderr, offset=self._offsets[is_stderr], most=PIECE_BYTES)
                if not data:
                    break
                self._offsets[is_stderr] += len(data)
                self._number += 1
                pieces.append(OutputPiece(number=self._number, fence=self._job.fence, is_stderr=is_stderr, data=data))
        return pieces


def printed(glimpse: Glimpse, most_bytes: int) -> tuple[bytes, bytes]:
    """What has been printed so far on standard output and standard error, at most so much of each."""
    return (
        glimpse.read(is_stderr=False, offset=0, most=most_bytes),
        glimpse.read(is_stderr=True, offset=0, most=most_bytes),
    )
