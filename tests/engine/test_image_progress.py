"""How far an image has come, for who watches."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from stockade.engine.image_progress import LayerProgress, LayerState, Watched, watched
from stockade.engine.image_sources import ImageProgress, ImageUnavailable, SourceLayer
from stockade.model.images import ImageConfig, ImageRecord

pytestmark = pytest.mark.anyio
LAYERS = [SourceLayer(digest="a", size=10), SourceLayer(digest="b", size=20), SourceLayer(digest="c", size=30)]
RECORD = ImageRecord(
    digest="sha256:0",
    account_id="",
    reference="docker.io/library/app:1",
    config=ImageConfig(),
    layers=(),
    size_bytes=60,
    source="registry",
    created_at=datetime.now(UTC),
    used_at=datetime.now(UTC),
)


async def test_each_layer_is_told_and_the_image_last() -> None:
    async def bring(progress: ImageProgress) -> ImageRecord:
        progress.began(LAYERS)
        progress.finished("a")
        progress.fetched("b", 5)
        await asyncio.sleep(0)
        progress.fetched("b", 50)
        progress.fetched("unknown", 1)
        progress.finished("b")
        progress.finished("b")
        return RECORD

    *layers, last = [one async for one in watched(bring)]
    assert last is RECORD
    assert all(isinstance(one, LayerProgress) for one in layers)
    known = {one.digest: one for one in layers if isinstance(one, LayerProgress)}
    assert known == {
        "a": LayerProgress(digest="a", size_bytes=10, state=LayerState.PRESENT),
        "b": LayerProgress(digest="b", size_bytes=20, fetched_bytes=20, state=LayerState.DONE),
        "c": LayerProgress(digest="c", size_bytes=30),
    }


async def test_who_does_not_look_costs_nothing_and_sees_the_latest() -> None:
    progress = Watched()
    progress.began(LAYERS)
    for _ in range(10_000):
        progress.fetched("c", 0)
    progress.end()
    assert [one.digest async for one in progress.changes()] == ["a", "b", "c"]


async def test_what_fails_is_raised_after_what_was_told() -> None:
    async def bring(progress: ImageProgress) -> ImageRecord:
        progress.began(LAYERS[:1])
        raise ImageUnavailable("broke off")

    steps = watched(bring)
    assert await anext(steps) == LayerProgress(digest="a", size_bytes=10)
    with pytest.raises(ImageUnavailable, match="broke off"):
        await anext(steps)


async def test_who_stops_watching_cancels_it() -> None:
    was_cancelled = asyncio.Event()

    async def bring(progress: ImageProgress) -> ImageRecord:
        progress.began(LAYERS)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            was_cancelled.set()
            raise
        return replace(RECORD)

    steps = watched(bring)
    await anext(steps)
    await steps.aclose()
    assert was_cancelled.is_set()
