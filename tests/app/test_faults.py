"""The server, its warden or the disk fails in the middle of work: what clients see, and what is left on the host."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.app.serving import START_S, Server, command, environment, serving
from tests.app.traces import Answer, children, exchange, remaining, traces, until, wardens

SLEEP = {"language": "python", "code": "import time; time.sleep(0.2); print('done')"}
HELLO = {"language": "python", "code": "print(6*7)"}
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has no control groups to leave")


async def answered(server: Server, count: int) -> list[Answer | BaseException]:
    """What came of *count* requests at once."""
    return await asyncio.gather(*(exchange(server.url, SLEEP) for _ in range(count)), return_exceptions=True)


async def in_the_middle(server: Server, count: int, fault: Callable[[], object]) -> list[Answer | BaseException]:
    """Send *count* requests; *fault* strikes once some are answered and others run."""
    async with httpx.AsyncClient(base_url=server.url) as client:
        before = await runs_finished(client)
        work = asyncio.ensure_future(answered(server, count))
        async with asyncio.timeout(60):
            while await runs_finished(client) < before + count / 5 or not (await health(client))["running"]:
                assert not work.done(), "everything was over before the fault could strike"
                await asyncio.sleep(0.01)
    fault()
    return await work


async def health(client: httpx.AsyncClient) -> dict[str, int]:
    found: dict[str, int] = (await client.get("/health")).json()
    return found


async def runs_finished(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    return sum(float(one) for one in re.findall(r"^isobox_executions_total\{.*\} (\S+)$", text, re.MULTILINE))


def status(answer: Answer | BaseException) -> int | str:
    return answer.status if isinstance(answer, Answer) else type(answer).__name__


@pytest.mark.anyio
async def test_a_server_that_is_killed_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    with serving(tmp_path) as server:
        seen: list[frozenset[str]] = []

        def fault() -> None:
            seen.append(traces(server))
            server.end(signal.SIGKILL)

        answers = await in_the_middle(server, 100, fault)
        found = Counter(map(status, answers))
        assert 0 < found[200] < 100, found
        assert len(seen[0]) > 20  # server, keeper, warden, mason, sandboxes and their groups
        await asyncio.to_thread(until, lambda: not remaining(seen[0]))
    assert Path("/proc/self/mounts").read_text() == mounts
    assert {path.name for path in tmp_path.iterdir()} <= {"state", "images", "lock", "caches", "warden.log"}
    with serving(tmp_path) as server:
        assert (await exchange(server.url, HELLO)).json()["stdout"] == "42\n"


@root_only
@pytest.mark.anyio
async def test_the_next_start_clears_what_is_left_when_everything_is_killed_at_once(tmp_path: Path) -> None:
    """Nobody is there any more to remove the control groups; the processes die by themselves."""
    with serving(tmp_path) as server:
        seen: list[frozenset[str]] = []

        def fault() -> None:
            seen.append(traces(server))
            (keeper,) = children(server.process.pid)
            for pid in (keeper, *wardens(server), server.process.pid):
                os.kill(pid, signal.SIGKILL)

        await in_the_middle(server, 100, fault)
        left = seen[0]

        def only_groups() -> bool:
            return not [line for line in remaining(left) if line.startswith("process")]

        await asyncio.to_thread(until, only_groups)
    with serving(tmp_path) as server:
        assert (await exchange(server.url, HELLO)).json()["stdout"] == "42\n"
        assert not remaining(left)


@pytest.mark.anyio
async def test_a_warden_that_is_killed_in_the_middle_costs_only_what_ran(tmp_path: Path) -> None:
    with serving(tmp_path) as server:

        def fault() -> None:
            (warden,) = wardens(server)
            os.kill(warden, signal.SIGKILL)

        answers = await in_the_middle(server, 100, fault)
        following = await exchange(server.url, HELLO)
        assert following.status == 200, following.body
        assert following.json()["stdout"] == "42\n"
        found = Counter(map(status, answers))
        assert set(found) <= {200, 500, 503}, found
        lost = [one for one in answers if isinstance(one, Answer) and one.status != 200]
        assert lost
        assert found[200] >= 100 - len(lost)
        for one in lost:
            assert one.headers["content-type"] == "application/json"
            assert isinstance(one.json()["error"], str)
        # Those that waited for a place never had a sandbox to lose.
        assert found[200] > len(lost), found


@pytest.mark.anyio
async def test_sigterm_lets_all_that_run_or_wait_end(tmp_path: Path) -> None:
    with serving(tmp_path, STOCKADE_QUEUE_PLACES="8") as server:
        work = asyncio.gather(*(exchange(server.url, SLEEP) for _ in range(30)))
        async with httpx.AsyncClient(base_url=server.url) as client, asyncio.timeout(30):
            while (now := await health(client))["running"] + now["queued"] < 20:
                assert not work.done()
        server.process.send_signal(signal.SIGTERM)
        answers = await work
        assert Counter(one.status for one in answers) == {200: 30}
        assert {one.json()["stdout"] for one in answers} == {"done\n"}
        assert await asyncio.to_thread(server.process.wait, START_S) == 0


ON_SMALL_DISK = """
import ctypes, os, shutil, subprocess, sys
directory, content, *command = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18
assert libc.unshare(CLONE_NEWNS) == 0
assert libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
assert libc.mount(b"small", directory.encode(), b"tmpfs", 0, b"mode=700,size=512k") == 0
shutil.copytree(content, directory, dirs_exist_ok=True)
try:  # and not a byte is left
    with open(os.path.join(directory, "filler"), "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
except OSError:
    pass
status = subprocess.call(command)
for folder, _, names in os.walk(directory):
    for name in sorted(names):
        print("LEFT", name)
sys.exit(status)
"""

ANSWER_THEN_STOP = """
import json, re, subprocess, sys, urllib.request
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True) as process:
    url = ""
    for line in process.stdout:
        print(line, end="")
        url = url or (re.findall("answers at +(\\\\S+)", line) or [""])[0]
        if "curl" in line:
            body = json.dumps({"language": "python", "code": "print(6*7)"}).encode()
            request = urllib.request.Request(url + "/execute", body, {"Content-Type": "application/json"})
            print("ANSWER", urllib.request.urlopen(request, timeout=30).read().decode())
            process.terminate()
