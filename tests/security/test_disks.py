"""What a tenant may try with a disk or a volume: more room than it has, another's blocks, a start that goes astray."""

import asyncio
import contextlib
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.disks import Disks
from stockade.backends.native import NativeBackend
from stockade.backends.native.sandboxes import NativeSandboxes
from stockade.errors import Conflict, Unavailable
from stockade.model import DiskMount, Network, NetworkMode
from tests.backends.living import eventually, living, ran
from tests.backends.sandboxes import MB

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root's warden has disks with a size, and users of their own"),
]
OUTGOING = Network(mode=NetworkMode.OUTGOING)
# As <linux/btrfs.h> has them: make a subvolume, twice; snapshot; quotas; limits; search; read-only; defragment; sync;
# wait; resize; balance; label; send; and of <linux/fs.h> trim and freeze.
IOCTLS = """
import errno, fcntl, os, sys
def code(kind, number, size, letter=0x94): return kind << 30 | size << 16 | letter << 8 | number
codes = [code(1, 24, 4096), code(1, 14, 4096), code(1, 23, 4096), code(3, 40, 16), code(2, 43, 48), code(3, 17, 4096),
    code(1, 26, 8), code(1, 2, 4096), code(0, 8, 0), code(2, 24, 8), code(1, 3, 4096), code(1, 12, 4096),
    code(1, 50, 256), code(1, 38, 72), code(3, 121, 24, ord("X")), code(3, 119, 4, ord("X"))]
fd = os.open(sys.argv[1], os.O_RDONLY)
for one in codes:
    data = bytearray(4096)
    data[8:11] = data[56:59] = b"sub"
    try:
        fcntl.ioctl(fd, one, data)
        print("allowed", hex(one))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTTY): print(hex(one), error)
print(sorted(os.listdir(sys.argv[1])))
"""
# Files without content, extended attributes, holes filled behind each other's back, and space set aside.
FILL = """
import errno, os, sys
top, full = sys.argv[1], 0
os.mkdir(top + "/in"); os.chdir(top + "/in")
def until_full(work):
    global full
    try:
        for i in range(40_000): work(i)
    except OSError as error:
        assert error.errno in (errno.EDQUOT, errno.ENOSPC), error
        full += 1
def attributes(i):
    open("a%d" % i, "w").close(); os.setxattr("a%d" % i, "user.x", bytes(3000))
def aside(i):
    fd = os.open("s%d" % i, os.O_WRONLY | os.O_CREAT); os.posix_fallocate(fd, 0, 1 << 20); os.close(fd)
def holes(i):
    fd = os.open("h%d" % i, os.O_WRONLY | os.O_CREAT); os.pwrite(fd, os.urandom(4096), 1 << 40)
    os.fsync(fd); os.close(fd)
for work in (aside, attributes, holes, lambda i: open("f%d" % i, "w").close()): until_full(work)
print(full)
"""
FLOOD = """
import os
for i in range(20_000):
    os.mknod(f"/srv/{i}")
    os.setxattr(f"/srv/{i}", "user.x", bytes(3800))
"""


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[NativeBackend]:
    backend = NativeBackend(BackendOptions(data_dir=tmp_path_factory.mktemp("data")))
    await backend.start()
    if (await backend.disks.facts()).kind != "btrfs":
        await backend.close()
        pytest.skip("nothing enforces the size of a disk here")
    yield backend
    await backend.close()


@pytest.fixture
def sandboxing(backend: NativeBackend) -> NativeSandboxes:
    return backend.sandboxing


@contextlib.asynccontextmanager
async def disks(backend: NativeBackend, *names: str, size: int = 32 * MB) -> AsyncIterator[Disks]:
    for name in names:
        await backend.disks.make(name, size_bytes=size)
    try:
        yield backend.disks
    finally:
        for name in names:
            await backend.disks.delete(name)


@pytest.mark.parametrize("user", ["root", "user"])
async def test_the_file_system_of_the_disks_takes_no_orders_from_inside(
    backend: NativeBackend, sandboxing: NativeSandboxes, user: str
) -> None:
    """A subvolume in a volume would be bound by no limit; a commit, trim or freeze would be everybody's."""
    volume = DiskMount(disk="v1", path="/vol")
    async with disks(backend, "d1", "v1"), living(sandboxing, disk="d1", mounts=(volume,)) as name:
        for where in ("/vol", "/srv"):
            out, err, code = await ran(sandboxing, name, "python3", "-c", IOCTLS, where, user=user)
            assert (out, err, code) == (b"[]\n", b"", 0)


