"""What is particular to the backend `gvisor`; what it shares with all is in `test_contract`."""

import asyncio
import json
import os
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stockade.backends.base import BackendOptions, Glimpse, SandboxSpec
from stockade.backends.gvisor import GvisorBackend
from stockade.errors import Unavailable, Unsupported
from stockade.model import Outcome
from stockade.warden.fields import Refused
from stockade.warden.gvisor import Shape
from stockade.warden.gvisor_calls import Calls, GuestError, GuestGone
from stockade.warden.image import Image
from stockade.warden.resident_request import StayRequest
from stockade.warden.walls import GVISOR, Walls, processes_behind, wall_of
from tests.backends.sandboxes import MB, children, commands, limits, run, spec, until, wardens

PYTHON = "/usr/bin/python3"
HIGH_IDS = 0x7000_0000
"""Where the ids of sandboxes begin on the host."""


@pytest.fixture(scope="module")
async def gvisor(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[GvisorBackend]:
    backend = GvisorBackend(BackendOptions(data_dir=tmp_path_factory.mktemp("data"), embedded=True))
    try:
        await backend.start()
    except (Unavailable, Unsupported) as error:
        await backend.close()
        pytest.skip(str(error))
    yield backend
    await backend.close()


# ── the guest ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.anyio
async def test_the_kernel_is_not_the_hosts(gvisor: GvisorBackend) -> None:
    result = await run(
        gvisor, PYTHON, "-c", "import os; print(os.uname().release, os.uname().nodename, os.getpid() > 1)"
    )
    release, name, is_not_first = result.stdout.decode().split()
    assert release != os.uname().release
    assert (name, is_not_first) == ("sandbox", "True")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "outcome", "code", "signal"),
    [
        ("exit 143", Outcome.EXITED, 143, None),
        ("kill -TERM $$", Outcome.SIGNALED, None, 15),
        ("kill -KILL $$", Outcome.SIGNALED, None, 9),
        ("kill -SEGV $$", Outcome.SIGNALED, None, 11),
    ],
)
async def test_a_signal_is_told_from_a_status_that_looks_like_one(
    gvisor: GvisorBackend, script: str, outcome: Outcome, code: int | None, signal: int | None
) -> None:
    result = await run(gvisor, "/bin/sh", "-c", script)
    assert (result.outcome, result.exit_code, result.signal) == (outcome, code, signal)


@pytest.mark.anyio
async def test_the_environment_is_what_was_given_and_a_home(gvisor: GvisorBackend) -> None:
    result = await run(gvisor, "/usr/bin/env", env={"A": "1 2", "B": "ü"})
    assert sorted(result.stdout.decode().splitlines()) == ["A=1 2", "B=ü", "HOME=/home/user"]
    result = await run(gvisor, "/usr/bin/env", env={"HOME": "/code"})
    assert result.stdout == b"HOME=/code\n"


@pytest.mark.anyio
async def test_the_user_has_no_capabilities(gvisor: GvisorBackend) -> None:
    script = "id -u; grep -E '^Cap(Eff|Prm|Bnd|Inh):' /proc/self/status"
    uid, *sets = (await run(gvisor, "/bin/sh", "-c", script)).stdout.decode().splitlines()
    assert uid == "1000"
    assert {line.split()[1] for line in sets} == {"0" * 16}


@pytest.mark.anyio
async def test_a_program_that_outgrows_its_processes_ends_by_that_limit(gvisor: GvisorBackend) -> None:
    """gVisor has several threads of the host's for each process, and ends where it cannot have them."""
    script = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(100)"
    result = await run(gvisor, PYTHON, "-c", script, processes=1, memory_bytes=2048 * MB)
    assert result.outcome is Outcome.PROCESSES


@pytest.mark.anyio
async def test_as_many_processes_as_asked_for_run_at_once(gvisor: GvisorBackend) -> None:
    script = (
        "import os, time\n"
        "end = time.monotonic() + 1\n"
        "for _ in range(15):\n"
        "    if os.fork() == 0:\n"
        "        while time.monotonic() < end: os.stat('/')\n"
        "        os._exit(0)\n"
        "for _ in range(15): os.wait()\n"
        "print('all')"
    )
    assert (await run(gvisor, PYTHON, "-c", script, processes=16)).stdout == b"all\n"