sys.exit(process.returncode)
"""


def start_on_full_disk(directory: Path, content: Path) -> "subprocess.CompletedProcess[str]":
    """Start a server whose data directory, with *content* in it, has no byte left; stops when it answers."""
    directory.mkdir()
    content.mkdir(exist_ok=True)
    words = command("serve", "--port", "0", "--data-dir", str(directory))
    words = [sys.executable, "-c", ANSWER_THEN_STOP, *words]
    return subprocess.run(
        [sys.executable, "-c", ON_SMALL_DISK, str(directory), str(content), *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_S,
    )


@root_only
def test_a_first_start_on_a_full_disk_says_so_and_leaves_no_half_database(tmp_path: Path) -> None:
    done = start_on_full_disk(tmp_path / "small", tmp_path / "nothing")
    assert done.returncode == 1
    assert re.search(r"^stockade: .*/state/.*No space left on device", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert "sk_" not in done.stdout, "a key that was not kept must not be shown"
    assert "stockade.db" not in done.stdout


@root_only
def test_a_server_with_a_key_starts_and_runs_on_a_full_disk(tmp_path: Path) -> None:
    content = tmp_path / "content"
    subprocess.run(
        command("keys", "create", "ci", "--data-dir", str(content)), env=environment(), check=True, timeout=START_S
    )
    with serving(content) as server:
        server.end()  # a first start: it has made what it keeps of its own
    done = start_on_full_disk(tmp_path / "small", content)
    assert done.returncode == 0, done.stderr
    assert '"stdout":"42\\n"' in done.stdout
    assert "LEFT stockade.db\n" in done.stdout
