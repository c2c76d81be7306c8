"""The process that keeps disks, alone: what it makes, copies, seals and deletes, in each way in which it can."""

import contextlib
import errno
import itertools
import mmap
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stockade.warden import disks, disks_process, kernel
from stockade.warden.btrfs import Subvolumes
from stockade.warden.fields import Refused
from tests.warden.keepers import KINDS, MB, WITHIN_S, Keeper, mounted_inside, place

BASE = 0x7100_0000
NUMBERS = itertools.count()
NEVER_NAMES = ("", "..", "../x", "a/b", "A", "a b", "a" * 41, "é", "a\0", ".", 7, None, ["a"])


@pytest.fixture(scope="module", params=KINDS)
def keeper(request: pytest.FixtureRequest) -> Iterator[Keeper]:
    """One for the module, with disks of all tests in it."""
    with place(request.param) as folder:
        keeper = Keeper(folder, request.param)
        skip_where_there_are_none(keeper)
        yield keeper
        keeper.close()


@pytest.fixture
def btrfs() -> Iterator[Callable[..., Keeper]]:
    """Starts processes on one directory; those that live at the end are ended."""
    with starting("btrfs") as start:
        yield start


@pytest.fixture(params=KINDS)
def anew(request: pytest.FixtureRequest) -> Iterator[Callable[..., Keeper]]:
    with starting(request.param) as start:
        yield start


@contextlib.contextmanager
def starting(kind: str) -> Iterator[Callable[..., Keeper]]:
    with place(kind) as folder:
        started: list[Keeper] = []

        def start(**options: int) -> Keeper:
            started.append(Keeper(folder, kind, **options))
            return started[-1]

        yield start
        for keeper in started:
            if keeper.is_alive:
                keeper.close()


def skip_where_there_are_none(keeper: Keeper) -> None:
    facts = keeper.ask("facts")
    if facts["kind"] == "none":
        keeper.close()
        pytest.skip(facts["why"])


@pytest.fixture
def name() -> str:
    """Of no disk yet."""
    return f"d{next(NUMBERS)}"


# ── what is promised of disks ───────────────────────────────────────────────────────────────────────────────────────


def test_a_disk_is_empty_and_there_is_one_of_a_name(keeper: Keeper, name: str) -> None:
    keeper.make(name)
    assert list(keeper.upper(name).iterdir()) == []
    assert keeper.refusal("make", disk=name, size_bytes=MB) == "conflict"
    assert keeper.ask("info", disk=name)["is_layer"] is False


def test_a_copy_holds_what_there_was_and_goes_its_own_way(keeper: Keeper, name: str) -> None:
    keeper.make(name)
    keeper.write(name, "dir/file", b"before")
    info = keeper.ask("copy", of=name, disk=f"{name}copy")
    assert info["disk"] == f"{name}copy"
    keeper.write(name, "dir/file", b"after")
    keeper.write(f"{name}copy", "other", b"its own")
    assert keeper.read(f"{name}copy", "dir/file") == b"before"
    assert not (keeper.upper(name) / "other").exists()
    assert keeper.refusal("copy", of=name, disk=f"{name}copy") == "conflict"
    assert keeper.refusal("copy", of=f"{name}none", disk=f"{name}more") == "not_found"


def test_a_layer_is_sealed_and_can_be_copied(keeper: Keeper, name: str) -> None:
    keeper.make(name)
    keeper.write(name, "file", b"content")
    assert keeper.ask("seal", disk=name)["is_layer"] is True
    assert keeper.ask("seal", disk=name)["is_layer"] is True, "sealing is idempotent"
    if keeper.kind == "btrfs":
        with pytest.raises(OSError, match="Read-only"):
            keeper.write(name, "file", b"changed")
    keeper.ask("copy", of=name, disk=f"{name}copy")
    keeper.write(f"{name}copy", "file", b"changed")
    assert keeper.read(name, "file") == b"content"
    assert keeper.refusal("make", disk=name, size_bytes=MB) == "conflict"
    assert keeper.refusal("seal", disk=f"{name}none") == "not_found"


