"""Boxes over what is in memory: disks, sandboxes that can pause, images and secrets; the records are in SQLite."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stockade.backends.disks import DiskFacts, DiskInfo
from stockade.backends.sandboxing import LiveSandbox, LiveSpec
from stockade.engine.box_needs import BoxOptions
from stockade.engine.box_records import BoxRecords
from stockade.engine.boxes import Boxes
from stockade.engine.processes import Processes
from stockade.engine.sandboxes import Sandboxes
from stockade.engine.volumes import Volumes
from stockade.errors import Conflict, NotFound, StockadeError, Unavailable, UnknownImage
from stockade.model import Actor, Box, BoxRequest, BoxState, Diversion, SecretRule
from stockade.model.images import ImageConfig, ImageLayer, ImageRecord, ImageUser
from stockade.store import Database
from stockade.store.boxes import BoxTable
from stockade.store.seals import Seal
from stockade.store.snapshots import SnapshotTable
from stockade.store.tables import metadata
from stockade.store.volumes import VolumeTable
from tests.engine.live_fakes import ONE, Server, limits
from tests.engine.process_fakes import LoggedBackend

__all__ = ["BoxServer", "FakeDisks", "FakeDiversions", "FakeImages", "Running", "away", "box_request"]

MB = 1 << 20
KEY = "ab" * 32


def box_request(name: str | None = None, **changes: Any) -> BoxRequest:
    members: dict[str, Any] = {"image": "host", "limits": limits(), "dialect": "tests"} | changes
    return BoxRequest(name=name, **members)


@dataclass
class FakeDisk:
    size_bytes: int
    content: str = ""


class FakeDisks:
    """`Disks` in memory: what a disk holds is a word."""

    def __init__(self) -> None:
        self.disks: dict[str, FakeDisk] = {}
        self.used_by: dict[str, str] = {}
        """The sandbox that writes to a disk, by the disk."""
        self.failures: dict[str, StockadeError] = {}
        self.holds: dict[str, asyncio.Event] = {}
        self.entered: Counter[str] = Counter()
        """How often each method was called."""
        self.stood_still: list[str] = []
        """Sandboxes that did, for a copy."""

    async def _enter(self, method: str) -> None:
        await asyncio.sleep(0)
        self.entered[method] += 1
        if method in self.holds:
            await self.holds[method].wait()
        if method in self.failures:
            raise self.failures[method]

    def _found(self, name: str) -> FakeDisk:
        if name not in self.disks:
            raise NotFound(f"no disk {name}")
        return self.disks[name]

    async def facts(self) -> DiskFacts:
        return DiskFacts(kind="memory", shares_blocks=True, enforces_size=True, free_bytes=1 << 40, place="memory")

    async def make(self, name: str, *, size_bytes: int) -> None:
        await self._enter("make")
        if name in self.disks:
            raise Conflict(f"there is a disk {name}")
        self.disks[name] = FakeDisk(size_bytes)

    async def copy(self, of: str, name: str, *, size_bytes: int | None = None, sandbox: str | None = None) -> DiskInfo:
        await self._enter("copy")
        source = self._found(of)
        if name in self.disks:
            raise Conflict(f"there is a disk {name}")
        if self.used_by.get(of) not in (None, sandbox):
            raise Conflict(f"disk {of} is written to")
        if sandbox is not None:
            self.stood_still.append(sandbox)
        self.disks[name] = replace(source, size_bytes=size_bytes or source.size_bytes)
        return await self.info(name)

    async def replace(self, name: str, by: str) -> None:
        await self._enter("replace")
        if name in self.used_by:
            raise Conflict(f"disk {name} is written to")
        self._found(name).content = self._found(by).content

    async def seal(self, name: str) -> DiskInfo:
        return await self.info(name)

    async def resize(self, name: str, *, size_bytes: int) -> None:
        self._found(name).size_bytes = size_bytes

    async def delete(self, name: str) -> None:
        await self._enter("delete")
        if name in self.used_by:
            raise Conflict(f"disk {name} is written to")
        self.disks.pop(name, None)

    async def info(self, name: str) -> DiskInfo:
        disk = self._found(name)
        return DiskInfo(name=name, size_bytes=disk.size_bytes, used_bytes=len(disk.content))

    async def list(self) -> Sequence[DiskInfo]:
        return [await self.info(name) for name in self.disks]


class BoxBackend(LoggedBackend):
    """Sandboxes that write to disks, and can stand still."""

    def __init__(self, disks: FakeDisks) -> None:
        super().__init__()
        self.disks = disks
        self.paused: set[str] = set()

    async def create(self, name: str, spec: LiveSpec) -> LiveSandbox:
        for mount in spec.mounts:
            self.disks._found(mount.disk)
        if spec.disk is not None:
            self.disks._found(spec.disk)
            if spec.disk in self.disks.used_by:
                raise Conflict(f"disk {spec.disk} is written to")
        made = await super().create(name, spec)
        if spec.disk is not None:
            self.disks.used_by[spec.disk] = name
            self.boxes[name].over = _Freeing(self.disks, spec.disk)
        return made

    async def pause(self, name: str) -> None:
        await self._enter("pause", name)
        self._alive(name)
        self.paused.add(name)

    async def resume(self, name: str) -> None:
        await self._enter("resume", name)
        self._alive(name)
        self.paused.discard(name)

    async def inspect(self, name: str) -> LiveSandbox:
        return replace(await super().inspect(name), is_paused=name in self.paused)

    def write(self, sandbox_id: str, content: str) -> None:
        """Something inside writes to the disk."""
        disk = self.boxes[sandbox_id].spec.disk
        assert disk is not None
        self.disks.disks[disk].content = content


class _Freeing(asyncio.Event):
    """Set when a sandbox is over: then its disk is free."""

    def __init__(self, disks: FakeDisks, disk: str) -> None:
        super().__init__()
        self._disks, self._disk = disks, disk

    def set(self) -> None:
        self._disks.used_by.pop(self._disk, None)
        super().set()


ALPINE = ImageRecord(
    digest="sha256:" + "a" * 64,
    account_id="",
    reference="docker.io/library/alpine:3.20",
    config=ImageConfig(
        entrypoint=("/entry",),
        command=("serve", "--all"),
        env={"FROM_IMAGE": "1"},
        cwd="/srv",
        user="70:70",
        users={"root": ImageUser(uid=0, gid=0, home="/root"), "postgres": ImageUser(uid=70, gid=71, home="/pg")},
    ),
    layers=(ImageLayer(diff_id="sha256:" + "b" * 64, disk="l1", size_bytes=MB),),
    size_bytes=MB,
    source="registry",
    created_at=None,  # type: ignore[arg-type]
    used_at=None,  # type: ignore[arg-type]
)


class FakeImages:
    """One image, by its short name, its reference or its digest."""

    def __init__(self) -> None:
        self.failure: StockadeError | None = None
        self.held: Counter[str] = Counter()
        self.is_gone = False

    def find(self, account_id: str, name: str, /) -> ImageRecord | None:
        is_it = name in ("alpine", ALPINE.reference, ALPINE.digest) and not self.is_gone
        return ALPINE if is_it else None

    async def ensure(self, actor: Actor, reference: str) -> ImageRecord:
        if self.failure is not None:
            raise self.failure
        found = self.find(actor.account_id, reference)
        if found is None:
            raise UnknownImage(reference, ("host",))
        return found

    @contextlib.contextmanager
    def using(self, digest: str) -> Iterator[None]:
        self.held[digest] += 1
        yield
        self.held[digest] -= 1


@dataclass
class FakeAdmission:
    diversion: Diversion
    certificate: str
    env: Mapping[str, str]


class FakeDiversions:
    def __init__(self) -> None:
        self.admitted: dict[str, Sequence[SecretRule]] = {}
        self.installed: list[str] = []

    def admit(self, sandbox_id: str, rules: Sequence[SecretRule]) -> FakeAdmission:
        self.admitted[sandbox_id] = rules
        env = {one.name: one.placeholder for one in rules}
        return FakeAdmission(Diversion(port=1, token="t"), "CERTIFICATE", env)

    def forget(self, sandbox_id: str) -> None:
        self.admitted.pop(sandbox_id, None)

    async def install(self, files: Any, admission: Any) -> None:
        self.installed.append(files.box.name)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server."""

    boxes: Boxes
    volumes: Volumes
    sandboxes: Sandboxes
    processes: Processes
    records: BoxRecords
    table: BoxTable
    snapshots: SnapshotTable

    async def sweep(self) -> None:
        """See to all that is due now."""
        await self.boxes._sweeper.sweep()

    async def reaches(self, box: Box, state: BoxState) -> Box:
        """Wait until a box is in a state."""
        return await self.comes(box, lambda now: now.state is state)

    async def comes(self, box: Box, wanted: Callable[[Box], bool]) -> Box:
        """Wait until a box is as *wanted* says."""
        async with asyncio.timeout(30):
            while True:
                now = await self.boxes.get(ONE, box.id)
                if wanted(now):
                    return now
                await asyncio.sleep(0.002)

    async def hides(self) -> None:
        """Wait until a box is being made that nobody sees yet."""
        async with asyncio.timeout(30):
            while True:
                if await self.table.list_hidden():
                    return
                await asyncio.sleep(0.002)

    async def goes(self, box: Box) -> None:
        """Wait until a box is not to be found any more."""
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.boxes.get(ONE, box.id)
                except NotFound:
                    return
                await asyncio.sleep(0.002)


