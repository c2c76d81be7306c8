"""How far an image has come, for somebody who watches: told as often as eyes can follow, and never waited for."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from stockade.engine.image_sources import ImageProgress, SourceLayer
from stockade.model.images import ImageRecord

__all__ = ["LayerProgress", "LayerState", "Watched", "watched"]

EVERY_S = 0.1
"""Between two looks at what has changed."""


class LayerState(StrEnum):
    """How far a layer is."""

    WAITING = "waiting"
    FETCHING = "fetching"
    DONE = "done"
    PRESENT = "present"
    """It was here already."""


@dataclass(frozen=True, kw_only=True)
class LayerProgress:
    """What is known of a layer on its way."""

    digest: str
    """Of its blob, as the source has it."""
    size_bytes: int
    """Of the blob."""
    fetched_bytes: int = 0
    state: LayerState = LayerState.WAITING


class Watched(ImageProgress):
    """Remembers how far each layer is until somebody looks. Made for one event loop, and one who looks."""

    def __init__(self) -> None:
        self._layers: dict[str, LayerProgress] = {}
        self._unseen: dict[str, None] = {}
        """Digests, in the order of their first change since the last look."""
        self._news = asyncio.Event()
        self._end = asyncio.Event()

    def began(self, layers: Sequence[SourceLayer]) -> None:
        for one in layers:
            self._note(LayerProgress(digest=one.digest, size_bytes=one.size))

    def fetched(self, digest: str, size: int) -> None:
        if (layer := self._layers.get(digest)) is not None:
            fetched = min(layer.size_bytes, layer.fetched_bytes + size)
            self._note(replace(layer, fetched_bytes=fetched, state=LayerState.FETCHING))

    def finished(self, digest: str) -> None:
        if (layer := self._layers.get(digest)) is not None and layer.state not in (LayerState.DONE, LayerState.PRESENT):
            was_here = layer.state is LayerState.WAITING
            state = LayerState.PRESENT if was_here else LayerState.DONE
            self._note(replace(layer, fetched_bytes=0 if was_here else layer.size_bytes, state=state))

    def end(self) -> None:
        """Nothing changes any more: `changes` ends when all has been seen."""
        self._end.set()
        self._news.set()

    async def changes(self) -> AsyncGenerator[LayerProgress, None]:
        """Each layer once, the lowest first; then, a few times a second, those that are further than they were."""
        while True:
            await self._news.wait()
            self._news.clear()
            unseen, self._unseen = self._unseen, {}
            for digest in unseen:
                yield self._layers[digest]
            if self._end.is_set():
                if not self._unseen:
                    return
                self._news.set()
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), EVERY_S)

    def _note(self, layer: LayerProgress) -> None:
        self._layers[layer.digest] = layer
        self._unseen.setdefault(layer.digest)
        self._news.set()


async def watched(
    bring: Callable[[ImageProgress], Awaitable[ImageRecord]],
) -> AsyncGenerator[LayerProgress | ImageRecord, None]:
    """What *bring* tells of its progress, and its result at last. Closing the generator cancels it.

    Raises:
        StockadeError: whatever *bring* does, after its progress until then.
    """
    progress = Watched()

    async def run() -> ImageRecord:
        try:
            return await bring(progress)
        finally:
            progress.end()

    task = asyncio.create_task(run(), name="bring an image")
    try:
        async with contextlib.aclosing(progress.changes()) as changes:
            async for layer in changes:
                yield layer
        yield await task
    finally:
        task.cancel()
        await asyncio.wait([task])
