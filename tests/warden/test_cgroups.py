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
from stockade.warden.cgroups import Cgroups, GroupLimits
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


@needs_groups
def test_limits_are_what_the_kernel_then_says() -> None:
    with own_groups() as made:
        group = made.create("g")
        group.close_joins()
        made.limit(group, GroupLimits(memory_bytes=64 << 20, processes=7, cpus=0.5))
        read: dict[str, str] = {}
        for controller, names in {
            "memory": ("memory.max", "memory.limit_in_bytes"),
            "pids": ("pids.max",),
            "cpu": ("cpu.max", "cpu.cfs_quota_us"),
        }.items():
            tree = made.tree(controller)
            assert tree is not None, made.problems
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    read[controller] = cgroups._read(f"g/{name}", tree.base).split()[0]
        assert read == {"memory": str(64 << 20), "pids": "7", "cpu": "50000"}
        until(group.close)
    assert not of_warden(os.getpid())


@needs_groups
def test_groups_of_one_name_are_made_once_and_nothing_is_left_of_the_second() -> None:
    with own_groups() as made:
        first = made.create("g")
        first.close_joins()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(FileExistsError):
            made.create("g")
        assert len(os.listdir("/proc/self/fd")) == before
        first.close()


@needs_groups
def test_groups_of_a_dead_warden_are_swept_with_what_runs_in_them() -> None:
    """And those of wardens that live are left alone."""
    script = (
        "import sys, os, subprocess; sys.path.append(sys.argv[1])\n"
        "from stockade.warden.cgroups import Cgroups\n"
        "group = Cgroups().create('cell-1')\n"
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
