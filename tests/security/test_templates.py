"""A hostile run and its template: what it may learn and reach, and what is left when something is killed."""

import asyncio
import contextlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from stockade.attacks import LIMITS, Bait
from stockade.backends.base import BackendOptions
from stockade.backends.native import NativeBackend
from stockade.engine import Engine
from stockade.errors import BackendLost
from stockade.model import LimitOverrides, Outcome
from tests.backends.sandboxes import children, commands, mason_of, until
from tests.security.conftest import Warm

pytestmark = pytest.mark.anyio
WITHIN_S = 60.0


@pytest.fixture
async def own(bait: Bait, engine: Engine, tmp_path: Path) -> AsyncIterator[Warm]:
    """A template in a warden of the test's own, which it may harm."""
    backend = NativeBackend(BackendOptions(data_dir=tmp_path, embedded=True))
    await backend.start()
    # A hundred at once may take their time.
    own = Warm(backend, engine.limits.resolve(LimitOverrides(), replace(LIMITS, wall_s=WITHIN_S)))
    await own.until_warm()
    yield own
    await backend.close()


def warden(warm: Warm) -> int:
    connection = warm.backend._connection
    assert connection is not None
    assert connection.warden.process is not None
    return connection.warden.process.pid


def mason(warm: Warm) -> int:
    found = mason_of(warden(warm))
    assert found is not None
    return found


def templates(warm: Warm) -> list[int]:
    """Interpreters that are children of the warden's: those of runs are their PID 1's."""
    found = []
    for pid in children(warden(warm)):
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            # A cell's PID 1, which has the template's name until it has settled, has a pid namespace of its own.
            status = Path(f"/proc/{pid}/status").read_text()
            is_outside = len(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()) == 2
            if parent == warden(warm) and is_outside and commands().get(pid, "").startswith("python3 main.py"):
                found.append(pid)
    return found


# ── what a run can learn and reach ───────────────────────────────────────────────────────────────────────────────────

REACH = """
import ctypes, errno, json, os, resource, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
reached, stopped = [], []
def attempt(label, action):
    try:
        action()
        reached.append(label)
    except OSError as error:
        stopped.append(f"{label}: {error}")
def call(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), name)
local = ctypes.create_string_buffer(8)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
mine = Vector(ctypes.addressof(local), 8)
theirs = Vector(ctypes.addressof(local), 8)  # forks of one interpreter have this mapped at the same place
for pid in json.load(sys.stdin):
    if pid == os.getpid():
        continue
    for number in (0, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        attempt(f"signal {number} to {pid}", lambda: os.kill(pid, number))
    for name in ("mem", "maps", "environ", "fd", "root/", "cwd/", "exe", "map_files", "ns/mnt", "task"):
        attempt(f"{pid}/{name}", lambda: os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY)))
    attempt(f"write {pid}/mem", lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)))
    attempt(f"trace {pid}", lambda: call("ptrace", 16, pid, 0, 0))
    attempt(f"read {pid}", lambda: call("process_vm_readv", pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))
    attempt(f"write {pid}", lambda: call("process_vm_writev", pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))
    attempt(f"limits of {pid}", lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (0, 0)))
    attempt(f"pidfd of {pid}", lambda: os.close(os.pidfd_open(pid)))
    attempt(f"priority of {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
print(json.dumps(reached), len(stopped))
"""


async def test_the_processes_of_the_host_cannot_be_named(own: Warm) -> None:
    """Neither the template, nor its other forks, nor the warden or the mason, by the pids that they really have."""
    pids = [pid for pid in (*templates(own), warden(own), mason(own), *children(warden(own))) if pid > 2]
    assert templates(own)
    result = await own.run(REACH.encode(), json.dumps(sorted(set(pids))).encode())
    assert result.stderr == b""
    assert json.loads(result.stdout.rpartition(b" ")[0]) == []
    assert templates(own)


async def test_pid_1_of_a_fork_can_be_named_and_no_more(own: Warm) -> None:
    """Its number is known to be there; its limits are, since it has the tenant's user id, the tenant's to lower."""
    result = await own.run(REACH.replace("signal.SIGTERM, signal.SIGKILL", "signal.SIGTERM").encode(), b"[1]")
    assert result.stderr == b""
    reached = set(json.loads(result.stdout.rpartition(b" ")[0]))
    harmless = {f"signal {n} to 1" for n in (0, 2, 15)} | {"limits of 1", "pidfd of 1", "priority of 1"}
    assert reached <= harmless


SECRETS = """
import json, os, re, sys
patterns = [bytes.fromhex(text) for text in sys.stdin.read().split()]  # backwards, so that they are not found here
searched = 0
found = set()
with open("/proc/self/mem", "rb", 0) as memory:
    for line in open("/proc/self/maps"):
        place, permissions, *rest = line.split(None, 5)
        if permissions[0] != "r" or "[v" in rest[-1]:
            continue
        start, end = (int(number, 16) for number in place.split("-"))
        try:
            memory.seek(start)
            data = memory.read(end - start)
        except OSError:
            continue
        searched += len(data)
        backwards = data[::-1]
        del data
        for pattern in patterns:
            if pattern in backwards:
                found.add(pattern[::-1].hex())
        del backwards
print(searched > 1 << 20, sorted(found))
"""