def test_a_disk_can_be_made_to_hold_what_another_holds(keeper: Keeper, name: str) -> None:
    keeper.make(name)
    keeper.write(name, "old", b"old")
    keeper.ask("copy", of=name, disk=f"{name}then")
    keeper.write(name, "new", b"new")
    keeper.ask("replace", disk=name, by=f"{name}then")
    assert sorted(os.listdir(keeper.upper(name))) == ["old"]
    keeper.write(name, "newer", b"")
    assert sorted(os.listdir(keeper.upper(f"{name}then"))) == ["old"]
    assert keeper.refusal("replace", disk=f"{name}none", by=name) == "not_found"
    assert keeper.refusal("replace", disk=name, by=f"{name}none") == "not_found"


def test_what_is_deleted_is_gone_and_may_be_deleted_again(keeper: Keeper, name: str) -> None:
    keeper.make(name)
    keeper.write(name, "a/b/c", b"deep")
    keeper.ask("delete", disk=name)
    keeper.ask("delete", disk=name)
    assert keeper.refusal("info", disk=name) == "not_found"
    keeper.make(name)
    keeper.ask("seal", disk=name)
    keeper.ask("delete", disk=name)
    assert name not in {one["disk"] for one in keeper.ask("list", after="")["disks"]}


def test_a_disk_with_subvolumes_in_it_is_deleted_all_the_same(btrfs: Callable[..., Keeper]) -> None:
    """No sandbox can make one, by its filter of system calls; were one ever to, it would be the operator's trouble."""
    keeper = btrfs()
    skip_where_there_are_none(keeper)
    keeper.make("d")
    for path in ("one", "one/two", "three"):
        (keeper.upper("d") / path).parent.mkdir(exist_ok=True)
        place = os.open((keeper.upper("d") / path).parent, os.O_RDONLY)
        Subvolumes(place, place).create(place, Path(path).name, MB)
        os.close(place)
        keeper.write("d", f"{path}/file", b"content")
        os.chown(keeper.upper("d") / path, 1000, 1000)
    keeper.ask("delete", disk="d")
    assert keeper.refusal("info", disk="d") == "not_found"


def test_all_disks_and_layers_are_listed(anew: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.warden.disk_store._PAGE", 2)
    keeper = anew()
    skip_where_there_are_none(keeper)
    keeper.make("d1", "d2", "d3", "d4")
    keeper.ask("seal", disk="d2")
    first = keeper.ask("list", after="")
    second = keeper.ask("list", after=first["after"])
    found = [*first["disks"], *second["disks"]]
    assert [(one["disk"], one["is_layer"]) for one in found] == [
        ("d1", False),
        ("d2", True),
        ("d3", False),
        ("d4", False),
    ]
    assert second["after"] is None


@pytest.mark.parametrize("bad", NEVER_NAMES)
def test_what_is_no_name_is_refused(keeper: Keeper, name: str, bad: object) -> None:
    """Also by the process: it believes nothing because the warden has looked at it."""
    keeper.make(name)
    for order in (
        {"op": "make", "disk": bad, "size_bytes": MB},
        {"op": "copy", "of": bad, "disk": f"{name}x"},
        {"op": "copy", "of": name, "disk": bad},
        {"op": "replace", "disk": name, "by": bad},
        {"op": "seal", "disk": bad},
        {"op": "resize", "disk": bad, "size_bytes": MB},
        {"op": "delete", "disk": bad},
        {"op": "info", "disk": bad},
        {"op": "mount", "pid": 1, "layers": [bad], "disk": None, "mounts": []},
        {"op": "mount", "pid": 1, "layers": [], "disk": None, "mounts": [{"disk": bad}]},
    ):
        assert keeper.refusal(**order) in ("invalid", "fault"), order  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, 1 << 60, "1", None, True, 1.5])
def test_what_is_no_size_is_refused(keeper: Keeper, name: str, size: object) -> None:
    assert keeper.refusal("make", disk=name, size_bytes=size) == "invalid"


