"""The life of a box, over backends in memory: what each call does, and what is left when it fails."""

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stockade.backends.sandboxing import Refusal
from stockade.engine.box_errors import BoxStateConflict, BoxStopped, TooManyBoxes, VolumeInUse
from stockade.engine.processes import CannotStart
from stockade.errors import Invalid, InvalidLimit, LimitExceeded, NotFound, Unavailable, UnknownImage
from stockade.model import (
    Actor,
    Box,
    BoxState,
    DiskMount,
    ExecSpec,
    Mount,
    Network,
    NetworkMode,
    Port,
    SandboxState,
    SecretRule,
)
from tests.engine.box_fakes import ALPINE, BoxServer, Running, away, box_request
from tests.engine.live_fakes import ONE, OTHER, limits, until

pytestmark = pytest.mark.anyio

CONFIGURED, RUNNING, PAUSED, STOPPING, STOPPED, FAILED = BoxState
SLEEP: dict[str, Any] = {"command": ("sleep", "60")}


@pytest.fixture
def server(tmp_path: Path) -> BoxServer:
    return BoxServer(tmp_path)


@pytest.fixture
async def running(server: BoxServer) -> AsyncIterator[Running]:
    async with server.running() as running:
        yield running


# ── making and finding ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_box_that_was_made_has_a_disk_and_runs_nothing(server: BoxServer, running: Running) -> None:
    box = await running.boxes.create(ONE, box_request("dev", env={"A": "b"}, labels={"x": "y"}))
    assert (box.state, box.name, box.account_id, box.image_digest) == (CONFIGURED, "dev", "account-one", "host")
    assert (box.user, box.cwd, box.entrypoint, box.command) == ("user", "/home/user", (), ())
    assert server.disks.disks[box.disk].size_bytes == box.limits.disk_bytes
    assert not server.backend.boxes
    assert await running.boxes.get(ONE, box.id) == await running.boxes.get(ONE, "dev") == box
    assert (await running.boxes.list(ONE)).items == (box,)


async def test_a_box_is_its_accounts_and_nobody_elses(running: Running) -> None:
    box = await running.boxes.create(ONE, box_request("dev"))
    sister = Actor(id="another-key", account_id=ONE.account_id)
    assert await running.boxes.get(sister, "dev") == box
    for name in (box.id, "dev"):
        with pytest.raises(NotFound):
            await running.boxes.get(OTHER, name)
    assert (await running.boxes.list(OTHER)).items == ()
    await running.boxes.create(OTHER, box_request("dev"))  # a name is one account's, too
    row = await running.boxes.sandbox(sister, box)
    assert row.key_id == ONE.id
    assert await running.sandboxes.exec(running.boxes.acting(box), row.id, ExecSpec(argv=("true",)))


async def test_a_name_is_given_once(server: BoxServer, running: Running) -> None:
    asked = [running.boxes.create(ONE, box_request("dev")) for _ in range(5)]
    made = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(type(one).__name__ for one in made) == ["Box", *["BoxExists"] * 4]
    assert len(server.disks.disks) == 1
    box = await running.boxes.get(ONE, "dev")
    await running.boxes.remove(ONE, box)
    await running.boxes.create(ONE, box_request("dev"))


