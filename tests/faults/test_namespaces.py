"""The kernel makes no further network namespaces: runs are refused for now, and work again when it does.

How many there may be is a setting of a user namespace. The host's own is left alone: the backend works in one of ours,
as an ordinary user of that, whose namespaces count there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stockade

WITHIN_S = 120.0
USER_NAMESPACE = 0x1000_0000
BACKEND = f"""
import asyncio, ctypes, json, os, sys
from pathlib import Path
from stockade.backends.base import BackendOptions
from stockade.backends.native import NativeBackend
from stockade.errors import Unavailable
from tests.backends.sandboxes import run

assert ctypes.CDLL(None, use_errno=True).unshare({USER_NAMESPACE}) == 0
print("unshared", flush=True)
assert sys.stdin.readline()
UNENFORCED = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids", "disk_size")


def allow(count):
    Path("/proc/sys/user/max_net_namespaces").write_text(str(count))


async def outcome(backend):
    try:
        async with asyncio.timeout(30):
            return (await run(backend, "/bin/echo", "works")).stdout.decode()
    except Unavailable as error:
        return f"unavailable: {{error}}"


async def main():
    backend = NativeBackend(BackendOptions(data_dir=Path(sys.argv[1]), embedded=True, allow_unenforced=UNENFORCED))
    await backend.start()
    told = [[await outcome(backend)]]
    allow(0)
    told.append([await outcome(backend) for _ in range(20)])
    allow(1000)
    told.append([await outcome(backend) for _ in range(5)])
    await backend.close()
    print(json.dumps(told), flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can map a project id into a user namespace of its own")
def test_without_network_namespaces_runs_are_refused_for_now_and_work_again_afterwards(tmp_path: Path) -> None:
    """What had been made ahead is still used; nobody hangs, and nothing is restarted by hand."""
    root, source = Path(__file__).parents[2], Path(stockade.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", BACKEND, str(tmp_path)],
        env={"PYTHONPATH": f"{root}:{source}", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "unshared\n"
        # Inside it is no root, and so nobody who may do more than any user may; outside it is us, who own the files.
        for name, line in (("uid_map", "1500 0 1"), ("gid_map", "1500 0 1"), ("projid_map", "0 0 4294967295")):
            Path(f"/proc/{process.pid}/{name}").write_text(line)
        before, without, again = _told(process.communicate("go\n", WITHIN_S)[0])
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert before == ["works\n"]
    assert {one.partition(":")[0] for one in without} <= {"works\n", "unavailable"}
    assert without[-1].startswith("unavailable: cannot make a sandbox"), "what was made ahead is used up by then"
    assert again == ["works\n"] * 5


def _told(text: str) -> list[list[str]]:
    found: list[list[str]] = json.loads(text)
    return found
