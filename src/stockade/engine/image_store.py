"""Images that were brought here: whose they are, by which names they are found, and when they go.

An image belongs to everybody when it came without anybody's credentials, and else to one account alone: another finds
it neither by name nor by digest, and has to pull it itself, with credentials of its own. A name leads to what an
account has before it leads to what everybody has.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

import structlog

from stockade.backends.disks import Disks
from stockade.config_boxes import RegistriesConfig
from stockade.engine.image_arrivals import Arrival, ImageArrivals
from stockade.engine.image_catalogue import ImageCatalogue, ImageTable, Key, key_of
from stockade.engine.image_layers import ImageLayers
from stockade.engine.image_pulls import ImagePulls
from stockade.engine.image_references import InvalidReference, Reference, is_digest
from stockade.engine.image_sources import ImageProgress, ImageRegistries, ImageSource, Silent
from stockade.engine.images import HOST_IMAGE
from stockade.engine.tasks import Tasks
from stockade.engine.workshops import Workshops
from stockade.errors import Conflict, Denied, NotFound, StockadeError, UnknownImage
from stockade.model import Actor
from stockade.model.images import ImageRecord

__all__ = ["ImageInUse", "ImageStore", "ImageUsage", "Pruned"]

log = structlog.get_logger()

SWEEP_S = 600.0
"""Between two looks for what nobody uses."""
_IN_USE_S = 20.0


class ImageInUse(Conflict):
    """A box stands on the image."""

    code = "image.in_use"


@dataclass(frozen=True, kw_only=True)
class ImageUsage:
    """What an account, or the operator, has brought here."""

    count: int
    limit: int | None
    """The most; `None` for the operator, who may have any number."""
    known_bytes: int
    """Of their layers, each counted once."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What went."""

    images: tuple[ImageRecord, ...]
    freed_bytes: int
    """Of layers that no image has any more."""


async def _nobody(digest: str) -> bool:
    return False


