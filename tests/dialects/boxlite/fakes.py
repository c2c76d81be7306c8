"""Boxes, volumes and images in memory, faithful in what the dialect sees of them."""

import contextlib
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stockade.engine.box_errors import BoxStateConflict, BoxStopped, VolumeInUse
from stockade.engine.box_needs import BoxOptions, BoxTiming
from stockade.engine.box_runs import BoxCounts
from stockade.engine.image_sources import ImageProgress, SourceLayer
from stockade.errors import Invalid, NotFound, UnknownImage
from stockade.model import Actor, Box, BoxRequest, BoxState, Network, Sandbox, SandboxState, Snapshot, Volume
from stockade.model.images import ImageConfig, ImageLayer, ImageRecord
from stockade.model.registries import RegistryCredential
from stockade.store.boxes import BoxExists
from stockade.store.snapshots import SnapshotExists

__all__ = ["IMAGE", "FakeArchives", "FakeBoxes", "FakeImages", "FakeRegistries", "FakeVolumes", "Page"]

MAGIC = b"a box of the fakes:"
LIVING = (BoxState.RUNNING, BoxState.PAUSED)
_numbers = itertools.count(1)


def _now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    return f"01K9ZB3M4T7QWERTYAS{next(_numbers):07d}"


@dataclass(frozen=True, kw_only=True)
class Page:
    items: Sequence[Box]
    cursor: str | None


