"""Snapshots of boxes, and boxes that begin as copies of others, over disks in memory."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stockade.engine.box_errors import BoxExists, BoxStateConflict, SnapshotExists, TooManySnapshots
from stockade.errors import Invalid, LimitExceeded, NotFound, Unavailable
from stockade.model import Actor, Box, BoxState
from tests.engine.box_fakes import BoxServer, Running, away, box_request
from tests.engine.live_fakes import ONE, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(tmp_path: Path) -> BoxServer:
    return BoxServer(tmp_path)


@pytest.fixture
async def running(server: BoxServer) -> AsyncIterator[Running]:
    async with server.running() as running:
        yield running


@pytest.fixture
async def box(server: BoxServer, running: Running) -> Box:
    """A box that runs, and has something on its disk."""
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request("dev", env={"A": "b"})))
    assert box.sandbox_id is not None
    server.backend.write(box.sandbox_id, "first")
    return box


async def test_a_snapshot_is_taken_while_the_box_stands_still_and_restored_at_rest(
    server: BoxServer, running: Running, box: Box
) -> None:
    assert box.sandbox_id is not None
    taken = await running.boxes.snapshot(ONE, box, "s 1/é")
    assert (taken.name, taken.size_bytes, taken.was_running, taken.parent_id) == ("s 1/é", 5, True, None)
    assert server.disks.stood_still == [box.sandbox_id]
    assert await running.boxes.get_snapshot(ONE, box, "s 1/é") == taken
    server.backend.write(box.sandbox_id, "second")
    with pytest.raises(BoxStateConflict, match="stop it first"):
        await running.boxes.restore(ONE, box, "s 1/é")
    await running.boxes.stop(ONE, box)
    restored = await running.boxes.restore(ONE, box, "s 1/é")
    assert (server.disks.disks[box.disk].content, restored.parent_snapshot_id) == ("first", taken.id)
    later = await running.boxes.snapshot(ONE, box, "later")
    assert (later.parent_id, later.was_running) == (taken.id, False)
    assert [one.name for one in await running.boxes.snapshots(ONE, box)] == ["s 1/é", "later"]
    assert server.disks.stood_still == [box.sandbox_id]


async def test_a_snapshot_has_a_name_of_its_own(server: BoxServer, running: Running, box: Box) -> None:
    taken = await running.boxes.snapshot(ONE, box, "a")
    with pytest.raises(SnapshotExists, match="'a'"):
        await running.boxes.snapshot(ONE, box, "a")
    for name in ("", "x" * 256, "a\0", "a\nb"):
        with pytest.raises(Invalid):
            await running.boxes.snapshot(ONE, box, name)
    await running.boxes.remove_snapshot(ONE, box, "a")
    assert taken.disk not in server.disks.disks
    for refused in (running.boxes.get_snapshot, running.boxes.remove_snapshot):
        with pytest.raises(NotFound):
            await refused(ONE, box, "a")
    await running.boxes.snapshot(ONE, box, "a")


async def test_a_box_has_no_more_snapshots_than_it_may(tmp_path: Path) -> None:
    async with BoxServer(tmp_path, most_snapshots=2).running() as running:
        box = await running.boxes.create(ONE, box_request())
        for name in "ab":
            await running.boxes.snapshot(ONE, box, name)
        with pytest.raises(TooManySnapshots):
            await running.boxes.snapshot(ONE, box, "c")


async def test_a_snapshot_that_fails_leaves_nothing(server: BoxServer, running: Running, box: Box) -> None:
    server.disks.failures["copy"] = away()
    with pytest.raises(Unavailable):
        await running.boxes.snapshot(ONE, box, "a")
    with pytest.raises(Unavailable):
        await running.boxes.clone(ONE, box, name="c")
    server.disks.failures.clear()
    assert list(await running.boxes.snapshots(ONE, box)) == []
    assert set(server.disks.disks) == {box.disk}
    assert await running.table.list_hidden() == await running.snapshots.list_hidden() == []
    await running.boxes.snapshot(ONE, box, "a")
    await running.boxes.clone(ONE, box, name="c")


async def test_a_clone_is_as_the_box_and_independent_of_it(server: BoxServer, running: Running, box: Box) -> None:
    assert box.sandbox_id is not None
    await running.boxes.snapshot(ONE, box, "a")
    server.backend.write(box.sandbox_id, "second")
    now = await running.boxes.clone(ONE, box, name="now")
    before = await running.boxes.clone(ONE, box, snapshot="a")
    assert (now.name, now.state, now.starts, now.env) == ("now", BoxState.CONFIGURED, 0, {"A": "b"})
    assert (before.name, before.parent_snapshot_id) == (None, (await running.boxes.get_snapshot(ONE, box, "a")).id)
    contents = [server.disks.disks[one.disk].content for one in (now, before)]
    assert contents == ["second", "first"]
    started = await running.boxes.start(ONE, before)
    assert started.sandbox_id is not None
    server.backend.write(started.sandbox_id, "third")
    assert server.disks.disks[box.disk].content == "second"
    with pytest.raises(BoxExists):
        await running.boxes.clone(ONE, box, name="now")
    with pytest.raises(NotFound):
        await running.boxes.clone(ONE, box, snapshot="none")
    await running.boxes.remove(ONE, box, force=True)
    assert (await running.boxes.get(ONE, before.id)).state is BoxState.RUNNING


async def test_a_clone_is_seen_once_it_is_whole(server: BoxServer, running: Running, box: Box) -> None:
    server.disks.holds["copy"] = asyncio.Event()
    cloning = asyncio.create_task(running.boxes.clone(ONE, box, name="c"))
    await running.hides()
    with pytest.raises(NotFound):
        await running.boxes.get(ONE, "c")
    server.disks.holds["copy"].set()
    assert (await running.boxes.get(ONE, (await cloning).id)).name == "c"


@pytest.mark.parametrize("snapshot", [None, "a"])
async def test_a_fork_is_many_boxes_of_one_moment_that_run(
    server: BoxServer, running: Running, box: Box, snapshot: str | None
) -> None:
    await running.boxes.snapshot(ONE, box, "a")
    server.disks.stood_still.clear()
    copies = await running.boxes.fork(ONE, box, 20, snapshot=snapshot)
    assert len({one.id for one in copies}) == len({one.sandbox_id for one in copies}) == 20
    assert {one.state for one in copies} == {BoxState.RUNNING}
    assert {server.disks.disks[one.disk].content for one in copies} == {"first"}
    assert server.disks.stood_still == ([] if snapshot else [box.sandbox_id])


async def test_a_fork_may_be_left_at_rest(running: Running, box: Box) -> None:
    assert [one.state for one in await running.boxes.fork(ONE, box, 2, start=False)] == [BoxState.CONFIGURED] * 2
    for count in (0, 101):
        with pytest.raises(Invalid, match="count"):
            await running.boxes.fork(ONE, box, count)


async def test_a_fork_is_whole_or_not_at_all(server: BoxServer, running: Running, box: Box) -> None:
    few = Actor(id=ONE.id, account_id=ONE.account_id, concurrent_limit=4)
    with pytest.raises(LimitExceeded):
        await running.boxes.fork(few, box, 10)
    assert (await running.boxes.list(ONE)).items == (await running.boxes.get(ONE, box.id),)
    assert set(server.disks.disks) == {box.disk}
    await until(lambda: sum(one.facts is None for one in server.backend.boxes.values()) == 1)


async def test_a_disk_can_be_read_as_it_was_at_one_moment(server: BoxServer, running: Running, box: Box) -> None:
    assert box.sandbox_id is not None
    async with running.boxes.disk_of(ONE, box) as disk:
        server.backend.write(box.sandbox_id, "second")
        assert server.disks.disks[disk].content == "first"
    assert set(server.disks.disks) == {box.disk}


async def test_a_copy_to_be_read_goes_also_when_its_reader_is_gone_before_it_is_made(
    server: BoxServer, running: Running, box: Box
) -> None:
    async def read() -> None:
        async with running.boxes.disk_of(ONE, box):
            raise AssertionError("nobody waits for it any more")

    server.disks.holds["copy"] = asyncio.Event()
    reading = asyncio.create_task(read())
    await until(lambda: server.disks.entered["copy"] > 0)
    reading.cancel()
    await asyncio.sleep(0)
    server.disks.holds["copy"].set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert set(server.disks.disks) == {box.disk}


async def test_a_sweep_beside_a_removal_does_not_get_into_its_way(
    server: BoxServer, running: Running, box: Box
) -> None:
    server.disks.holds["delete"] = asyncio.Event()
    removing = asyncio.create_task(running.boxes.remove(ONE, box, force=True))
    await until(lambda: server.disks.entered["delete"] > 0)
    sweeping = asyncio.create_task(running.sweep())
    await asyncio.sleep(0)
    server.disks.holds["delete"].set()
    await removing
    await sweeping
    assert not server.disks.disks
    assert await running.table.list_hidden() == []


async def test_what_cannot_be_deleted_is_deleted_later(server: BoxServer, running: Running, box: Box) -> None:
    await running.boxes.snapshot(ONE, box, "a")
    other = await running.boxes.snapshot(ONE, box, "b")
    volume = await running.volumes.create(ONE, "data")
    server.disks.failures["delete"] = away()
    await running.boxes.remove_snapshot(ONE, box, "b")
    await running.volumes.remove(ONE, "data")
    await running.boxes.remove(ONE, box, force=True)
    with pytest.raises(NotFound):
        await running.boxes.get(ONE, "dev")
    assert {other.disk, volume.disk, box.disk} <= set(server.disks.disks)
    await running.boxes.create(ONE, box_request("dev"))
    await running.volumes.create(ONE, "data")
    server.disks.failures.clear()
    await running.sweep()
    assert not {other.disk, volume.disk, box.disk} & set(server.disks.disks)
    assert await running.table.list_hidden() == await running.snapshots.list_hidden() == []
