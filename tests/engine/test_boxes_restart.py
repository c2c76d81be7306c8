"""What a server finds again of boxes that another one before it made, ran, or was about to."""

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from stockade.engine.box_errors import VolumeInUse
from stockade.errors import NotFound
from stockade.model import Box, BoxState, Mount, SecretRule
from tests.engine.box_fakes import BoxServer, FakeDisk, box_request
from tests.engine.live_fakes import ONE, until

pytestmark = pytest.mark.anyio

CONFIGURED, RUNNING, PAUSED, STOPPING, STOPPED, FAILED = BoxState


@pytest.fixture
def server(tmp_path: Path) -> BoxServer:
    return BoxServer(tmp_path)


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    with contextlib.suppress(Exception, asyncio.CancelledError):
        await work


async def test_a_box_that_runs_is_found_again(server: BoxServer) -> None:
    async with server.running() as running:
        request = box_request("dev", command=("sleep", "60"), auto_stop_s=60.0)
        box = await running.boxes.start(ONE, await running.boxes.create(ONE, request))
        paused = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
        paused = await running.boxes.pause(ONE, paused)
    async with server.running() as running:
        assert (await running.boxes.get(ONE, "dev")).state is RUNNING
        assert (await running.boxes.get(ONE, paused.id)).state is PAUSED
        assert (await running.boxes.sandbox(ONE, box)).id == box.sandbox_id
        assert running.boxes.counts(ONE).running == 2
        assert box.sandbox_id is not None
        server.backend.logged[box.sandbox_id][Box.MAIN].finish(5)
        await running.comes(box, lambda now: now.exit_code == 5)
        server.backend.expire(box.sandbox_id)
        await running.reaches(box, STOPPED)


async def test_a_pause_that_was_not_recorded_is_found(server: BoxServer) -> None:
    async with server.running() as running:
        box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
    assert box.sandbox_id is not None
    server.backend.paused.add(box.sandbox_id)
    async with server.running() as running:
        assert (await running.boxes.get(ONE, box.id)).state is PAUSED
        await running.boxes.resume(ONE, box)


async def test_a_box_that_ended_meanwhile_is_stopped_and_says_why(server: BoxServer) -> None:
    async with server.running() as running:
        box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
        passing = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(auto_delete_s=0.0)))
        lost = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
    for one in (box, passing):
        assert one.sandbox_id is not None
        server.backend.expire(one.sandbox_id)
    assert lost.sandbox_id is not None
    del server.backend.boxes[lost.sandbox_id]
    server.disks.used_by.clear()
    async with server.running() as running:
        found = await running.boxes.get(ONE, box.id)
        assert (found.state, "60 s" in found.message) == (STOPPED, True)
        found = await running.boxes.get(ONE, lost.id)
        assert (found.state, "warden" in found.message) == (STOPPED, True)
        with pytest.raises(NotFound):
            await running.boxes.get(ONE, passing.id)
        assert passing.disk not in server.disks.disks


async def test_volumes_and_secrets_are_held_again(server: BoxServer) -> None:
    rule = SecretRule(name="TOKEN", value="v", placeholder="p")
    async with server.running() as running:
        await running.volumes.create(ONE, "data")
        mounts = (Mount(volume="data", path="/data"),)
        box = await running.boxes.create(ONE, box_request(mounts=mounts, secrets=(rule,)))
        other = await running.boxes.create(ONE, box_request(mounts=mounts))
        box = await running.boxes.start(ONE, box)
    server.diversions.admitted.clear()
    async with server.running() as running:
        assert server.diversions.admitted == {box.sandbox_id: (rule,)}
        with pytest.raises(VolumeInUse):
            await running.boxes.start(ONE, other)
        with pytest.raises(VolumeInUse):
            await running.volumes.remove(ONE, "data", force=True)


async def test_a_sandbox_that_no_box_knows_is_killed(server: BoxServer) -> None:
    """Its server ended after it had been recorded, and before the box had."""
    async with server.running() as running:
        box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
        await running.table.move(box.id, set(BoxState), state=CONFIGURED, sandbox_id=None)
    async with server.running() as running:
        assert (await running.boxes.get(ONE, box.id)).state is CONFIGURED
        await until(lambda: all(one.facts is not None for one in server.backend.boxes.values()))
        assert (await running.boxes.start(ONE, box)).state is RUNNING