async def test_an_account_has_no_more_boxes_than_it_may(tmp_path: Path) -> None:
    async with BoxServer(tmp_path, most_of_account=3).running() as running:
        made = await asyncio.gather(
            *(running.boxes.create(ONE, box_request()) for _ in range(8)), return_exceptions=True
        )
        assert sum(isinstance(one, TooManyBoxes) for one in made) == 5
        with pytest.raises(TooManyBoxes):
            await running.boxes.fork(ONE, (await running.boxes.list(ONE)).items[0], 1)
        await running.boxes.create(OTHER, box_request())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"image": "nothing"}, UnknownImage),
        ({"name": "-x"}, Invalid),
        ({"name": "a/b"}, Invalid),
        ({"name": "x" * 129}, Invalid),
        ({"name": "01K9ZB3M4T7QWERTYASDFGHJKZ"}, Invalid),
        ({"env": {"A=B": ""}}, Invalid),
        ({"cwd": "srv"}, Invalid),
        ({"user": "nobody-here"}, Invalid),
        ({"user": "1:x"}, Invalid),
        ({"user": "65535"}, Invalid),
        ({"command": ("a\0",)}, Invalid),
        ({"limits": limits(memory_bytes=0)}, InvalidLimit),
        ({"limits": limits(memory_bytes=4 << 20)}, InvalidLimit),
        ({"limits": limits(disk_bytes=1 << 50)}, InvalidLimit),
        ({"mounts": (Mount(volume="no", path="/x"),)}, NotFound),
        ({"drop_capabilities": ("FLY",)}, Invalid),
        ({"auto_stop_s": 0.0}, Invalid),
        ({"auto_delete_s": -1.0}, Invalid),
        ({"network": Network(allow_cidrs=("10.0.0.1/8",))}, Invalid),
        ({"secrets": (SecretRule(name="", value="v", placeholder="p"),)}, Invalid),
        ({"secrets": (SecretRule(name="A", value="v", placeholder=""),)}, Invalid),
    ],
)
async def test_what_can_never_be_is_refused_and_leaves_nothing(
    server: BoxServer, running: Running, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await running.boxes.create(ONE, replace(box_request(), **changes))
    assert not server.disks.disks
    assert not (await running.boxes.list(ONE)).items


async def test_a_box_that_gets_no_disk_is_not_made(server: BoxServer, running: Running) -> None:
    server.disks.failures["make"] = away()
    with pytest.raises(Unavailable):
        await running.boxes.create(ONE, box_request("dev"))
    server.disks.failures.clear()
    await running.boxes.create(ONE, box_request("dev"))
    assert len(server.disks.disks) == 1


async def test_what_an_image_says_counts_where_the_request_says_nothing(server: BoxServer, running: Running) -> None:
    box = await running.boxes.create(ONE, box_request(image="alpine"))
    assert (box.image, box.image_digest, box.user, box.cwd) == ("alpine", ALPINE.digest, "70:70", "/srv")
    assert (box.entrypoint, box.command) == (("/entry",), ("serve", "--all"))
    other = await running.boxes.create(ONE, box_request(image="alpine", command=("x",), user="postgres"))
    assert (other.entrypoint, other.command, other.user) == (("/entry",), ("x",), "70:71")
    third = await running.boxes.create(ONE, box_request(image="alpine", entrypoint=("sh",), user="0"))
    assert (third.entrypoint, third.command, third.user) == (("sh",), (), "root")
    assert await running.boxes.uses_image(ALPINE.digest)
    assert not +server.images.held
    await running.boxes.start(ONE, box)
    (made,) = server.backend.boxes.values()
    assert (made.spec.layers, made.spec.disk, made.spec.image) == (("l1",), box.disk, "host")
    main = server.backend.specs[Box.MAIN]
    assert (main.argv, main.user, main.env["FROM_IMAGE"]) == (("/entry", "serve", "--all"), "70:70", "1")


async def test_what_fills_a_disk_is_done_before_anybody_sees_the_box(server: BoxServer, running: Running) -> None:
    async def fill(box: Box) -> None:
        assert (await running.boxes.list(ONE)).items == ()
        server.disks.disks[box.disk].content = "filled"

    async def fail(box: Box) -> None:
        raise Invalid("damaged")

    box = await running.boxes.create(ONE, box_request("dev"), fill=fill)
    assert server.disks.disks[box.disk].content == "filled"
    assert (await running.boxes.list(ONE)).items == (box,)
    with pytest.raises(Invalid, match="damaged"):
        await running.boxes.create(ONE, box_request(), fill=fail)
    assert set(server.disks.disks) == {box.disk}


# ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_start_makes_a_sandbox_on_the_disk_and_starts_the_main_process(
    server: BoxServer, running: Running
) -> None:
    request = box_request(env={"A": "b"}, drop_capabilities=("cap_chown",), labels={"x": "y"}, **SLEEP)
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, request))
    assert (box.state, box.starts, box.started_at is not None) == (RUNNING, 1, True)
    assert box.sandbox_id is not None
    made = server.backend.boxes[box.sandbox_id]
    assert (made.spec.disk, made.spec.drop_capabilities) == (box.disk, ("CHOWN",))
    main = server.backend.specs[Box.MAIN]
    assert (main.env["A"], main.stdin, main.keep) == ("b", True, True)
    row = await running.boxes.sandbox(ONE, box)
    assert (row.id, row.state, row.labels, row.dialect) == (box.sandbox_id, SandboxState.RUNNING, {"x": "y"}, "tests")
    timing = running.boxes.timing(box.id)
    assert timing is not None
    assert timing.total_s >= timing.sandbox_s + timing.main_s + timing.disk_s > 0