def test_what_cannot_be_understood_is_refused_and_no_end(keeper: Keeper, name: str) -> None:
    assert keeper.refusal("nonsense") == "invalid"
    assert keeper.refusal("mount", layers=7) == "fault"
    keeper.make(name)


def test_the_facts_say_what_there_is(keeper: Keeper) -> None:
    facts = keeper.ask("facts")
    assert facts["kind"] == ("btrfs" if keeper.kind == "btrfs" else "directory")
    assert facts["enforces_size"] is (keeper.kind == "btrfs")
    assert facts["free_bytes"] > 0
    assert facts["place"].startswith(str(keeper.directory))
    assert bool(facts["why"]) is (keeper.kind != "btrfs")


def test_nobody_else_may_enter_the_directory(keeper: Keeper) -> None:
    assert keeper.directory.stat().st_mode & 0o777 == 0o700


# ── size ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_disk_holds_no_more_than_its_size(btrfs: Callable[..., Keeper]) -> None:
    keeper = btrfs()
    skip_where_there_are_none(keeper)
    keeper.make("d", size_bytes=20 * MB)
    assert fill(keeper, "d", 15) is None
    assert fill(keeper, "d", 15) == errno.EDQUOT
    keeper.ask("resize", disk="d", size_bytes=60 * MB)
    assert fill(keeper, "d", 15) is None
    info = keeper.ask("copy", of="d", disk="copy")
    assert info["size_bytes"] == 60 * MB
    assert info["used_bytes"] > 30 * MB, "a copy counts what it shares"
    assert fill(keeper, "copy", 50) == errno.EDQUOT
    assert keeper.ask("copy", of="d", disk="larger", size_bytes=100 * MB)["size_bytes"] == 100 * MB
    assert fill(keeper, "larger", 40) is None
    keeper.ask("replace", disk="copy", by="larger")
    assert keeper.ask("info", disk="copy")["size_bytes"] == 60 * MB, "it keeps its own size"


def test_what_a_disk_holds_can_be_written_again_after_a_copy(btrfs: Callable[..., Keeper]) -> None:
    """Blocks that only the copy has still are the copy's: the kernel's simple quotas would charge them to the first."""
    keeper = btrfs()
    skip_where_there_are_none(keeper)
    keeper.make("d", size_bytes=40 * MB)
    for number in range(3):
        keeper.write("d", "file", os.urandom(MB) * 30)
        keeper.ask("copy", of="d", disk=f"copy{number}")


def fill(keeper: Keeper, name: str, megabytes: int) -> int | None:
    """Write so much more; the error, if any, and then nothing of it is left."""
    file = f"fill{time.monotonic_ns()}"
    try:
        keeper.write(name, file, os.urandom(MB) * megabytes)
    except OSError as error:
        (keeper.upper(name) / file).unlink(missing_ok=True)
        return error.errno
    return None


def test_the_file_grows_with_what_is_configured(btrfs: Callable[..., Keeper]) -> None:
    keeper = btrfs(size_bytes=300 * MB)
    skip_where_there_are_none(keeper)
    assert keeper.ask("facts")["free_bytes"] < 300 * MB
    keeper.make("d")
    keeper.close()
    keeper = btrfs(size_bytes=600 * MB)
    assert keeper.ask("facts")["free_bytes"] > 400 * MB
    assert (keeper.directory / "disks.img").stat().st_size == 600 * MB
    assert keeper.ask("info", disk="d")["size_bytes"] == 64 * MB
    keeper.close()
    keeper = btrfs(size_bytes=300 * MB)  # a smaller value does nothing
    assert keeper.ask("facts")["free_bytes"] > 400 * MB


