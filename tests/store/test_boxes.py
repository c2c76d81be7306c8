"""Records of boxes, snapshots and volumes."""

import asyncio
import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from stockade.errors import Conflict, Fault, Invalid
from stockade.model import (
    Box,
    BoxState,
    Mount,
    Network,
    NetworkMode,
    Port,
    SecretRule,
    Snapshot,
    Volume,
)
from stockade.store import Database
from stockade.store.boxes import BoxExists, BoxTable, TooManyBoxes
from stockade.store.disk_sums import TooMuchDisk
from stockade.store.seals import Seal
from stockade.store.snapshots import SnapshotExists, SnapshotTable, TooManySnapshots
from stockade.store.volumes import TooManyVolumes, VolumeExists, VolumeTable
from tests.store.databases import LIMITS, NOON

pytestmark = pytest.mark.anyio

CONFIGURED, RUNNING, PAUSED, STOPPING, STOPPED, FAILED = BoxState
SEAL = Seal("0f" * 32)


def an_id(number: int) -> str:
    return f"01K9ZB3M4T{number:016d}"


def a_box(number: int = 1, **changes: Any) -> Box:
    members: dict[str, Any] = {
        "id": an_id(number),
        "name": None,
        "account_id": "ann",
        "key_id": "key",
        "dialect": "boxlite",
        "state": CONFIGURED,
        "image": "host",
        "image_digest": "host",
        "entrypoint": (),
        "command": (),
        "env": {},
        "cwd": "/",
        "user": "root",
        "terminal": False,
        "limits": LIMITS,
        "network": Network(),
        "mounts": (),
        "secrets": (),
        "drop_capabilities": (),
        "labels": {},
        "auto_stop_s": None,
        "auto_delete_s": None,
        "auto_resume": True,
        "disk": f"b{number}",
        "created_at": NOON,
        "updated_at": NOON,
        "last_used_at": NOON,
    }
    return Box(**(members | changes))


FULL = a_box(
    2,
    name="dev",
    state=RUNNING,
    image="alpine:3",
    image_digest="sha256:" + "a" * 64,
    entrypoint=("tini", "--"),
    command=("sh", "-c", "true"),
    env={"GREETING": "hallo ☃"},
    terminal=True,
    limits=replace(LIMITS, wall_s=math.inf),
    network=Network(mode=NetworkMode.EXPOSED, ports=(Port(container=80, host=40123),), allow_domains=("a.org",)),
    mounts=(Mount(volume="vol_1", path="/data", read_only=True),),
    secrets=(SecretRule(name="T", value="the-real-one", placeholder="<T>", hosts=("a.org", "*.b.org")),),
    drop_capabilities=("NET_RAW",),
    labels={"team": "a"},
    auto_stop_s=900.5,
    auto_delete_s=0.0,
    auto_resume=False,
    last_used_at=NOON + timedelta(microseconds=123_456),
    started_at=NOON,
    stopped_at=NOON,
    sandbox_id="box-1",
    starts=3,
    exit_code=137,
    message="why",
    parent_snapshot_id=an_id(9),
)


@pytest.fixture
def table(database: Database) -> BoxTable:
    return BoxTable(database=database, server_id="server-1", seal=SEAL)


@pytest.fixture
def snapshots(database: Database) -> SnapshotTable:
    return SnapshotTable(database=database, server_id="server-1")


@pytest.fixture
def volumes(database: Database) -> VolumeTable:
    return VolumeTable(database=database, server_id="server-1")


async def test_a_box_is_read_as_it_was_written(table: BoxTable) -> None:
    await table.insert([a_box(), FULL], most=10)
    assert await table.get(FULL.id) == (FULL, True)
    assert await table.find("ann", an_id(1)) == a_box()
    assert await table.find("ann", "dev") == FULL
    assert await table.find("bob", "dev") is None
    assert await table.find("ann", "d\0") is None
    assert await table.get(an_id(7)) is None
    there = BoxTable(database=table.database, server_id="server-2", seal=SEAL)
    assert await there.get(FULL.id) == (FULL, False)


async def test_secrets_lie_encrypted_and_cannot_be_read_without_the_key(table: BoxTable) -> None:
    await table.insert([FULL], most=10)
    stored = await table.database.read(lambda connection: connection.execute(text("SELECT * FROM boxes")).all())
    assert "the-real-one" not in repr([bytes(one) if isinstance(one, bytes) else one for one in stored[0]])
    other = BoxTable(database=table.database, server_id="server-1", seal=Seal("1e" * 32))
    with pytest.raises(Fault, match="secret"):
        await other.get(FULL.id)
    moved = await table.move(FULL.id, {RUNNING}, secrets=())
    assert moved is not None
    assert moved.secrets == ()


