"""What must hold where control groups are v2. Runs inside the virtual machine; `boot.py` calls `run_all`.

Every check runs in every scene (`scenes.py`) that it can hold in. Wardens are started as
the native backend starts them, and spoken to in their own protocol.
"""

import contextlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vm.scenes import LEAF, PREFIX, ROOT, SCENES, Scene
from tests.warden.raw import Client, request, until

__all__ = ["NAMES", "run_all"]

MB = 1 << 20


def _python(number: int, code: str, **changes: Any) -> dict[str, Any]:
    return request(number, "/usr/bin/python3", "-I", "-S", "-c", code, **changes)


def _run(client: Client, code: str, **changes: Any) -> tuple[dict[str, Any], str]:
    """What the warden says of a Python program, and its standard output."""
    answer, contents = client.run(_python(1, code, **changes))
    assert "ok" in answer, answer
    outcome = answer["ok"]
    texts = [content.decode() for content in contents] + ["", ""]
    stdout = texts.pop(0) if outcome["sizes"][0] else ""
    if outcome["status"] not in (0, None) and outcome["reason"] is None:
        stdout += f" [stderr: {texts[0]}]"
    return outcome, stdout


# ── checks ──────────────────────────────────────────────────────────────────────────────────────────────────────


def report_is_true(scene: Scene) -> str:
    """What the warden says it enforces is what this place allows."""
    with scene.client() as client:
        report = client.hello()["ok"]
    features = {feature["name"]: feature for feature in report["features"]}
    wanted = {"memory": "memory", "processes": "pids", "cpu_rate": "cpu"}
    for name, controller in wanted.items():
        if controller in scene.enforced:
            assert features[name]["enforced"], features[name]
            assert "cgroup v2" in features[name]["mechanism"], features[name]
        elif name == "processes":  # a resource limit does that by itself
            assert features[name]["enforced"], features[name]
            assert "RLIMIT_NPROC" in features[name]["mechanism"], features[name]
        else:
            assert not features[name]["enforced"], features[name]
            assert features[name]["remedy"], features[name]
    for name, enforced in (("swap", "memory" in scene.enforced), ("cpu_time", scene.delegated)):
        assert features[name]["enforced"] == enforced, features[name]
    assert features["own_ids"]["enforced"] == (scene.uid == 0), features["own_ids"]
    not_enforced = [f"{name} ({one['mechanism']})" for name, one in features.items() if not one["enforced"]]
    return f"groups: {report['details']['cgroups']}; not enforced: {', '.join(not_enforced) or 'nothing'}"


def sandbox_sees_only_its_group(scene: Scene) -> str:
    """A sandbox's own group is the root of what it sees, and there is nothing to write to."""
    code = "import os; print(open('/proc/self/cgroup').read().strip(), os.listdir('/sys'))"
    with scene.client() as client:
        outcome, stdout = _run(client, code)
    assert stdout.strip() == "0::/ []", stdout
    assert outcome["status"] == 0, outcome
    return stdout.strip()


def limits_are_in_the_group(scene: Scene) -> str:
    """The group of a live run holds exactly the limits that were asked for."""
    wanted = {
        "memory": {"memory.max": str(48 * MB), "memory.swap.max": "0", "memory.oom.group": "1"},
        "pids": {"pids.max": "8"},  # 7 and PID 1
        "cpu": {"cpu.max": "50000 100000"},
    }
    with scene.client() as client:
        client.start(_python(1, "import time; time.sleep(60)", memory_bytes=48 * MB, processes=7, cpus=0.5))
        found: list[Path] = []

        def begun() -> bool:
            found[:] = [p.parent for p in scene.base.glob("stockade-*/*/pids.max") if p.read_text().strip() == "8"]
            return bool(found) and len((found[0] / "cgroup.procs").read_text().split()) == 2

        until(begun)
        for controller in scene.enforced:
            for name, value in wanted[controller].items():
                seen = (found[0] / name).read_text().strip()
                assert seen == value, f"{name}: {seen}, not {value}"
        client.send({"op": "cancel", "id": 1})
        outcome = client.answer()[0]["ok"]
    assert outcome["reason"] == "cancelled", outcome
    return f"{' '.join(scene.enforced)}; two processes in {found[0].name}"


