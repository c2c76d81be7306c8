"""Boxes as files with the real parts: disks, workshops, images; as between two servers."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.config_boxes import RegistriesConfig
from stockade.engine.box_archives import BoxArchives
from stockade.engine.image_layouts import DockerArchive
from stockade.engine.image_store import ImageStore
from stockade.engine.tasks import Tasks
from stockade.engine.workshops import Workshops
from stockade.errors import Invalid, LimitExceeded
from stockade.model import Actor, Box, BoxRequest, DiskMount
from stockade.store import Database
from stockade.store.images import ImageTable
from tests.backends.sandboxes import MB, limits
from tests.engine.image_fakes import docker_archive, layer, made
from tests.engine.test_box_archives import ACTOR, a_box, whole
from tests.warden.archives import DIRECTORY, archive, pieces

pytestmark = pytest.mark.anyio
LIMITS = replace(limits(memory_bytes=256 * MB, disk_bytes=64 * MB), wall_s=60.0)
TREE = f"{DiskMount.WORKSHOP}/upper"
_numbers = itertools.count(1)


class Boxes:
    """Boxes of one server, as far as files of them are concerned."""

    def __init__(self, backend: NativeBackend) -> None:
        self._disks = backend.disks
        self.made: dict[str, BoxRequest] = {}

    async def create(
        self, actor: Actor, request: BoxRequest, *, fill: Callable[[Box], Awaitable[None]] | None = None
    ) -> Box:
        box = a_box(disk=f"native{next(_numbers)}", limits=request.limits)
        await self._disks.make(box.disk, size_bytes=request.limits.disk_bytes)
        try:
            assert fill is not None
            await fill(box)
        except BaseException:
            await self._disks.delete(box.disk)
            raise
        self.made[box.disk] = request
        return box

    @contextlib.asynccontextmanager
    async def disk_of(self, actor: Actor, box: Box) -> AsyncIterator[str]:
        name = f"native{next(_numbers)}"
        await self._disks.copy(box.disk, name)
        try:
            yield name
        finally:
            await self._disks.delete(name)


class Host:
    """Two servers with one warden: neither knows of the other's images."""

    def __init__(self, backend: NativeBackend, database: Database, tasks: Tasks, directory: Path) -> None:
        self.backend = backend
        self.boxes = Boxes(backend)
        self.workshops = Workshops(backend=backend.sandboxing, limits=LIMITS, tasks=tasks)
        self.stores = [
            ImageStore(
                table=ImageTable(database=database, server_id=server),
                disks=backend.disks,
                workshops=self.workshops,
                tasks=tasks,
                options=RegistriesConfig(most_image_bytes=256 * MB),
            )
            for server in ("here", "there")
        ]
        self.here, self.there = (
            BoxArchives(
                boxes=self.boxes, disks=backend.disks, images=store, workshops=self.workshops, tasks=tasks,
                spool=directory / "spool", version="1",
            )
            for store in self.stores
        )  # fmt: skip

    async def box(self, tree: bytes, **changes: object) -> Box:
        """A box whose disk holds what an archive does."""
        box = a_box(disk=f"native{next(_numbers)}", limits=replace(LIMITS, disk_bytes=32 * MB), **changes)
        await self.backend.disks.make(box.disk, size_bytes=box.limits.disk_bytes)
        async with self.workshops.open("fill", disk=box.disk) as files:
            await files.write_layer(TREE, pieces(tree))
        return box

    async def names(self) -> set[str]:
        return {disk.name for disk in await self.backend.disks.list()}


@pytest.fixture(scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Host]:
    directory = tmp_path_factory.mktemp("archives")
    unenforced = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids") if os.geteuid() else ()
    options = BackendOptions(data_dir=directory, embedded=True, allow_unenforced=(*unenforced, "disk_size"))
    backend = NativeBackend(options)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(backend.close)
        await backend.start()
        facts = await backend.disks.facts()
        if facts.kind == "none":
            pytest.skip(f"no disks: {facts.why}")
        database = await stack.enter_async_context(await Database.open(directory / "stockade.db"))
        tasks = Tasks()
        await stack.enter_async_context(tasks.running())
        yield Host(backend, database, tasks, directory)


CHANGED = archive(
    ("srv/", {**DIRECTORY, "mode": 0o750, "uid": 7, "gid": 8}, b""),
    ("srv/file", {"mode": 0o4711, "uid": 1000, "mtime": 1_000_000_000}, os.urandom(300_000)),
    ("etc/.wh.passwd", {}, b""),
    ("opt/.wh..wh..opq", {}, b""),
)


async def test_a_disk_goes_round(host: Host) -> None:
    box = await host.box(CHANGED)
    before = await host.names()
    data = await whole(host.here.export(ACTOR, box))
    again = await host.there.import_(ACTOR, pieces(data))
    assert host.boxes.made[again.disk].image == "host"
    saved = []
    for disk in (box.disk, again.disk):
        async with host.workshops.open("look", disk=disk, read_only=True) as files:
            saved.append(await whole(await files.save_tree(TREE)))
    assert saved[0] == saved[1]
    assert len(saved[0]) > 300_000
    assert await host.names() == before | {again.disk}


async def test_an_image_goes_with_its_box(host: Host, tmp_path: Path) -> None:
    lower = layer({"etc/passwd": b"root:x:0:0::/root:/bin/sh\napp:x:5:6::/srv:/bin/sh\n", "etc/gone": b"x"})
    upper = layer({"etc/.wh.gone": b"", "srv/file": b"of the image"})
    docker_archive(tmp_path / "image.tar", made(lower, upper), tags=("app:1",))
    source = DockerArchive(tmp_path / "image.tar")
    record = await host.stores[0].add(source, reference="app:1")
    await source.close()
    box = await host.box(CHANGED, image="app:1", image_digest=record.digest)
    data = await whole(host.here.export(ACTOR, box))
    again = await host.there.import_(ACTOR, pieces(data))
    (found,) = host.stores[1].list(ACTOR)
    assert host.boxes.made[again.disk].image == found.reference
    assert (found.config.users, found.config.command) == (record.config.users, record.config.command)
    assert (len(found.layers), found.size_bytes, found.account_id) == (2, record.size_bytes, "account")
    layers = tuple(one.disk for one in reversed(found.layers))
    async with host.workshops.open("look", layers=layers) as files:
        assert [info.name for info in await files.list("/etc") if info.name in ("gone", "passwd")] == ["passwd"]
        _, content = await files.read("/srv/file")
        assert await whole(content) == b"of the image"
    # What comes back from there is the same image again, and nothing new.
    moved = replace(box, disk=again.disk, image=found.reference, image_digest=found.digest)
    before = await host.names()
    data = await whole(host.there.export(ACTOR, moved))
    third = await host.there.import_(ACTOR, pieces(data))
    assert await host.names() == before | {third.disk}
    assert len(host.stores[1].list(ACTOR)) == 1


async def test_a_damaged_or_too_large_one_leaves_no_disk(host: Host) -> None:
    box = await host.box(CHANGED)
    before = await host.names()
    data = bytearray(await whole(host.here.export(ACTOR, box)))
    data[len(data) // 2] ^= 1
    with pytest.raises(Invalid):
        await host.there.import_(ACTOR, pieces(bytes(data)))
    assert await host.names() == before
    large = await host.box(archive(("file", {}, os.urandom(3 * MB))))
    before = await host.names()
    small = replace(large, limits=replace(large.limits, disk_bytes=MB))
    export = host.here.export(ACTOR, small)
    with pytest.raises(LimitExceeded):
        await host.there.import_(ACTOR, export)
    await export.aclose()
    assert await host.names() == before