@pytest.mark.anyio
@pytest.mark.parametrize("cwd", ["/code", "/tmp/work", "/home/user"])
async def test_what_one_sandbox_made_another_one_runs(gvisor: GvisorBackend, cwd: str) -> None:
    script = (
        "import mmap, os\n"
        "open('kept', 'w').write('old'); open('kept', 'r+').write('new')\n"
        "with open('mapped', 'w+b') as file:\n"
        "    file.truncate(6)\n"
        "    with mmap.mmap(file.fileno(), 6) as memory: memory[:] = b'shared'\n"
        "os.mkdir('below'); os.rename('kept', 'below/moved'); os.chmod('below/moved', 0o751)\n"
        "os.symlink('below', 'link')"
    )
    made = await run(gvisor, PYTHON, "-c", script, cwd=cwd, collect=True)
    assert made.succeeded, made.stderr
    assert made.bundle is not None
    try:
        script = (
            "import os; print(open('link/moved').read(), open('mapped').read(), oct(os.stat('below/moved').st_mode))"
        )
        result = await run(gvisor, PYTHON, "-c", script, cwd=cwd, bundle=made.bundle)
    finally:
        made.bundle.close()
    assert result.stdout == b"new shared 0o100751\n", result.stderr


@pytest.mark.anyio
async def test_everything_that_can_be_written_counts_as_disk(gvisor: GvisorBackend) -> None:
    script = (
        "import sys\n"
        "count = 0\n"
        "for place in ('/code', '/tmp', '/dev/shm', '/home/user', '/var/tmp', '/dev', '/run', '/proc', '/sys'):\n"
        "    try:\n"
        "        with open(place + '/flood', 'wb', buffering=0) as file:\n"
        "            while True: count += file.write(bytes(1 << 16))\n"
        "    except OSError: pass\n"
        "print(count)"
    )
    result = await run(gvisor, PYTHON, "-c", script, disk_bytes=8 * MB)
    assert int(result.stdout) <= 8 * MB


@pytest.mark.anyio
async def test_limits_that_gvisor_enforces_follow_each_run(gvisor: GvisorBackend) -> None:
    """Also where gVisor had been started for others."""
    script = "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE)[1], r.getrlimit(r.RLIMIT_STACK)[1])"
    for files, stack in ((100, 4 * MB), (200, 8 * MB)):
        result = await run(gvisor, PYTHON, "-c", script, open_files=files, stack_bytes=stack)
        assert result.stdout.decode().split() == [str(files), str(stack)]


# ── the cell around it ───────────────────────────────────────────────────────────────────────────────────────────────


def _gvisors(parent: int) -> dict[int, dict[str, str]]:
    """What the kernel says of gVisor's processes below *parent*, by their ids."""
    found = {}
    for pid in children(parent):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        facts = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
        if facts["Name"] == "exe" or commands().get(pid, "").startswith("runsc"):
            found[pid] = facts
    return found


@pytest.mark.anyio
async def test_gvisor_runs_in_a_sandbox_itself(gvisor: GvisorBackend) -> None:
    """As a user that nobody else on the host is, under filters, without a way to gain anything."""
    await run(gvisor, "true")  # and one more is kept ready
    (warden,) = [one for one in wardens() if one in _wardens_of(gvisor)]
    until(lambda: len(_gvisors(warden)) >= 2)
    for facts in _gvisors(warden).values():
        assert all(int(uid) >= HIGH_IDS for uid in facts["Uid"].split() + facts["Gid"].split())
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    # When it has set itself up it is under one of its own as well.
    until(lambda: any(int(facts["Seccomp_filters"]) >= 2 for facts in _gvisors(warden).values()))


@pytest.mark.anyio
async def test_beside_gvisor_there_is_nothing_in_its_cell(gvisor: GvisorBackend) -> None:
    await run(gvisor, "true")
    (warden,) = [one for one in wardens() if one in _wardens_of(gvisor)]

    def roots() -> set[frozenset[str]]:
        found = set()
        for pid, command in commands().items():
            if command.startswith("init") and pid in children(warden):
                try:
                    found.add(frozenset(os.listdir(f"/proc/{pid}/root")))
                except OSError:
                    continue
        return found

    until(lambda: frozenset({"bundle", "dev", "proc", "runsc", "state", "tenant", "tmp"}) in roots())


def _wardens_of(gvisor: GvisorBackend) -> set[int]:
    connection = gvisor._native._connection
    assert connection is not None
    assert connection.warden.process is not None
    return {connection.warden.process.pid}


@pytest.mark.anyio
async def test_a_program_that_ends_its_own_kernel_is_told_as_killed(gvisor: GvisorBackend) -> None:
    """From outside, for no program is known to do it."""
    seen: list[Glimpse] = []
    process = spec("/bin/sh", "-c", "echo up; sleep 100", files={"mark": b""})
    task = asyncio.create_task(
        gvisor.run(SandboxSpec(image="host", limits=limits(wall_s=60.0)), process, watched=seen.append)
    )
    await asyncio.to_thread(until, lambda: bool(seen) and seen[0].read(is_stderr=False, offset=0, most=9) == b"up\n")
    firsts = [pid for pid in children(os.getpid()) if commands().get(pid, "").startswith("init")]
    (first,) = [pid for pid in firsts if os.path.exists(f"/proc/{pid}/root/code/mark")]
    (kernel,) = [pid for pid in children(first) if commands().get(pid, "").startswith("runsc-sandbox")]
    os.kill(kernel, 9)
    result = await task
    assert (result.outcome, result.signal) == (Outcome.SIGNALED, 9)
    assert (await run(gvisor, "echo", "still here")).stdout == b"still here\n"


