"""Control groups: how the host's layout is read, and what is done with the groups of wardens that are dead."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockade.warden import cgroups
from stockade.warden.cgroups import Cgroups, Group, GroupLimits
from tests.warden.raw import Warden, request, until

PREFIX = "stockade-"
needs_groups = pytest.mark.skipif(os.geteuid() != 0, reason="making control groups takes root here")


@pytest.mark.parametrize(
    ("text", "counters"),
    [
        ("", {}),
        ("usage_usec 12\nuser_usec 7\nsystem_usec 5\n", {"usage_usec": 12, "user_usec": 7, "system_usec": 5}),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", {"oom_kill_disable": 0, "under_oom": 0, "oom_kill": 3}),
        ("max 4\n", {"max": 4}),
    ],
)
def test_counters_are_read_by_name(text: str, counters: dict[str, int]) -> None:
    assert cgroups._counters(text) == counters


@pytest.mark.parametrize(
    ("mount_point", "root", "path", "expected"),
    [
        ("/sys/fs/cgroup", "/", "/", "/sys/fs/cgroup"),
        ("/sys/fs/cgroup", "/", "", "/sys/fs/cgroup"),
        ("/sys/fs/cgroup/pids", "/", "/user.slice/a", "/sys/fs/cgroup/pids/user.slice/a"),
        # In a container that shows its own group as the mount's root:
        ("/sys/fs/cgroup", "/docker/abc", "/docker/abc", "/sys/fs/cgroup"),
        ("/sys/fs/cgroup", "/docker/abc", "/docker/abc/x", "/sys/fs/cgroup/x"),
    ],
)
def test_a_group_is_found_below_its_mount(mount_point: str, root: str, path: str, expected: str) -> None:
    assert cgroups._below(mount_point, root, path) == expected


def test_a_warden_s_tag_names_a_process_that_lives() -> None:
    tag = cgroups.warden_tag()
    namespace, pid, start = tag.split("-")
    assert pid == str(os.getpid())
    assert not cgroups._is_dead(tag)
    assert cgroups._is_dead(f"{namespace}-{pid}-{int(start) + 1}"), "the number is another process's now"
    assert not cgroups._is_dead(f"{int(namespace) + 1}-{pid}-{start}"), "another pid namespace cannot be judged"
    for strange in ("", "host", "x-y-z", f"{namespace}-x-1", f"{namespace}--", f"{namespace}-1/../..-1"):
        assert not cgroups._is_dead(strange)


def test_a_process_that_has_ended_is_dead() -> None:
    child = subprocess.Popen(["/bin/sleep", "1000"])
    namespace = cgroups.warden_tag().split("-")[0]
    tag = f"{namespace}-{child.pid}-{cgroups._start_time(child.pid)}"
    assert not cgroups._is_dead(tag)
    child.kill()
    child.wait()
    assert cgroups._is_dead(tag)


def groups_of_wardens() -> set[str]:
    found = set()
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):
        found |= {f"{folder}/{name}" for name in folders if name.startswith(PREFIX) and name != "stockade-host"}
    return found


def of_warden(pid: int) -> set[str]:
    return {path for path in groups_of_wardens() if f"-{pid}-" in path}


@contextlib.contextmanager
def own_groups() -> Iterator[Cgroups]:
    """Groups of this test's own process, as if it were a warden."""
    made = Cgroups()
    try:
        yield made
    finally:
        made.close()


SETTINGS = {
    "memory": ("memory.max", "memory.limit_in_bytes"),
    "swap": ("memory.swap.max", "memory.memsw.limit_in_bytes"),
    "pids": ("pids.max",),
    "cpu": ("cpu.max", "cpu.cfs_quota_us"),
}


def settings(group: Group) -> dict[str, str]:
    """What the kernel says that the group is limited to."""
    read: dict[str, str] = {}
    for setting, names in SETTINGS.items():
        tree = group.cgroups.tree("memory" if setting == "swap" else setting)
        assert tree is not None, group.cgroups.problems
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                read[setting] = cgroups._read(f"{group.name}/{name}", tree.base).split()[0]
    return read


