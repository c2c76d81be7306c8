"""From what the warden saw to an outcome, as a table."""

from typing import Any

import pytest

from stockade.backends.native.outcomes import decide
from stockade.model import Outcome

FACTS: dict[str, Any] = {"reason": None, "status": None, "oom_kills": 0, "forks_refused": 0, "disk_full": False}


def exited(code: int) -> int:
    """A wait status, as wait(2) encodes it."""
    return code << 8


def killed(signal: int) -> int:
    return signal


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        # how it ended by itself
        ({"status": exited(0)}, (Outcome.EXITED, 0, None)),
        ({"status": exited(7)}, (Outcome.EXITED, 7, None)),
        ({"status": exited(137)}, (Outcome.EXITED, 137, None)),
        ({"status": killed(9)}, (Outcome.SIGNALED, None, 9)),
        ({"status": killed(11)}, (Outcome.SIGNALED, None, 11)),
        ({"status": killed(6) | 0x80}, (Outcome.SIGNALED, None, 6)),  # with the core-dumped bit
        ({"status": None}, (Outcome.SIGNALED, None, 9)),
        # what the warden ended, whatever status it managed to leave
        ({"reason": "wall_time"}, (Outcome.WALL_TIME, None, None)),
        ({"reason": "wall_time", "status": exited(0)}, (Outcome.WALL_TIME, None, None)),
        ({"reason": "cpu_time"}, (Outcome.CPU_TIME, None, None)),
        ({"reason": "memory"}, (Outcome.MEMORY, None, None)),
        ({"reason": "memory", "oom_kills": 2}, (Outcome.MEMORY, None, None)),
        ({"reason": "output", "status": exited(0)}, (Outcome.OUTPUT, None, None)),
        ({"reason": "output", "disk_full": True, "forks_refused": 3}, (Outcome.OUTPUT, None, None)),
        # cancelled too late: it had ended
        ({"reason": "cancelled"}, (Outcome.CANCELLED, None, None)),
        ({"reason": "cancelled", "status": exited(0)}, (Outcome.EXITED, 0, None)),
        ({"reason": "cancelled", "status": killed(15)}, (Outcome.SIGNALED, None, 15)),
        # memory that the kernel enforced: the outcome of whoever did not get over it
        ({"status": killed(9), "oom_kills": 1}, (Outcome.MEMORY, None, None)),
        ({"status": exited(1), "oom_kills": 1}, (Outcome.MEMORY, None, None)),
        ({"status": None, "oom_kills": 1}, (Outcome.MEMORY, None, None)),
        ({"status": exited(0), "oom_kills": 1}, (Outcome.EXITED, 0, None)),
        # limits that refuse and end nothing: the outcome only of what failed
        ({"status": exited(1), "forks_refused": 1}, (Outcome.PROCESSES, 1, None)),
        ({"status": killed(6), "forks_refused": 1}, (Outcome.PROCESSES, None, 6)),
        ({"status": exited(0), "forks_refused": 1}, (Outcome.EXITED, 0, None)),
        ({"status": exited(1), "disk_full": True}, (Outcome.DISK, 1, None)),
        ({"status": killed(7), "disk_full": True}, (Outcome.DISK, None, 7)),
        ({"status": exited(0), "disk_full": True}, (Outcome.EXITED, 0, None)),
        ({"status": exited(1), "forks_refused": 1, "disk_full": True}, (Outcome.PROCESSES, 1, None)),
        ({"status": exited(1), "forks_refused": 1, "oom_kills": 1}, (Outcome.MEMORY, None, None)),
    ],
)
def test_what_was_seen_decides_the_outcome(
    facts: dict[str, Any], expected: tuple[Outcome, int | None, int | None]
) -> None:
    assert decide({**FACTS, **facts}) == expected
