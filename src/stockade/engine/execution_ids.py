"""Ids of executions. They say the time limit, so that it is known, and enforced, whoever started the execution."""

import re
import secrets
import signal

from stockade.backends.sandboxing import LiveProcess
from stockade.model import Outcome

__all__ = ["has_timed_out", "new_id", "timeout_of"]

_ID = re.compile(r"exec-[0-9a-f]{16}([0-9a-f]{1,10})?")
_KILLED = 128 + signal.SIGKILL
_CLOCK_S = 0.005
"""By so much the times of a process's start and end may differ from ours: they come from other clocks."""


def new_id(timeout_s: float | None) -> str:
    """A new id; that of an execution with a time limit says which, in milliseconds."""
    limit = "" if timeout_s is None else f"{max(1, round(1000 * timeout_s)):x}"
    return f"exec-{secrets.token_hex(8)}{limit}"


def timeout_of(id: str) -> float | None:
    """The time limit of an execution in seconds; `None` where it has none."""
    match = _ID.fullmatch(id)
    return int(match[1], 16) / 1000 if match is not None and match[1] else None


def has_timed_out(process: LiveProcess) -> bool:
    """Whether it was its time limit that ended an execution."""
    limit_s, end, ended_at = timeout_of(process.name), process.end, process.ended_at
    if limit_s is None or end is None or ended_at is None:
        return False
    is_killed = end.outcome is Outcome.SIGNALED and end.exit_code == _KILLED
    return is_killed and ended_at - process.started_at >= limit_s - _CLOCK_S
