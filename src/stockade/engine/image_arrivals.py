"""Bringing one image here: its configuration read, its layers unpacked, its users looked up; all of it, or nothing."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from stockade.backends.sandboxing import FileAccess
from stockade.config_boxes import RegistriesConfig
from stockade.engine.image_blobs import Budget
from stockade.engine.image_catalogue import ImageCatalogue, key_of
from stockade.engine.image_config import ParsedConfig, parse_config, parse_groups, parse_users, resolve_user
from stockade.engine.image_layers import ImageLayers, disk_name
from stockade.engine.image_manifests import BadManifest
from stockade.engine.image_references import Reference
from stockade.engine.image_sources import ImageProgress, ImageSource, ImageUnavailable, SourceImage, SourceLayer
from stockade.engine.lives import moment
from stockade.engine.tasks import Tasks
from stockade.engine.workshops import Workshops
from stockade.errors import Denied, Invalid, LimitExceeded, NotFound, StockadeError
from stockade.model.images import ImageConfig, ImageLayer, ImageRecord

__all__ = ["Arrival", "ImageArrivals"]

log = structlog.get_logger()

_MOST_AT_ONCE = 4
"""Images on their way here at a time; further ones wait."""
_MOST_FILE = 1 << 20
"""Of an image's `/etc/passwd` and `/etc/group`."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """An image that is to come."""

    source: ImageSource
    reference: Reference
    """By which it is found from then on."""
    account_id: str
    """Whose it is; empty for everybody."""
    private_to: str
    """Whose it is where its source is private."""
    brought_by: str
    """Whom it counts for; empty for the operator."""
    progress: ImageProgress


