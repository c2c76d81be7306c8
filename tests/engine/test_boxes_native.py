"""The life of boxes with the real parts: what is on their disks, and what a restart of the server finds."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.engine.box_errors import VolumeInUse
from stockade.model import BoxRequest, BoxState, EndedBy, Mount
from stockade.store.database import Database
from tests.backends.sandboxes import MB, limits
from tests.engine.boxes_native import NativeRunning, native_boxes
from tests.engine.live_fakes import ONE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="disks that hold what they may need root"),
]

SLEEP: dict[str, Any] = {"command": ("sleep", "600")}


def a_box(**changes: Any) -> BoxRequest:
    members: dict[str, Any] = {"image": "host", "limits": limits(wall_s=300.0, memory_bytes=128 * MB)} | changes
    return BoxRequest(**members)


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[NativeBackend]:
    backend = NativeBackend(BackendOptions(data_dir=tmp_path_factory.mktemp("data"), embedded=True))
    await backend.start()
    yield backend
    for one in await backend.sandboxing.inventory():
        await backend.sandboxing.remove(one.name)
    await backend.close()


@pytest.fixture(scope="module")
async def database(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path_factory.mktemp("state") / "boxes.db") as opened:
        yield opened


@pytest.fixture(scope="module")
async def running(
    backend: NativeBackend, database: Database, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[NativeRunning]:
    facts = await backend.disks.facts()
    if facts.kind == "none":
        pytest.skip(f"no disks on this host: {facts.why}")
    async with native_boxes(backend, database, tmp_path_factory.mktemp("images")) as running:
        yield running
        for box in (await running.boxes.list(ONE)).items:
            await running.boxes.remove(ONE, box, force=True)
        for volume in await running.volumes.list(ONE):
            await running.volumes.remove(ONE, volume.id)
        assert list(await backend.disks.list()) == []


async def test_a_disk_outlives_the_processes(running: NativeRunning) -> None:
    box = await running.boxes.create(ONE, a_box(env={"A": "b"}, **SLEEP))
    assert await running.run(box, 'echo kept > file; echo "$A"') == "b\n"
    stopped = await running.boxes.stop(ONE, box)
    assert (stopped.state, stopped.exit_code) == (BoxState.STOPPED, 143)
    assert await running.run(box, "cat file; pgrep -c sleep") == "kept\n1\n"
    row = await running.boxes.sandbox(ONE, box)
    await running.boxes.remove(ONE, box, force=True)
    assert (await running.sandboxes.get(ONE, row.id)).ended_by in (EndedBy.STOP, EndedBy.KILL)


async def test_root_changes_the_image_and_the_host_stays_as_it_is(running: NativeRunning) -> None:
    box = await running.boxes.create(ONE, a_box(user="root", drop_capabilities=("CHOWN",)))
    await running.run(box, "rm /etc/hostname; echo x > /etc/new-file; ! chown 5 /etc/new-file 2>&1")
    await running.boxes.stop(ONE, box)
    assert await running.run(box, "cat /etc/new-file; test -e /etc/hostname || echo gone") == "x\ngone\n"
    assert Path("/etc/hostname").exists()
    assert not Path("/etc/new-file").exists()


async def test_a_snapshot_of_a_running_box_is_restored_cloned_and_forked(running: NativeRunning) -> None:
    box = await running.boxes.create(ONE, a_box(**SLEEP))
    await running.run(box, "echo first > file; mkdir d; ln -s file d/link; rm -rf .profile")
    taken = await running.boxes.snapshot(ONE, box, "before")
    assert taken.was_running
    assert taken.size_bytes > 0
    await running.run(box, "echo second > file")
    copies = await running.boxes.fork(ONE, box, 3, snapshot="before")
    clone = await running.boxes.clone(ONE, box, name="clone")
    told = await asyncio.gather(*(running.run(one, "cat file; readlink d/link") for one in copies))
    assert told == ["first\nfile\n"] * 3
    assert await running.run(clone, "cat file; echo third > file") == "second\n"
    assert await running.run(box, "cat file") == "second\n"
    await running.boxes.stop(ONE, box)
    restored = await running.boxes.restore(ONE, box, "before")
    assert restored.parent_snapshot_id == taken.id
    assert await running.run(box, "cat file") == "first\n"
    await running.boxes.remove(ONE, box, force=True)
    assert await running.run(clone, "cat file") == "third\n"
    for one in (*copies, clone):
        await running.boxes.remove(ONE, one, force=True)


async def test_a_paused_box_uses_no_time_and_goes_on(running: NativeRunning) -> None:
    box = await running.boxes.create(ONE, a_box(command=("/bin/sh", "-c", "while :; do echo $((n+=1)) > /tmp/n; done")))
    box = await running.boxes.start(ONE, box)
    row = await running.boxes.sandbox(ONE, box)
    await running.boxes.pause(ONE, box)
    first = await running.sandboxes.usage(ONE, row.id)
    await asyncio.sleep(0.1)  # time in which it would use some
    second = await running.sandboxes.usage(ONE, row.id)
    assert first.usage.cpu_user_s == second.usage.cpu_user_s
    assert (await running.boxes.get(ONE, box.id)).state is BoxState.PAUSED
    await running.boxes.snapshot(ONE, box, "still")
    assert (await running.sandboxes.lives.backend.inspect(row.id)).is_paused
    assert await running.run(box, "echo here") == "here\n"
    await running.boxes.pause(ONE, box)
    assert (await running.boxes.stop(ONE, box)).exit_code == 143
    await running.boxes.remove(ONE, box)


async def test_a_volume_outlives_the_box_that_wrote_to_it(running: NativeRunning) -> None:
    volume = await running.volumes.create(ONE, "data", 64 * MB)
    writer = await running.boxes.create(ONE, a_box(user="root", mounts=(Mount(volume="data", path="/data"),)))
    reads = (Mount(volume=volume.id, path="/data", read_only=True),)
    readers = [await running.boxes.create(ONE, a_box(mounts=reads)) for _ in range(2)]
    await running.run(writer, "echo hello > /data/file")
    with pytest.raises(VolumeInUse):
        await running.boxes.start(ONE, readers[0])
    await running.boxes.remove(ONE, writer, force=True)
    for reader in readers:
        assert await running.run(reader, "cat /data/file; ! touch /data/x 2>/dev/null") == "hello\n"
    for reader in readers:
        await running.boxes.remove(ONE, reader, force=True)
    await running.volumes.remove(ONE, "data")


async def test_a_disk_holds_no_more_than_it_may(running: NativeRunning, backend: NativeBackend) -> None:
    if not (await backend.disks.facts()).enforces_size:
        pytest.skip("sizes are not enforced on this host")
    small = limits(wall_s=300.0, memory_bytes=128 * MB, disk_bytes=16 * MB)
    box = await running.boxes.create(ONE, a_box(limits=small))
    told = await running.run(box, "for n in 1 2 3 4; do head -c 8M /dev/urandom > f$n; done; sync; echo tried; exit 0")
    assert told == "tried\n"
    info = await backend.disks.info(box.disk)
    assert info.used_bytes <= 17 * MB
    await running.boxes.remove(ONE, box, force=True)


async def test_a_box_that_dies_says_why_and_starts_again(running: NativeRunning, backend: NativeBackend) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, a_box(limits=limits(wall_s=1.0))))
    async with asyncio.timeout(60):
        while True:
            now = await running.boxes.get(ONE, box.id)
            if now.state is BoxState.STOPPED:
                break
            await asyncio.sleep(0.02)
    assert "1 s" in now.message
    assert (await running.boxes.start(ONE, now)).state is BoxState.RUNNING
    await running.boxes.remove(ONE, box, force=True)


async def test_a_hundred_come_and_go_at_once(running: NativeRunning) -> None:
    count = 100 if os.environ.get("STOCKADE_LONG_TESTS") else 12

    async def one() -> None:
        box = await running.boxes.create(ONE, a_box())
        assert await running.run(box, "echo hi") == "hi\n"
        await running.boxes.remove(ONE, box, force=True)

    await asyncio.gather(*(one() for _ in range(count)))


async def test_the_next_server_finds_what_runs_and_what_is_paused(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    backend = NativeBackend(BackendOptions(data_dir=tmp_path_factory.mktemp("data"), embedded=True))
    await backend.start()
    try:
        if (await backend.disks.facts()).kind == "none":
            pytest.skip("no disks on this host")
        await finds_again(backend, tmp_path)
    finally:
        await backend.close()


async def finds_again(backend: NativeBackend, tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "state" / "boxes.db") as database:
        async with native_boxes(backend, database, tmp_path) as server:
            box = await server.boxes.create(ONE, a_box(name="dev", **SLEEP))
            await server.run(box, "echo kept > file")
            paused = await server.boxes.start(ONE, await server.boxes.create(ONE, a_box()))
            await server.boxes.pause(ONE, paused)
            lost = await server.boxes.start(ONE, await server.boxes.create(ONE, a_box()))
        assert lost.sandbox_id is not None
        await backend.sandboxing.remove(lost.sandbox_id)
        async with native_boxes(backend, database, tmp_path) as server:
            found = await server.boxes.get(ONE, "dev")
            assert (found.state, found.starts) == (BoxState.RUNNING, 1)
            assert await server.run(found, "cat file; pgrep -c sleep") == "kept\n1\n"
            assert (await server.boxes.get(ONE, paused.id)).state is BoxState.PAUSED
            assert await server.run(paused, "echo on") == "on\n"
            assert (await server.boxes.get(ONE, lost.id)).state is BoxState.STOPPED
            assert await server.run(lost, "echo again") == "again\n"
            for one in (box, paused, lost):
                await server.boxes.remove(ONE, one, force=True)