@pytest.mark.parametrize("where", ["/vol", "/srv"])
async def test_whatever_fills_a_disk_counts(backend: NativeBackend, sandboxing: NativeSandboxes, where: str) -> None:
    volume = DiskMount(disk="v2", path="/vol")
    async with disks(backend, "d2", "v2", size=8 * MB) as kept, living(sandboxing, disk="d2", mounts=(volume,)) as name:
        out, err, code = await ran(sandboxing, name, "python3", "-c", FILL, where)
        assert (out, err, code) == (b"4\n", b"", 0)
        for disk in ("d2", "v2"):
            assert (await kept.info(disk)).used_bytes <= 8 * MB
        assert (await ran(sandboxing, name, "sh", "-c", f"rm {where}/in/s0 && echo x > {where}/again"))[2] == 0


@pytest.mark.parametrize(
    "done",
    [
        "rm -rf /srv /opt /media /home /run",
        "rm -rf /srv /opt /home/user; ln -s /usr/bin /srv; ln -s /nowhere /opt; ln -s /etc/shadow /home/user",
        "rm -rf /home; echo x > /home; mkfifo /etc/resolv.conf.new",
        "rm -rf /home/user; mkfifo /home/user; rm -f /etc/resolv.conf; mkdir -p /etc/resolv.conf/x",
        "rm -rf /tmp /proc /dev /var/tmp /mnt; ln -s / /mnt; ln -s ../../.. /tmp",
        "head -c 64M /dev/zero > /srv/full",
        f"python3 -c '{FLOOD}'",
    ],
)
async def test_nothing_on_its_disk_keeps_a_sandbox_from_starting(
    backend: NativeBackend, sandboxing: NativeSandboxes, done: str
) -> None:
    async with disks(backend, "d3", size=8 * MB):
        async with living(sandboxing, disk="d3") as name:
            await ran(sandboxing, name, "sh", "-c", f"({done}) 2>/dev/null")
        for _ in range(3):
            async with living(sandboxing, disk="d3", network=OUTGOING) as name:
                check = (
                    "cat /proc/self/comm && test -c /dev/null && test ! -w /usr/bin && rm -f /srv/full /srv/0; id -u"
                )
                assert await ran(sandboxing, name, "sh", "-c", check, cwd="/") == (b"cat\n1000\n", b"", 0)


async def test_who_starts_a_full_disk_again_and_again_gains_little(
    backend: NativeBackend, sandboxing: NativeSandboxes
) -> None:
    """A start needs room that is taken back; what was filled meanwhile is not given anew without end."""
    async with disks(backend, "d8", size=8 * MB) as kept:
        for _ in range(4):
            async with living(sandboxing, disk="d8") as name:
                await ran(sandboxing, name, "sh", "-c", "head -c 64M /dev/zero >> /srv/full 2>/dev/null")
        assert (await kept.info("d8")).used_bytes <= (8 + 5) * MB
        async with living(sandboxing, disk="d8") as name:

            async def is_full() -> bool:
                return bool((await ran(sandboxing, name, "sh", "-c", "head -c 64k /dev/zero >> /srv/full"))[2])

            await eventually(is_full)
            assert (await kept.info("d8")).size_bytes == 8 * MB


async def test_links_on_a_disk_give_nobody_what_is_roots(backend: NativeBackend, sandboxing: NativeSandboxes) -> None:
    """What is made for the user at each start is not made of what a link leads to."""
    async with disks(backend, "d4"):
        async with living(sandboxing, disk="d4") as name:
            made = "mkdir /roots && echo x > /roots/file && chmod 600 /roots/file && chmod 700 /roots"
            assert (await ran(sandboxing, name, "sh", "-c", made, user="root"))[2] == 0
            links = (
                "rm -rf /srv /opt /home/user; ln -s /roots /srv; ln -s /roots/file /opt; ln -s /roots/file /home/user"
            )
            assert (await ran(sandboxing, name, "sh", "-c", links))[2] == 0
        async with living(sandboxing, disk="d4") as name:
            show = "stat -c '%u:%g %a' /roots /roots/file"
            assert await ran(sandboxing, name, "sh", "-c", show, user="root", cwd="/") == (
                b"0:0 700\n0:0 600\n",
                b"",
                0,
            )


