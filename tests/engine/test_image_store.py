"""Images that are brought here: once, whole or not at all, and found by those who may have them."""

import asyncio
import contextlib
import tarfile
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from stockade.config_boxes import RegistriesConfig
from stockade.engine import image_catalogue
from stockade.engine.image_layers import disk_name
from stockade.engine.image_manifests import BadManifest
from stockade.engine.image_references import InvalidReference
from stockade.engine.image_sources import ImageSource, ImageUnavailable, SourceLayer
from stockade.engine.image_store import ImageInUse, ImageStore
from stockade.engine.images import Images
from stockade.engine.tasks import Tasks
from stockade.engine.workshops import Workshops
from stockade.errors import Denied, LimitExceeded, NotFound, Unavailable, UnknownImage
from stockade.model import Actor
from stockade.model.images import ImageUser
from stockade.store import Database
from stockade.store.images import ImageTable
from tests.engine.image_fakes import FakeDisks, FakeSandboxes, FakeSource, MadeImage, layer, made, sha256, until
from tests.engine.live_fakes import limits

pytestmark = pytest.mark.anyio

ANN, BOB = Actor(id="key-ann", account_id="ann"), Actor(id="key-bob", account_id="bob")
OPERATOR = Actor(id="key-root", account_id="operator", is_admin=True)
PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n"
BASE = layer({"etc/passwd": PASSWD, "bin/sh": b"#!"})
APP = made(BASE, layer({"srv/app": b"x" * 5000}), config={"User": "app", "Cmd": ["/srv/app"], "Env": ["A=1"]})
OTHER = made(BASE, layer({"other": b"y"}))


@dataclass
class Registries:
    """Registries that have an image by its full reference; with credentials, as accounts have them."""

    images: dict[str, MadeImage] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    """Accounts that have credentials."""
    sources: list[FakeSource] = field(default_factory=list)
    gate: asyncio.Event | None = None
    broken: Exception | None = None

    async def source(self, reference: str, *, account_id: str) -> ImageSource:
        if reference not in self.images:
            raise ImageUnavailable(f"there is no {reference}")
        source = FakeSource(
            self.images[reference], is_private=account_id in self.private, gate=self.gate, broken=self.broken
        )
        self.sources.append(source)
        return source