async def test_a_box_is_started_once_however_many_ask(server: BoxServer, running: Running) -> None:
    box = await running.boxes.create(ONE, box_request(**SLEEP))
    rows = await asyncio.gather(*(running.boxes.sandbox(ONE, box) for _ in range(10)))
    assert len({row.id for row in rows}) == len(server.backend.boxes) == 1
    assert (await running.boxes.start(ONE, box)).starts == 1


async def test_a_box_is_as_before_to_others_while_it_is_being_started(server: BoxServer, running: Running) -> None:
    box = await running.boxes.create(ONE, box_request())
    server.backend.holds["create"] = asyncio.Event()
    starting = asyncio.create_task(running.boxes.start(ONE, box))
    await until(lambda: any(call == "create" for call, _ in server.backend.calls))
    assert (await running.boxes.get(ONE, box.id)).state is CONFIGURED
    assert (await running.boxes.list(ONE)).items[0].state is CONFIGURED
    server.backend.holds["create"].set()
    assert (await starting).state is RUNNING


async def test_a_start_goes_on_when_its_caller_goes_away(server: BoxServer, running: Running) -> None:
    box = await running.boxes.create(ONE, box_request())
    server.backend.holds["create"] = asyncio.Event()
    starting = asyncio.create_task(running.boxes.start(ONE, box))
    await until(lambda: any(call == "create" for call, _ in server.backend.calls))
    starting.cancel()
    server.backend.holds["create"].set()
    await running.reaches(box, RUNNING)


async def test_a_box_that_cannot_run_is_failed_and_may_be_tried_again(server: BoxServer, running: Running) -> None:
    box = await running.boxes.create(ONE, box_request(**SLEEP))
    server.backend.refuses = Refusal.PROGRAM
    with pytest.raises(CannotStart, match="sleep"):
        await running.boxes.start(ONE, box)
    failed = await running.boxes.get(ONE, box.id)
    assert (failed.state, "sleep" in failed.message) == (FAILED, True)
    assert all(one.facts is not None for one in server.backend.boxes.values())
    server.backend.refuses = None
    again = await running.boxes.start(ONE, failed)
    assert (again.state, again.message) == (RUNNING, "")
    counts = running.boxes.counts(ONE)
    assert (counts.created, counts.started, counts.failed, counts.stopped, counts.running) == (1, 1, 1, 0, 1)


@pytest.mark.parametrize("method", ["create", "exec"])
async def test_a_box_that_could_not_be_started_now_is_as_before(
    server: BoxServer, running: Running, method: str
) -> None:
    box = await running.boxes.create(ONE, box_request(**SLEEP))
    server.backend.failures[method] = away()
    with pytest.raises(Unavailable):
        await running.boxes.start(ONE, box)
    assert (await running.boxes.get(ONE, box.id)).state is CONFIGURED
    server.backend.failures.clear()
    assert (await running.boxes.start(ONE, box)).state is RUNNING


async def test_a_start_counts_against_the_quota_of_the_key(running: Running) -> None:
    few = Actor(id="few", account_id="f", concurrent_limit=1)
    first, second = [await running.boxes.create(few, box_request()) for _ in range(2)]
    await running.boxes.start(few, first)
    with pytest.raises(LimitExceeded):
        await running.boxes.start(few, second)
    assert (await running.boxes.get(few, second.id)).state is CONFIGURED
    await running.boxes.stop(few, first)
    await running.boxes.start(few, second)


async def test_a_stop_asks_the_main_process_first_and_keeps_the_disk(server: BoxServer, running: Running) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(**SLEEP)))
    assert box.sandbox_id is not None
    server.backend.write(box.sandbox_id, "work")
    stopped = await running.boxes.stop(ONE, box)
    assert server.backend.signals == [(Box.MAIN, signal.SIGTERM, False)]
    assert (stopped.state, stopped.exit_code, stopped.message) == (STOPPED, 143, "")
    assert stopped.stopped_at is not None
    assert await running.boxes.stop(ONE, box) == stopped
    again = await running.boxes.start(ONE, box)
    assert again.sandbox_id != box.sandbox_id
    assert (again.starts, again.exit_code) == (2, None)
    assert server.disks.disks[box.disk].content == "work"


