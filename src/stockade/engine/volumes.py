"""Volumes: disks that belong to no box, and which boxes have them now.

A volume is seen by any number of running boxes that only read it, or by one that may write to it. Which box has which
is known here, in memory: a volume is on the host of its server, and so are the boxes that mount it.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator

import structlog

from stockade.backends.disks import Disks
from stockade.engine.box_errors import VolumeInUse
from stockade.engine.box_needs import BoxOptions, BoxTable, VolumeTable
from stockade.engine.box_records import BoxRecords
from stockade.engine.box_requests import checked_box_name
from stockade.engine.tasks import Tasks
from stockade.engine.ulids import new_ulid
from stockade.errors import InvalidLimit, NoAnswer, NotFound, StockadeError
from stockade.model import Actor, Box, DiskMount, Volume, owner_of

__all__ = ["VolumeHolds", "Volumes"]

log = structlog.get_logger()

ANSWER_S = 120.0
"""Seconds that making or deleting a disk may take: the first of all has a file system made."""


class VolumeHolds:
    """Which running boxes have which volumes."""

    def __init__(self) -> None:
        self._holders: dict[str, dict[str, bool]] = {}
        """By volume, whether a box may write to it, by the box."""
        self._mounting: Counter[str] = Counter()
        """Volumes that a box is being made with."""
        self._barred: set[str] = set()
        """Volumes that are being removed."""

    def take(self, box: Box) -> None:
        """Note that a box runs from now on.

        Raises:
            NotFound: one of its volumes is being removed.
            VolumeInUse: another one has one of its volumes, and one of the two may write to it.
        """
        self._check(mount.volume for mount in box.mounts)
        for mount in box.mounts:
            for other, writes in self._holders.get(mount.volume, {}).items():
                if other != box.id and (writes or not mount.read_only):
                    how = "writes to" if writes else "reads"
                    raise VolumeInUse(
                        mount.volume,
                        other,
                        f"volume {mount.volume} cannot be mounted: box {other}, which runs, {how} it; stop that one, "
                        "or mount it read-only in both",
                    )
        for mount in box.mounts:
            self._holders.setdefault(mount.volume, {})[box.id] = not mount.read_only

    def release(self, box: Box) -> None:
        """Note that a box does not run any more. Idempotent."""
        for mount in box.mounts:
            holders = self._holders.get(mount.volume, {})
            holders.pop(box.id, None)
            if not holders:
                self._holders.pop(mount.volume, None)

    @contextlib.contextmanager
    def mounting(self, volumes: Collection[Volume]) -> Iterator[None]:
        """During the block a box is being made that mounts *volumes*: none of them is removed.

        Raises:
            NotFound: one of them is being removed.
        """
        ids = [one.id for one in volumes]
        self._check(ids)
        self._mounting.update(ids)
        try:
            yield
        finally:
            self._mounting.subtract(ids)
            self._mounting += Counter()  # keeps those above zero

    @contextlib.contextmanager
    def barring(self, volume_id: str) -> Iterator[None]:
        """During the block, in which a volume is removed, nobody can take it.

        Raises:
            VolumeInUse: a box has it, or is being made with it.
        """
        if holder := next(iter(self._holders.get(volume_id, {})), None):
            raise VolumeInUse(volume_id, holder, f"volume {volume_id} is mounted by box {holder}, which runs; stop it")
        if self._mounting[volume_id]:
            raise VolumeInUse(volume_id, "", f"volume {volume_id} is mounted by a box that is being made")
        self._barred.add(volume_id)
        try:
            yield
        finally:
            self._barred.discard(volume_id)

    def _check(self, volume_ids: Iterable[str]) -> None:
        for volume_id in volume_ids:
            if volume_id in self._barred:
                raise NotFound(f"volume {volume_id} is being removed")


class Volumes:
    """Volumes of all accounts."""

    def __init__(
        self,
        *,
        table: VolumeTable,
        boxes: BoxTable,
        records: BoxRecords,
        disks: Disks,
        options: BoxOptions | None = None,
    ) -> None:
        """Take what it needs; *boxes* tells which ones mount a volume."""
        self.holds = VolumeHolds()
        self._table = table
        self._boxes = boxes
        self._records = records
        self._disks = disks
        self._options = options or BoxOptions()
        self._tasks = Tasks()
        self._left: dict[str, str] = {}
        """Disks of volumes that are removed and could not be deleted yet, by the volume."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Clear away what a server before left half-made or half-removed; then work during the block.

        Raises:
            Unavailable: the database is away.
        """
        async with self._tasks.running():
            self._left.update(await self._table.list_hidden())
            await self.clear_left()
            yield

    async def create(self, actor: Actor, name: str | None = None, size_bytes: int | None = None) -> Volume:
        """Make an empty volume; it is durable when this returns.

        Args:
            size_bytes: the most that it may hold; `None` for the server's default.

        Raises:
            Invalid, InvalidLimit: the name, or the size, cannot be.
            VolumeExists: the account has one of that name.
            TooManyVolumes: it may have no more.
            Unsupported: this host has no disks.
            Unavailable: the database or the backend is away, or there is no room.
        """
        size_bytes = self._options.volume_bytes if size_bytes is None else size_bytes
        most = self._options.most_disk_bytes
        if not 0 < size_bytes <= most:
            raise InvalidLimit("size_bytes", size_bytes, f"must be 1 to {most}", maximum=most)
        now = self._records.now
        ulid = new_ulid(now=now.timestamp())
        volume = Volume(
            id=f"vol_{ulid}",
            account_id=actor.account_id,
            name=None if name is None else checked_box_name(name),
            disk=f"v{ulid.lower()}",
            size_bytes=size_bytes,
            created_at=now,
            updated_at=now,
        )
        owner = actor.owner
        await asyncio.shield(self._tasks.start(self._make(volume, owner), name=f"make {volume.id}"))
        return volume

    async def list(self, actor: Actor) -> list[Volume]:
        """Those of the actor's account, the newest first."""
        return list(await self._table.list(actor.owner))

    async def get(self, actor: Actor, id_or_name: str) -> Volume:
        """Raises NotFound: the account has no such volume."""
        volume = await self._table.find(actor.owner, id_or_name)
        if volume is None:
            raise NotFound(f"volume {id_or_name[:200]} not found")
        return volume

    async def remove(self, actor: Actor, id_or_name: str, *, force: bool = False) -> None:
        """Remove a volume, with all that is in it.

        Args:
            force: also where a stopped box mounts it (which then cannot be started), or where there is none.

        Raises:
            NotFound: there is none.
            VolumeInUse: a box that runs has it; or one that does not mounts it, and not *force*.
        """
        try:
            volume = await self.get(actor, id_or_name)
        except NotFound:
            if force:
                return
            raise
        await asyncio.shield(self._tasks.start(self._remove(actor, volume, force), name=f"remove {volume.id}"))

    async def remove_of_account(self, account_id: str) -> None:
        """Remove all that an account has.

        Raises:
            VolumeInUse: a box of it still runs.
        """
        actor = Actor(id=account_id, account_id=account_id)
        for volume in await self._table.list(account_id):
            await self.remove(actor, volume.id, force=True)

    async def mounts_of(self, box: Box) -> tuple[DiskMount, ...]:
        """What a box mounts, as sandboxes are told of it.

        Raises:
            NotFound: a volume has been removed.
        """
        owner = owner_of(box.account_id, box.key_id)
        mounts = []
        for one in box.mounts:
            volume = await self._table.find(owner, one.volume)
            if volume is None:
                raise NotFound(f"volume {one.volume}, which box {box.id} mounts at {one.path}, has been removed")
            mounts.append(DiskMount(disk=volume.disk, path=one.path, read_only=one.read_only))
        return tuple(mounts)

    async def clear_left(self) -> None:
        """Delete what could not be deleted before."""
        for volume_id, disk in tuple(self._left.items()):
            await self._dispose(volume_id, disk)

    async def _make(self, volume: Volume, owner: str) -> None:
        await self._table.insert(volume, owner=owner, most=self._options.most_volumes)
        try:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._disks.make(volume.disk, size_bytes=volume.size_bytes)
            except TimeoutError:
                raise NoAnswer(f"volume {volume.id} was not made within {ANSWER_S:g} s") from None
            await self._table.reveal(volume.id)
        except BaseException:
            await self._dispose(volume.id, volume.disk)
            raise

    async def _remove(self, actor: Actor, volume: Volume, force: bool) -> None:
        with self.holds.barring(volume.id):
            if not force:
                for box in (await self._boxes.list(actor.owner)).items:
                    if any(one.volume == volume.id for one in box.mounts):
                        raise VolumeInUse(
                            volume.id,
                            box.id,
                            f"volume {volume.id} is mounted by box {box.id}; remove that one, or force it",
                        )
            if await self._table.hide(volume.id):
                await self._dispose(volume.id, volume.disk)

    async def _dispose(self, volume_id: str, disk: str) -> None:
        """Delete what is hidden; what cannot be deleted now is left for later."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._disks.delete(disk)
            # Where its making failed, it may have been seen already: the answer to that was lost.
            await self._table.hide(volume_id)
            await self._table.delete([volume_id])
            self._left.pop(volume_id, None)
        except (StockadeError, TimeoutError) as error:
            self._left[volume_id] = disk
            log.warning("volume.left", volume_id=volume_id, reason=str(error) or repr(error))