async def test_a_forks_memory_holds_nothing_of_the_hosts(own: Warm, bait: Bait, tmp_path: Path) -> None:
    """No environment of the server's, no path of the host's, no name of the host's, no key."""
    canary = bait.facts["canary"]
    here = str(Path(__file__).parents[2])
    secrets = [canary, "STOCKADE_BAIT", str(tmp_path), here, bait.facts["file"], bait.facts["unix"], "keeper.py"]
    if len(bait.facts["hostname"]) > 6 and bait.facts["hostname"] != "sandbox":
        secrets.append(bait.facts["hostname"])
    stdin = " ".join(text.encode()[::-1].hex() for text in (*secrets, "python3"))
    result = await own.run(SECRETS.encode(), stdin.encode())
    assert result.stderr == b""
    assert result.stdout.decode().strip() == f"True ['{b'python3'.hex()}']"  # which shows that it can find something


async def test_what_one_fork_writes_no_other_reads(own: Warm) -> None:
    """At the very same addresses: twenty at once, each with a mark that it reads back after all have written."""
    code = (
        "import ctypes, sys, time\n"
        "import os, re, site\n"
        "mark = input()\n"
        "places = [vars(m) for m in list(sys.modules.values())]\n"
        "for place in places: place['mark'] = mark\n"
        "ctypes.memmove(id('utf-8') + sys.getsizeof('') - 1, mark.encode(), 5)\n"
        "time.sleep(0.3)\n"
        "print({place['mark'] for place in places} == {mark})\n"
        "print(ctypes.string_at(id('utf-8') + sys.getsizeof('') - 1, 5))\n"
    )
    marks = [b"%05d" % number for number in range(20)]
    results = await asyncio.gather(*(own.run(code.encode(), mark + b"\n") for mark in marks))
    assert [result.stdout for result in results] == [b"True\n%r\n" % mark for mark in marks]


async def test_forks_have_user_ids_of_their_own(own: Warm) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user has one id")
    code = b"import time; print(open('/proc/self/uid_map').read().split()[1]); time.sleep(0.3)"
    results = await asyncio.gather(*(own.run(code) for _ in range(12)))
    ids = {int(result.stdout) for result in results}
    assert len(ids) == 12
    of_template = {Path(f"/proc/{pid}").stat().st_uid for pid in templates(own)}
    assert all(not low <= uid < low + 65536 for low in ids for uid in of_template)


async def test_many_hostile_runs_wear_nothing_out(own: Warm) -> None:
    """Bombs, floods and suicides a hundred times: the next run begins from the template, and no group or id is lost."""
    programs = [
        b"import os\nwhile True: os.fork()",
        b"x = bytearray(1 << 30)",
        b"import os\nos.kill(-1, 9)",
        b"import os\nos.abort()",
        b"import os, signal\nfor n in range(1, 65):\n try: os.kill(1, n)\n except OSError: pass",
        b"import os\nfor n in range(10**6): open(f'f{n}', 'w')",
        b"import sys\nwhile True: sys.stdout.write('x' * 100000)",
        b"import resource as r\nr.prlimit(1, r.RLIMIT_NOFILE, (0, 0)); r.prlimit(1, r.RLIMIT_CPU, (0, 0))",
        b"import os\nos.closerange(0, 1000)",
        b"import os\nos.execv('/bin/true', ['true'])",
    ]
    for _ in range(10):
        results = await asyncio.gather(*(own.run(program) for program in programs))
        assert all(result.outcome is not Outcome.CANCELLED for result in results)
    assert await own.is_warm()


# ── when something is killed ─────────────────────────────────────────────────────────────────────────────────────────


async def count(warm: Warm, number: int) -> int | None:
    """One run; `None` when the warden was lost with it, which whoever asked is told."""
    try:
        result = await warm.run(b"import time; n = int(input()); time.sleep(0.01); print(n * n)", b"%d\n" % number)
    except BackendLost:
        return None
    assert result.stdout == b"%d\n" % number**2, result
    return number


async def test_a_template_that_is_killed_loses_no_run(own: Warm) -> None:
    """Again and again while a hundred are under way: every one is answered, with what it computed."""

    async def kill() -> None:
        for _ in range(8):
            await anyio.sleep(0.05)
            for pid in templates(own)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    answers, _ = await asyncio.gather(asyncio.gather(*(count(own, number) for number in range(100))), kill())
    assert answers == list(range(100))
    with anyio.fail_after(WITHIN_S):
        while not await own.is_warm():  # noqa: ASYNC110  # the next template is begun after a pause
            await anyio.sleep(0.1)


@pytest.mark.parametrize("victim", ["mason", "warden"])
async def test_a_warden_that_dies_takes_all_with_it_and_leaves_nothing(own: Warm, victim: str) -> None:
    """Every run is answered: with its result, or with the news that it is lost. The next warden serves them again."""
    first = warden(own)
    everything = {first, *children(first)}
    runs = asyncio.gather(*(count(own, number) for number in range(100)))
    await anyio.sleep(0.1)
    everything |= children(first)
    os.kill(first if victim == "warden" else mason(own), signal.SIGKILL)
    with anyio.fail_after(WITHIN_S):
        answers = Counter(answer is not None for answer in await runs)
        assert answers.total() == 100
        while not await own.is_warm():  # noqa: ASYNC110  # nothing tells when it is
            await anyio.sleep(0.05)
    assert warden(own) != first
    gone = everything - {first}  # that one is the server's child, which has reaped it
    await asyncio.to_thread(until, lambda: not gone & commands().keys())
    found = [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if re.search(rf"stockade-\d+-{first}-", folder)]
    assert found == []