@dataclass(kw_only=True)
class ImageStore:
    """All images that were brought here. Used within `running`."""

    table: ImageTable
    disks: Disks
    workshops: Workshops
    tasks: Tasks
    """Whose the pulls are; running for longer than `running` here."""
    registries: ImageRegistries | None = None
    """Where images are pulled from; `None`: nowhere."""
    options: RegistriesConfig = field(default_factory=RegistriesConfig)
    in_use: Callable[[str], Awaitable[bool]] = _nobody
    """Whether a box, or a sandbox that has not ended, stands on the image of a digest."""
    is_own: Callable[[str], bool] = lambda name: name == HOST_IMAGE.name
    """Whether a name is one of the server's own images: `Images.is_own`."""
    clock: Callable[[], float] = time.time
    sweep_s: float = SWEEP_S
    _held: Counter[str] = field(default_factory=Counter)
    """Digests of images that somebody is about to stand on."""
    _going: set[Key] = field(default_factory=set)
    """Images that are being removed, if nobody stands on them."""

    def __post_init__(self) -> None:
        self._changes = asyncio.Lock()
        self._catalogue = ImageCatalogue(
            table=self.table, tasks=self.tasks, default_registry=self.options.default, clock=self.clock
        )
        self._layers = ImageLayers(
            disks=self.disks, workshops=self.workshops, tasks=self.tasks, most_bytes=self.options.most_image_bytes
        )
        self._arrivals = ImageArrivals(
            catalogue=self._catalogue,
            layers=self._layers,
            workshops=self.workshops,
            tasks=self.tasks,
            options=self.options,
            changes=self._changes,
        )
        self._pulls = ImagePulls(tasks=self.tasks)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Know the images that a server before has brought here, and look after them during the block.

        Raises:
            Unavailable: the database does not answer.
        """
        await self._catalogue.load()
        self._layers.adopt(self._catalogue.layers().values())
        sweeper = self.tasks.start(self._look_after(), name="look after images")
        try:
            yield
        finally:
            sweeper.cancel()
            await asyncio.wait([sweeper])
            await self._catalogue.note_uses()

    def find(self, account_id: str, name: str) -> ImageRecord | None:
        """The image of that reference, alias or digest which an account may use; that it is used now is noted.

        Args:
            account_id: as `Actor.owner` has it.
        """
        key = self._catalogue.lookup(account_id, name)
        return None if key is None else self._catalogue.use(key)

    @contextlib.contextmanager
    def using(self, digest: str) -> Iterator[None]:
        """Keep an image during the block: until what stands on it is on record."""
        self._held[digest] += 1
        try:
            yield
        finally:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]

    async def ensure(self, actor: Actor, reference: str, *, progress: ImageProgress | None = None) -> ImageRecord:
        """The image that *actor* means by *reference*; pulled when it is not here, and may be.

        Raises:
            UnknownImage: it is not here, and is not to be pulled (`registries.pull`), or is a mere digest.
            InvalidReference: it is no name of an image.
            and what `pull` raises.
        """
        found = self.find(actor.owner, reference)
        while found is not None and key_of(found) in self._going:
            async with self._changes:
                found = self.find(actor.owner, reference)
        if found is not None:
            return found
        if is_digest(reference):
            raise UnknownImage(reference, self._usable(actor))
        self._catalogue.parsed(reference)  # what is wrong with it comes before what is not allowed
        if self.registries is None or self.options.pull == "never":
            raise UnknownImage(reference, self._usable(actor))
        return await self.pull(actor, reference, progress=progress)

    async def pull(self, actor: Actor, reference: str, *, progress: ImageProgress | None = None) -> ImageRecord:
        """Ask the registry for an image, and bring it here where what it has now is not here yet.

        The same image is brought once, however many ask at the same moment. When the caller goes away, it goes on as
        long as somebody else waits for it. A failure leaves nothing.

        Raises:
            InvalidReference: it is no name of an image, or one of the server's own.
            BadManifest: what the registry has is damaged, hostile, too large, or of another platform.
            ImageUnavailable: the registry cannot be asked, or broke off, or the time was over.
            LimitExceeded: the account may bring no more images here.
            Denied: the registry is none that may be named, or images are not to be pulled at all.
            Unsupported: this host has no disks.
        """
        wanted = self._catalogue.parsed(reference)
        if self.is_own(reference):
            raise InvalidReference(reference, "is one of the server's own images, which are not pulled")
        if self.registries is None or (self.options.pull == "never" and not actor.is_admin):
            raise Denied("this server pulls no images (registries.pull)")
        registries, owner = self.registries, actor.owner

        async def work(heard: ImageProgress) -> ImageRecord:
            source = await registries.source(str(wanted), account_id=actor.account_id)
            try:
                return await self._arrivals.bring(
                    Arrival(
                        source=source,
                        reference=wanted,
                        account_id="",
                        private_to=owner,
                        brought_by="" if actor.is_admin else owner,
                        progress=heard,
                    )
                )
            finally:
                await source.close()

        record = await self._pulls.once((owner, str(wanted)), work, progress)
        return self._catalogue.use(key_of(record)) if key_of(record) in self._catalogue.records else record

    async def add(
        self,
        source: ImageSource,
        *,
        reference: str,
        account_id: str = "",
        brought_by: str | None = None,
        progress: ImageProgress | None = None,
    ) -> ImageRecord:
        """Bring an image here from *source*, which stays its caller's.

        Args:
            reference: by which it is found from now on, whatever it led to before.
            account_id: whose it is; empty for everybody.
            brought_by: whom it counts for: the account itself where it is not said; empty for the operator.

        Raises:
            InvalidReference, BadManifest, ImageUnavailable, LimitExceeded, Unsupported: as `pull`.
        """
        arrival = Arrival(
            source=source,
            reference=self._nameable(reference, "cannot be given to an image: name it with a tag"),
            account_id=account_id,
            private_to=account_id,
            brought_by=account_id if brought_by is None else brought_by,
            progress=progress or Silent(),
        )
        return await self.tasks.start(self._arrivals.bring(arrival), name=f"bring image {arrival.reference}")

    def list(self, actor: Actor) -> list[ImageRecord]:
        """The images that *actor* may use, with all names that lead to them, the oldest first."""
        return self._catalogue.visible(actor.owner)

    def get(self, actor: Actor, name: str) -> ImageRecord:
        """One image, with all names that lead to it. Raises NotFound."""
        return self._catalogue.named(self._known(actor, name), actor.owner)

    async def alias(self, actor: Actor, name: str, alias: str) -> ImageRecord:
        """Have *alias* lead to an image, wherever it led before; for the operator for everybody, else for the account.

        Raises:
            NotFound: there is no image *name*.
            InvalidReference: *alias* is no name, or one of the server's own.
            LimitExceeded: the account has too many names.
        """
        record = self._known(actor, name)
        wanted = self._nameable(alias, "cannot be an alias: one of the server's own names, or a digest")
        scope = "" if actor.is_admin and not record.account_id else actor.owner
        await self._catalogue.name(scope, wanted, record)
        return self.get(actor, record.digest)

    async def unalias(self, actor: Actor, alias: str) -> None:
        """Have a name lead nowhere. Raises NotFound: there is none; Denied: it is everybody's."""
        wanted, scope, names = str(self._catalogue.parsed(alias)), actor.owner, self._catalogue.names
        if (scope, wanted) not in names:
            if ("", wanted) not in names:
                raise NotFound(f"there is no image {alias!r}")
            if not actor.is_admin:
                raise Denied(f"the name {alias!r} is everybody's")
            scope = ""
        await self._catalogue.unname(scope, wanted)

    async def remove(self, actor: Actor, name: str) -> ImageRecord:
        """Remove an image with all its names, and those of its layers that no other has.

        Raises:
            NotFound: there is none.
            Denied: it is everybody's, and another brought it here.
            ImageInUse: a box stands on it.
        """
        record = self.get(actor, name)
        is_owner = actor.owner in (record.account_id, record.brought_by)
        if not (actor.is_admin or is_owner):
            raise Denied(f"the image {record.reference} is everybody's, and another brought it here")
        if not await self._take_away(record):
            raise ImageInUse(f"the image {record.reference} is in use: remove the boxes first that stand on it")
        return record

    async def remove_of_account(self, account_id: str) -> None:
        """Remove an account's own images and aliases, but for those in use: when it leaves."""
        catalogue = self._catalogue
        for scope, name in [key for key in catalogue.names if key[0] == account_id]:
            await catalogue.unname(scope, name)
        for record in [one for one in catalogue.records.values() if one.account_id == account_id]:
            await self._take_away(record)

    def usage(self, actor: Actor) -> ImageUsage:
        """What counts for *actor*: of an operator, all that operators brought here."""
        owner = "" if actor.is_admin else actor.owner
        records = self._catalogue.brought_by(owner)
        layers = {layer.disk: layer.size_bytes for one in records for layer in one.layers}
        return ImageUsage(
            count=len(records),
            limit=None if actor.is_admin else self.options.most_images,
            known_bytes=sum(layers.values()),
        )

    async def prune(self, unused_s: float | None = None) -> Pruned:
        """Remove images that nobody has used for so long (`None`: `registries.unused_s`), and layers without an image.

        What a box stands on stays. Raises Unavailable: the database does not answer.
        """
        limit = self.options.unused_s if unused_s is None else unused_s
        return await self._prune(self._catalogue.unused(limit))

    def _usable(self, actor: Actor) -> Iterable[str]:
        return (HOST_IMAGE.name, *self._catalogue.familiar(actor.owner))

    def _known(self, actor: Actor, name: str) -> ImageRecord:
        key = self._catalogue.lookup(actor.owner, name)
        if key is None:
            raise NotFound(f"there is no image {name[:200]!r}")
        return self._catalogue.records[key]

    def _nameable(self, name: str, reason: str) -> Reference:
        """*name* in full, if it can be given to an image. Raises InvalidReference."""
        wanted = self._catalogue.parsed(name)
        if wanted.digest is not None or self.is_own(name):
            raise InvalidReference(name, reason)
        return wanted

    async def _take_away(self, record: ImageRecord) -> bool:
        """Remove an image that nobody stands on; whether it was."""
        key = key_of(record)
        async with self._changes:
            if key not in self._catalogue.records:
                return True
            self._going.add(key)  # whoever wants to stand on it from now on waits for what becomes of it
            try:
                async with asyncio.timeout(_IN_USE_S):
                    if self._held[record.digest] or await self.in_use(record.digest):
                        return False
                await self._catalogue.remove(key)
            finally:
                self._going.discard(key)
        log.info("image.removed", image=record.reference, digest=record.digest)
        await self._arrivals.drop_unnamed({layer.disk for layer in record.layers})
        return True

    async def _prune(self, records: Iterable[ImageRecord]) -> Pruned:
        before = self._catalogue.layers()
        gone = [record for record in records if await self._take_away(record)]
        after = self._catalogue.layers()
        try:
            await self._layers.collect(after)
        except StockadeError as error:
            log.warning("image.layers_not_collected", reason=str(error) or repr(error))
        freed = sum(layer.size_bytes for disk, layer in before.items() if disk not in after)
        return Pruned(images=tuple(gone), freed_bytes=freed)

    async def _look_after(self) -> None:
        is_checked = False
        while True:
            if self._catalogue.records:  # to ask for disks has them made: not by a server that never had an image
                if not is_checked:
                    await self._check_layers()
                    is_checked = True
                await self._clean_up()
            await asyncio.sleep(self.sweep_s)

    async def _clean_up(self) -> None:
        try:
            await self._catalogue.note_uses()
            # What cannot be pulled again goes by order only.
            old = self._catalogue.unused(self.options.unused_s)
            await self._prune(record for record in old if record.source == "registry")
        except (StockadeError, TimeoutError) as error:
            log.warning("image.clean_up_failed", reason=str(error) or repr(error))

    async def _check_layers(self) -> None:
        """Know no images whose layers somebody removed: they are pulled again when they are asked for."""
        try:
            missing = {layer.disk for layer in await self._layers.missing(self._catalogue.layers().values())}
            for record in list(self._catalogue.records.values()):
                if any(layer.disk in missing for layer in record.layers):
                    log.warning("image.damaged", image=record.reference, digest=record.digest)
                    async with self._changes:
                        await self._catalogue.remove(key_of(record))
        except (StockadeError, TimeoutError) as error:
            log.info("image.layers_not_checked", reason=str(error) or repr(error))