async def test_a_name_is_one_boxs_of_an_account_until_that_is_hidden(table: BoxTable) -> None:
    await table.insert([a_box(1, name="dev")], most=10)
    with pytest.raises(BoxExists, match="dev"):
        await table.insert([a_box(2, name="dev")], most=10)
    with pytest.raises(Conflict, match="there is a box"):
        await table.insert([a_box(1)], most=10)
    await table.insert([a_box(3, name="dev", account_id="bob")], most=10)
    # Who has no account has names of their own.
    await table.insert([a_box(4, name="dev", account_id="", key_id="anonymous:1")], most=10)
    await table.insert([a_box(5, name="dev", account_id="", key_id="anonymous:2")], most=10)
    assert await table.hide(an_id(1))
    assert not await table.hide(an_id(1))
    assert await table.find("ann", "dev") is None
    await table.insert([a_box(6, name="dev")], most=10)


async def test_the_most_that_an_owner_may_have_holds_however_many_ask(table: BoxTable) -> None:
    asked = [table.insert([a_box(number)], most=4) for number in range(10)]
    made = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(one, TooManyBoxes) for one in made) == 6
    with pytest.raises(TooManyBoxes):
        await table.insert([a_box(20), a_box(21)], most=5)  # all or none
    assert len((await table.list("ann")).items) == 4


async def test_a_hidden_box_is_seen_by_nobody(table: BoxTable) -> None:
    await table.insert([a_box(1, name="dev"), a_box(2)], most=10, is_hidden=True)
    assert await table.get(an_id(1)) is None
    assert await table.find("ann", "dev") is None
    assert (await table.list()).items == ()
    assert await table.move(an_id(1), set(BoxState), state=RUNNING) is None
    assert sorted(await table.list_hidden()) == [(an_id(1), "b1"), (an_id(2), "b2")]
    await table.reveal([an_id(1)])
    assert await table.find("ann", "dev") is not None
    await table.delete([an_id(1), an_id(2)])  # only what is hidden
    assert await table.list_hidden() == []
    assert await table.find("ann", "dev") is not None


async def test_a_move_is_made_from_the_states_that_are_named(table: BoxTable) -> None:
    await table.insert([a_box()], most=10)
    asked = (table.move(an_id(1), {CONFIGURED}, state=RUNNING, starts=number) for number in range(5))
    moved = [one for one in await asyncio.gather(*asked) if one is not None]
    assert len(moved) == 1
    assert await table.get(an_id(1)) == (moved[0], True)
    with pytest.raises(TypeError, match="colour"):
        await table.move(an_id(1), {RUNNING}, colour="red")


async def test_lists_are_newest_first_and_come_in_pages(table: BoxTable) -> None:
    await table.insert([a_box(number) for number in range(5)], most=10)
    await table.insert([a_box(7, account_id="bob", state=RUNNING)], most=10)
    assert [one.id for one in (await table.list("ann")).items] == [an_id(number) for number in (4, 3, 2, 1, 0)]
    first = await table.list("ann", limit=2)
    assert first.cursor == an_id(3)
    rest = await table.list("ann", limit=3, cursor=first.cursor)
    assert [one.id for one in rest.items] == [an_id(number) for number in (2, 1, 0)]
    assert rest.cursor is None
    assert [one.id for one in (await table.list(states={RUNNING})).items] == [an_id(7)]
    with pytest.raises(Invalid, match="cursor"):
        await table.list("ann", cursor="nonsense")
    there = BoxTable(database=table.database, server_id="server-2", seal=SEAL)
    assert (await there.list(is_here=True)).items == ()


async def test_boxes_with_a_time_are_found_and_their_use_is_noted(table: BoxTable) -> None:
    kinds = [
        a_box(1, state=RUNNING, auto_stop_s=5.0),
        a_box(2, state=RUNNING),
        a_box(3, state=STOPPED, auto_delete_s=5.0),
        a_box(4, state=STOPPED, auto_stop_s=5.0),
        a_box(5, state=STOPPING),
        a_box(6, state=PAUSED, auto_stop_s=5.0),
        a_box(7, state=FAILED, auto_delete_s=5.0),
    ]
    await table.insert(kinds, most=10)
    assert sorted(one.id for one in await table.list_timed()) == [an_id(number) for number in (1, 3, 5, 7)]
    later = NOON + timedelta(seconds=9)
    await table.touch({an_id(1): later, an_id(2): later, an_id(99): later})
    await table.touch({})
    found = await table.get(an_id(2))
    assert found is not None
    assert found[0].last_used_at == later


async def test_an_image_is_used_as_long_as_a_box_stands_on_it(table: BoxTable) -> None:
    await table.insert([FULL], most=10)
    assert await table.uses_image(FULL.image_digest)
    assert not await table.uses_image("sha256:" + "b" * 64)
    await table.hide(FULL.id)
    assert await table.uses_image(FULL.image_digest)  # its disk is still there
    await table.delete([FULL.id])
    assert not await table.uses_image(FULL.image_digest)


