"""Background processes: start, list, kill, follow."""

import signal
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from stockade.backends.sandboxing import LiveProcess, Refusal
from stockade.dialects.executor.commands import code_of, refused, to_spec
from stockade.dialects.executor.documented import (
    BOOLEAN,
    COMMAND,
    EVENTS_ANSWER,
    INTEGER,
    STRING,
    answer,
    body,
)
from stockade.dialects.executor.engine_needs import Processes
from stockade.dialects.executor.events import log_events
from stockade.dialects.executor.operation import BadRequest, Caller, Fields, Operation
from stockade.dialects.executor.replies import json_reply
from stockade.dialects.executor.sending import EVENTS, Emit, Streaming
from stockade.engine.processes import CannotStart, HasEnded
from stockade.errors import BackendLost, Invalid, NoAnswer, NotFound, StockadeError, Unavailable
from stockade.model import Outcome
from stockade.wire.events import frame

__all__ = ["ProcessOperations", "item", "to_signal"]

_MOST_SIGNAL = 64
_ITEM = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("id", "command", "status", "started_at", "completed_at"), STRING),
        **dict.fromkeys(("pid", "exit_code"), INTEGER),
    },
}
_STOPPED = frame("error", {"error": "the server is stopping; ask again"})


@dataclass(frozen=True, kw_only=True)
class ProcessOperations:
    """Processes that outlive the request that starts them."""

    processes: Processes
    log_lines: int

    def operations(self) -> dict[str, Operation]:
        """By path."""
        return {
            "/start_process": Operation(
                method="POST",
                work=self.start,
                summary="Start a background process",
                description="It goes on when the request has been answered, and ends with its sandbox.",
                responses={
                    **answer(201, id=STRING, pid=INTEGER, status=STRING),
                    **answer(400, id=STRING, pid=INTEGER, status=STRING, error=STRING),
                },
                extra=body(COMMAND, required=("cmd",)),
            ),
            "/list_processes": Operation(
                method="GET",
                work=self.list,
                summary="All background processes, in start order",
                has_body=False,
                responses=answer(processes={"type": "array", "items": _ITEM}),
            ),
            "/kill_process": Operation(
                method="POST",
                work=self.kill,
                summary="Kill a background process and all that it started",
                description="With `signal` (a number, or a name like `SIGTERM`) another one than SIGKILL is sent.",
                responses={
                    **answer(success=BOOLEAN, message=STRING),
                    **answer(400, success=BOOLEAN, error=STRING),
                },
                extra=body({"id": STRING, "signal": {"type": ["string", "integer"]}}, required=("id",)),
            ),
            "/process_logs_streaming": Operation(
                method="GET",
                work=self.logs,
                summary="Follow what a background process prints",
                description="Server-sent events: `log` for each line, first those that are kept, then what is new; "
                "`complete` when the process has ended.",
                has_body=False,
                responses=EVENTS_ANSWER,
                extra={
                    "parameters": [
                        {"name": "id", "in": "query", "required": True, "schema": STRING},
                        {
                            "name": "follow",
                            "in": "query",
                            "description": "Ignored: a stream always follows.",
                            "schema": BOOLEAN,
                        },
                    ]
                },
            ),
        }

    async def start(self, caller: Caller, fields: Fields, _request: Request) -> Response:
        """Start a process."""
        spec = to_spec(fields)
        if not fields.text("cmd"):
            raise BadRequest("Command is required")
        try:
            started = await self.processes.start(caller.actor, caller.sandbox_id, spec, id=str(uuid.uuid4()))
        except CannotStart as error:
            if error.refusal is Refusal.CWD:
                raise refused(error.refusal, spec.cwd) from None
            return _not_started(error)
        except (Invalid, BackendLost, NoAnswer) as error:  # of the latter two nobody knows whether it has begun
            return _not_started(error)
        return json_reply({"id": started.name, "pid": started.pid, "status": "running"}, 201)

    async def list(self, caller: Caller, _fields: Fields, _request: Request) -> Response:
        """All processes."""
        found = await self.processes.list(caller.actor, caller.sandbox_id)
        return json_reply({"processes": [item(one) for one in found]})

    async def kill(self, caller: Caller, fields: Fields, _request: Request) -> Response:
        """Send a process a signal; of SIGKILL it has ended when this answers."""
        number = to_signal(fields.word("signal"))
        id = fields.text("id")
        if not id:
            raise BadRequest("Process ID is required")
        try:
            process = await self.processes.kill(caller.actor, caller.sandbox_id, id, number=number)
        except (NotFound, Invalid):  # of the latter, no process can have such an id
            return _not_killed(f"process not found: {id}")
        except HasEnded as error:
            return _not_killed(f"process is not running (status: {status_of(error.process)})")
        except Unavailable as error:  # the signal may have been sent
            return _not_killed(str(error))
        is_over = process.end is not None or number == signal.SIGKILL
        message = "Process killed successfully" if is_over else f"Signal {number} sent"
        return json_reply({"success": True, "message": message})

    async def logs(self, caller: Caller, _fields: Fields, request: Request) -> Response:
        """What a process has printed, and prints."""
        id = next(iter(request.query_params.getlist("id")), "")
        if not id:
            raise BadRequest("Process ID is required")
        batches = self.processes.logs(caller.actor, caller.sandbox_id, id, most_lines=self.log_lines)

        async def produce(emit: Emit) -> None:
            async with aclosing(batches):
                try:
                    async for batch in batches:
                        lines = b"\n".join(batch.lines)
                        await emit(log_events(lines, is_stderr=batch.is_stderr, at_ns=batch.at_ns))
                except (NotFound, Invalid):  # of the latter, no process can have such an id
                    last = frame("error", {"error": f"process not found: {id}"})
                except StockadeError as error:
                    last = frame("error", {"error": str(error)})
                else:
                    last = frame("complete", {"message": "stream ended"})
            await emit(last)

        return Streaming(request, produce, headers=EVENTS, close=lambda: None, stopped=lambda: _STOPPED)