@pytest.mark.parametrize("link", ["/", "../../..", "/proc", "/dev", "/proc/self/root"])
async def test_links_lead_a_volume_to_nowhere_outside_the_disk(
    backend: NativeBackend, sandboxing: NativeSandboxes, link: str
) -> None:
    """Whoever made the image, or wrote to the disk before, chose where the volume's path leads."""
    async with disks(backend, "d5", "v5"):
        async with living(sandboxing, disk="d5", mounts=(DiskMount(disk="v5", path="/vol"),)) as name:
            fill = f"ln -s {link} /a; ln -s {link} /vol/dev; mkdir -p /vol/etc; echo evil > /vol/passwd; : > /vol/null"
            assert (await ran(sandboxing, name, "sh", "-c", fill))[2] == 0
        for path in ("/a", "/a/x", "/a/proc"):
            with contextlib.suppress(Conflict):
                async with living(sandboxing, disk="d5", mounts=(DiskMount(disk="v5", path=path),)) as name:
                    check = (
                        "test -c /dev/null && test -d /proc/self && ! mountpoint -q /etc && "
                        "grep -c ' /proc/[a-z]* ' /proc/self/mountinfo > /dev/null && test ! -e /etc/passwd.evil"
                    )
                    assert (await ran(sandboxing, name, "sh", "-c", check, cwd="/"))[1:] == (b"", 0)


async def test_what_root_inside_leaves_on_a_disk_is_in_nobodys_reach(
    backend: NativeBackend, sandboxing: NativeSandboxes
) -> None:
    """A set-user-id program on a disk is root's there and then: the host must not show it to its users."""
    async with disks(backend, "d6"):
        async with living(sandboxing, disk="d6") as name:
            script = "cp /usr/bin/id /srv/id; chmod 6755 /srv/id; stat -c '%u %a' /srv/id"
            assert (await ran(sandboxing, name, "sh", "-c", script, user="root"))[0] == b"0 6755\n"
            assert (await ran(sandboxing, name, "/srv/id", "-u"))[0] == b"1000\n"
        place = backend._options.data_dir / "disks"
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(one.stat().st_mode) & 0o077 == 0 for one in place.iterdir() if one.is_file())
        assert str(place) not in Path("/proc/self/mountinfo").read_text()


async def test_devices_and_whiteouts_are_made_on_no_disk(backend: NativeBackend, sandboxing: NativeSandboxes) -> None:
    volume = DiskMount(disk="v7", path="/vol")
    async with disks(backend, "d7", "v7"), living(sandboxing, disk="d7", mounts=(volume,)) as name:
        for where in ("/vol/x", "/srv/x"):
            for kind in ("c 0 0", "c 1 3", "b 7 0"):
                assert (await ran(sandboxing, name, "sh", "-c", f"mknod {where} {kind}", user="root"))[2] == 1
        # Of an overlay's own marks nothing can be written where it reads them.
        marks = (
            "import os\nfor n in ('opaque', 'redirect', 'metacopy'):\n  os.setxattr('/srv', 'user.overlay.' + n, b'y')"
        )
        await ran(sandboxing, name, "python3", "-c", marks, user="root")
        assert (await ran(sandboxing, name, "ls", "/usr/bin/env"))[2] == 0


async def test_a_server_that_is_not_ours_any_more_gets_nowhere(backend: NativeBackend) -> None:
    """Whatever it says of disks to the warden, by the very connection of the server that it took over."""
    limits = {"cpus": 1, "memory_bytes": 1 << 26, "processes": 9, "disk_bytes": 1 << 20, "disk_inodes": 99}
    stay: dict[str, Any] = {"op": "create", "sandbox": "x", "image": "host", "cwd": "/", "keep_s": 1, "log_bytes": 4096}
    stay |= {"kept_bytes": 4096, "limits": limits | {"open_files": 64, "stack_bytes": 1 << 20}}
    names: list[Any] = [
        "../x",
        "a/b",
        "",
        ".",
        "A",
        "x" * 41,
        "a\0b",
        None,
        5,
        ["a"],
        {"a": 1},
        "\u00e9",
        "-a",
        "a,b",
        "a:b",
    ]
    paths: list[Any] = ["/", "/proc", "/./proc", "//proc", "/dev/shm", "/a/../proc", "/sys", "relative", "", "/a\0b", 5]
    asked: list[dict[str, Any]] = [{"op": "disk_make", "disk": name, "size_bytes": 1} for name in names]
    asked += [{"op": "disk_make", "disk": "ok", "size_bytes": size} for size in (0, -1, 1 << 51, 1.5, "1", None, True)]
    asked += [{"op": "disk_copy", "of": "v9", "disk": name} for name in ("v9", "../v9", "")]
    asked += [{"op": "disk_list", "after": after} for after in ("../", 5, None)] + [{"op": "mount", "pid": 1}]
    asked += [{**stay, "mounts": [{"disk": "v9", "path": path}]} for path in paths]
    odd: list[Any] = [{"a": 1}, [5], [{"disk": "v9", "path": "/a"}] * 2, [[]]]
    asked += [{**stay, "mounts": mounts} for mounts in odd]
    asked += [{**stay, "mounts": [{"disk": f"v{i}", "path": "/a"} for i in range(1000)]}]
    asked += [{**stay, "layers": layers} for layers in (["../../etc"], ["v9"], "v9", ["a"] * 500, ["a:b"], ["a,b"])]
    asked += [{**stay, "disk": "v9", "mounts": [{"disk": "v9", "path": "/a", "whole": True}]}]
    asked += [{**stay, "drop_capabilities": given} for given in ([5], "ALL", 5)]
    async with disks(backend, "v9"):
        connection = await backend.disks._connected()
        for message in asked:
            answer, _ = await connection.ask(message, (), 60)
            assert "error" in answer, (message, answer)
            assert answer["error"]["kind"] in ("invalid", "not_found", "conflict"), (message, answer)
        assert [one.name for one in await backend.disks.list()] == ["v9"]