def a_snapshot(number: int, name: str = "a", box: int = 1) -> Snapshot:
    return Snapshot(
        id=an_id(number),
        box_id=an_id(box),
        account_id="ann",
        name=name,
        disk=f"s{number}",
        size_bytes=0,
        created_at=NOON,
        parent_id=an_id(77),
        was_running=True,
    )


async def test_a_snapshot_is_seen_once_it_is_taken(snapshots: SnapshotTable) -> None:
    await snapshots.insert(a_snapshot(1, "s 1/é"), most=3)
    assert await snapshots.get(an_id(1), "s 1/é") is None
    assert await snapshots.list_hidden() == [(an_id(1), "s1")]
    with pytest.raises(SnapshotExists, match="é"):
        await snapshots.insert(a_snapshot(2, "s 1/é"), most=3)
    await snapshots.insert(a_snapshot(2, "s 1/é", box=2), most=3)
    await snapshots.reveal(an_id(1), size_bytes=1 << 40)
    assert await snapshots.get(an_id(1), "s 1/é") == replace(a_snapshot(1, "s 1/é"), size_bytes=1 << 40)
    assert await snapshots.get(an_id(1), "\0") is None
    assert [one.name for one in await snapshots.list(an_id(1))] == ["s 1/é"]
    assert await snapshots.list_hidden(an_id(1)) == []


async def test_a_box_has_so_many_snapshots_and_they_go_with_it(snapshots: SnapshotTable) -> None:
    for number in (1, 2):
        await snapshots.insert(a_snapshot(number, f"n{number}"), most=2)
        await snapshots.reveal(an_id(number), size_bytes=1)
    with pytest.raises(TooManySnapshots):
        await snapshots.insert(a_snapshot(3, "c"), most=2)
    await snapshots.hide(an_id(1), an_id(1))
    assert [one.id for one in await snapshots.list(an_id(1))] == [an_id(2)]
    await snapshots.delete([an_id(1), an_id(2)])
    await snapshots.insert(a_snapshot(4, "n1"), most=2)
    await snapshots.hide(an_id(1))
    assert len(await snapshots.list_hidden(an_id(1))) == 2


def a_volume(number: int, name: str | None = None) -> Volume:
    return Volume(
        id=f"vol_{an_id(number)}",
        account_id="ann",
        name=name,
        disk=f"v{number}",
        size_bytes=1 << 40,
        created_at=NOON,
        updated_at=NOON,
    )


async def test_a_volume_is_found_by_id_and_name_once_it_is_made(volumes: VolumeTable) -> None:
    volume = a_volume(1, "data")
    await volumes.insert(volume, owner="ann", most=2)
    assert await volumes.find("ann", "data") is None
    await volumes.reveal(volume.id)
    assert await volumes.find("ann", "data") == await volumes.find("ann", volume.id) == volume
    assert await volumes.find("bob", "data") is None
    with pytest.raises(VolumeExists, match="data"):
        await volumes.insert(a_volume(2, "data"), owner="ann", most=2)
    await volumes.insert(a_volume(3), owner="ann", most=2)
    await volumes.reveal(a_volume(3).id)
    with pytest.raises(TooManyVolumes):
        await volumes.insert(a_volume(4), owner="ann", most=2)
    assert [one.id for one in await volumes.list("ann")] == [a_volume(3).id, volume.id]
    assert await volumes.hide(volume.id)
    assert not await volumes.hide(volume.id)
    assert await volumes.list_hidden() == [(volume.id, "v1")]
    await volumes.delete([volume.id, a_volume(3).id])
    assert [one.id for one in await volumes.list("ann")] == [a_volume(3).id]


async def test_the_disks_of_an_account_come_to_no_more_than_they_may(database: Database) -> None:
    most = LIMITS.disk_bytes * 2 + (1 << 40)
    table = BoxTable(database=database, server_id="server-1", seal=SEAL, most_bytes=most)
    volumes = VolumeTable(database=database, server_id="server-1", most_bytes=most)
    snapshots = SnapshotTable(database=database, server_id="server-1", most_bytes=most)
    await table.insert([a_box(1)], most=10)
    await volumes.insert(a_volume(1), owner="ann", most=10)
    with pytest.raises(TooMuchDisk, match="remove some"):
        await volumes.insert(a_volume(2), owner="ann", most=10)
    with pytest.raises(TooMuchDisk):
        await table.insert([a_box(2), a_box(3)], most=10)
    await volumes.insert(a_volume(2), owner="bob", most=10)  # who has room of his own
    await snapshots.insert(a_snapshot(1), most=10)
    await snapshots.reveal(an_id(1), size_bytes=LIMITS.disk_bytes)
    with pytest.raises(TooMuchDisk):
        await table.insert([a_box(2)], most=10)
    with pytest.raises(TooMuchDisk):
        await snapshots.insert(a_snapshot(2, "b"), most=10)
    await snapshots.hide(an_id(1), an_id(1))
    await snapshots.delete([an_id(1)])
    await table.insert([a_box(2)], most=10)