def test_where_btrfs_cannot_be_mounted_disks_are_plain_directories_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of the attempt; and what has been kept so is kept so when the host can do better."""

    def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
        if kind == "btrfs":
            raise OSError(errno.ENODEV, "no such file system")
        real(source, target, kind, flags, options)

    real = kernel.mount
    with starting("auto") as start:
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "mount", mount)
            first = start()
            facts = first.ask("facts")
            assert facts["kind"] == "directory"
            assert "no such file system" in facts["why"]
            first.make("d")
            first.kill()
        assert not (first.directory / "disks.img").exists()
        second = start()
        assert second.ask("facts")["kind"] == "directory"
        assert second.ask("info", disk="d")["disk"] == "d"


def test_nothing_is_made_where_the_host_has_no_room(
    btrfs: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stockade.warden.disk_home.Home.free_bytes", lambda home: 0)
    keeper = btrfs()
    skip_where_there_are_none(keeper)
    assert keeper.refusal("make", disk="d", size_bytes=MB) == "unavailable"


def test_disks_never_want_more_than_the_host_has(btrfs: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes is told that there is no room; the file system goes on, and takes all when the host has more."""
    host = mmap.mmap(-1, 8)  # which the process shares

    def have(megabytes: int) -> None:
        host[:] = (megabytes * MB).to_bytes(8, "little")

    def most_bytes(directory: int) -> int:
        taken = os.stat("disks.img", dir_fd=directory).st_blocks * 512
        return max(0, int.from_bytes(host[:], "little") - taken)

    monkeypatch.setattr("stockade.warden.disk_room._most_bytes", most_bytes)
    monkeypatch.setattr(disks_process, "_FIT_S", 0.05)
    have(10_000)
    keeper = btrfs(size_bytes=1000 * MB)
    skip_where_there_are_none(keeper)
    keeper.make("d", size_bytes=900 * MB)

    def size() -> int:
        room = os.statvfs(keeper.root)
        return room.f_blocks * room.f_frsize

    assert size() == 1000 * MB
    have(300)
    until(lambda: size() < 500 * MB)
    assert fill(keeper, "d", 500) == errno.ENOSPC
    assert keeper.refusal("make", disk="another", size_bytes=MB) == "unavailable"
    have(10_000)
    until(lambda: size() == 1000 * MB and fill(keeper, "d", 500) is None)
    keeper.make("more")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not so within {WITHIN_S:g} s"
        time.sleep(0.02)


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_before_the_first_order_nothing_is_there(anew: Callable[..., Keeper]) -> None:
    keeper = anew()
    assert not keeper.directory.exists()


def test_disks_outlive_the_process(anew: Callable[..., Keeper]) -> None:
    keeper = anew()
    skip_where_there_are_none(keeper)
    keeper.make("d", "layer")
    keeper.write("d", "file", b"content")
    keeper.ask("seal", disk="layer")
    keeper.kill()
    keeper = anew()
    assert keeper.read("d", "file") == b"content" if keeper.ask("info", disk="d") else False
    assert keeper.ask("info", disk="layer")["is_layer"] is True


def test_it_leaves_nothing_behind(anew: Callable[..., Keeper]) -> None:
    """Nor while it lives anything that others see."""
    keeper = anew()
    skip_where_there_are_none(keeper)
    keeper.make("d")
    assert str(keeper.directory) not in Path("/proc/self/mounts").read_text()
    keeper.kill()
    until(lambda: not any(str(keeper.directory) in path for path in loop_files()))


def loop_files() -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            yield path.read_text()
        except OSError:
            continue


def test_what_was_half_made_is_gone_at_the_next_start(anew: Callable[..., Keeper]) -> None:
    keeper = anew()
    skip_where_there_are_none(keeper)
    keeper.make("half", "d")
    keeper.write("half", "file", b"half of it")
    os.rename(keeper.root / "disks" / "half", keeper.root / "temporary" / "half")
    (keeper.root / "temporary" / "half" / "upper" / "more").mkdir()
    keeper.kill()
    keeper = anew()
    keeper.make("half")
    assert list(keeper.upper("half").iterdir()) == []
    until(lambda: not any((keeper.root / "temporary").iterdir()))


