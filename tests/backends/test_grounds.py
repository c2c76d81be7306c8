"""What sandboxes stand on beside the host image and memory: disks, volumes, layers; and standing still."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator

import pytest

from stockade.backends.base import Backend
from stockade.backends.disks import Disks
from stockade.backends.native.sandboxes import NativeSandboxes
from stockade.backends.sandboxing import LiveExec
from stockade.errors import Conflict, Invalid, NotFound, Unsupported
from stockade.model import DiskMount
from tests.backends.living import ENV, eventually, live_spec, living, ran, start
from tests.backends.sandboxes import MB

pytestmark = pytest.mark.anyio

_numbers = itertools.count(1)


@pytest.fixture
def sandboxing(backend: Backend) -> NativeSandboxes:
    found: NativeSandboxes | None = getattr(backend, "sandboxing", None)
    if found is None:
        pytest.skip("this backend's sandboxes do not live")
    return found


@pytest.fixture
async def disks(backend: Backend) -> Disks:
    found: Disks | None = getattr(backend, "disks", None)
    if found is None:
        pytest.skip("this backend has no disks")
    facts = await found.facts()
    if facts.kind == "none":
        pytest.skip(f"this host has no disks: {facts.why}")
    return found


@contextlib.asynccontextmanager
async def disk(disks: Disks, size: int = 64 * MB) -> AsyncIterator[str]:
    """An empty one; gone at the end."""
    name = f"test{next(_numbers)}"
    await disks.make(name, size_bytes=size)
    try:
        yield name
    finally:
        await disks.delete(name)


async def test_what_is_written_to_a_disk_is_there_for_the_next_sandbox(
    sandboxing: NativeSandboxes, disks: Disks
) -> None:
    async with disk(disks) as kept:
        async with living(sandboxing, disk=kept) as name:
            script = "echo kept > /home/user/note; mkdir /srv/made; rm /etc/issue; ln -s /srv/made /srv/link; id -u"
            assert (await ran(sandboxing, name, "sh", "-c", script))[::2] == (b"1000\n", 0)
        async with living(sandboxing, disk=kept) as name:
            script = "cat note; ls -ld /srv/made | cut -c1-10; test ! -e /etc/issue; stat -c %U:%G note /srv/link"
            out, err, code = await ran(sandboxing, name, "sh", "-c", script)
            assert (out, err, code) == (b"kept\ndrwxr-xr-x\nuser:user\nuser:user\n", b"", 0)


async def test_a_disk_is_one_sandboxs_at_a_time(sandboxing: NativeSandboxes, disks: Disks) -> None:
    async with disk(disks) as kept, living(sandboxing, disk=kept) as name:
        with pytest.raises(Conflict):
            await sandboxing.create("second", live_spec(disk=kept))
        with pytest.raises(Conflict):
            await disks.delete(kept)
        assert (await ran(sandboxing, name, "true"))[2] == 0


async def test_a_sandbox_on_a_disk_that_is_not_there_leaves_nothing(sandboxing: NativeSandboxes, disks: Disks) -> None:
    with pytest.raises(NotFound):
        await sandboxing.create("lost", live_spec(disk="nowhere"))
    with pytest.raises(NotFound):
        await sandboxing.create("lost", live_spec(layers=("nowhere",)))
    assert "lost" not in {one.name for one in await sandboxing.inventory()}


async def test_a_disk_holds_no_more_than_its_size(sandboxing: NativeSandboxes, disks: Disks) -> None:
    if not (await disks.facts()).enforces_size:
        pytest.skip("nothing enforces the size of a disk here")
    async with disk(disks, 8 * MB) as kept, living(sandboxing, disk=kept, memory_bytes=256 * MB) as name:
        _out, err, code = await ran(sandboxing, name, "sh", "-c", "head -c 32m /dev/urandom > /tmp/big")
        assert code != 0
        assert b"quota" in err.lower() or b"space" in err.lower()
        assert (await disks.info(kept)).used_bytes <= 9 * MB


async def test_a_volume_is_shown_at_its_path_and_read_only_where_it_shall_be(
    sandboxing: NativeSandboxes, disks: Disks
) -> None:
    async with disk(disks) as volume:
        async with living(sandboxing, mounts=(DiskMount(disk=volume, path="/data/in"),)) as name:
            script = "echo shared > /data/in/file && ln -s /etc/passwd /data/in/link"
            assert (await ran(sandboxing, name, "sh", "-c", script))[2] == 0
        readers = (DiskMount(disk=volume, path="/srv/ro", read_only=True),)
        async with living(sandboxing, mounts=readers) as one, living(sandboxing, mounts=readers) as two:
            for name in (one, two):
                assert (await ran(sandboxing, name, "cat", "/srv/ro/file"))[0] == b"shared\n"
                _out, err, code = await ran(sandboxing, name, "sh", "-c", "echo x >> /srv/ro/file")
                assert code != 0
                assert b"Read-only" in err


@pytest.mark.parametrize("path", ["/proc/x", "/dev", "/sys/fs", "/", "relative", "/a/../proc"])
async def test_nothing_is_mounted_where_the_sandbox_has_its_own(
    sandboxing: NativeSandboxes, disks: Disks, path: str
) -> None:
    with pytest.raises(Invalid):
        await sandboxing.create("odd", live_spec(mounts=(DiskMount(disk="any", path=path),)))


async def test_a_copy_of_a_running_sandboxs_disk_is_as_of_one_moment(sandboxing: NativeSandboxes, disks: Disks) -> None:
    async with disk(disks) as kept, living(sandboxing, disk=kept) as name:
        if not (await disks.facts()).shares_blocks:
            try:
                await sandboxing.pause(name)
            except Unsupported as error:
                pytest.skip(str(error))
            await sandboxing.resume(name)
        # Two files in step: the second is never ahead of the first, nor more than one behind.
        script = "i=0; while :; do i=$((i+1)); echo $i > /tmp/a; echo $i > /tmp/b; done"
        (await start(sandboxing, name, "sh", "-c", script)).close()

        async def has_begun() -> bool:
            return bool((await ran(sandboxing, name, "cat", "/tmp/b"))[0])

        await eventually(has_begun)
        for _ in range(5):
            copy = f"copy{next(_numbers)}"
            await disks.copy(kept, copy, sandbox=name)
            async with living(sandboxing, disk=copy) as other:
                out, err, _ = await ran(sandboxing, other, "cat", "/tmp/a", "/tmp/b")
                numbers = [int(one) for one in out.split()]
                assert not err
                # A file that was cut to nothing and not written yet is missing from the list.
                assert len(numbers) < 2 or 0 <= numbers[0] - numbers[1] <= 1
            await disks.delete(copy)
        before = (await ran(sandboxing, name, "cat", "/tmp/b"))[0]

        async def goes_on() -> bool:
            return bool((await ran(sandboxing, name, "cat", "/tmp/b"))[0] != before)

        await eventually(goes_on)


@pytest.mark.usefixtures("_with_root")
async def test_layers_lie_over_one_another_and_owners_are_those_of_the_inside(
    sandboxing: NativeSandboxes, disks: Disks
) -> None:
    """A root of busybox's own size: what `cat` needs, from the host, and two layers that say different things."""
    lower, upper = f"layer{next(_numbers)}", f"layer{next(_numbers)}"
    for layer, script in (
        (lower, ("P='/usr/bin/cat /usr/bin/id /usr/bin/stat'; cp -L --parents $P $(ldd $P | grep -o '/[^ ]*\\.so[^ ]*'"
                " | sort -u) $D;"
                " echo low > $D/one; echo low > $D/two; chown 33:33 $D/one; chmod 640 $D/one; mkdir $D/etc")),
        (upper, "echo high > $D/two; ln -s /etc $D/proc; chown 0:7 $D/two"),
    ):  # fmt: skip
        await disks.make(layer, size_bytes=128 * MB)
        async with living(sandboxing, mounts=(DiskMount(disk=layer, path=DiskMount.WORKSHOP),)) as name:
            script = f"set -e; D={DiskMount.WORKSHOP}; {script}"
            out, err, code = await ran(sandboxing, name, "sh", "-c", script, user="root")
            assert (err, code) == (b"", 0)
        await disks.seal(layer)
    try:
        async with living(sandboxing, layers=(upper, lower), cwd="/") as name:
            out, err, code = await ran(
                sandboxing, name, "/usr/bin/stat", "-c", "%n %u:%g %a", "/one", "/two", user="root", cwd="/"
            )
            assert (out, err, code) == (b"/one 33:33 640\n/two 0:7 644\n", b"", 0)
            out, err, code = await ran(sandboxing, name, "/usr/bin/cat", "/one", "/two", user="root", cwd="/")
            assert (out, code) == (b"low\nhigh\n", 0)
            # What the image says is at /proc is not: that is the kernel's.
            assert (await ran(sandboxing, name, "/usr/bin/cat", "/proc/self/comm", user="root", cwd="/"))[0] == b"cat\n"
            out, err, code = await ran(sandboxing, name, "/usr/bin/id", user="33:7", cwd="/")
            assert (out, code) == (b"uid=33 gid=7 groups=7\n", 0)
            out, err, code = await ran(sandboxing, name, "/usr/bin/cat", "/one", user="33:7", cwd="/")
            assert (out, code) == (b"low\n", 0)
            out, err, code = await ran(sandboxing, name, "/usr/bin/cat", "/one", user="34:34", cwd="/")
            assert code == 1
            with pytest.raises(Conflict):
                await disks.delete(lower)
    finally:
        await disks.delete(upper)
        await disks.delete(lower)