class BoxServer:
    """All services of the engine over what outlives it; `running` again for the next server."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.server = Server(directory / "images")
        self.disks = FakeDisks()
        self.server.backend = self.backend = BoxBackend(self.disks)
        self.images = FakeImages()
        self.diversions = FakeDiversions()
        self.place = directory / "state" / "boxes.db"
        self.options = BoxOptions(**{"sweep_s": 3600.0, "stop_grace_s": 0.2, "disk_s": 5.0, **options})
        self.time = 0.0
        """Seconds that have passed beside those that really have."""

    @contextlib.asynccontextmanager
    async def running(self, *, server_id: str = "server-1") -> AsyncIterator[Running]:
        """One server's life. What runs in the backend goes on after it."""
        async with Database.at(self.place) as database, self.server.running() as sandboxes:
            await database.write(metadata.create_all)
            sandboxes.images._stored = self.images  # the server was made without
            table = BoxTable(database=database, server_id=server_id, seal=Seal(KEY))
            snapshots = SnapshotTable(database=database, server_id=server_id)
            records = BoxRecords(table, clock=lambda: sandboxes.lives.clock() + self.time)
            processes = Processes(sandboxes)
            volumes = Volumes(
                table=VolumeTable(database=database, server_id=server_id),
                boxes=table,
                records=records,
                disks=self.disks,
                options=self.options,
            )
            boxes = Boxes(
                table=table,
                snapshots=snapshots,
                records=records,
                sandboxes=sandboxes,
                processes=processes,
                disks=self.disks,
                pausing=self.backend,
                volumes=volumes,
                images=self.images,
                diversions=self.diversions,
                options=self.options,
            )
            async with volumes.running(), boxes.running():
                yield Running(
                    boxes=boxes,
                    volumes=volumes,
                    sandboxes=sandboxes,
                    processes=processes,
                    records=records,
                    table=table,
                    snapshots=snapshots,
                )


def away() -> Unavailable:
    return Unavailable("it is away")
