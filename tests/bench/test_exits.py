"""The kernel's account of processes that have ended."""

import os
import time

import pytest
from bench.exits import Ended, listening
from bench.measure import BenchError

BUSY = "n = 0\nfor i in range(2_000_000): n += i\n"


def test_a_process_that_ended_is_told_with_its_cpu_time() -> None:
    """What its parent's own account (`wait4`) says, less what it cost to give its memory back."""
    try:
        with listening() as exits:
            pid = os.posix_spawn("/usr/bin/python3", ["python3", "-c", BUSY], {})
            _, status, used = os.wait4(pid, 0)
            found: list[Ended] = []
            deadline = time.monotonic() + 30
            while not (mine := [one for one in found if one.pid == pid]) and time.monotonic() < deadline:
                found += exits.collect()
    except BenchError as error:
        pytest.skip(str(error))
    assert status == 0
    assert not exits.missed
    assert [one.parent for one in mine] == [os.getpid()]
    whole_s = used.ru_utime + used.ru_stime
    assert 0.5 * whole_s < mine[0].usage.cpu_s <= whole_s
    assert 0 < mine[0].usage.faults <= used.ru_minflt
    assert 0 <= mine[0].usage.switches <= used.ru_nvcsw + used.ru_nivcsw


def test_nothing_is_told_of_who_lives() -> None:
    """We, for example."""
    try:
        with listening() as exits:
            found = exits.collect()
    except BenchError as error:
        pytest.skip(str(error))
    assert os.getpid() not in [one.pid for one in found]