@dataclass
class Host:
    """What outlives a store."""

    database: Database
    disks: FakeDisks = field(default_factory=FakeDisks)
    registries: Registries = field(default_factory=Registries)
    now: float = 1_800_000_000.0
    boxes: set[str] = field(default_factory=set)
    """Digests that boxes stand on."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        self.sandboxes = FakeSandboxes(self.disks)
        self.registries.images["docker.io/library/app:1"] = APP

    @contextlib.asynccontextmanager
    async def store(self, *, sweep_s: float = 600.0, **options: Any) -> AsyncIterator[ImageStore]:
        async def in_use(digest: str) -> bool:
            return digest in self.boxes

        tasks = Tasks()
        workshops = Workshops(backend=self.sandboxes, limits=limits(), tasks=tasks)  # type: ignore[arg-type]
        store = ImageStore(
            table=ImageTable(database=self.database, server_id=self.id),
            disks=self.disks,
            workshops=workshops,
            tasks=tasks,
            registries=self.registries,
            options=RegistriesConfig(**options),
            in_use=in_use,
            clock=lambda: self.now,
            sweep_s=sweep_s,
        )
        async with tasks.running(), store.running():
            yield store

    def is_clean(self) -> bool:
        """Nothing half-done is here."""
        return not self.sandboxes.alive and self.disks.content.keys() == self.disks.sealed


@pytest.fixture(scope="module")
async def database(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path_factory.mktemp("images") / "stockade.db") as opened:
        yield opened


@pytest.fixture
def host(database: Database) -> Host:
    return Host(database)


@dataclass
class Told:
    """Progress, as it was told."""

    layers: Sequence[SourceLayer] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def began(self, layers: Sequence[SourceLayer]) -> None:
        self.layers = layers

    def fetched(self, digest: str, size: int) -> None:
        self.sizes[digest] = self.sizes.get(digest, 0) + size

    def finished(self, digest: str) -> None:
        self.done.append(digest)


async def test_an_image_is_pulled_and_found_again_by_name_and_digest(host: Host) -> None:
    told = Told()
    async with host.store() as store:
        record = await store.ensure(ANN, "app:1", progress=told)
        assert (record.digest, record.account_id, record.brought_by) == (APP.digest, "", "ann")
        assert (record.config.user, record.config.command) == ("1000:1000", ("/srv/app",))
        assert record.config.users["app"] == ImageUser(uid=1000, gid=1000, home="/srv")
        assert [one.diff_id for one in record.layers] == [sha256(archive) for archive in APP.archives]
        assert record.size_bytes == len(PASSWD) + 2 + 5000
        assert told.sizes == {one.digest: one.size for one in told.layers}
        assert sorted(told.done) == sorted(one.digest for one in APP.layers)
        for name in ("app:1", "docker.io/library/app:1", APP.digest, f"app@{APP.digest}"):
            assert await store.ensure(BOB, name) == record
        assert host.registries.sources[0].is_closed
        assert len(host.registries.sources) == 1
        assert host.is_clean()
    async with host.store() as store:  # the next server
        assert store.find("bob", "app:1") == record
        assert store.get(ANN, "app:1").names == ()


async def test_an_image_is_what_sandboxes_are_made_from(host: Host) -> None:
    async with host.store() as store:
        await store.ensure(ANN, "app:1")
        images = Images(stored=store, aliases={"python": "host"})
        image = images.find("app:1", "ann")
        assert image.layers == tuple(disk_name(sha256(archive)) for archive in reversed(APP.archives))
        assert (image.command, image.user, images.digest(image)) == (("/srv/app",), "1000:1000", APP.digest)
        assert image.environment({"B": "2"}, user="1000:1000") == {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/srv",
            "A": "1",
            "B": "2",
        }
        assert image.environment({}, user="root", has_terminal=True)["HOME"] == "/root"
        assert image.environment({}, user="77:77")["HOME"] == "/"
        assert images.find("python", "ann").name == "host"
        with pytest.raises(UnknownImage):
            images.find("other", "ann")


async def test_fifty_that_ask_at_once_have_it_brought_once(host: Host) -> None:
    async with host.store() as store:
        told = [Told() for _ in range(50)]
        asked = [store.ensure(ANN, "app:1", progress=one) for one in told]
        found = await asyncio.gather(*asked)
        assert {one.digest for one in found} == {APP.digest}
        assert len(host.registries.sources) == 1
        assert sorted(host.registries.sources[0].opened) == sorted(one.digest for one in APP.layers)
        assert all(sorted(one.done) == sorted(told[0].done) for one in told)


async def test_layers_are_shared_and_not_fetched_again(host: Host) -> None:
    host.registries.images["docker.io/library/other:1"] = OTHER
    async with host.store() as store:
        first, second = await store.ensure(ANN, "app:1"), await store.ensure(BOB, "other:1")
        assert first.layers[0] == second.layers[0]
        assert host.registries.sources[1].opened == [OTHER.layers[1].digest]
        await store.remove(ANN, "app:1")
        assert set(host.disks.content) == {one.disk for one in second.layers}
        with pytest.raises(NotFound):
            await store.remove(ANN, "app:1")


async def test_a_private_image_is_its_accounts_alone(host: Host) -> None:
    host.registries.private = {"ann"}
    async with host.store() as store:
        record = await store.ensure(ANN, "app:1")
        assert record.account_id == "ann"
        for name in ("app:1", APP.digest, f"app@{APP.digest}"):
            assert store.find("ann", name) == record
            assert store.find("bob", name) is None
            assert store.find("", name) is None
        assert store.list(BOB) == []
        for work in (
            store.remove(BOB, APP.digest),
            store.alias(BOB, APP.digest, "mine"),
            store.ensure(BOB, APP.digest),
        ):
            with pytest.raises((NotFound, UnknownImage)):
                await work
    async with host.store() as store:
        assert store.find("bob", APP.digest) is None
        assert store.find("ann", APP.digest) is not None


async def test_who_only_names_the_digest_of_a_layer_does_not_get_it(host: Host) -> None:
    """An image of one's own that claims another's layer has to come with that layer's content."""
    host.registries.private = {"ann"}
    secret = made(layer({"secret": b"of ann"}))
    thief = made(layer({"nothing": b""}), diff_ids=[sha256(secret.archives[0])])
    host.registries.images |= {"docker.io/ann/secret:latest": secret, "docker.io/bob/thief:latest": thief}
    async with host.store() as store:
        record = await store.ensure(ANN, "ann/secret")
        with pytest.raises(BadManifest, match="should be"):
            await store.ensure(BOB, "bob/thief")
        assert store.find("bob", thief.digest) is None
        assert record.layers[0].disk in host.disks.sealed  # hers is still there
        host.registries.images["docker.io/bob/own:latest"] = secret
        own = await store.ensure(BOB, "bob/own")  # he has it, too: fetched, checked, and shared
        assert own.layers == record.layers
        assert host.registries.sources[-1].opened == [secret.layers[0].digest]
        assert host.disks.made.count(record.layers[0].disk) == 1