async def test_the_death_of_who_keeps_the_disks_leaves_sandboxes_running(tmp_path: Path) -> None:
    """Also one that was to stand still for a copy; and the process has no more than it needs."""
    backend = NativeBackend(BackendOptions(data_dir=tmp_path))
    before = _disks_processes()
    await backend.start()
    try:
        await backend.disks.make("d1", size_bytes=32 * MB)
        (process,) = _disks_processes() - before
        status = dict(
            line.split(":\t") for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":\t" in line
        )
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0x28000A  # admin, ptrace, dac, fowner
        assert status["NoNewPrivs"] == "1"
        assert sorted(os.listdir(f"/proc/{process}/root")) == ["disks", "proc"]
        async with living(backend.sandboxing, disk="d1") as name:
            os.kill(process, signal.SIGSTOP)
            copy = asyncio.ensure_future(backend.disks.copy("d1", "c1", sandbox=name))
            await asyncio.sleep(0.2)
            os.kill(process, signal.SIGKILL)
            with pytest.raises(Unavailable):
                await asyncio.wait_for(copy, 60)
            assert not (await backend.sandboxing.inspect(name)).is_paused
            script = "echo alive > /srv/x; cat /srv/x"
            assert (await ran(backend.sandboxing, name, "sh", "-c", script))[0] == b"alive\n"
        with pytest.raises(Unavailable):
            await backend.disks.make("d2", size_bytes=MB)
        async with living(backend.sandboxing) as name:
            assert (await ran(backend.sandboxing, name, "true"))[2] == 0
    finally:
        await backend.close()


def _disks_processes() -> set[int]:
    """Those of all wardens that descend from us."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (path / "comm").read_text() == "stockade-disks\n":
                found.add(int(path.name))

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return set(filter(is_ours, found))


@pytest.mark.skipif(not os.environ.get("STOCKADE_LONG_TESTS"), reason="takes 12 s: STOCKADE_LONG_TESTS=1")
async def test_who_fills_all_that_there_is_takes_nothing_of_the_others(tmp_path: Path) -> None:
    """Disks may together be promised more than there is: those who come late are told, and have what they had."""
    backend = NativeBackend(BackendOptions(data_dir=tmp_path, disks_bytes=256 * MB))
    await backend.start()
    try:
        disks, sandboxing = backend.disks, backend.sandboxing
        await disks.make("others", size_bytes=64 * MB)
        async with living(sandboxing, disk="others") as name:
            assert (await ran(sandboxing, name, "sh", "-c", "echo kept > /srv/file"))[2] == 0
        await disks.make("greedy", size_bytes=1 << 30)
        async with living(sandboxing, disk="greedy", memory_bytes=256 * MB) as name:
            fill = f"head -c 1G /dev/zero > /srv/all; python3 -c '{FLOOD}'"
            assert b"No space" in (await ran(sandboxing, name, "sh", "-c", fill))[1]
        with pytest.raises(Unavailable, match="room"):
            async with living(sandboxing, disk="others") as name:
                raise AssertionError(await ran(sandboxing, name, "cat", "/srv/file"))
        with pytest.raises(Unavailable):
            await disks.make("more", size_bytes=MB)
        await disks.delete("greedy")

        async def reads() -> bytes:
            try:
                async with living(sandboxing, disk="others") as name:
                    return bytes((await ran(sandboxing, name, "sh", "-c", "cat /srv/file && echo x > /srv/new"))[0])
            except Unavailable:  # what is deleted goes a moment later
                return b""

        assert await eventually(reads) == b"kept\n"
    finally:
        await backend.close()