async def test_what_does_not_end_when_asked_is_killed(server: BoxServer, running: Running) -> None:
    server.backend.shrugs_off.add(signal.SIGTERM)
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(**SLEEP)))
    assert (await running.boxes.stop(ONE, box, grace_s=0.05)).exit_code == 137


async def test_the_end_of_the_main_process_is_told_and_is_not_the_boxs(server: BoxServer, running: Running) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(**SLEEP)))
    assert box.sandbox_id is not None
    server.backend.logged[box.sandbox_id][Box.MAIN].finish(3)
    now = await running.comes(box, lambda now: now.exit_code is not None)
    assert (now.state, now.exit_code) == (RUNNING, 3)
    assert (await running.boxes.stop(ONE, box)).exit_code == 3


async def test_a_box_whose_sandbox_ends_is_stopped_and_says_why(server: BoxServer, running: Running) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
    assert box.sandbox_id is not None
    server.backend.expire(box.sandbox_id)
    stopped = await running.reaches(box, STOPPED)
    assert "60 s" in stopped.message
    assert (await running.boxes.sandbox(ONE, box)).id != box.sandbox_id


async def test_a_box_is_lost_with_its_warden_and_can_be_started_again(server: BoxServer, running: Running) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
    server.backend.lose()
    stopped = await running.reaches(box, STOPPED)
    assert "warden" in stopped.message
    server.backend.come_back()
    server.disks.used_by.clear()
    assert (await running.boxes.start(ONE, stopped)).state is RUNNING


async def test_a_box_that_is_not_to_be_started_by_use_says_that_it_is_stopped(running: Running) -> None:
    box = await running.boxes.create(ONE, box_request(auto_resume=False))
    with pytest.raises(BoxStopped):
        await running.boxes.sandbox(ONE, box)
    willing = await running.boxes.create(ONE, box_request())
    with pytest.raises(BoxStopped):
        await running.boxes.sandbox(ONE, willing, start=False)
    await running.boxes.start(ONE, box)
    await running.boxes.sandbox(ONE, box, start=False)
    await running.boxes.pause(ONE, box)
    with pytest.raises(BoxStateConflict, match="paused"):
        await running.boxes.sandbox(ONE, box)


async def test_a_paused_box_goes_on_when_it_is_used(server: BoxServer, running: Running) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(**SLEEP)))
    paused = await running.boxes.pause(ONE, box)
    assert (paused.state, server.backend.paused) == (PAUSED, {box.sandbox_id})
    assert (await running.boxes.pause(ONE, paused)).state is PAUSED
    assert (await running.boxes.sandbox(ONE, paused)).id == box.sandbox_id
    assert (await running.boxes.get(ONE, box.id)).state is RUNNING
    assert not server.backend.paused
    await running.boxes.pause(ONE, box)
    assert (await running.boxes.start(ONE, box)).state is RUNNING
    await running.boxes.pause(ONE, box)
    assert (await running.boxes.stop(ONE, box)).exit_code == 143  # it heard of it
    for refused in (running.boxes.pause, running.boxes.resume):
        with pytest.raises(BoxStateConflict):
            await refused(ONE, box)


async def test_a_running_box_is_removed_only_by_force(server: BoxServer, running: Running) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(**SLEEP)))
    await running.boxes.snapshot(ONE, box, "kept")
    with pytest.raises(BoxStateConflict):
        await running.boxes.remove(ONE, box)
    await running.boxes.remove(ONE, box, force=True)
    with pytest.raises(NotFound):
        await running.boxes.get(ONE, box.id)
    with pytest.raises(NotFound):
        await running.boxes.remove(ONE, box, force=True)
    assert not server.disks.disks
    assert await running.table.list_hidden() == await running.snapshots.list_hidden() == []
    counts = running.boxes.counts(ONE)
    assert (counts.started, counts.stopped, counts.running) == (1, 1, 0)


