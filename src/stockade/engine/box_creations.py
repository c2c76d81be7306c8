"""Making boxes: from a request to a record and an empty disk, or to nothing."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from stockade.engine.box_disks import BoxDisks
from stockade.engine.box_needs import BoxOptions, BoxTable, ImageStore
from stockade.engine.box_records import BoxRecords
from stockade.engine.box_requests import new_box
from stockade.engine.box_runs import BoxRuns
from stockade.engine.images import Image, Images
from stockade.engine.limits import LimitPolicy
from stockade.engine.tasks import Tasks
from stockade.engine.volumes import Volumes
from stockade.errors import Unsupported
from stockade.model import Actor, Box, BoxRequest

__all__ = ["BoxCreations"]


class BoxCreations:
    """Makes boxes."""

    def __init__(
        self,
        *,
        table: BoxTable,
        records: BoxRecords,
        disks: BoxDisks,
        runs: BoxRuns,
        volumes: Volumes,
        own_images: Images,
        images: ImageStore | None,
        has_secrets: bool,
        policy: LimitPolicy,
        tasks: Tasks,
        options: BoxOptions,
    ) -> None:
        """Take what it needs.

        Args:
            own_images: the server's own.
            images: those from elsewhere; `None` where there are none.
            has_secrets: whether boxes here can have secrets.
            policy: limits of sandboxes that live.
        """
        self._table = table
        self._records = records
        self._disks = disks
        self._runs = runs
        self._volumes = volumes
        self._own_images = own_images
        self._images = images
        self._has_secrets = has_secrets
        self._policy = policy
        self._tasks = tasks
        self._options = options

    async def create(self, actor: Actor, request: BoxRequest, fill: Callable[[Box], Awaitable[None]] | None) -> Box:
        began = time.perf_counter()
        if request.secrets and not self._has_secrets:
            raise Unsupported("secrets: this server has no proxy that could put them in")
        image = await self._ensured(actor, request.image)
        image_s = time.perf_counter() - began
        mounted = {one.volume: await self._volumes.get(actor, one.volume) for one in request.mounts}
        with contextlib.ExitStack() as held:
            held.enter_context(self._volumes.holds.mounting(mounted.values()))
            if image.digest and self._images is not None:
                held.enter_context(self._images.using(image.digest))
            box = new_box(
                actor,
                request,
                image,
                volumes=mounted,
                policy=self._policy,
                options=self._options,
                now=self._records.now,
            )
            disk_s = await self._record(box, fill)
        self._records.note(box)
        self._runs.note_made(box, image_s=image_s, disk_s=disk_s)
        return box

    async def _record(self, box: Box, fill: Callable[[Box], Awaitable[None]] | None) -> float:
        """Record a box and make its disk, all or nothing; the seconds that the disk took."""
        settle = self._tasks.settle

        async def make() -> float:
            began = time.perf_counter()
            await self._disks.make(box)
            return time.perf_counter() - began

        async with self._records.lock(box.id):
            insertion = self._table.insert([box], most=self._options.most_of_account, is_hidden=fill is not None)
            try:
                # Side by side. What a crash leaves of the two was never acknowledged: a record without a disk, or an
                # empty disk without a record, which the next start clears away.
                recorded, made = await asyncio.gather(
                    settle(insertion, name=f"record box {box.id}"), make(), return_exceptions=True
                )
                if isinstance(recorded, BaseException):
                    raise recorded
                if isinstance(made, BaseException):
                    raise made
                if fill is not None:
                    await fill(box)
                    await settle(self._table.reveal([box.id]), name=f"show box {box.id}")
            except BaseException:
                await settle(self._disks.remove(box), name=f"remove box {box.id}")
                raise
        return made

    async def _ensured(self, actor: Actor, reference: str) -> Image:
        if self._own_images.is_own(reference) or self._images is None:
            return self._own_images.find(reference, actor.owner)
        record = await self._images.ensure(actor, reference)
        return self._own_images.find(record.digest, actor.owner)