@pytest.mark.parametrize("attempts", [5])
def test_a_replacement_is_whole_or_has_not_been_however_it_ends(anew: Callable[..., Keeper], attempts: int) -> None:
    keeper = anew()
    skip_where_there_are_none(keeper)
    files = 60
    for disk in ("old", "new"):
        keeper.make(disk)
        for number in range(files):
            keeper.write(disk, f"{number}", disk.encode())
    keeper.ask("copy", of="old", disk="d")
    chance = random.Random(attempts)
    for number in range(attempts):
        keeper.begin("replace", disk="d", by=("new", "old")[number % 2])
        time.sleep(chance.uniform(0, 0.02))
        keeper.kill()
        keeper = anew()
        keeper.ask("info", disk="d")
        found = {path.read_bytes() for path in keeper.upper("d").iterdir()}
        assert len(list(keeper.upper("d").iterdir())) == files
        assert found in ({b"old"}, {b"new"})


def test_a_second_owner_is_refused_and_the_next_need_not_wait(
    anew: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = anew()
    skip_where_there_are_none(first)
    first.make("d")
    with monkeypatch.context() as patch:
        patch.setattr(disks_process, "_PREDECESSOR_S", 0.1)
        second = anew()
        assert second.refusal("info", disk="d") == "unavailable"
        assert second.ask("facts")["kind"] == "none"
    first.kill()
    assert anew().ask("info", disk="d")["disk"] == "d"
    second.close()


def test_one_that_was_refused_works_once_the_other_is_gone(btrfs: Callable[..., Keeper]) -> None:
    first = btrfs()
    skip_where_there_are_none(first)
    second = btrfs()
    waiting = second.begin("facts")
    first.kill()
    second.hear_until(lambda: waiting)
    assert not isinstance(waiting[0][0], Refused)
    assert waiting[0][0]["kind"] == "btrfs"


def test_who_waits_for_one_that_dies_is_told(anew: Callable[..., Keeper]) -> None:
    keeper = anew()
    replies = keeper.begin("info", disk="d")
    os.kill(keeper.pid, 9)

    def is_lost() -> bool:
        keeper.disks.hear()
        return keeper.disks.is_lost

    until(is_lost)
    assert isinstance(replies[0][0], Refused)
    assert replies[0][0].kind in ("unavailable", "not_found")
    with pytest.raises(Refused, match="died"):
        keeper.begin("facts")


def test_where_there_is_no_directory_there_are_no_disks() -> None:
    started = disks.start(None, own_ids=True)
    keeper = Keeper.__new__(Keeper)
    keeper.disks, keeper.pid, keeper._guardian = started, started.pid, None
    try:
        assert keeper.ask("facts")["kind"] == "none"
        assert keeper.refusal("make", disk="d", size_bytes=MB) == "unsupported"
    finally:
        keeper.close()


# ── privileges ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_sees_nothing_of_the_host_and_may_do_little(keeper: Keeper) -> None:
    assert sorted(os.listdir(f"/proc/{keeper.pid}/root")) == ["disks", "proc"]
    status = Path(f"/proc/{keeper.pid}/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    allowed = 1 << 21 | 1 << 1 | 1 << 3  # CAP_SYS_ADMIN, CAP_DAC_OVERRIDE, CAP_FOWNER
    if keeper.kind != "ordinary user":
        allowed |= 1 << 19  # CAP_SYS_PTRACE
    if keeper.kind != "btrfs":
        allowed |= 1 << 0 | 1 << 4  # CAP_CHOWN, CAP_FSETID
    assert effective == allowed
    assert "NoNewPrivs:\t1" in status
    for fd in os.listdir(f"/proc/{keeper.pid}/fd"):
        above = Path(f"/proc/{keeper.pid}/fd/{fd}/../etc/passwd")
        assert not above.exists(), f"descriptor {fd} leads to the host's root"


# ── mounts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mounts_show_owners_as_the_sandbox_has_them(keeper: Keeper, name: str) -> None:
    if keeper.kind == "ordinary user":
        pytest.skip("an ordinary user's sandboxes have one owner alone")
    keeper.make(name, f"{name}volume", f"{name}layer")
    keeper.write(f"{name}layer", "etc/hello", b"of the layer")
    keeper.ask("seal", disk=f"{name}layer")
    keeper.write(f"{name}volume", "file", b"of the volume")
    os.chown(keeper.upper(f"{name}volume") / "file", 33, 33)
    with mounted_inside(BASE) as (pid, pidfd, channel):
        _, fds = keeper.ask_for_descriptors(
            "mount",
            pidfd,
            pid=pid,
            layers=[f"{name}layer"],
            disk=name,
            mounts=[
                {"disk": f"{name}volume", "read_only": True},
                {"disk": f"{name}volume", "read_only": False, "whole": True},
            ],
        )
        assert len(fds) == 4
        code = f"""
os.mkdir("/mnt/root")
kernel.mount("root", "/mnt/root", "overlay", 0,
    "lowerdir=/mnt/0/{name}layer/upper,upperdir=/mnt/1/upper,workdir=/mnt/1/work,userxattr,xino=off")
os.chdir("/mnt/root")
found = [open("etc/hello").read(), os.stat("etc").st_uid]
os.unlink("etc/hello")
open("etc/new", "w").write("new")
os.chown("etc/new", 1000, 1000)
found += [os.stat("etc/new").st_uid, sorted(os.listdir("etc"))]
found += [os.stat("/mnt/2/file").st_uid, open("/mnt/2/file").read(), os.listdir("/mnt/2"), sorted(os.listdir("/mnt/3"))]
try:
    open("/mnt/2/new", "w")
except OSError as error:
    found.append(error.errno)
open("/mnt/3/upper/new", "w").close()
result = found
"""
        send(channel, code, fds)
        assert channel.recv(1 << 16).decode() == repr(
            ["of the layer", 0, 1000, ["new"], 33, "of the volume", ["file"], ["upper", "work"], errno.EROFS]
        )
    assert (keeper.upper(name) / "etc" / "new").stat().st_uid == 1000
    assert (keeper.upper(f"{name}volume") / "new").stat().st_uid == 0


def send(channel: socket.socket, code: str, fds: list[int]) -> None:
    socket.send_fds(channel, [code.encode()], fds)
    for fd in fds:
        os.close(fd)


def test_an_ordinary_users_mounts_are_plain(anew: Callable[..., Keeper]) -> None:
    keeper = anew()
    if keeper.kind != "ordinary user":
        pytest.skip("root's are shown otherwise")
    keeper.make("d", "v")
    pidfd = os.pidfd_open(os.getpid())
    _, fds = keeper.ask_for_descriptors(
        "mount", pidfd, pid=os.getpid(), layers=[], disk="d", mounts=[{"disk": "v", "read_only": True}]
    )
    assert [sorted(os.listdir(f"/proc/self/fd/{fd}")) for fd in fds] == [["upper", "work"], []]
    for fd in (*fds, pidfd):
        os.close(fd)


def test_mounts_are_of_what_is_there_alone(keeper: Keeper, name: str) -> None:
    keeper.make(name, f"{name}layer")
    keeper.ask("seal", disk=f"{name}layer")
    with mounted_inside(BASE + 65536) as (pid, pidfd, _):
        wanted = {"pid": pid, "layers": [], "disk": None, "mounts": []}
        assert keeper.refusal("mount", pidfd, **(wanted | {"layers": [name]})) == "not_found"
        assert keeper.refusal("mount", pidfd, **(wanted | {"disk": f"{name}layer"})) == "not_found"
        assert keeper.refusal("mount", pidfd, **(wanted | {"mounts": [{"disk": f"{name}none"}]})) == "not_found"
        if keeper.kind != "ordinary user":
            assert keeper.refusal("mount", **(wanted | {"disk": name})) == "invalid", "without a pidfd"
    if keeper.kind == "ordinary user":
        return
    with mounted_inside(BASE) as (pid, pidfd, _):
        pidfd = os.dup(pidfd)
    assert keeper.refusal("mount", pidfd, **(wanted | {"pid": pid, "disk": name})) == "conflict"
    # Its number is another's by now: that one's namespace must not be taken for its.
    assert keeper.refusal("mount", pidfd, **(wanted | {"pid": os.getpid(), "disk": name})) == "conflict"
    os.close(pidfd)