DEVICE = tarfile.TarInfo("dev/sda")
DEVICE.type = tarfile.BLKTYPE
HOSTILE = {
    "another digest": made(BASE, diff_ids=["sha256:" + "0" * 64]),
    "no archive": made(b"this is no archive" * 100),
    "a device": made(layer(members=[DEVICE])),
    "fewer layers than claimed": made(BASE, diff_ids=[sha256(BASE)] * 2),
    "a user that is not there": made(BASE, config={"User": "nobody"}),
    "a configuration of nonsense": made(BASE, config={"Env": [1]}),
    "cut off": made(BASE, pack="zstd", is_cut_off=True),
    "too large": made(layer({"big": bytes(3 << 20)})),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_image_leaves_nothing(host: Host, name: str) -> None:
    host.registries.images["docker.io/library/bad:latest"] = HOSTILE[name]
    async with host.store(most_image_bytes=2 << 20) as store:
        with pytest.raises(BadManifest):
            await store.ensure(ANN, "bad")
        assert store.list(ANN) == []
        assert host.disks.content == {}
        assert host.sandboxes.alive == {}
        assert (await store.ensure(ANN, "app:1")).digest == APP.digest


async def test_a_pull_that_breaks_off_leaves_nothing_and_is_tried_again(host: Host) -> None:
    host.registries.broken = ImageUnavailable("the registry said: no")
    async with host.store() as store:
        with pytest.raises(ImageUnavailable, match="said: no"):
            await store.ensure(ANN, "app:1")
        assert host.disks.content == {}
        host.registries.broken = None
        assert (await store.ensure(ANN, "app:1")).digest == APP.digest


async def test_a_pull_goes_on_for_as_long_as_somebody_waits(host: Host) -> None:
    host.registries.gate = asyncio.Event()
    async with host.store() as store:
        first, second = (asyncio.create_task(store.ensure(ANN, "app:1")) for _ in range(2))
        await until(lambda: host.registries.sources and host.registries.sources[0].opened)
        first.cancel()
        host.registries.gate.set()
        assert (await second).digest == APP.digest
        assert first.cancelled()
        await store.remove(ANN, "app:1")
        host.registries.gate.clear()
        alone = asyncio.create_task(store.ensure(ANN, "app:1"))
        await until(lambda: len(host.registries.sources) == 2 and host.registries.sources[1].opened)
        alone.cancel()
        await until(lambda: host.registries.sources[1].is_closed)
        await until(lambda: not host.disks.content)
        assert store.list(ANN) == []


async def test_a_pull_has_its_time(host: Host) -> None:
    host.registries.gate = asyncio.Event()
    async with host.store(pull_time_s=1.0) as store:
        with pytest.raises(ImageUnavailable, match="did not come within 1 s"):
            await store.ensure(ANN, "app:1")
        assert host.disks.content == {}


async def test_nothing_is_pulled_where_that_is_not_allowed(host: Host) -> None:
    async with host.store(pull="never") as store:
        with pytest.raises(UnknownImage):
            await store.ensure(ANN, "app:1")
        with pytest.raises(Denied):
            await store.pull(ANN, "app:1")
        assert (await store.pull(OPERATOR, "app:1")).brought_by == ""
        assert (await store.ensure(ANN, "app:1")).digest == APP.digest


@pytest.mark.parametrize("name", ["", "A b", "x" * 600, "host"])
async def test_what_is_no_reference_is_not_pulled(host: Host, name: str) -> None:
    async with host.store() as store:
        with pytest.raises(InvalidReference):
            await store.pull(ANN, name)
        assert store.find("ann", name) is None


async def test_a_pull_of_what_has_moved_on_leads_to_the_new_one(host: Host) -> None:
    async with host.store() as store:
        old = await store.ensure(ANN, "app:1")
        host.registries.images["docker.io/library/app:1"] = OTHER
        assert await store.ensure(ANN, "app:1") == old  # it is here
        new = await store.pull(ANN, "app:1")
        assert new.digest == OTHER.digest
        assert store.find("ann", "app:1") == new
        assert store.find("ann", old.digest) == old  # boxes keep to it
        assert (await store.pull(ANN, "app:1")).digest == new.digest
        assert host.registries.sources[-1].opened == []


async def test_an_alias_is_the_accounts_and_the_operators_everybodys(host: Host) -> None:
    async with host.store() as store:
        await store.ensure(ANN, "app:1")
        assert (await store.alias(ANN, "app:1", "mine")).names == ("docker.io/library/mine:latest",)
        assert store.find("ann", "mine") is not None
        assert store.find("bob", "mine") is None
        await store.alias(OPERATOR, "app:1", "ours:2")
        assert store.find("bob", "ours:2") is not None
        for alias in ("host", "a b", f"x@{APP.digest}"):
            with pytest.raises(InvalidReference):
                await store.alias(ANN, "app:1", alias)
        with pytest.raises(Denied):
            await store.unalias(BOB, "ours:2")
        with pytest.raises(NotFound):
            await store.unalias(BOB, "mine")
        await store.unalias(ANN, "mine")
        await store.unalias(OPERATOR, "ours:2")
        assert store.find("ann", "mine") is store.find("bob", "ours:2") is None
        assert store.find("ann", "app:1") is not None


async def test_an_account_has_so_many_names_and_no_more(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_catalogue, "MOST_NAMES", 2)
    async with host.store() as store:
        await store.ensure(ANN, "app:1")
        for name in ("a", "b", "a"):
            await store.alias(ANN, "app:1", name)
        with pytest.raises(LimitExceeded):
            await store.alias(ANN, "app:1", "c")
        await store.alias(BOB, "app:1", "c")


async def test_an_own_name_comes_before_everybodys(host: Host) -> None:
    host.registries.images["docker.io/library/other:1"] = OTHER
    async with host.store() as store:
        await store.ensure(BOB, "app:1")
        await store.ensure(ANN, "other:1")
        await store.alias(ANN, "other:1", "app:1")
        assert store.find("ann", "app:1") == store.find("ann", OTHER.digest)
        assert store.find("bob", "app:1") == store.find("bob", APP.digest)


async def test_everybodys_image_goes_by_who_brought_it_or_the_operator(host: Host) -> None:
    async with host.store() as store:
        await store.ensure(ANN, "app:1")
        with pytest.raises(Denied):
            await store.remove(BOB, "app:1")
        await store.remove(OPERATOR, "app:1")
        assert host.disks.content == {}
        await store.ensure(ANN, "app:1")
        await store.remove(ANN, APP.digest)
        assert store.find("ann", "app:1") is None


async def test_an_image_that_a_box_stands_on_stays(host: Host) -> None:
    async with host.store() as store:
        await store.ensure(ANN, "app:1")
        host.boxes.add(APP.digest)
        with pytest.raises(ImageInUse):
            await store.remove(ANN, "app:1")
        host.now += 1e9
        assert (await store.prune(60)).images == ()
        host.boxes.clear()
        with store.using(APP.digest), pytest.raises(ImageInUse):
            await store.remove(ANN, "app:1")
        assert store.find("ann", "app:1") is not None
        await store.remove(ANN, "app:1")


async def test_who_wants_an_image_that_is_being_removed_waits_for_what_becomes_of_it(host: Host) -> None:
    async with host.store() as store:
        await store.ensure(ANN, "app:1")
        asked, answer = asyncio.Event(), asyncio.Event()

        async def in_use(digest: str) -> bool:
            asked.set()
            await answer.wait()
            return False

        store.in_use = in_use
        removal = asyncio.create_task(store.remove(ANN, "app:1"))
        await asked.wait()
        wanted = asyncio.create_task(store.ensure(BOB, "app:1"))
        assert store.find("bob", "app:1") is not None  # what stands on it goes on meanwhile
        answer.set()
        await removal
        assert (await wanted).digest == APP.digest
        assert len(host.registries.sources) == 2
        assert host.is_clean()


async def test_what_nobody_uses_is_pruned(host: Host) -> None:
    host.registries.images["docker.io/library/other:1"] = OTHER
    async with host.store() as store:
        await store.ensure(ANN, "app:1")
        other = await store.ensure(ANN, "other:1")
        host.now += 100
        store.find("bob", "other:1")
        host.now += 50
        host.disks.in_use.add(disk_name(sha256(APP.archives[1])))  # a sandbox that still ends
        pruned = await store.prune(120)
        assert [one.digest for one in pruned.images] == [APP.digest]
        assert pruned.freed_bytes == 5000
        assert [one.digest for one in store.list(ANN)] == [OTHER.digest]
        assert len(host.disks.content) == 3
        host.disks.in_use.clear()
        await store.prune(120)
        assert set(host.disks.content) == {one.disk for one in other.layers}
    async with host.store() as store:
        assert [one.used_at.timestamp() for one in store.list(ANN)] == [1_800_000_100.0]


async def test_what_a_server_left_half_done_is_cleared_away(host: Host) -> None:
    async with host.store() as store:
        record = await store.ensure(ANN, "app:1")
    for name in ("lhalfdone", "lnobodys", "bsomebox"):
        await host.disks.make(name, size_bytes=1)
    await host.disks.seal("lnobodys")
    async with host.store():
        await until(lambda: len(host.disks.content) == 3)
        assert set(host.disks.content) == {"bsomebox", *(one.disk for one in record.layers)}


async def test_a_server_without_images_does_not_ask_for_disks(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for them would have them made."""
    asked = []
    monkeypatch.setattr(FakeDisks, "list", lambda disks: asked.append(disks))
    async with host.store(sweep_s=0.001):
        await asyncio.sleep(0.02)
    assert asked == []


async def test_an_image_whose_layer_is_gone_is_brought_again(host: Host) -> None:
    async with host.store() as store:
        record = await store.ensure(ANN, "app:1")
    await host.disks.delete(record.layers[0].disk)
    async with host.store() as store:
        await until(lambda: store.find("ann", "app:1") is None)
        assert (await store.ensure(ANN, "app:1")).layers == record.layers
        assert host.is_clean()


async def test_an_account_brings_so_many_images_and_no_more(host: Host) -> None:
    host.registries.images["docker.io/library/other:1"] = OTHER
    async with host.store(most_images=1) as store:
        await store.ensure(ANN, "app:1")
        with pytest.raises(LimitExceeded):
            await store.ensure(ANN, "other:1")
        usage = store.usage(ANN)
        assert (usage.count, usage.limit, usage.known_bytes) == (1, 1, len(PASSWD) + 2 + 5000)
        await store.ensure(BOB, "other:1")
        assert store.find("ann", "other:1") is not None


async def test_the_operator_adds_an_image_for_everybody(host: Host) -> None:
    async with host.store(most_images=1) as store:
        for name, image in {"one": APP, "two:2": OTHER}.items():
            record = await store.add(FakeSource(image, kind="archive"), reference=name)
            assert (record.account_id, record.brought_by, record.source) == ("", "", "archive")
        assert store.find("ann", "one") is not None
        assert store.usage(OPERATOR).limit is None
        for name in ("host", f"x@{APP.digest}"):
            with pytest.raises(InvalidReference):
                await store.add(FakeSource(APP), reference=name)


async def test_what_was_added_by_hand_does_not_go_by_itself(host: Host) -> None:
    async with host.store() as store:
        await store.add(FakeSource(OTHER, kind="archive"), reference="own")
        await store.ensure(ANN, "app:1")
    host.now += 1e9
    async with host.store() as store:
        await until(lambda: len(store.list(ANN)) == 1)
        assert [one.reference for one in store.list(ANN)] == ["docker.io/library/own:latest"]


async def test_an_account_that_leaves_takes_its_images_along(host: Host) -> None:
    host.registries.private = {"ann"}
    async with host.store() as store:
        await store.ensure(ANN, "app:1")
        await store.alias(ANN, "app:1", "mine")
        await store.remove_of_account("ann")
        assert store.list(ANN) == []
        assert host.disks.content == {}


async def test_a_layer_that_is_there_twice_is_taken_once(host: Host) -> None:
    """As an overlay file system takes none twice; the upper one holds all that the lower one does."""
    host.registries.images["docker.io/library/twice:latest"] = made(APP.archives[1], BASE, APP.archives[1])
    async with host.store() as store:
        record = await store.ensure(ANN, "twice")
        assert [one.diff_id for one in record.layers] == [sha256(BASE), sha256(APP.archives[1])]


async def test_while_the_database_is_away_nothing_is_brought(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*arguments: object, **named: object) -> None:
        raise Unavailable("the database is away")

    async with host.store() as store:
        monkeypatch.setattr(ImageTable, "put", away)
        with pytest.raises(Unavailable, match="database"):
            await store.ensure(ANN, "app:1")
        assert host.disks.content == {}
        monkeypatch.undo()
        assert (await store.ensure(ANN, "app:1")).digest == APP.digest