async def test_a_start_that_was_cut_short_leaves_a_box_that_can_be_started(server: BoxServer) -> None:
    """Its server ended after the box had been recorded as running, and before its sandbox was made."""
    async with server.running() as running:
        box = await running.boxes.create(ONE, box_request())
        sandbox_id = f"box-{box.id.lower()}-00000000"
        await running.table.move(box.id, set(BoxState), state=RUNNING, sandbox_id=sandbox_id)
    async with server.running() as running:
        found = await running.boxes.get(ONE, box.id)
        assert (found.state, "server ended" in found.message) == (STOPPED, True)
        assert (await running.boxes.start(ONE, box)).state is RUNNING


async def test_a_stop_that_was_cut_short_is_carried_on(server: BoxServer) -> None:
    async with server.running() as running:
        box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
        await running.table.move(box.id, set(BoxState), state=STOPPING)
    async with server.running() as running:
        await running.sweep()
        assert (await running.boxes.get(ONE, box.id)).state is STOPPED


async def test_what_was_half_made_or_half_removed_is_cleared_away(server: BoxServer) -> None:
    async with server.running() as running:
        kept = await running.boxes.create(ONE, box_request("kept"))
        removed = await running.boxes.create(ONE, box_request("removed"))
        snapshot = await running.boxes.snapshot(ONE, kept, "half")
        await running.boxes.snapshot(ONE, removed, "goes with it")
        volume = await running.volumes.create(ONE, "data")
        # As a server leaves it that is killed after the record has been hidden, or before it has been shown.
        assert await running.table.hide(removed.id)
        await running.snapshots.hide(kept.id, snapshot.id)
        assert await running.volumes._table.hide(volume.id)
        server.disks.disks["t" + "0" * 26] = FakeDisk(1)  # a copy that somebody read
        server.disks.disks["b" + "0" * 26] = FakeDisk(1)  # of a box that was not recorded any more
        server.disks.disks["b" + "1" * 26] = FakeDisk(1, "x" * 17_000)  # of a box that this database does not know
        server.disks.disks["layer"] = FakeDisk(1)
    async with server.running() as running:
        assert (await running.boxes.list(ONE)).items == (kept,)
        assert set(server.disks.disks) == {kept.disk, "b" + "1" * 26, "layer"}
        assert await running.table.list_hidden() == await running.snapshots.list_hidden() == []
        assert list(await running.boxes.snapshots(ONE, kept)) == []


async def test_a_box_without_a_disk_was_never_made_or_has_failed(server: BoxServer) -> None:
    async with server.running() as running:
        fresh = await running.boxes.create(ONE, box_request())
        used = await running.boxes.create(ONE, box_request())
        await running.boxes.start(ONE, used)
        await running.boxes.stop(ONE, used)
    server.disks.disks.clear()
    async with server.running() as running:
        with pytest.raises(NotFound):
            await running.boxes.get(ONE, fresh.id)
        found = await running.boxes.get(ONE, used.id)
        assert (found.state, used.disk in found.message) == (FAILED, True)
        await running.boxes.remove(ONE, found)


async def test_nothing_is_left_of_a_creation_during_which_the_server_ends(server: BoxServer) -> None:
    async with server.running() as running:
        box = await running.boxes.create(ONE, box_request())
        server.disks.holds["copy"] = asyncio.Event()
        cloning = asyncio.create_task(_quietly(running.boxes.clone(ONE, box)))
        await running.hides()
    await cloning
    server.disks.holds.clear()
    async with server.running() as running:
        assert (await running.boxes.list(ONE)).items == (box,)
        assert set(server.disks.disks) == {box.disk}


async def test_a_sweep_goes_on_by_itself(tmp_path: Path) -> None:
    server = BoxServer(tmp_path, sweep_s=0.02)
    async with server.running() as running:
        box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(auto_stop_s=60.0)))
        server.time += 61
        await running.reaches(box, STOPPED)