def run_in(group: Group, code: str, *, wait: bool = True) -> subprocess.Popen[str]:
    """A Python program that has joined the group before it begins."""
    join = [os.dup(fd) for fd in group.joins]
    head = f"import os\nfor fd in {join}: os.write(fd, b'0'); os.close(fd)\n"
    child = subprocess.Popen(
        ["/usr/bin/python3", "-S", "-c", head + code],
        pass_fds=join,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for fd in join:
        os.close(fd)
    if wait:
        child.communicate(timeout=30)
    return child


@needs_groups
def test_limits_are_what_the_kernel_then_says() -> None:
    with own_groups() as made:
        group = made.take()
        group.limit(GroupLimits(memory_bytes=64 << 20, processes=7, cpus=0.5))
        read = settings(group)
        assert (read["memory"], read["pids"], read["cpu"]) == (str(64 << 20), "7", "50000")
        made.give_back(group)
    assert not of_warden(os.getpid())


@needs_groups
@pytest.mark.parametrize("first", [(64, 7, 0.5), (512, 300, 64.0), (4, 2, 0.01)], ids=str)
@pytest.mark.parametrize("second", [(32, 5, 0.25), (1024, 900, 64.0), (64, 7, 0.5)], ids=str)
def test_limits_of_the_use_before_are_not_left_in_force(
    first: tuple[int, int, float], second: tuple[int, int, float]
) -> None:
    """Neither higher ones nor lower ones, whichever came first; a new group would have the same settings."""

    def limit(group: Group, limits: tuple[int, int, float]) -> dict[str, str]:
        memory, processes, cpus = limits
        group.limit(GroupLimits(memory_bytes=memory << 20, processes=processes, cpus=cpus))
        return settings(group)

    with own_groups() as made:
        group, fresh = made.take(), made.take()
        limit(group, first)
        made.give_back(group)
        again = made.take()
        assert again is group
        room = settings(again)
        assert int(room["memory"]) >= 128 << 20
        assert int(room["pids"]) >= 48
        unlimited = {"cpu": {"max": "-1"}}
        assert limit(again, second) == limit(fresh, second), unlimited
        for each in (again, fresh):
            made.give_back(each)


@needs_groups
def test_counters_begin_anew_with_each_use() -> None:
    """What the tenant before was refused or used is no other tenant's business, and would decide its outcome."""
    with own_groups() as made:
        group = made.take()
        group.limit(GroupLimits(memory_bytes=48 << 20, processes=4, cpus=2.0))
        run_in(group, "for _ in range(10):\n if os.fork() == 0:\n  import time; time.sleep(0.2); os._exit(0)")
        until(lambda: not is_populated(group))
        run_in(group, "x = bytearray(200 << 20)")
        assert group.forks_refused() > 0
        assert group.oom_kills() > 0
        assert (group.memory_peak() or 0) > 40 << 20
        until(lambda: not is_populated(group))
        made.give_back(group)
        again = made.take()
        assert again is group
        assert (again.forks_refused(), again.oom_kills()) == (0, 0)
        assert (again.memory_peak() or 0) < 2 << 20
        if again.oom_event is not None:
            with pytest.raises(BlockingIOError):
                os.read(again.oom_event, 8)
        again.limit(GroupLimits(memory_bytes=64 << 20, processes=20, cpus=2.0))
        done = run_in(again, "x = bytearray(30 << 20)\nfor _ in range(10):\n if os.fork() == 0: os._exit(0)")
        assert done.returncode == 0
        assert (again.forks_refused(), again.oom_kills()) == (0, 0)
        made.give_back(again)


def is_populated(group: Group) -> bool:
    return any(cgroups._read(f"{group.name}/cgroup.procs", tree.base) for tree in group.trees)


@needs_groups
def test_a_group_in_which_somebody_is_left_is_not_used_again() -> None:
    with own_groups() as made:
        group = made.take()
        group.limit(GroupLimits(memory_bytes=64 << 20, processes=7, cpus=1.0))
        sleeper = run_in(group, "import time; time.sleep(1000)", wait=False)
        try:
            until(lambda: all(cgroups._read(f"{group.name}/cgroup.procs", tree.base) for tree in group.trees))
            made.give_back(group)
            assert made.take() is not group
            assert made.held == [group]
        finally:
            sleeper.kill()
            sleeper.communicate()
        until(group.close)


@needs_groups
def test_a_group_that_is_still_charged_for_memory_is_not_used_again() -> None:
    """The next tenant would have less than its limit, and could tell what the one before left."""
    with own_groups() as made:
        group = made.take()
        group.limit(GroupLimits(memory_bytes=64 << 20, processes=7, cpus=1.0))
        kept = os.memfd_create("kept")
        try:
            os.set_inheritable(kept, True)
            holder = os.dup(kept)
            os.set_inheritable(holder, True)
            join = group.joins
            pid = os.fork()
            if pid == 0:
                for fd in join:
                    os.write(fd, b"0")
                os.write(kept, b"x" * (8 << 20))
                os._exit(0)
            os.waitpid(pid, 0)
            made.give_back(group)
            assert made.take() is not group
            os.close(holder)
        finally:
            os.close(kept)
        until(group.close)


@needs_groups
def test_groups_wear_out_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_MOST_USES", 3)
    monkeypatch.setattr(cgroups, "_MOST_IDLE", 2)
    with own_groups() as made:
        before = len(os.listdir("/proc/self/fd"))
        names = set()
        for _ in range(12):
            group = made.take()
            names.add(group.name)
            made.give_back(group)
        assert 2 < len(names) < 12
        taken = [made.take() for _ in range(5)]
        assert len({group.name for group in taken}) == 5
        for group in taken:
            made.give_back(group)
        assert len(made._idle) <= 2
        made.drain()
        assert not made._idle
        assert len(os.listdir("/proc/self/fd")) == before
    assert not of_warden(os.getpid())


@needs_groups
def test_nothing_is_left_of_a_group_that_cannot_be_made() -> None:
    with own_groups() as made:
        first = made.take()
        before = len(os.listdir("/proc/self/fd"))
        made._count -= 1  # so that the next has the same name
        with pytest.raises(FileExistsError):
            made.take()
        assert len(os.listdir("/proc/self/fd")) == before
        first.close()


@needs_groups
def test_groups_of_a_dead_warden_are_swept_with_what_runs_in_them() -> None:
    """And those of wardens that live are left alone."""
    script = (
        "import sys, os, subprocess; sys.path.append(sys.argv[1])\n"
        "from stockade.warden.cgroups import Cgroups\n"
        "group = Cgroups().take()\n"
        "join = lambda: [os.write(fd, b'0') for fd in group.joins]\n"
        "child = subprocess.Popen(['/bin/sleep', '1000'], preexec_fn=join)\n"
        "print(child.pid, flush=True); sys.stdin.read()\n"
    )
    source = str(Path(cgroups.__file__).parents[2])
    argv = [sys.executable, "-I", "-S", "-c", script, source]
    wardens = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        sleepers = [int(w.stdout.readline()) for w in wardens if w.stdout is not None]
        dead, living = wardens
        dead.kill()
        dead.wait()
        assert of_warden(dead.pid)
        with own_groups():
            assert not of_warden(dead.pid)
            until(lambda: not is_running(sleepers[0]))
            assert of_warden(living.pid)
            assert is_running(sleepers[1])
        living.kill()
        living.wait()
        with own_groups():
            assert not of_warden(living.pid)
    finally:
        for warden in wardens:
            warden.kill()
            warden.wait()
            for stream in (warden.stdin, warden.stdout):
                if stream is not None:
                    stream.close()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@needs_groups
def test_a_hierarchy_that_is_mounted_twice_is_used_once(tmp_path: Path) -> None:
    """As in containers that see the host's mounts too."""
    again = tmp_path / "again"
    again.mkdir()
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    places = [line.split()[1] for line in mounts if line.split()[2] in ("cgroup", "cgroup2")]
    lines = []
    for number, place in enumerate(places):
        (again / str(number)).mkdir()
        lines.append(f"mount --bind {place} {again}/{number}")
    prefix = (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "/bin/sh",
        "-ec",
        "\n".join([*lines, 'exec "$@"']),
        "sh",
    )
    warden = Warden(tmp_path, prefix=prefix)
    try:
        assert warden.word == {"ok": True}
        with warden.client() as client:
            features = {f["name"]: f["enforced"] for f in client.hello()["ok"]["features"]}
            assert all(features[name] for name in ("memory", "processes", "cpu_rate", "cpu_time"))
            answer, contents = client.run(request(1, "/bin/echo", "hello"))
            assert contents == [b"hello\n"]
            assert answer["ok"]["memory_peak"] > 0
    finally:
        warden.close()
    assert not of_warden(warden.pid)


@needs_groups
def test_sigterm_leaves_no_groups(tmp_path: Path) -> None:
    warden = Warden(tmp_path)
    with warden.client() as client:
        client.start(request(1, "/bin/sleep", "1000"))
        client.hello()
        assert of_warden(warden.pid)
        warden.process.send_signal(signal.SIGTERM)
        assert warden.process.wait(20) == 0
    assert not of_warden(warden.pid)