@pytest.fixture
async def _with_root(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing) as name:
        if (await ran(sandboxing, name, "true", user="root"))[2]:
            pytest.skip("an ordinary user's warden has one user id: there is no root inside")


@pytest.mark.usefixtures("_with_root")
async def test_root_inside_lacks_what_was_dropped(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing, drop_capabilities=("CHOWN", "NET_RAW")) as name:
        script = "touch /tmp/f; chown 5 /tmp/f; echo $?; grep CapBnd /proc/self/status; chmod 700 /home/user; echo $?"
        out, _err, _ = await ran(sandboxing, name, "sh", "-c", script, user="root")
        lines = out.splitlines()
        assert lines[0] == b"1"
        assert int(lines[1].split()[1], 16) & 1 == 0
        assert lines[2] == b"0"
    async with living(sandboxing, drop_capabilities=("ALL",)) as name:
        out, _, _ = await ran(sandboxing, name, "grep", "CapEff", "/proc/self/status", user="root")
        assert int(out.split()[1], 16) == 0


async def test_a_paused_sandbox_stands_still_and_its_time_with_it(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing, lifetime_s=600.0) as name:
        streams = await start(sandboxing, name, "sh", "-c", "while :; do date +%s%N; sleep 0.01; done")
        at = (await asyncio.wait_for(streams.read(0, 0), 30)).stdout.end
        try:
            await sandboxing.pause(name)
        except Unsupported as error:
            pytest.skip(str(error))
        await sandboxing.pause(name)  # again: nothing happens
        known = await sandboxing.inspect(name)
        assert known.is_paused
        assert known.deadline_at is not None
        with pytest.raises(Conflict, match="paused"):
            await sandboxing.exec(name, "other", LiveExec(argv=("true",), env=ENV, cwd="/"))
        await sandboxing.resume(name)
        later = await sandboxing.inspect(name)
        assert not later.is_paused
        assert later.deadline_at is not None
        assert later.deadline_at >= known.deadline_at
        assert (await asyncio.wait_for(streams.read(at, 0), 30)).stdout.data
        streams.close()


async def test_the_deadline_of_a_paused_sandbox_waits(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing, lifetime_s=0.6) as name:
        try:
            await sandboxing.pause(name)
        except Unsupported as error:
            pytest.skip(str(error))
        passed = time.monotonic() + 0.9
        while time.monotonic() < passed:
            assert (await sandboxing.inspect(name)).is_running
            await asyncio.sleep(0.05)
        await sandboxing.resume(name)
        ended = await asyncio.wait_for(sandboxing.ended(name), 30)
        assert ended.ended_by is not None
        assert ended.ended_by.value == "deadline"


async def test_a_paused_sandbox_can_be_killed(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing) as name:
        (await start(sandboxing, name, "sleep", "99")).close()
        try:
            await sandboxing.pause(name)
        except Unsupported as error:
            pytest.skip(str(error))
        await sandboxing.kill(name)
        assert (await asyncio.wait_for(sandboxing.ended(name), 30)).ended_by is not None
