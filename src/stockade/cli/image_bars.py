"""How far an image is, on the terminal."""

import sys
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from stockade.cli.image_places import Steps

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from stockade.engine.image_progress import LayerProgress

__all__ = ["shown"]

_MOST_BARS = 20
"""An image of more layers has a bar for all of them, which fits a terminal."""


async def shown(steps: Steps, *, is_quiet: bool = False) -> Mapping[str, Any]:
    """The image that *steps* end with; on a terminal each layer has a bar until then.

    Whatever *steps* raise is raised, with the bars as they were.
    """
    # Bars are for who waits: they go to where errors go, so that what is printed can be piped.
    if is_quiet or not sys.stderr.isatty():
        return await _last(steps, None)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        return await _last(steps, _Bars(progress))


async def _last(steps: Steps, bars: "_Bars | None") -> Mapping[str, Any]:
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Mapping):
                return step
            if bars is not None:
                bars.move(step)
    raise RuntimeError("the steps ended without an image")


class _Bars:
    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._layers: dict[str, LayerProgress] = {}
        self._tasks: dict[str, TaskID] = {}
        self._all = progress.add_task("asking the registry", total=None)

    def move(self, layer: "LayerProgress") -> None:
        """Take up how far a layer is."""
        from stockade.engine.image_progress import LayerState

        self._layers[layer.digest] = layer
        if layer.digest not in self._tasks and len(self._tasks) < _MOST_BARS:
            name = layer.digest.removeprefix("sha256:")[:12]
            self._tasks[layer.digest] = self._progress.add_task(name, total=layer.size_bytes or None)
        is_present = layer.state is LayerState.PRESENT
        done = layer.size_bytes if is_present else layer.fetched_bytes
        if (task := self._tasks.get(layer.digest)) is not None:
            self._progress.update(task, completed=done)
            if is_present:
                self._progress.update(task, description=f"{layer.digest.removeprefix('sha256:')[:12]} is here")
        known = self._layers.values()
        self._progress.update(
            self._all,
            description=f"{len(known)} layers",
            total=sum(one.size_bytes for one in known) or None,
            completed=sum(one.size_bytes if one.state is LayerState.PRESENT else one.fetched_bytes for one in known),
        )
