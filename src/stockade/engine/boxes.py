"""Boxes, as callers see them: make, find, start, use, stop, copy, remove.

A box is a disk and what is to run on it; each start of it is a sandbox. How that runs is in `engine.box_runs`, what
becomes of its disk in `engine.box_disks` and `engine.box_snapshots`, what nobody asked for in `engine.box_sweeper`.

Boxes are their account's: any key of it may use them. Their sandboxes are of the key that made the box: whoever has
looked a box up acts on its sandbox as `acting(box)`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TypeVar

from stockade.backends.disks import Disks, Pausing
from stockade.engine.backend_policy import BackendPolicy
from stockade.engine.box_creations import BoxCreations
from stockade.engine.box_disks import BoxDisks
from stockade.engine.box_errors import BoxExists, BoxStateConflict, BoxStopped
from stockade.engine.box_needs import (
    BoxOptions,
    BoxTable,
    BoxTiming,
    Diversions,
    ImageStore,
    SnapshotTable,
)
from stockade.engine.box_records import AT_REST, LIVING, BoxRecords, owner_actor
from stockade.engine.box_requests import checked_network
from stockade.engine.box_runs import BoxCounts, BoxRuns, sandbox_of
from stockade.engine.box_snapshots import BoxSnapshots
from stockade.engine.box_sweeper import BoxSweeper
from stockade.engine.images import Image
from stockade.engine.processes import Processes
from stockade.engine.sandboxes import Sandboxes
from stockade.engine.tasks import Tasks
from stockade.engine.volumes import Volumes
from stockade.errors import Invalid, NotFound, StockadeError, Unavailable, UnknownImage
from stockade.model import Actor, Box, BoxRequest, BoxState, Network, NetworkMode, Sandbox, Snapshot
from stockade.store.boxes import BoxPage

__all__ = ["BoxCounts", "BoxExists", "BoxPage", "BoxStateConflict", "BoxStopped", "BoxTiming", "Boxes"]

T = TypeVar("T")

MOST_FORKS = 100
"""Boxes that one fork may make."""
_START_S = 60.0
"""Time for everything that has to be brought together before the first request."""


class Boxes:
    """Boxes of all accounts; knows nothing of HTTP, SQL or kernels."""

    def __init__(
        self,
        *,
        table: BoxTable,
        snapshots: SnapshotTable,
        records: BoxRecords,
        sandboxes: Sandboxes,
        processes: Processes,
        disks: Disks,
        pausing: Pausing,
        volumes: Volumes,
        images: ImageStore | None = None,
        diversions: Diversions | None = None,
        options: BoxOptions | None = None,
        backends: BackendPolicy = BackendPolicy(),
    ) -> None:
        """Take what it needs.

        Args:
            records: the same that *volumes* has.
            images: `None` where there are none but the server's own.
            diversions: `None` where boxes cannot have secrets.
        """
        self._options = options or BoxOptions()
        self._table = table
        self._records = records
        self._sandboxes = sandboxes
        self._volumes = volumes
        self._tasks = Tasks()
        self._disks = BoxDisks(
            disks=disks, table=table, snapshots=snapshots, records=records, tasks=self._tasks, options=self._options
        )
        self._backends = backends
        self._runs = BoxRuns(
            records=records,
            sandboxes=sandboxes,
            processes=processes,
            pausing=pausing,
            volumes=volumes,
            diversions=diversions,
            tasks=self._tasks,
            options=self._options,
            on_stopped=self._remove_if_due,
        )
        self._creations = BoxCreations(
            table=table,
            records=records,
            disks=self._disks,
            runs=self._runs,
            volumes=volumes,
            own_images=sandboxes.images,
            images=images,
            has_secrets=diversions is not None,
            policy=sandboxes.limits,
            tasks=self._tasks,
            options=self._options,
        )
        self._snapshots = BoxSnapshots(
            table=snapshots,
            boxes=table,
            records=records,
            disks=self._disks,
            runs=self._runs,
            options=self._options,
        )
        self._sweeper = BoxSweeper(
            table=table,
            records=records,
            runs=self._runs,
            disks=self._disks,
            volumes=volumes,
            options=self._options,
            stop=self._stop,
            remove=self._remove,
        )

    @property
    def options(self) -> BoxOptions:
        """How much there may be of what."""
        return self._options

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Find again what a server before left, then look after it during the block. What runs at its end goes on.

        Raises:
            Unavailable: the database or the backend does not answer.
        """
        async with self._tasks.running():
            try:
                async with asyncio.timeout(_START_S):
                    await self._reconcile()
            except TimeoutError:
                raise Unavailable(f"boxes and their disks were not brought together within {_START_S:g} s") from None
            self._tasks.background(self._sweeper.run(), name="sweep boxes")
            try:
                yield
            finally:
                with contextlib.suppress(StockadeError, TimeoutError):
                    await self._records.record_uses()

    # ── make and find ───────────────────────────────────────────────────────────────────────────────────────────

    async def create(
        self, actor: Actor, request: BoxRequest, *, fill: Callable[[Box], Awaitable[None]] | None = None
    ) -> Box:
        """Make a box for *actor*: CONFIGURED, with an empty disk; durable when this returns. All or nothing.

        Args:
            fill: puts something onto the disk before anybody sees the box; what it raises undoes everything.

        Raises:
            Invalid: something in the request is wrong (UnknownImage, InvalidLimit, …).
            BoxExists: the account has a box of that name.
            TooManyBoxes: it may have no more.
            NotFound: a volume that it mounts is not there.
            ImageUnavailable: its image could not be brought here.
            Unsupported: this host has no disks, or boxes here cannot have secrets, or the actor's sandboxes may not
                come from where boxes do.
            Unavailable: the database or the backend is away, or there is no room.
        """
        self._backends.demand_disks(actor)
        task = self._tasks.start(self._creations.create(actor, request, fill), name="create a box")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def get(self, actor: Actor, id_or_name: str) -> Box:
        """The record of a box of the actor's account, as it is now.

        Raises:
            NotFound: there is none, or it is another account's.
            Unavailable: the database is away.
        """
        return await self._records.find(actor, id_or_name)

    async def list(
        self,
        actor: Actor,
        *,
        states: Collection[BoxState] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BoxPage:
        """Those of the actor's account, the newest first; all of them where there is no *limit*.

        Raises:
            Invalid: *cursor* is none of ours.
        """
        owner = actor.owner
        page = await self._table.list(owner, states=states, limit=limit, cursor=cursor)
        return BoxPage(items=tuple(map(self._records.shown, page.items)), cursor=page.cursor)

    # ── run ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, actor: Actor, box: Box) -> Box:
        """Start a box, or let a paused one go on; its record once it runs. Idempotent. Several at once start it once.

        It goes on when the caller is gone.

        Raises:
            BoxStateConflict: it is being stopped.
            VolumeInUse: a volume of it is another running box's.
            Invalid: it cannot run so (its image is gone, its command cannot be started, …); it is FAILED then.
            LimitExceeded: the actor's quota is used up; the box is as before.
            Unsupported, Unavailable: as `Sandboxes.create`.
        """

        self._backends.demand_disks(actor)

        async def work(now: Box) -> Box:
            return await self._started(actor, now)

        return await self._alone(box, work, "start")

    async def stop(self, actor: Actor, box: Box, *, grace_s: float | None = None) -> Box:
        """End all processes of a box, the main one after SIGTERM and *grace_s*; its record then. Idempotent.

        A box with `auto_delete_s` 0 is removed with it.

        Raises:
            Unavailable: it could not be stopped in time; it goes on being tried.
        """
        grace_s = self._options.stop_grace_s if grace_s is None else grace_s
        return await self._alone(box, lambda now: self._stop(now, grace_s), "stop")

    async def remove(self, actor: Actor, box: Box, *, force: bool = False) -> None:
        """Remove a box with its disk and its snapshots; what was made of these stays.

        Raises:
            NotFound: it is gone.
            BoxStateConflict: it runs, and not *force*.
            Unavailable: it could not be stopped in time.
        """

        async def work(now: Box) -> None:
            if now.state not in AT_REST and not force:
                raise BoxStateConflict(now.id, state=now.state, operation="remove", remedy="stop it first, or force it")
            await self._remove(now)

        await self._alone(box, work, "remove")

    async def pause(self, actor: Actor, box: Box) -> Box:
        """Let no process of a running box get any processor time; its record then. Idempotent.

        The time does not count. Raises BoxStateConflict: it does not run; Unsupported: this host cannot.
        """
        return await self._alone(box, self._runs.pause, "pause")

    async def resume(self, actor: Actor, box: Box) -> Box:
        """Let a paused box go on; its record then. Idempotent. Raises BoxStateConflict: it does not run."""
        return await self._alone(box, self._runs.resume, "resume")

    async def sandbox(self, actor: Actor, box: Box, *, start: bool = True) -> Sandbox:
        """The sandbox in which a box runs now, for whoever uses it (as `acting(box)`); this counts as a use.

        Args:
            start: start or resume it where it does not run, and may be (`Box.auto_resume`).

        Raises:
            BoxStopped: it does not run, and is not to be started.
            BoxStateConflict: it is paused and not to be resumed, or is being stopped.
            Invalid, LimitExceeded, Unsupported, Unavailable: as `start`.
        """
        now = await self._records.here(box.id)
        row = self._living(now)
        if row is None or now.state is not BoxState.RUNNING or self._records.is_starting(box.id):

            async def work(now: Box) -> Box:
                if start and now.auto_resume:
                    return await self._started(actor, now)
                if now.state is BoxState.RUNNING:
                    return now
                refusal = BoxStateConflict if now.state in (BoxState.PAUSED, BoxState.STOPPING) else BoxStopped
                raise refusal(now.id, state=now.state, operation="use", remedy="start it first")

            now = await self._alone(box, work, "use")
            row = self._living(now)
        if row is None:
            raise BoxStopped(now.id, state=BoxState.STOPPED, operation="use", remedy="it has just ended")
        self._records.touch(box.id)
        return row

    def acting(self, box: Box) -> Actor:
        """Who acts on the sandboxes of a box: the key that made it."""
        return owner_actor(box)

    def using(self, box_id: str) -> AbstractContextManager[None]:
        """A box is in use during the block: it is not stopped for want of use."""
        return self._records.using(box_id)

    async def update_network(self, actor: Actor, box: Box, network: Network) -> Box:
        """Give a box another network, from its next start on. Whether its ports can be reached counts at once.

        Raises:
            Invalid: it cannot be.
            BoxStateConflict: it runs, and what it may reach now would not change.
        """

        async def work(now: Box) -> Box:
            if network == now.network:
                return now
            checked = checked_network(actor, now, network, self._image_of(now), policy=self._sandboxes.limits)
            is_outgoing_same = NetworkMode.NONE not in (network.mode, now.network.mode) and now.network == replace(
                network, mode=now.network.mode
            )
            states = set(BoxState) if is_outgoing_same else AT_REST
            moved = await self._records.move(now.id, states, network=checked, updated_at=self._records.now)
            if moved is None:
                raise BoxStateConflict(
                    now.id, state=now.state, operation="change the network of", remedy="stop it first"
                )
            return moved

        return await self._alone(box, work, "change")

    # ── snapshots and copies ────────────────────────────────────────────────────────────────────────────────────

    async def snapshot(self, actor: Actor, box: Box, name: str) -> Snapshot:
        """Keep the disk of a box as it is at one moment, in which its processes stand still.

        Raises:
            Invalid: it cannot have that name.
            SnapshotExists: the box has one of that name.
            TooManySnapshots: it may have no more.
            Unavailable: there is no room, or something does not answer.
        """
        return await self._alone(box, lambda now: self._snapshots.take(now, name), "snapshot")

    async def snapshots(self, actor: Actor, box: Box) -> Sequence[Snapshot]:
        """Those of a box, the oldest first."""
        return await self._snapshots.list(box)

    async def get_snapshot(self, actor: Actor, box: Box, name: str) -> Snapshot:
        """Raises NotFound: the box has no such snapshot."""
        return await self._snapshots.get(box, name)

    async def remove_snapshot(self, actor: Actor, box: Box, name: str) -> None:
        """Remove a snapshot; boxes that were made of it stay. Raises NotFound."""
        await self._alone(box, lambda now: self._snapshots.remove(now, name), "remove a snapshot of")

    async def restore(self, actor: Actor, box: Box, name: str) -> Box:
        """Let the disk of a box at rest hold what a snapshot of it holds; what it held is gone.

        Raises:
            NotFound: the box has no such snapshot.
            BoxStateConflict: it runs.
        """
        return await self._alone(box, lambda now: self._snapshots.restore(now, name), "restore")

    async def clone(self, actor: Actor, box: Box, *, name: str | None = None, snapshot: str | None = None) -> Box:
        """Make another box like this one, whose disk holds what this one's does now, or what a snapshot does.

        It is CONFIGURED. The two have nothing in common from then on but volumes, where they mount any.

        Raises:
            NotFound: the box has no such snapshot.
            BoxExists, TooManyBoxes, Unavailable: as `create`.
        """
        (made,) = await self._alone(
            box, lambda now: self._snapshots.clone(now, 1, name=name, snapshot=snapshot), "clone"
        )
        return made

    async def fork(
        self, actor: Actor, box: Box, count: int, *, snapshot: str | None = None, start: bool = True
    ) -> tuple[Box, ...]:
        """Make *count* clones at once, all of the same moment, and start them; all or none.

        Raises:
            Invalid: *count* is not 1 to 100.
            NotFound, BoxExists, TooManyBoxes, Unavailable: as `clone`.
            LimitExceeded, VolumeInUse, Invalid, Unsupported: as `start`.
        """
        if not 1 <= count <= MOST_FORKS:
            raise Invalid(f"count: must be 1 to {MOST_FORKS} (got {count})")
        clones = await self._alone(
            box, lambda now: self._snapshots.clone(now, count, name=None, snapshot=snapshot), "fork"
        )
        if not start:
            return tuple(clones)
        places = asyncio.Semaphore(self._options.at_once)

        async def begin(one: Box) -> Box:
            async with places:
                return await self.start(actor, one)

        begun = await asyncio.gather(*map(begin, clones), return_exceptions=True)
        failure = next((one for one in begun if isinstance(one, BaseException)), None)
        if failure is not None:
            removals = (self.remove(actor, one, force=True) for one in clones)
            await asyncio.gather(
                *removals, return_exceptions=True
            )  # what cannot be removed can be seen, and tried again
            raise failure
        return tuple(one for one in begun if isinstance(one, Box))

    @contextlib.asynccontextmanager
    async def disk_of(self, actor: Actor, box: Box) -> AsyncIterator[str]:
        """The name of a disk that holds what a box's does now, and that nobody writes to, during the block: a copy.

        Raises:
            NotFound: the box is gone.
            Unavailable: there is no room, or something does not answer.
        """
        name = self._disks.passing_name()

        async def work(now: Box) -> None:
            sandbox = now.sandbox_id if self._living(now) is not None else None
            await self._disks.copy(now.disk, name, sandbox=sandbox)

        copying = self._begin(box, work, "copy")

        async def clear() -> None:
            await asyncio.wait([copying])  # a caller who is gone does not end it
            await self._disks.delete_passing(name)

        try:
            await asyncio.shield(copying)
            yield name
        finally:
            await self._tasks.settle(clear(), name=f"delete {name}")

    # ── the rest ────────────────────────────────────────────────────────────────────────────────────────────────

    def counts(self, actor: Actor | None = None) -> BoxCounts:
        """What became of boxes since this server began: of the actor's account, or of all."""
        return self._runs.counts(actor)

    def timing(self, box_id: str) -> BoxTiming | None:
        """How long the last start of a box took; `None` where this server has not started it."""
        return self._runs.timing(box_id)

    async def uses_image(self, digest: str) -> bool:
        """Whether a box stands on an image. Raises Unavailable."""
        return await self._table.uses_image(digest)

    async def stop_of_account(self, account_id: str) -> None:
        """Stop all boxes of an account that run here, at once.

        Raises:
            Unavailable: one could not be stopped in time, or the database is away; it can be repeated.
        """
        page = await self._table.list(account_id, states=set(BoxState) - AT_REST, is_here=True)
        await self._each(page.items, lambda now: self._stop(now, 0.0), "stop")

    async def remove_of_account(self, account_id: str) -> None:
        """Remove all boxes of an account that are here, with their snapshots, and its volumes.

        Raises:
            Unavailable: as `stop_of_account`.
        """
        page = await self._table.list(account_id, is_here=True)
        await self._each(page.items, self._remove, "remove")
        await self._volumes.remove_of_account(account_id)

    async def _each(self, boxes: Sequence[Box], work: Callable[[Box], Awaitable[object]], what: str) -> None:
        done = (self._alone(box, work, what) for box in boxes)
        for failure in await asyncio.gather(*done, return_exceptions=True):
            if isinstance(failure, BaseException) and not isinstance(failure, NotFound):
                raise failure

    async def _alone(self, box: Box, work: Callable[[Box], Awaitable[T]], what: str) -> T:
        """Do *work* to the box as it is now, with its lock held, to its end: also when the caller goes away."""

        return await asyncio.shield(self._begin(box, work, what))

    def _begin(self, box: Box, work: Callable[[Box], Awaitable[T]], what: str) -> "asyncio.Task[T]":
        async def locked() -> T:
            async with self._records.lock(box.id):
                now = await self._runs.settle(await self._records.here(box.id))
                return await work(now)

        return self._tasks.start(locked(), name=f"{what} box {box.id}")

    def _image_of(self, box: Box) -> Image:
        try:
            return self._sandboxes.images.find(box.image_digest, box.account_id)
        except UnknownImage:
            raise Invalid(f"image: {box.image} of box {box.id} is not here any more") from None

    async def _started(self, actor: Actor, now: Box) -> Box:
        if now.state is BoxState.PAUSED:
            return await self._runs.resume(now)
        if now.state is BoxState.RUNNING:
            self._records.touch(now.id)
            return self._records.shown(now)
        return await self._runs.start(actor, now)

    async def _stop(self, now: Box, grace_s: float) -> Box:
        was_at_rest = now.state in AT_REST
        stopped = await self._runs.stop(now, grace_s=grace_s)
        if not was_at_rest:
            await self._remove_if_due(stopped)
        return self._records.shown(stopped)

    async def _remove_if_due(self, stopped: Box) -> None:
        if stopped.auto_delete_s == 0:
            await self._remove(stopped)

    async def _remove(self, now: Box) -> None:
        if now.state not in AT_REST:
            now = await self._runs.stop(now, grace_s=0.0)
        if not await self._disks.remove(now):
            raise NotFound(f"box {now.id} not found")
        self._runs.forget(now)

    def _living(self, box: Box) -> Sandbox | None:
        """The sandbox of a box that lives."""
        if box.state not in LIVING or not self._runs.is_alive(box):
            return None
        return self._sandboxes.lives.find(sandbox_of(box))

    async def _reconcile(self) -> None:
        page = await self._table.list(is_here=True)
        for box in await self._disks.clear(page.items):
            if box.state not in AT_REST:
                async with self._records.lock(box.id):
                    adopted = await self._runs.adopt(box)
                    if adopted.state is BoxState.STOPPED:
                        await self._remove_if_due(adopted)
        await self._runs.kill_strays()
