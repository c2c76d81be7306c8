"""From what the warden saw to an `Outcome`: one pure function, so that it is decided in one place."""

import os
from collections.abc import Mapping
from typing import Any

from stockade.model import Outcome

__all__ = ["decide"]

_REASONS = {
    "wall_time": Outcome.WALL_TIME,
    "cpu_time": Outcome.CPU_TIME,
    "memory": Outcome.MEMORY,
    "output": Outcome.OUTPUT,
    "cancelled": Outcome.CANCELLED,
}


def decide(facts: Mapping[str, Any]) -> tuple[Outcome, int | None, int | None]:
    """Outcome, exit code and signal of a process.

    A limit that made the warden end the sandbox comes first; then memory, which the kernel enforces by itself; then
    how the process ended. A limit that refused something without ending anything (processes, disk) is the outcome
    only of a process that failed.
    """
    status = facts["status"]
    reason = _REASONS.get(facts["reason"] or "")
    exit_code = signal = None
    if status is not None and os.WIFEXITED(status):
        exit_code = os.WEXITSTATUS(status)
    elif status is not None and os.WIFSIGNALED(status):
        signal = os.WTERMSIG(status)
    if reason is not None and not (reason is Outcome.CANCELLED and status is not None):
        return reason, None, None
    if facts["oom_kills"] and exit_code != 0:
        return Outcome.MEMORY, None, None
    if status is None:  # PID 1 itself was killed, and not by us: the program found a way to end its own sandbox
        return Outcome.SIGNALED, None, 9
    if exit_code == 0:
        return Outcome.EXITED, 0, None
    if facts["forks_refused"]:
        return Outcome.PROCESSES, exit_code, signal
    if facts["disk_full"]:
        return Outcome.DISK, exit_code, signal
    if signal is not None:
        return Outcome.SIGNALED, None, signal
    return Outcome.EXITED, exit_code, None