def memory_limit_kills_the_whole_group(scene: Scene) -> str:
    """Who outgrows the limit is killed with everything else in the sandbox; the peak is the limit."""
    code = (
        "import os, time\n"
        "if not os.fork():\n os.setsid()\n time.sleep(60)\n"
        "data = bytearray()\n"
        "while True: data.extend(bytes(1 << 20))\n"
    )
    with scene.client() as client:
        outcome, _ = _run(client, code, memory_bytes=64 * MB)
        again, _ = _run(client, "pass", memory_bytes=64 * MB)
    assert outcome["reason"] is None, outcome  # no deadline of ours was needed
    assert outcome["oom_kills"] >= 3, outcome  # PID 1, the hog, the one that sleeps
    assert 60 * MB <= outcome["memory_peak"] <= 64 * MB, outcome
    assert (again["status"], again["oom_kills"]) == (0, 0), again
    return f"{outcome['oom_kills']} killed; peak {outcome['memory_peak'] / MB:.1f} of 64 MB"


def swap_is_closed(scene: Scene) -> str:
    """Memory beyond the limit does not go to swap, though the host has swap and uses it for an ordinary group."""
    code = "data = bytearray(128 << 20)\nfor i in range(0, len(data), 4096): data[i] = 1\nprint('held', flush=True)"
    with scene.client() as client:
        outcome, stdout = _run(client, code, memory_bytes=64 * MB)
    assert outcome["oom_kills"], outcome
    assert "held" not in stdout, stdout
    return f"ended by memory at {outcome['memory_peak'] / MB:.1f} MB"


def swap_works_elsewhere(scene: Scene) -> str:
    """The control for `swap_is_closed`: with the same limit and swap left open, the same program gets through."""
    group = ROOT / "swapping"
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(64 * MB))
        code = (
            f"open('{group}/cgroup.procs', 'w').write('0')\n"
            "data = bytearray(128 << 20)\nfor i in range(0, len(data), 4096): data[i] = 1\n"
            f"print(open('{group}/memory.swap.current').read().strip())"
        )
        command = [sys.executable, "-I", "-S", "-c", code]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        group.rmdir()
    assert ended.returncode == 0, ended
    assert int(ended.stdout) >= 60 * MB, ended
    return f"{int(ended.stdout) / MB:.1f} MB in swap"


def disk_counts_as_memory(scene: Scene) -> str:
    """What is written to the sandbox's disk is charged to its memory, and the disk's own limit holds below that."""
    code = "for number in range(1000):\n with open(f'/tmp/{number}', 'wb') as file: file.write(bytes(1 << 20))"
    with scene.client() as client:
        full, text = _run(client, code, disk_bytes=8 * MB, memory_bytes=64 * MB)
        charged, _ = _run(client, code, disk_bytes=256 * MB, memory_bytes=48 * MB)
    assert (full["disk_full"], full["status"], full["oom_kills"]) == (True, 1 << 8, 0), full
    assert "No space left" in text, text
    assert charged["oom_kills"], charged
    assert 40 * MB <= charged["memory_peak"] <= 48 * MB, charged
    return f"full at 8 MB with a peak of {full['memory_peak'] / MB:.1f} MB; killed after {charged['wall_s']:.2f} s"


def process_limit_is_counted(scene: Scene) -> str:
    """As many processes as asked for, no more; what was refused is counted. Threads count too."""
    code = (
        "import os, time\nmade = 0\n"
        "try:\n while True:\n  if not os.fork(): time.sleep(60)\n  made += 1\n"
        "except OSError as error: print(made, error.errno, flush=True); os._exit(0)"
    )
    with scene.client() as client:
        outcome, stdout = _run(client, code, processes=10)
    assert stdout.split() == ["9", "11"], stdout  # the tenant's first process is one of ten; EAGAIN
    if "pids" in scene.enforced:
        assert outcome["forks_refused"] >= 1, outcome
    assert outcome["status"] == 0, outcome
    return f"9 children, then EAGAIN; {outcome['forks_refused']} refused"