@dataclass(kw_only=True)
class ImageArrivals:
    """Brings images here."""

    catalogue: ImageCatalogue
    layers: ImageLayers
    workshops: Workshops
    tasks: Tasks
    options: RegistriesConfig
    changes: asyncio.Lock
    """Held while an image is recorded or removed."""
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MOST_AT_ONCE))

    async def bring(self, arrival: Arrival) -> ImageRecord:
        """Bring an image here, unless it is; its reference leads to it then.

        Raises:
            BadManifest: it is damaged, hostile, too large, or of another platform.
            ImageUnavailable: its source broke off, or the time was over.
            LimitExceeded: whom it counts for has brought too many.
            Unavailable, Unsupported: the backend, the disks or the database are away.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.options.pull_time_s), self._places:
                record = await self._bring(arrival)
        except TimeoutError:
            raise ImageUnavailable(
                f"the image {arrival.reference} did not come within {self.options.pull_time_s:g} s "
                "(registries.pull_time_s)"
            ) from None
        took_s = round(time.monotonic() - began, 3)
        log.info("image.brought", image=str(arrival.reference), digest=record.digest, took_s=took_s)
        return record

    async def drop_unnamed(self, disks: Iterable[str]) -> None:
        """Remove those of these layers that no image has."""
        for name in disks:
            if name not in self.catalogue.layers():
                await self.layers.drop(name)

    async def _bring(self, arrival: Arrival) -> ImageRecord:
        told = await arrival.source.describe()
        account_id = arrival.private_to if arrival.source.is_private else arrival.account_id
        record = self.catalogue.records.get((account_id, told.digest))
        if record is not None and await self.layers.missing(record.layers):  # somebody removed a disk
            async with self.changes:
                await self.catalogue.remove(key_of(record))
            record = None
        if record is None:
            return await self._unpack(arrival, told, account_id)
        arrival.progress.began(told.layers)
        for layer in told.layers:
            arrival.progress.finished(layer.digest)
        await self.catalogue.name(account_id, arrival.reference, record)
        return record

    async def _unpack(self, arrival: Arrival, told: SourceImage, account_id: str) -> ImageRecord:
        self._check_room(arrival.brought_by)
        parsed = parse_config(told.config, most_layers=self.options.most_layers)
        pairs = _paired(told, parsed)
        arrival.progress.began([layer for layer, _ in pairs])
        digests = [diff_id for _, diff_id in pairs]
        try:
            with self.layers.holding(digests):
                layers = await self._bring_layers(arrival, pairs, account_id)
                config = await self._looked_into(layers, parsed.config)
                return await self._recorded(arrival, told, account_id, layers, config)
        except BaseException:
            leave = self.drop_unnamed({disk_name(one) for one in digests})
            await self.tasks.settle(leave, name=f"clear {arrival.reference}")
            raise

    async def _recorded(
        self,
        arrival: Arrival,
        told: SourceImage,
        account_id: str,
        layers: Sequence[ImageLayer],
        config: ImageConfig,
    ) -> ImageRecord:
        now = moment(self.catalogue.clock())
        record = ImageRecord(
            digest=told.digest,
            account_id=account_id,
            reference=str(arrival.reference),
            config=config,
            layers=tuple(layers),
            size_bytes=sum(layer.size_bytes for layer in layers),
            source=arrival.source.kind,
            brought_by=arrival.brought_by,
            created_at=now,
            used_at=now,
        )
        async with self.changes:
            other = self.catalogue.records.get(key_of(record))
            if other is not None:  # somebody else brought it meanwhile
                await self.catalogue.name(account_id, arrival.reference, other)
                return other
            self._check_room(arrival.brought_by)
            await self.catalogue.put(record)
        return record

    async def _bring_layers(
        self, arrival: Arrival, pairs: Sequence[tuple[SourceLayer, str]], account_id: str
    ) -> list[ImageLayer]:
        known = self.catalogue.diff_ids(account_id)
        budget, places = Budget(self.options.most_image_bytes), asyncio.Semaphore(self.options.at_once)

        async def one(layer: SourceLayer, diff_id: str) -> ImageLayer:
            async with places:
                return await self.layers.bring(
                    arrival.source,
                    layer,
                    diff_id,
                    is_known=diff_id in known,
                    budget=budget,
                    progress=arrival.progress,
                )

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(*pair)) for pair in pairs]
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        return [task.result() for task in tasks]

    async def _looked_into(self, layers: Sequence[ImageLayer], config: ImageConfig) -> ImageConfig:
        """*config* with the image's users, and its own user resolved by them: read inside, as a program there would."""
        order = tuple(layer.disk for layer in reversed(layers))
        async with self.workshops.open("look", layers=order) as files:
            users = parse_users(await _text(files, "/etc/passwd"))
            groups = parse_groups(await _text(files, "/etc/group"))
        try:
            user = resolve_user(config.user, users, groups)
        except Invalid as error:
            raise BadManifest(f"the configuration: {error}") from error
        return replace(config, users=users, user=user)

    def _check_room(self, owner: str) -> None:
        count = len(self.catalogue.brought_by(owner))
        if owner and count >= self.options.most_images:
            raise LimitExceeded(
                f"the account has brought {count} images here, and {self.options.most_images} is the most: remove one"
            )


def _paired(told: SourceImage, parsed: ParsedConfig) -> list[tuple[SourceLayer, str]]:
    """Each layer with the digest of its archive, the lowest first; of one that is there twice, the upper.

    What the lower of two equal layers holds, the upper one holds as well, over all that is between them; and an overlay
    file system takes no layer twice.
    """
    if len(told.layers) != len(parsed.diff_ids):
        raise BadManifest(f"the manifest has {len(told.layers)} layers, the configuration {len(parsed.diff_ids)}")
    found: dict[str, SourceLayer] = {}
    for layer, diff_id in zip(told.layers, parsed.diff_ids, strict=True):
        if layer.diff_id not in (None, diff_id):
            raise BadManifest(f"the layer {layer.digest} is {layer.diff_id}, and by the configuration {diff_id}")
        found.pop(diff_id, None)
        found[diff_id] = layer
    return [(layer, diff_id) for diff_id, layer in found.items()]


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong, of what went wrong side by side: an error of ours where there is one."""
    found: list[BaseException] = []
    pending: list[BaseException] = [failures]
    while pending:
        one = pending.pop(0)
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
        else:
            found.append(one)
    return next((one for one in found if isinstance(one, StockadeError)), found[0])


async def _text(files: FileAccess, path: str) -> bytes:
    """The beginning of a file of an image; nothing where there is none."""
    try:
        _, content = await files.read(path, length=_MOST_FILE)
        return b"".join([piece async for piece in content])
    except (NotFound, Invalid, Denied):
        return b""
