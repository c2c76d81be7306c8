"""Boxes as files: what comes back is what went in; whatever is damaged leaves nothing behind."""

import asyncio
import contextlib
import io
import math
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockade.backends.disks import DiskInfo
from stockade.backends.native.files import NativeFiles
from stockade.engine.box_archives import BoxArchives, MissingImage
from stockade.engine.box_manifests import image_configuration
from stockade.engine.box_parcels import BadParcel, ParcelReader, ParcelWriter
from stockade.engine.image_blobs import Archive, Budget
from stockade.engine.image_config import parse_config
from stockade.engine.image_sources import ImageSource
from stockade.engine.tasks import Tasks
from stockade.errors import Invalid, LimitExceeded, NotFound
from stockade.model import Actor, Box, BoxRequest, BoxState, DiskMount, Limits, Network, NetworkMode, Port, SecretRule
from stockade.model.boxes import Mount, Snapshot
from stockade.model.images import ImageConfig, ImageLayer, ImageRecord
from tests.warden.agents import agent_process, needs_root
from tests.warden.archives import DIRECTORY, archive, pieces

pytestmark = [pytest.mark.anyio, needs_root]
NOW = datetime(2026, 5, 1, tzinfo=UTC)
ACTOR = Actor(id="key", account_id="account")
LIMITS = Limits(
    wall_s=math.inf, cpu_s=math.inf, cpus=2.0, memory_bytes=1 << 28, processes=64, disk_bytes=1 << 26,
    disk_inodes=10_000, open_files=100, stack_bytes=1 << 23, output_bytes=1 << 20,
)  # fmt: skip


def a_box(**changes: Any) -> Box:
    box = Box(
        id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        name="mine",
        account_id="account",
        key_id="key",
        dialect="boxlite",
        state=BoxState.STOPPED,
        image="host",
        image_digest="host",
        entrypoint=("sh", "-c"),
        command=("sleep 9",),
        env={"A": "ä=b"},
        cwd="/srv",
        user="1000:1000",
        terminal=True,
        limits=LIMITS,
        network=Network(mode=NetworkMode.EXPOSED, ports=(Port(container=80, host=8080),), allow_domains=("a.com",)),
        mounts=(Mount(volume="vol_1", path="/data"),),
        secrets=(SecretRule(name="KEY", value="the-secret", placeholder="<p>", hosts=("a.com",)),),
        drop_capabilities=("CHOWN",),
        labels={"l": "m"},
        auto_stop_s=5.0,
        auto_delete_s=None,
        auto_resume=False,
        disk="box1",
        created_at=NOW,
        updated_at=NOW,
        last_used_at=NOW,
    )
    return replace(box, **changes)