async def test_a_network_is_changed_at_rest(server: BoxServer, running: Running) -> None:
    box = await running.boxes.create(ONE, box_request())
    network = Network(mode=NetworkMode.OUTGOING, allow_domains=("example.org",))
    changed = await running.boxes.update_network(ONE, box, network)
    assert changed.network == network
    await running.boxes.start(ONE, box)
    (made,) = server.backend.boxes.values()
    assert made.spec.network == network
    assert (await running.boxes.update_network(ONE, box, network)).state is RUNNING
    with pytest.raises(BoxStateConflict):
        await running.boxes.update_network(ONE, box, Network())
    with pytest.raises(Invalid):
        await running.boxes.update_network(ONE, box, Network(allow_domains=("a b",)))


async def test_secrets_are_admitted_for_the_sandbox_and_are_in_no_record(server: BoxServer, running: Running) -> None:
    rule = SecretRule(name="TOKEN", value="the-real-one", placeholder="<it>", hosts=("api.example.org",))
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(secrets=(rule,), **SLEEP)))
    assert box.sandbox_id is not None
    assert server.diversions.admitted == {box.sandbox_id: (rule,)}
    assert server.diversions.installed == [box.sandbox_id]
    assert server.backend.specs[Box.MAIN].env["TOKEN"] == "<it>"
    assert server.backend.boxes[box.sandbox_id].spec.diversion is not None
    assert "the-real-one" not in repr(box)
    for file in server.place.parent.iterdir():
        assert b"the-real-one" not in file.read_bytes()
    await running.boxes.stop(ONE, box)
    assert not server.diversions.admitted


# ── by itself ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_box_that_nobody_uses_is_stopped(server: BoxServer, running: Running) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(auto_stop_s=60.0, **SLEEP)))
    other = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
    server.time += 59
    await running.sweep()
    assert (await running.boxes.get(ONE, box.id)).state is RUNNING
    server.time += 2
    await running.sweep()
    assert (await running.boxes.get(ONE, box.id)).state is STOPPED
    assert (await running.boxes.get(ONE, other.id)).state is RUNNING


async def test_use_keeps_a_box_running(server: BoxServer, running: Running) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(auto_stop_s=60.0)))
    assert box.sandbox_id is not None
    with running.boxes.using(box.id):
        server.time += 100
        await running.sweep()
        assert (await running.boxes.get(ONE, box.id)).state is RUNNING
    await running.processes.start(ONE, box.sandbox_id, ExecSpec(argv=("sleep", "9")), id="job")
    server.time += 100
    await running.sweep()
    assert (await running.boxes.get(ONE, box.id)).state is RUNNING
    await running.boxes.pause(ONE, box)
    server.time += 100
    await running.sweep()
    assert (await running.boxes.get(ONE, box.id)).state is PAUSED
    await running.boxes.resume(ONE, box)
    server.backend.logged[box.sandbox_id]["proc-job"].finish()
    server.time += 100
    await running.sweep()
    assert (await running.boxes.get(ONE, box.id)).state is STOPPED


async def test_a_box_is_removed_a_while_after_its_stop(server: BoxServer, running: Running) -> None:
    box = await running.boxes.create(ONE, box_request(auto_delete_s=60.0))
    server.time += 100
    await running.sweep()
    await running.boxes.start(ONE, box)
    await running.boxes.stop(ONE, box)
    await running.sweep()
    assert (await running.boxes.get(ONE, box.id)).state is STOPPED
    server.time += 61
    await running.sweep()
    with pytest.raises(NotFound):
        await running.boxes.get(ONE, box.id)
    assert not server.disks.disks


@pytest.mark.parametrize("by_itself", [False, True])
async def test_a_box_may_go_with_its_stop(server: BoxServer, running: Running, by_itself: bool) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request("dev", auto_delete_s=0.0)))
    assert box.sandbox_id is not None
    if by_itself:
        server.backend.expire(box.sandbox_id)
    else:
        stopped = await running.boxes.stop(ONE, box)
        assert (stopped.state, stopped.name) == (STOPPED, "dev")
    await running.goes(box)
    await until(lambda: not server.disks.disks)