@dataclass(kw_only=True)
class FakeBoxes:
    """As `engine.boxes.Boxes`; a disk is a text."""

    options: BoxOptions = field(default_factory=BoxOptions)
    rows: dict[str, Box] = field(default_factory=dict)
    disks: dict[str, str] = field(default_factory=dict)
    kept: dict[str, dict[str, tuple[Snapshot, str]]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    """Volumes that a box has."""
    figures: dict[str, dict[str, int]] = field(default_factory=dict)
    requests: list[BoxRequest] = field(default_factory=list)

    def counts(self, actor: Actor) -> BoxCounts:
        return BoxCounts(**self.figures.get(actor.account_id, {}))

    def _count(self, box: Box, what: str) -> None:
        figures = self.figures.setdefault(box.account_id, {})
        figures[what] = figures.get(what, 0) + 1

    def acting(self, box: Box) -> Actor:
        return Actor(id=box.key_id, account_id=box.account_id)

    async def create(self, actor: Actor, request: BoxRequest, disk: str = "") -> Box:
        self.requests.append(request)
        if request.image == "nowhere:1":
            raise UnknownImage(request.image, ["host"])
        if any(one.name == request.name for one in self._of(actor) if request.name):
            raise BoxExists(request.name or "")
        self.used |= {one.volume for one in request.mounts}
        box = Box(
            id=new_id(),
            name=request.name,
            account_id=actor.account_id,
            key_id=actor.id,
            dialect=request.dialect,
            state=BoxState.CONFIGURED,
            image=request.image,
            image_digest="host",
            entrypoint=request.entrypoint or (),
            command=request.command or (),
            env=request.env,
            cwd=request.cwd or "/",
            user=request.user or "root",
            terminal=request.terminal,
            limits=request.limits,
            network=request.network,
            mounts=request.mounts,
            secrets=request.secrets,
            drop_capabilities=request.drop_capabilities,
            labels=request.labels,
            auto_stop_s=request.auto_stop_s,
            auto_delete_s=request.auto_delete_s,
            auto_resume=request.auto_resume,
            disk="d",
            created_at=_now(),
            updated_at=_now(),
            last_used_at=_now(),
        )
        self.disks[box.id] = disk
        return self._put(box)

    def _put(self, box: Box, **changes: Any) -> Box:
        self.rows[box.id] = box = replace(box, updated_at=_now(), **changes)
        return box

    def _of(self, actor: Actor) -> list[Box]:
        return [one for one in self.rows.values() if one.account_id == actor.account_id]

    async def get(self, actor: Actor, id_or_name: str) -> Box:
        for one in self._of(actor):
            if id_or_name in (one.id, one.name):
                return one
        raise NotFound(f"box {id_or_name} not found")

    async def list(
        self,
        actor: Actor,
        *,
        states: Collection[BoxState] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        found = [one for one in reversed(self._of(actor)) if states is None or one.state in states]
        try:
            begin = int(cursor or "0")
        except ValueError:
            raise Invalid("cursor: is none of ours") from None
        end = begin + (limit or len(found))
        return Page(items=found[begin:end], cursor=str(end) if end < len(found) else None)

    async def start(self, actor: Actor, box: Box) -> Box:
        if box.state is not BoxState.RUNNING:
            if box.state is not BoxState.PAUSED:
                self._count(box, "started")
            box = self._put(box, state=BoxState.RUNNING, sandbox_id=f"s-{box.id.lower()}-{box.starts}")
        return box

    async def stop(self, actor: Actor, box: Box, *, grace_s: float | None = None) -> Box:
        if box.state in LIVING:
            self._count(box, "stopped")
            box = self._put(box, state=BoxState.STOPPED, exit_code=137)
            if box.auto_delete_s == 0:
                del self.rows[box.id]
        return box

    async def remove(self, actor: Actor, box: Box, *, force: bool = False) -> None:
        if box.state in LIVING:
            if not force:
                raise BoxStateConflict(box.id, state=box.state, operation="remove")
            self._count(box, "stopped")
        del self.rows[box.id]

    async def pause(self, actor: Actor, box: Box) -> Box:
        self._require(box, LIVING, "pause")
        return self._put(box, state=BoxState.PAUSED)

    async def resume(self, actor: Actor, box: Box) -> Box:
        self._require(box, LIVING, "resume")
        return self._put(box, state=BoxState.RUNNING)

    @staticmethod
    def _require(box: Box, states: Collection[BoxState], what: str) -> None:
        if box.state not in states:
            raise BoxStateConflict(box.id, state=box.state, operation=what)

    async def sandbox(self, actor: Actor, box: Box, *, start: bool = True) -> Sandbox:
        if box.state is not BoxState.RUNNING and not (start and box.auto_resume):
            raise BoxStopped(box.id, state=box.state, operation="use")
        box = await self.start(actor, box)
        assert box.sandbox_id is not None
        return Sandbox(
            id=box.sandbox_id,
            account_id=box.account_id,
            key_id=box.key_id,
            dialect=box.dialect,
            state=SandboxState.RUNNING,
            image=box.image,
            command=(),
            env={},
            cwd="/",
            user="root",
            limits=box.limits,
            network=box.network,
            labels={},
            created_at=_now(),
        )

    @contextlib.contextmanager
    def using(self, box_id: str) -> Iterator[None]:
        yield

    async def update_network(self, actor: Actor, box: Box, network: Network) -> Box:
        return self._put(box, network=network)

    async def snapshot(self, actor: Actor, box: Box, name: str) -> Snapshot:
        kept = self.kept.setdefault(box.id, {})
        if name in kept:
            raise SnapshotExists(name)
        snapshot = Snapshot(
            id=new_id(),
            box_id=box.id,
            account_id=box.account_id,
            name=name,
            disk="s",
            size_bytes=len(self.disks[box.id]),
            created_at=_now(),
        )
        kept[name] = (snapshot, self.disks[box.id])
        return snapshot

    async def snapshots(self, actor: Actor, box: Box) -> Sequence[Snapshot]:
        return [snapshot for snapshot, _ in self.kept.get(box.id, {}).values()]

    def _kept(self, box: Box, name: str) -> tuple[Snapshot, str]:
        try:
            return self.kept.get(box.id, {})[name]
        except KeyError:
            raise NotFound(f"box {box.id} has no snapshot {name}") from None

    async def get_snapshot(self, actor: Actor, box: Box, name: str) -> Snapshot:
        return self._kept(box, name)[0]

    async def remove_snapshot(self, actor: Actor, box: Box, name: str) -> None:
        self._kept(box, name)
        del self.kept[box.id][name]

    async def restore(self, actor: Actor, box: Box, name: str) -> Box:
        _, disk = self._kept(box, name)
        self._require(box, [state for state in BoxState if state not in LIVING], "restore")
        self.disks[box.id] = disk
        return self._put(box)

    async def clone(self, actor: Actor, box: Box, *, name: str | None = None, snapshot: str | None = None) -> Box:
        disk = self.disks[box.id] if snapshot is None else self._kept(box, snapshot)[1]
        if any(one.name == name for one in self._of(actor) if name):
            raise BoxExists(name or "")
        made = replace(box, id=new_id(), name=name, state=BoxState.CONFIGURED, sandbox_id=None, exit_code=None)
        self.disks[made.id] = disk
        return self._put(made)

    async def fork(
        self, actor: Actor, box: Box, count: int, *, snapshot: str | None = None, start: bool = True
    ) -> tuple[Box, ...]:
        made = [await self.clone(actor, box, snapshot=snapshot) for _ in range(count)]
        return tuple([await self.start(actor, one) for one in made] if start else made)

    def timing(self, box_id: str) -> BoxTiming | None:
        return BoxTiming(total_s=0.0123, image_s=0.001, disk_s=0.0004, sandbox_s=0.009, main_s=0.002)


@dataclass(kw_only=True)
class FakeArchives:
    """As `engine.box_archives.BoxArchives`."""

    boxes: FakeBoxes
    spool: Path | None = None

    async def export(self, actor: Actor, box: Box) -> AsyncIterator[bytes]:
        yield MAGIC
        yield self.boxes.disks[box.id].encode()

    async def import_(self, actor: Actor, content: AsyncIterable[bytes], *, name: str | None = None) -> Box:
        got = b"".join([part async for part in content])
        if not got.startswith(MAGIC):
            raise Invalid("this is no exported box")
        model = self.boxes.requests[0]
        return await self.boxes.create(actor, replace(model, name=name), got.removeprefix(MAGIC).decode())


@dataclass(kw_only=True)
class FakeVolumes:
    """As `engine.volumes.Volumes`."""

    boxes: FakeBoxes
    rows: dict[str, Volume] = field(default_factory=dict)

    async def create(self, actor: Actor, name: str | None = None, size_bytes: int | None = None) -> Volume:
        volume = Volume(
            id=f"vol_{new_id()}",
            account_id=actor.account_id,
            name=name,
            disk="v",
            size_bytes=size_bytes or 1 << 30,
            created_at=_now(),
            updated_at=_now(),
        )
        self.rows[volume.id] = volume
        return volume

    async def list(self, actor: Actor) -> Sequence[Volume]:
        return [one for one in self.rows.values() if one.account_id == actor.account_id]

    async def get(self, actor: Actor, id_or_name: str) -> Volume:
        for one in await self.list(actor):
            if id_or_name in (one.id, one.name):
                return one
        raise NotFound(f"volume {id_or_name} not found")

    async def remove(self, actor: Actor, id_or_name: str, *, force: bool = False) -> None:
        found = await self.get(actor, id_or_name)
        if self.boxes.used & {found.id, found.name}:
            raise VolumeInUse(found.id, "b", f"volume {found.id} is mounted")
        del self.rows[found.id]


IMAGE = ImageRecord(
    digest="sha256:" + "ab" * 32,
    account_id="",
    reference="docker.io/library/alpine:3.20",
    config=ImageConfig(command=("/bin/sh",), env={"PATH": "/bin"}),
    layers=(ImageLayer(diff_id="sha256:" + "cd" * 32, disk="l1", size_bytes=4096),),
    size_bytes=4096,
    source="registry",
    created_at=datetime(2026, 5, 1, 10, tzinfo=UTC),
    used_at=datetime(2026, 5, 2, 10, tzinfo=UTC),
)


@dataclass(frozen=True, kw_only=True)
class Usage:
    count: int = 1
    limit: int | None = 100
    known_bytes: int = 4096


@dataclass(frozen=True, kw_only=True)
class Gone:
    images: tuple[ImageRecord, ...] = (IMAGE,)
    freed_bytes: int = 4096


@dataclass(kw_only=True)
class FakeImages:
    """As `engine.image_store.ImageStore`, with one image."""

    rows: dict[str, ImageRecord] = field(default_factory=lambda: {IMAGE.digest: IMAGE})
    added: list[bytes] = field(default_factory=list)

    def list(self, actor: Actor) -> Sequence[ImageRecord]:
        return list(self.rows.values())

    def get(self, actor: Actor, name: str) -> ImageRecord:
        for one in self.rows.values():
            if name in (one.digest, one.reference, "alpine:3.20", *one.names):
                return one
        raise NotFound(f"there is no image {name!r}")

    async def ensure(self, actor: Actor, reference: str, *, progress: ImageProgress | None = None) -> ImageRecord:
        if "nowhere" in reference:
            raise UnknownImage(reference, ["alpine:3.20"])
        if progress is not None:
            layer = SourceLayer(digest="sha256:" + "ef" * 32, size=100)
            progress.began([layer])
            progress.fetched(layer.digest, 100)
            progress.finished(layer.digest)
        return IMAGE

    pull = ensure

    async def add(self, source: Any, *, reference: str, account_id: str, progress: Any = None) -> ImageRecord:
        image = await source.describe()
        self.added.append(image.config)
        return IMAGE

    async def alias(self, actor: Actor, name: str, alias: str) -> ImageRecord:
        found = self.get(actor, name)
        made = self.rows[found.digest] = replace(found, names=(*found.names, f"docker.io/library/{alias}:latest"))
        return made

    async def unalias(self, actor: Actor, alias: str) -> None:
        if alias == "none":
            raise NotFound(f"there is no image {alias!r}")

    async def remove(self, actor: Actor, name: str) -> ImageRecord:
        return self.rows.pop(self.get(actor, name).digest)

    def usage(self, actor: Actor) -> Usage:
        return Usage()

    async def prune(self, unused_s: float | None = None) -> Gone:
        return Gone()


@dataclass(kw_only=True)
class FakeRegistries:
    """As `engine.registry_credentials.RegistryCredentials`."""

    rows: dict[str, RegistryCredential] = field(default_factory=dict)

    async def create(
        self, actor: Actor, *, host: str, username: str, password: str, prefix: str = ""
    ) -> RegistryCredential:
        made = RegistryCredential(
            id="6f1f6a52-0000-4000-8000-000000000001",
            account_id=actor.account_id,
            registry_host=host,
            repository_prefix=prefix,
            username=username,
            created_at=_now(),
        )
        self.rows[made.id] = made
        return made

    async def list(self, actor: Actor) -> Sequence[RegistryCredential]:
        return list(self.rows.values())

    async def remove(self, actor: Actor, id: str) -> None:
        if self.rows.pop(id, None) is None:
            raise NotFound("there is no such credential")