def cpu_quota_holds(scene: Scene) -> str:
    """Half a processor is half a processor, over all processes of the sandbox."""
    code = (
        "import os, time\nend = time.monotonic() + 3.0\nchild = os.fork()\n"
        "while time.monotonic() < end: pass\n"
        "child and os.wait()"
    )
    with scene.client() as client:
        outcome, _ = _run(client, code, cpus=0.5)
    used = (outcome["cpu_user_us"] + outcome["cpu_system_us"]) / 1e6
    share = used / outcome["wall_s"]
    assert 0.3 <= share <= 0.6, outcome
    return f"{used:.2f} s of CPU in {outcome['wall_s']:.2f} s: {share:.2f}"


def cpu_time_is_limited(scene: Scene) -> str:
    """CPU time is counted over all processes, and its end is the run's."""
    code = "import os\nos.fork()\nwhile True: pass"
    with scene.client() as client:
        outcome, _ = _run(client, code, cpu_s=0.7)
    used = (outcome["cpu_user_us"] + outcome["cpu_system_us"]) / 1e6
    assert outcome["reason"] == "cpu_time", outcome
    assert 0.7 <= used <= 1.0, outcome
    return f"{used:.3f} s used of 0.7 s"


def usage_is_told(scene: Scene) -> str:
    """CPU time and peak memory are those of the program, with its children."""
    code = (
        "import os, time\ndata = bytearray(40 << 20)\n"
        "for i in range(0, len(data), 4096): data[i] = 1\n"
        "child = os.fork()\nend = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\n"
        "child and os.wait()"
    )
    with scene.client() as client:
        outcome, _ = _run(client, code)
    used = (outcome["cpu_user_us"] + outcome["cpu_system_us"]) / 1e6
    assert outcome["status"] == 0, outcome
    assert 0.6 <= used <= 5, outcome
    if "memory" in scene.enforced:
        assert 40 * MB <= outcome["memory_peak"] <= 80 * MB, outcome
    return f"{used:.2f} s of CPU, peak {outcome['memory_peak']} bytes"


def wall_limit_ends_everything(scene: Scene) -> str:
    """At the wall limit the run ends, with a daemon that had left its session."""
    code = "import os, time\nif not os.fork() and not os.fork(): os.setsid()\ntime.sleep(60)"
    with scene.client() as client:
        outcome, _ = _run(client, code, wall_s=2.0)
        until(lambda: not _tenants())
    assert outcome["reason"] == "wall_time", outcome
    assert 2.0 <= outcome["wall_s"] < 4.0, outcome
    return f"{outcome['wall_s']:.3f} s of 2 s"


def _tenants() -> list[str]:
    """Command lines of the tenants' processes that sleep for a minute."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "time.sleep(60)" in text:
                found.append(text)
    return found


def groups_do_not_pile_up(scene: Scene) -> str:
    """After many runs there are those of the cells that are kept ready, and the few that wait for another use."""
    with scene.client() as client:
        for _ in range(40):
            outcome = client.run(request(1, "/bin/true"))[0]["ok"]
            assert outcome["status"] == 0, outcome
        until(lambda: len(scene.directories()) <= 1 + 6 + 12)
        count = len(scene.directories())
    assert not scene.directories(), scene.directories()
    return f"{count} directories after 40 runs, none after the warden"


def second_warden_works_too(scene: Scene) -> str:
    """Two wardens of one starter's share the place: both enforce the same, and both clear up."""
    with scene.warden() as first, first.client() as one, scene.warden() as second, second.client() as other:
        reports = [client.hello()["ok"] for client in (one, other)]
        assert reports[0] == reports[1], reports
        tops = {name for name in scene.directories() if os.path.basename(name).startswith(PREFIX)}
        assert len(tops) == 2, tops
        assert not any("/" in name for name in tops), tops
        for client in (one, other):
            outcome, _ = _run(client, "data = bytearray(b'x') * (128 << 20)", memory_bytes=48 * MB)
            assert outcome["oom_kills"] or "memory" not in scene.enforced, outcome
    assert not scene.directories(), scene.directories()
    return ", ".join(sorted(tops))


