"""Giving up root's powers: what is left afterwards, in a process of its own."""

import os
import subprocess
import sys

import pytest

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up")

PROGRAM = """
import ctypes, os, sys
from pathlib import Path
from stockade.app import privileges
privileges.drop(privileges.find_user(sys.argv[1]) if sys.argv[1:] else None)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
print(*(int(status[name], 16) for name in sets), status["NoNewPrivs"].strip())
print(os.getresuid(), os.getresgid())
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""


def _run(*args: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *args], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


@root_only
def test_no_capability_is_left_and_none_can_be_gained() -> None:
    assert _run()[0] == "0 0 0 0 0 1"


def test_no_core_file_is_made_of_it_and_nobody_looks_into_it() -> None:
    assert _run()[-1] == "0"


@root_only
def test_the_user_is_changed_for_good() -> None:
    lines = _run("nobody")
    assert lines[0] == "0 0 0 0 0 1"
    assert "0," not in lines[1].replace("(", "").replace(")", "").split()


@root_only
def test_a_thread_that_runs_on_is_noticed() -> None:
    """Capabilities are a thread's own: one that started earlier would keep them."""
    program = "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n" + PROGRAM
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "still has Cap" in done.stderr


def test_an_unknown_user_is_refused() -> None:
    from stockade.app.privileges import find_user
    from stockade.errors import Invalid

    with pytest.raises(Invalid, match="no user"):
        find_user("no-such-user")