@pytest.mark.anyio
async def test_the_report_names_the_wall(gvisor: GvisorBackend) -> None:
    report = await gvisor.report()
    features = {feature.name: feature for feature in report.features}
    assert report.backend == GVISOR
    assert report.missing == ()
    assert features["wall"].mechanism.startswith("gVisor ")
    assert "ptrace" in report.details["gvisor"] or "systrap" in report.details["gvisor"]


# ── the warden's side ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_host_without_gvisor_is_told_what_to_do(tmp_path: Path) -> None:
    walls = Walls(Image(name="host", lower="", binds=((str(tmp_path), "usr"),)), own_ids=True)
    with pytest.raises(Refused, match="apt-get install runsc") as refused:
        walls.find()
    assert refused.value.kind == "unavailable"


def test_what_is_no_gvisor_is_found_by_its_absence_of_words(tmp_path: Path) -> None:
    """An executable that cannot be started is told, and nothing else is started in its place."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "runsc"
    program.write_bytes(b"\x7fELF nothing")
    program.chmod(0o755)
    walls = Walls(Image(name="host", lower="", binds=((str(tmp_path), "usr"),)), own_ids=True)
    with pytest.raises(Refused, match="cannot be started"):
        walls.find()


def test_an_ordinary_users_warden_has_no_second_wall() -> None:
    with pytest.raises(Refused, match="user ids of its own") as refused:
        Walls(Image(name="host", lower="", binds=()), own_ids=False).find()
    assert refused.value.kind == "unsupported"


@pytest.mark.parametrize("wall", ["kata", None, 1, [], {"name": "gvisor"}, "GVISOR"])
def test_a_wall_that_is_none_is_refused(wall: object) -> None:
    with pytest.raises(Refused, match="known: gvisor"):
        wall_of({"wall": wall})


def test_a_sandbox_that_lives_is_not_made_with_fewer_walls_than_were_asked_for() -> None:
    with pytest.raises(Refused, match="cannot be behind") as refused:
        StayRequest.parse({"op": "create", "sandbox": "s", "limits": {}, "wall": "gvisor"}, 0)
    assert refused.value.kind == "unsupported"


def test_none_and_gvisor_are_known() -> None:
    assert [wall_of({}), wall_of({"wall": ""}), wall_of({"wall": "gvisor"})] == ["", "", "gvisor"]


def test_more_processes_have_more_threads() -> None:
    assert processes_behind(2) > processes_behind(1) > 100


def test_limits_are_written_as_the_runtime_specification_has_them() -> None:
    rlimits = {one["type"]: one["hard"] for one in Shape(disk_bytes=1, open_files=2, stack_bytes=3).rlimits()}
    assert (rlimits["RLIMIT_FSIZE"], rlimits["RLIMIT_NOFILE"], rlimits["RLIMIT_STACK"]) == (1, 2, 3)
    assert rlimits["RLIMIT_CORE"] == 0


# ── a kernel of the guest's that was taken over ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[list[bytes]]:
    """What the guest's kernel says to each call, in place of it; sent as it is."""
    said: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/runsc-s.sock")
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for answer in said:
                connection.recv(1 << 16)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    yield said
    thread.join(30)
    listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b"\xff\xfe",
        b'{"success": true}',
        b'{"success": true, "result": "0"}',
        b'{"success": true, "result": true}',
        b'{"success": true, "result": -1}',
        b'{"success": true, "result": 65536}',
        b'{"success": true, "result": 1e3}',
        b"[" * 5000,
        b'{"success": true, "result": 0' + b" " * (65 << 10),
    ],
)
def test_an_answer_that_makes_no_sense_is_none(tmp_path: Path, answers: list[bytes], answer: bytes) -> None:
    answers.append(answer)
    calls = Calls(str(tmp_path))
    try:
        with pytest.raises(GuestGone):
            calls.wait(2)
    finally:
        calls.close()


def test_a_refusal_is_told(tmp_path: Path, answers: list[bytes]) -> None:
    answers += [json.dumps({"success": False, "err": "no " * 1000}).encode(), b'{"success": true, "result": 256}']
    calls = Calls(str(tmp_path))
    try:
        with pytest.raises(GuestError) as refused:
            calls.wait(2)
        assert len(str(refused.value)) <= 1000
        assert calls.wait(2) == 256
    finally:
        calls.close()


def test_a_kernel_that_is_not_there_is_gone(tmp_path: Path) -> None:
    with pytest.raises(GuestGone, match="control socket"):
        Calls(str(tmp_path))