class World:
    """A host's disks, boxes and images, as plain directories; what is in them is read and written by real agents."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.spool = top / "spool"
        self.names: set[str] = set()
        self.boxes: dict[str, Box] = {}
        self.requests: list[BoxRequest] = []
        self.records: dict[str, ImageRecord] = {}
        self.tasks = Tasks()
        self.archives = BoxArchives(
            boxes=self, disks=self, images=self, workshops=self, tasks=self.tasks, spool=self.spool, version="1"
        )  # fmt: skip

    def tree(self, disk: str) -> Path:
        return self.top / "disks" / disk / "upper"

    def make(self, disk: str) -> Path:
        self.tree(disk).mkdir(parents=True)
        self.names.add(disk)
        return self.tree(disk)

    # disks

    async def copy(self, of: str, name: str, *, size_bytes: int | None = None, sandbox: str | None = None) -> DiskInfo:
        if of not in self.names:
            raise NotFound(f"there is no disk {of}")
        argv = ["cp", "-a", str(self.tree(of).parent), str(self.tree(name).parent)]
        await asyncio.to_thread(subprocess.run, argv, check=True, timeout=60)
        self.names.add(name)
        return await self.info(name)

    async def info(self, name: str) -> DiskInfo:
        return DiskInfo(name=name, size_bytes=0, used_bytes=4096)

    async def delete(self, name: str) -> None:
        self.names.discard(name)
        await asyncio.to_thread(shutil.rmtree, self.tree(name).parent, ignore_errors=True)

    # boxes

    async def create(
        self, actor: Actor, request: BoxRequest, *, fill: Callable[[Box], Awaitable[None]] | None = None
    ) -> Box:
        self.requests.append(request)
        box = a_box(id=f"made{len(self.requests)}", name=request.name, disk=f"box{len(self.requests) + 1}")
        self.make(box.disk)
        try:
            assert fill is not None
            await fill(box)
        except BaseException:
            await self.delete(box.disk)
            raise
        self.boxes[box.id] = box
        return box

    @contextlib.asynccontextmanager
    async def disk_of(self, actor: Actor, box: Box) -> AsyncIterator[str]:
        await self.copy(box.disk, "passing")
        try:
            yield "passing"
        finally:
            await self.delete("passing")

    # workshops

    @contextlib.asynccontextmanager
    async def open(
        self, purpose: str, *, disk: str | None = None, layers: tuple[str, ...] = (), read_only: bool = False
    ) -> AsyncIterator["Files"]:
        assert disk in self.names
        with agent_process(user=None) as (connection, _):
            files = Files(connection)
            files.disk = str(self.tree(str(disk)).parent)
            try:
                yield files
            finally:
                files.close()

    # images

    def find(self, account_id: str, name: str) -> ImageRecord | None:
        return self.records.get(name)

    async def add(
        self, source: ImageSource, *, reference: str, account_id: str = "", brought_by: str = ""
    ) -> ImageRecord:
        told = await source.describe()
        parsed = parse_config(told.config)
        layers = []
        for layer, diff_id in zip(told.layers, parsed.diff_ids, strict=True):
            blob = Archive(await source.open(layer), diff_id=diff_id, budget=Budget(1 << 30))
            disk = f"l{len(self.names)}"
            self.make(disk)
            try:
                async with self.open("layer", disk=disk) as files:
                    size = await files.write_layer(f"{DiskMount.WORKSHOP}/upper", blob)
                await blob.finish()
            except BaseException:
                await self.delete(disk)
                raise
            layers.append(ImageLayer(diff_id=diff_id, disk=disk, size_bytes=size))
        record = an_image(told.digest, reference, tuple(layers), config=parsed.config, account_id=account_id)
        self.records[told.digest] = self.records[reference] = record
        return record

    async def remove(self, actor: Actor, name: str) -> ImageRecord:
        record = self.records.pop(name)
        self.records.pop(record.reference, None)
        for layer in record.layers:
            await self.delete(layer.disk)
        return record

    @contextlib.contextmanager
    def using(self, digest: str) -> Any:
        assert digest in self.records
        yield


class Files(NativeFiles):
    """Files of a workshop that is no sandbox: its disk is somewhere else."""

    disk = ""

    def _there(self, path: str) -> str:
        assert path.startswith(DiskMount.WORKSHOP)
        return self.disk + path.removeprefix(DiskMount.WORKSHOP)

    async def save_tree(self, path: str, **how: Any) -> AsyncIterator[bytes]:
        return await super().save_tree(self._there(path), **how)

    async def load_tree(self, path: str, content: AsyncIterable[bytes], **how: Any) -> int:
        return await super().load_tree(self._there(path), content, **how)

    async def write_layer(self, path: str, archive: AsyncIterable[bytes], **how: Any) -> int:
        return await super().write_layer(self._there(path), archive, **how)


def an_image(digest: str, reference: str, layers: tuple[ImageLayer, ...], **more: Any) -> ImageRecord:
    return ImageRecord(
        digest=digest, reference=reference, layers=layers, size_bytes=1000, source="archive", created_at=NOW,
        used_at=NOW, **{"account_id": "", "config": ImageConfig(command=("sh",)), **more},
    )  # fmt: skip


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path / "here")
    tree = found.make("box1")
    (tree / "srv").mkdir()
    (tree / "srv/file").write_bytes(os.urandom(300_000))
    os.chown(tree / "srv/file", 1000, 1000)
    os.link(tree / "srv/file", tree / "srv/twin")
    (tree / "link").symlink_to("/srv/file")
    os.setxattr(tree / "srv", "user.overlay.opaque", b"y")
    async with found.tasks.running():
        yield found
    assert found.names == {disk for disk in found.names if disk.startswith(("box", "l"))}, "a copy was left"
    assert not found.spool.exists() or not list(found.spool.iterdir())


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path / "there")
    async with found.tasks.running():
        yield found
    assert not found.spool.exists() or not list(found.spool.iterdir())


def with_image(world: World) -> Box:
    """A box on an image of two layers."""
    for number, disk in enumerate(("l1", "l2")):
        tree = world.make(disk)
        (tree / f"bin{number}").write_bytes(b"program" * 1000)
    os.setxattr(world.tree("l2"), "user.overlay.opaque", b"y")
    config = ImageConfig(
        entrypoint=("/bin0",), command=("x",), env={"PATH": "/"}, cwd="/srv", user="5:6", exposed_ports=("80/tcp",)
    )
    digest = "sha256:" + "5" * 64
    layers = tuple(ImageLayer(diff_id=f"sha256:{number:064}", disk=f"l{number}", size_bytes=7000) for number in (1, 2))
    world.records[digest] = an_image(digest, "docker.io/library/app:1", layers, config=config)
    return a_box(image="docker.io/library/app:1", image_digest=digest)


async def whole(export: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in export])


async def test_a_box_is_the_same_again(world: World, elsewhere: World) -> None:
    export = world.archives.export(ACTOR, a_box())
    data = await whole(export)
    assert export.size_hint == 4096
    made = await elsewhere.archives.import_(ACTOR, pieces(data, 1000), name="other")
    (request,) = elsewhere.requests
    box = a_box()
    assert (made.name, request.image) == ("other", "host")
    for member in ("entrypoint", "command", "env", "cwd", "user", "terminal", "limits", "drop_capabilities", "labels",
                   "auto_stop_s", "auto_delete_s", "auto_resume"):  # fmt: skip
        assert getattr(request, member) == getattr(box, member), member
    assert request.network == replace(box.network, ports=(Port(container=80),))
    assert (request.secrets, request.mounts) == ((), ())
    assert b"the-secret" not in data
    tree = elsewhere.tree(made.disk)
    assert (tree / "srv/file").read_bytes() == (world.tree("box1") / "srv/file").read_bytes()
    assert (tree / "srv/twin").samefile(tree / "srv/file")
    assert (tree / "srv/file").stat().st_uid == 1000
    assert os.readlink(tree / "link") == "/srv/file"
    assert os.getxattr(tree / "srv", "user.overlay.opaque") == b"y"


async def test_a_snapshot_is_exported_instead(world: World, elsewhere: World) -> None:
    (world.make("box9") / "then").touch()
    snapshot = Snapshot(
        id="s", box_id="b", account_id="account", name="n", disk="box9", size_bytes=1, created_at=NOW
    )  # fmt: skip
    data = await whole(world.archives.export(ACTOR, a_box(), snapshot=snapshot))
    made = await elsewhere.archives.import_(ACTOR, pieces(data))
    assert os.listdir(elsewhere.tree(made.disk)) == ["then"]
    assert made.name is None


async def test_the_image_comes_along_where_it_is_not_known(world: World, elsewhere: World) -> None:
    box = with_image(world)
    data = await whole(world.archives.export(ACTOR, box))
    await elsewhere.archives.import_(ACTOR, pieces(data))
    record = next(iter(elsewhere.records.values()))
    assert record.digest != box.image_digest
    assert elsewhere.requests[0].image == record.reference
    assert record.config == world.records[box.image_digest].config
    assert record.account_id == "account"
    assert record.reference.startswith("localhost/imported:")
    assert [os.listdir(elsewhere.tree(layer.disk)) for layer in record.layers] == [["bin0"], ["bin1"]]
    assert os.getxattr(elsewhere.tree(record.layers[1].disk), "user.overlay.opaque") == b"y"
    # Once more: it is found, and nothing is added.
    before = set(elsewhere.names)
    await elsewhere.archives.import_(ACTOR, pieces(data))
    assert len(elsewhere.records) == 2
    assert elsewhere.requests[1].image == record.reference
    assert len(elsewhere.names - before) <= 3  # the fake brings its layers again
    # And where it comes from it is known, by its own name.
    world.records[box.image] = world.records[box.image_digest]
    await world.archives.import_(ACTOR, pieces(data))
    assert world.requests[-1].image == box.image


async def test_without_its_image_a_box_is_imported_only_where_that_is(world: World, elsewhere: World) -> None:
    box = with_image(world)
    data = await whole(world.archives.export(ACTOR, box, with_image=False))
    assert len(data) < len(await whole(world.archives.export(ACTOR, box)))
    with pytest.raises(MissingImage, match="app:1"):
        await elsewhere.archives.import_(ACTOR, pieces(data))
    await world.archives.import_(ACTOR, pieces(data))
    world.records.clear()
    with pytest.raises(NotFound, match="not here any more"):
        await whole(world.archives.export(ACTOR, box))


async def test_what_is_broken_off_leaves_nothing(world: World, elsewhere: World) -> None:
    box = with_image(world)
    export = world.archives.export(ACTOR, box)
    await anext(export)
    await export.aclose()
    data = await whole(world.archives.export(ACTOR, box))

    async def failing() -> AsyncGenerator[bytes, None]:
        yield data[: len(data) - 100_000]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await elsewhere.archives.import_(ACTOR, failing())
    assert not elsewhere.boxes
    assert not elsewhere.records
    assert not elsewhere.names


async def test_an_account_has_few_of_them_at_once(world: World) -> None:
    exports = [world.archives.export(ACTOR, a_box()), world.archives.export(ACTOR, a_box())]
    world.archives.most_at_once = 1
    await anext(exports[0])
    with pytest.raises(LimitExceeded, match="wait for one"):
        await anext(exports[1])
    other = world.archives.import_(Actor(id="other", account_id="other"), pieces(b"x" * 100))
    with pytest.raises(BadParcel):
        await other
    for export in exports:
        await export.aclose()
    assert len(await whole(world.archives.export(ACTOR, a_box()))) > 300_000


async def test_a_server_that_ends_breaks_exports_off(tmp_path: Path) -> None:
    world = World(tmp_path / "here")
    (world.make("box1") / "file").write_bytes(os.urandom(20 << 20))
    async with world.tasks.running():
        export = world.archives.export(ACTOR, a_box())
        await anext(export)
    with pytest.raises(Exception, match="broken off"):
        await whole(export)
    assert world.names == {"box1"}


@pytest.fixture(scope="module")
async def exported(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> bytes:
    """A small one, with an image."""
    world = World(tmp_path_factory.mktemp("exported"))
    (world.make("box1") / "file").write_bytes(b"content" * 100)
    async with world.tasks.running():
        return await whole(world.archives.export(ACTOR, with_image(world)))


async def refused(top: Path, data: bytes) -> None:
    world = World(top)
    async with world.tasks.running():
        with pytest.raises(Invalid):
            await world.archives.import_(ACTOR, pieces(data, 10_000))
        assert not world.boxes
        assert not world.records
        assert not world.names
    assert not world.spool.exists() or not list(world.spool.iterdir())


@pytest.mark.parametrize("name", ["nothing", "garbage", "newer", "longer", "twice", "no parts", "no end"])
async def test_what_is_no_export_is_refused(tmp_path: Path, exported: bytes, name: str) -> None:
    data = {
        "nothing": b"",
        "garbage": b"these are no bytes of ours" * 100,
        "newer": exported.replace(b"stockade box 1\n", b"stockade box 2\n", 1),
        "longer": exported + b"x",
        "twice": exported + exported,
        "no parts": ParcelWriter().begin({"image": {"reference": "", "digest": "host"}}),
        "no end": exported[:-37],
    }[name]
    await refused(tmp_path / "world", data)


@given(st.data())
@settings(
    max_examples=int(os.environ.get("STOCKADE_LONG_TESTS") or 0) * 400 or 25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_damaged_export_is_refused(
    tmp_path_factory: pytest.TempPathFactory, exported: bytes, data: st.DataObject
) -> None:
    """Any byte that is another, and any end before the end: nothing is left."""
    noisy = bytearray(exported)
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(noisy) - 1))
        noisy[place] ^= data.draw(st.integers(1, 255))
    else:
        del noisy[data.draw(st.integers(0, len(noisy) - 1)) :]
    asyncio.run(refused(tmp_path_factory.mktemp("noise") / "world", bytes(noisy)))


async def parcel(header: dict[str, Any], *parts: tuple[dict[str, Any], bytes]) -> bytes:
    writer = ParcelWriter()
    data = writer.begin(header)
    for facts, content in parts:
        data += await whole(writer.part(facts, pieces(content)))
    return data + writer.end()


async def header_of(exported: bytes) -> dict[str, Any]:
    return await ParcelReader(pieces(exported)).header()


async def test_hostile_exports_are_refused(tmp_path: Path, exported: bytes) -> None:
    """They are whole, and yet say what cannot be."""
    header = await header_of(exported)
    own = {**header, "image": {"reference": "host", "digest": "host"}}
    disk = archive(("./", {**DIRECTORY, "mode": 0o755}, b""), ("x", {}, b"x"))
    layer = archive(("bin", {}, b"x"))
    config = image_configuration(ImageConfig(), ["sha256:" + "1" * 64])
    evil = archive(("../evil", {}, b"x"))
    device = archive(("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""))
    hostile = [
        await parcel(own, ({"kind": "disk"}, evil)),
        await parcel(own, ({"kind": "disk"}, device)),
        await parcel(own, ({"kind": "disk"}, b"no archive" * 100)),
        await parcel(own, ({"kind": "disk"}, disk), ({"kind": "disk"}, disk)),
        await parcel(own, ({"kind": "what"}, b""), ({"kind": "disk"}, disk)),
        await parcel(own, ({}, disk)),
        await parcel(own),
        await parcel(header, ({"kind": "layer"}, layer), ({"kind": "config"}, config), ({"kind": "disk"}, disk)),
        await parcel(header, ({"kind": "layer"}, layer), ({"kind": "config"}, b"{}"), ({"kind": "disk"}, disk)),
        await parcel(header, ({"kind": "config"}, config), ({"kind": "disk"}, disk)),
        await parcel({**own, "image": {"reference": 5, "digest": "host"}}, ({"kind": "disk"}, disk)),
        await parcel({"image": own["image"]}, ({"kind": "disk"}, disk)),
    ]
    limits = own["box"]["limits"]
    wrong: dict[str, list[object]] = {
        "env": [{"a": 1}, [], {"a": "\ud800"}],
        "limits": [
            {},
            {**limits, "memory_bytes": True},
            {**limits, "memory_bytes": 0.5},
            {**limits, "disk_bytes": None},
        ],
        "command": ["sh"],
        "terminal": [1],
        "user": ["a\0b"],
        "network": [{"mode": "other"}],
        "auto_stop_s": ["5", -1],
    }
    for member, values in wrong.items():
        for value in values:
            hostile.append(await parcel({**own, "box": {**own["box"], member: value}}, ({"kind": "disk"}, disk)))
    for number, data in enumerate(hostile):
        await refused(tmp_path / f"world{number}", data)


async def test_a_bomb_is_refused(tmp_path: Path, exported: bytes) -> None:
    """Few bytes that stand for many: no more is unpacked than the disk may hold, and little at once."""
    header = await header_of(exported)
    own = {**header, "image": {"reference": "host", "digest": "host"}}
    own["box"] = {**own["box"], "limits": {**own["box"]["limits"], "disk_bytes": 1 << 20}}
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w") as target:
        member = tarfile.TarInfo("zeros")
        member.size = 256 << 20
        target.addfile(member, io.BytesIO(bytes(member.size)))
    data = await parcel(own, ({"kind": "disk"}, bomb.getvalue()))
    assert len(data) < 100_000
    world = World(tmp_path / "world")
    async with world.tasks.running():
        with pytest.raises(LimitExceeded, match="more than 1048576 bytes"):
            await world.archives.import_(ACTOR, pieces(data))
    assert not world.names
    reader = ParcelReader(pieces(data))
    await reader.header()
    part = await reader.part()
    assert part is not None
    sizes = part.content(most_bytes=100 << 20)
    assert max([len(await anext(sizes)) for _ in range(4)]) <= 32 << 20
    with pytest.raises(BadParcel, match="unpacks to more"):
        await whole(sizes)


async def test_a_part_is_read_to_its_end_before_the_next(exported: bytes) -> None:
    reader = ParcelReader(pieces(exported))
    await reader.header()
    assert await reader.part() is not None
    with pytest.raises(RuntimeError):
        await reader.part()