async def test_when_it_was_used_last_is_recorded(server: BoxServer, running: Running) -> None:
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
    server.time += 30
    await running.boxes.sandbox(ONE, box)
    used_at = (await running.boxes.get(ONE, box.id)).last_used_at
    assert (used_at - box.last_used_at).total_seconds() > 29
    await running.sweep()
    found = await running.table.get(box.id)
    assert found is not None
    assert found[0].last_used_at == used_at


async def test_the_boxes_of_an_account_are_stopped_and_removed_with_it(server: BoxServer, running: Running) -> None:
    one = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request()))
    other = await running.boxes.start(OTHER, await running.boxes.create(OTHER, box_request()))
    await running.volumes.create(ONE, "data")
    await running.boxes.stop_of_account(ONE.account_id)
    assert (await running.boxes.get(ONE, one.id)).state is STOPPED
    await running.boxes.start(ONE, one)
    await running.boxes.remove_of_account(ONE.account_id)
    assert (await running.boxes.list(ONE)).items == ()
    assert await running.volumes.list(ONE) == []
    assert set(server.disks.disks) == {other.disk}
    assert (await running.boxes.get(OTHER, other.id)).state is RUNNING


# ── volumes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_volume_is_read_by_many_or_written_by_one(server: BoxServer, running: Running) -> None:
    volume = await running.volumes.create(ONE, "data")
    reads = (Mount(volume="data", path="/data", read_only=True),)
    writes = (Mount(volume=volume.id, path="/data"),)
    first, second = [await running.boxes.create(ONE, box_request(mounts=reads)) for _ in range(2)]
    writer = await running.boxes.create(ONE, box_request(mounts=writes))
    await running.boxes.start(ONE, first)
    await running.boxes.start(ONE, second)
    with pytest.raises(VolumeInUse, match=first.id):
        await running.boxes.start(ONE, writer)
    assert (await running.boxes.get(ONE, writer.id)).state is CONFIGURED
    await running.boxes.stop(ONE, first)
    await running.boxes.stop(ONE, second)
    started = await running.boxes.start(ONE, writer)
    assert started.sandbox_id is not None
    spec = server.backend.boxes[started.sandbox_id].spec
    assert spec.mounts == (DiskMount(disk=volume.disk, path="/data"),)
    with pytest.raises(VolumeInUse, match=writer.id):
        await running.boxes.start(ONE, first)


async def test_a_volume_that_is_mounted_is_not_removed(running: Running) -> None:
    volume = await running.volumes.create(ONE, "data")
    mounts = (Mount(volume="data", path="/data"),)
    box = await running.boxes.start(ONE, await running.boxes.create(ONE, box_request(mounts=mounts)))
    for force in (False, True):
        with pytest.raises(VolumeInUse, match=box.id):
            await running.volumes.remove(ONE, "data", force=force)
    await running.boxes.stop(ONE, box)
    with pytest.raises(VolumeInUse, match=box.id):
        await running.volumes.remove(ONE, "data")
    await running.volumes.remove(ONE, volume.id, force=True)
    with pytest.raises(NotFound, match="removed"):
        await running.boxes.start(ONE, box)
    assert (await running.boxes.get(ONE, box.id)).state is FAILED


@pytest.mark.parametrize("path", ["/", "/proc/x", "/dev", "data", "/sys/../sys"])
async def test_a_volume_is_not_mounted_where_a_sandbox_needs_the_place(running: Running, path: str) -> None:
    await running.volumes.create(ONE, "data")
    with pytest.raises(Invalid, match=r"mounts\.path"):
        await running.boxes.create(ONE, box_request(mounts=(Mount(volume="data", path=path),)))


async def test_ports_of_the_host_are_a_boxs_own(running: Running) -> None:
    exposed = Network(mode=NetworkMode.EXPOSED, ports=(Port(container=80, host=8000),))
    box = await running.boxes.create(ONE, box_request(network=exposed))
    clone = await running.boxes.clone(ONE, box)
    assert (box.network.ports[0].host, clone.network.ports[0].host) == (8000, 0)


async def test_a_box_of_another_server_is_told_from_none(server: BoxServer, running: Running) -> None:
    box = await running.boxes.create(ONE, box_request("there"))
    async with server.running(server_id="server-2") as other:
        assert (await other.boxes.get(ONE, "there")).id == box.id
        with pytest.raises(Unavailable, match="another server"):
            await other.boxes.start(ONE, box)