def others_make_room(scene: Scene) -> str:
    """Where a group must be empty to hand controllers down, those in it move to one leaf, however many wardens come."""
    leaf = scene.base / LEAF
    here = str(os.getpid())
    members = leaf.joinpath("cgroup.procs").read_text().split()
    assert here in members, members
    assert not (scene.base / "cgroup.procs").read_text().split()
    nested = [str(path) for path in leaf.iterdir() if path.is_dir()]
    assert not nested, nested
    return f"{len(members)} processes in the leaf"


def dead_warden_is_swept_up(scene: Scene) -> str:
    """`kill -9` of a warden ends its sandboxes; the next warden removes the groups it left."""
    with scene.warden() as first:
        with first.client() as client:
            client.start(_python(1, "import os, time\nif not os.fork(): os.setsid()\ntime.sleep(60)"))
            until(lambda: len(_tenants()) == 2)
            first.process.kill()
            first.process.wait()
        until(lambda: not _tenants())
        left = scene.directories()
        assert left, "a killed warden cannot have removed its directory"
        with scene.client() as client:
            assert client.run(request(1, "/bin/true"))[0]["ok"]["status"] == 0
            still = left & scene.directories()
            assert not still, still
    assert not scene.directories(), scene.directories()
    return f"{len(left)} directories swept"


def unlimited_where_nothing_is_delegated(scene: Scene) -> str:
    """Without a group of one's own programs run, and nothing is claimed of them."""
    with scene.client() as client:
        outcome, stdout = _run(client, "print(6 * 7)")
    assert stdout == "42\n", stdout
    counts = (outcome["memory_peak"], outcome["oom_kills"], outcome["forks_refused"])
    assert counts == (None, 0, 0), outcome
    return "runs, with neither peak nor counts"


Check = Callable[[Scene], str]
_EVERYWHERE: tuple[Check, ...] = (report_is_true, sandbox_sees_only_its_group, process_limit_is_counted,
                                  wall_limit_ends_everything)  # fmt: skip
_MEMORY: tuple[Check, ...] = (memory_limit_kills_the_whole_group, swap_is_closed, disk_counts_as_memory)
_GROUPS: tuple[Check, ...] = (cpu_time_is_limited, usage_is_told, limits_are_in_the_group, groups_do_not_pile_up,
                              second_warden_works_too, dead_warden_is_swept_up)  # fmt: skip


def _checks(scene: Scene) -> tuple[Check, ...]:
    """Those that can hold in that scene."""
    return (
        *_EVERYWHERE,
        *(_MEMORY if "memory" in scene.enforced else ()),
        *((swap_works_elsewhere,) if scene.name == "root" else ()),
        *((cpu_quota_holds,) if "cpu" in scene.enforced else ()),
        *(_GROUPS if scene.delegated else (unlimited_where_nothing_is_delegated,)),
        *((others_make_room,) if scene.delegated and scene.group else ()),
    )


def _name(scene: Scene, check: Check) -> str:
    return f"{scene.name}/{check.__name__}"


NAMES = tuple(_name(scene, check) for scene in SCENES for check in _checks(scene))
"""What `run_all` runs, in order."""


def run_all() -> None:
    """Run every scene in a process of its own, and say what came of each check: one line for each."""
    wanted = sys.argv[1:]
    done = 0
    for scene in SCENES:
        if wanted and scene.name not in wanted:
            continue
        scene.prepare()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                scene.enter()
                for check in _checks(scene):
                    _say(scene, check)
            except BaseException:
                traceback.print_exc(file=sys.stdout)
            finally:
                sys.stdout.flush()
                os._exit(0)
        while os.wait()[0] != pid:  # as PID 1 we are the parent of every orphan
            pass
        done += len(_checks(scene))
    print(f"DONE {done}", flush=True)


def _say(scene: Scene, check: Check) -> None:
    began = time.monotonic()
    try:
        word, text = "PASS", check(scene)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)
        place = next((frame.lineno for frame in line if frame.name == check.__name__), "?")
        word, text = "FAIL", f"line {place}: {type(error).__name__}: {error}"
    text = " ".join(text.split())
    print(f"{word} {_name(scene, check)}: {text} ({time.monotonic() - began:.1f} s)", flush=True)
