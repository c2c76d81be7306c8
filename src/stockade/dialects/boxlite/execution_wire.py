"""What clients send about executions, and what they are told of one."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from stockade.backends.sandboxing import LiveProcess, ProcessEnd
from stockade.dialects.boxlite.wire import Answer, Text, Wire
from stockade.engine.execution_ids import has_timed_out, timeout_of
from stockade.model import ExecSpec, Outcome, TerminalSize

__all__ = [
    "Ending",
    "ExecBody",
    "ExecutionAnswer",
    "ResizeBody",
    "SignalBody",
    "StartedAnswer",
    "ending_of",
    "status_of",
    "to_spec",
]

_MOST_CELLS = 0xFFFF
_BY_ITSELF = frozenset({Outcome.EXITED, Outcome.PROCESSES, Outcome.DISK})
"""Outcomes of what has called exit, whatever made it do so."""
_REASONS = {
    Outcome.MEMORY: "killed: the box has no more memory",
    Outcome.WALL_TIME: "killed: the time of the box was up",
    Outcome.CANCELLED: "killed: the box was stopped",
    Outcome.LOST: "killed: the box was lost",
}


class ExecBody(Wire):
    """A process to start."""

    command: Text = Field(min_length=1, description="The program: a path, or a name that is looked for in `PATH`.")
    args: list[Text] | None = Field(default=None, description="What follows it, as it is: there is no shell.")
    env: dict[Text, Text] | None = Field(default=None, description="Laid over the box's own.")
    timeout_seconds: Annotated[float, Field(gt=0, le=366 * 86400)] | None = Field(
        default=None, description="After which it is killed, with all that it started."
    )
    working_dir: Text | None = Field(default=None, description="The box's own if not set.")
    tty: bool | None = Field(default=None, description="Give it a terminal: all output is standard output then.")
    cols: int | None = Field(default=None, ge=1, le=_MOST_CELLS, description="Of its terminal. (Not in the reference.)")
    rows: int | None = Field(default=None, ge=1, le=_MOST_CELLS, description="(Not in the reference.)")
    user: Text | None = Field(
        default=None, description="`root`, `user` or `UID:GID`; the box's own if not set. (No REST client sends it.)"
    )


class SignalBody(Wire):
    """A signal to send."""

    signal: int = Field(ge=1, le=64)


class ResizeBody(Wire):
    """The size of a terminal."""

    cols: int = Field(ge=1, le=_MOST_CELLS)
    rows: int = Field(ge=1, le=_MOST_CELLS)


class StartedAnswer(Answer):
    execution_id: str


class ExecutionAnswer(Answer):
    execution_id: str
    command: str = Field(description="The program.")
    status: Literal["running", "completed", "killed", "timed_out"]
    attached: bool = Field(description="Whether somebody is attached by a WebSocket.")
    exit_code: int | None = Field(description="128 and the signal's number where one ended it.")
    started_at: str
    duration_ms: int
    error_message: str | None
    outcome: str | None = Field(
        default=None, description="Why it ended: `exited`, or which limit ended it. (Not in the reference.)"
    )


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an execution ended, as clients are told."""

    status: str
    exit_code: int
    duration_ms: int = 0
    error: str | None = None
    outcome: Outcome = Outcome.EXITED

    def event(self) -> dict[str, Any]:
        """The data of the event `exit`."""
        event: dict[str, Any] = {"exit_code": self.exit_code, "duration_ms": self.duration_ms}
        return event if self.error is None else {**event, "error": self.error}


def to_spec(body: ExecBody, *, user: str) -> ExecSpec:
    """The process that a request asks for, in a box whose user is *user*."""
    return ExecSpec(
        argv=(body.command, *(body.args or ())),
        env=body.env or {},
        cwd=body.working_dir or None,
        user=body.user or user,
        terminal=TerminalSize(rows=body.rows or 24, columns=body.cols or 80) if body.tty else None,
    )


def ending_of(process: LiveProcess, end: ProcessEnd) -> Ending:
    """How *process* ended, whose end is *end*."""
    status, error, outcome = "completed", None, end.outcome
    if has_timed_out(process):
        outcome = Outcome.WALL_TIME
        status, error = "timed_out", f"timed out after {timeout_of(process.name) or 0:g} s"
    elif end.outcome not in _BY_ITSELF:
        status, error = "killed", _REASONS.get(end.outcome)
    return Ending(
        status=status, exit_code=end.exit_code, duration_ms=_duration_ms(process), error=error, outcome=outcome
    )


def status_of(process: LiveProcess, *, is_attached: bool, now: float) -> dict[str, Any]:
    """What is answered about an execution. *now*: seconds since the epoch."""
    ending = None if process.end is None else ending_of(process, process.end)
    return {
        "execution_id": process.name,
        "command": process.argv[0] if process.argv else "",
        "status": "running" if ending is None else ending.status,
        "attached": is_attached,
        "exit_code": None if ending is None else ending.exit_code,
        "started_at": datetime.fromtimestamp(process.started_at, tz=UTC).isoformat().replace("+00:00", "Z"),
        "duration_ms": _duration_ms(process, now=now),
        "error_message": None if ending is None else ending.error,
        **({} if ending is None else {"outcome": ending.outcome.value}),
    }


def _duration_ms(process: LiveProcess, *, now: float = math.nan) -> int:
    until = now if process.ended_at is None else process.ended_at
    return 0 if math.isnan(until) else max(0, round(1000 * (until - process.started_at)))