def to_signal(word: str | int | None) -> int:
    """The number of a signal.

    Raises:
        BadRequest: there is no such signal.
    """
    if word is None or word == "":
        return signal.SIGKILL
    if isinstance(word, str) and not word.isdecimal():
        name = word.upper().removeprefix("SIG")
        try:
            return signal.Signals[f"SIG{name}"]
        except KeyError:
            raise BadRequest("Invalid request") from None
    if isinstance(word, str) and len(word) > 2:
        raise BadRequest("Invalid request")
    number = int(word)
    if not 1 <= number <= _MOST_SIGNAL:
        raise BadRequest("Invalid request")
    return number


def status_of(process: LiveProcess) -> str:
    """The protocol's word for a process's state; it never changes again once the process has ended."""
    if process.end is None:
        return "running"
    if code_of(process.end) < 0:
        return "killed"
    return "completed" if process.end.exit_code == 0 and process.end.outcome is Outcome.EXITED else "failed"


def item(process: LiveProcess) -> dict[str, object]:
    """A process in a list. The Python client fails on any other member than these."""
    found: dict[str, object] = {
        "id": process.name,
        "pid": process.pid,
        "status": status_of(process),
        # `to_spec` makes it of the command. Where it is unknown, it must be there all the same.
        "command": process.argv[2] if len(process.argv) > 2 else "",
        "started_at": _moment(process.started_at),
    }
    if process.end is not None:
        found["exit_code"] = code_of(process.end)
    if process.ended_at is not None:
        found["completed_at"] = _moment(process.ended_at)
    return found


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _not_started(error: StockadeError) -> Response:
    return json_reply({"id": "", "pid": 0, "status": "", "error": f"failed to start command: {error}"}, 400)


def _not_killed(why: str) -> Response:
    return json_reply({"success": False, "error": why}, 400)
