"""Images on their way here: each is brought once, however many ask for it at the same moment, and for as long as
somebody waits for it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from stockade.engine.image_sources import ImageProgress, SourceLayer
from stockade.engine.tasks import Tasks
from stockade.model.images import ImageRecord

__all__ = ["ImagePulls"]


class _Heard:
    """Progress that several watch, each from the beginning on."""

    def __init__(self) -> None:
        self._listeners: list[ImageProgress] = []
        self._layers: tuple[SourceLayer, ...] | None = None
        self._fetched: dict[str, int] = {}
        self._finished: list[str] = []

    def add(self, listener: ImageProgress) -> None:
        self._listeners.append(listener)
        if self._layers is not None:
            listener.began(self._layers)
            for digest, size in self._fetched.items():
                listener.fetched(digest, size)
            for digest in self._finished:
                listener.finished(digest)

    def remove(self, listener: ImageProgress) -> None:
        self._listeners.remove(listener)

    def began(self, layers: Sequence[SourceLayer]) -> None:
        self._layers = tuple(layers)
        for listener in self._listeners:
            listener.began(self._layers)

    def fetched(self, digest: str, size: int) -> None:
        self._fetched[digest] = self._fetched.get(digest, 0) + size
        for listener in self._listeners:
            listener.fetched(digest, size)

    def finished(self, digest: str) -> None:
        self._finished.append(digest)
        for listener in self._listeners:
            listener.finished(digest)


@dataclass(kw_only=True)
class _Pull:
    task: asyncio.Task[ImageRecord]
    heard: _Heard
    waiting: int = 0


@dataclass(kw_only=True)
class ImagePulls:
    """Pulls that are under way."""

    tasks: Tasks
    _under_way: dict[tuple[str, str], _Pull] = field(default_factory=dict)

    async def once(
        self,
        key: tuple[str, str],
        work: Callable[[ImageProgress], Coroutine[Any, Any, ImageRecord]],
        progress: ImageProgress | None,
    ) -> ImageRecord:
        """What *work* returns: begun now, or by another for the same *key* and not done yet.

        It is given up when the last of those who wait for it goes away.
        """
        pull = self._under_way.get(key)
        if pull is None:
            heard = _Heard()
            task = self.tasks.start(work(heard), name=f"bring image {key[1]}")
            pull = self._under_way[key] = _Pull(task=task, heard=heard)
            task.add_done_callback(lambda _: self._landed(key, pull))
        if progress is not None:
            pull.heard.add(progress)
        pull.waiting += 1
        try:
            return await asyncio.shield(pull.task)
        finally:
            pull.waiting -= 1
            if progress is not None:
                pull.heard.remove(progress)
            if not pull.waiting and not pull.task.done():
                pull.task.cancel()
                self._landed(key, pull)  # who comes now begins anew

    def _landed(self, key: tuple[str, str], pull: _Pull) -> None:
        if self._under_way.get(key) is pull:
            del self._under_way[key]
