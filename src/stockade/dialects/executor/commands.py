"""`/run` and `/run_streaming`: a command of the shell, which ends with its request.

Once a command may have begun, nothing is answered with 5xx and no answer breaks off: clients would send the command
again. What went wrong with it – its sandbox ended, the server stops – is told as code -1.
"""

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from starlette.requests import Request
from starlette.responses import Response

from stockade.backends.sandboxing import Output, ProcessEnd, Reading, Refusal, Streams, in_order
from stockade.dialects.executor.documented import (
    COMMAND,
    EVENTS_ANSWER,
    INTEGER,
    NUMBER,
    STRING,
    answer,
    body,
)
from stockade.dialects.executor.encoding import decode
from stockade.dialects.executor.engine_needs import Execution, Sandboxes
from stockade.dialects.executor.events import output_events
from stockade.dialects.executor.lines import LineEvents
from stockade.dialects.executor.metrics import Metrics
from stockade.dialects.executor.operation import BadRequest, Caller, Fields, Operation
from stockade.dialects.executor.output import PIECE, Room, Spool
from stockade.dialects.executor.replies import JSON, json_reply
from stockade.dialects.executor.sending import EVENTS, Emit, Streaming
from stockade.errors import BackendLost, Invalid, NoAnswer, StockadeError
from stockade.model import ExecSpec, Outcome
from stockade.wire.clients import while_connected
from stockade.wire.events import frame

__all__ = ["Commands", "code_of", "to_spec"]

log = structlog.get_logger()

EVENTS_PIECE = 128 * 1024
"""Bytes of each stream that are made events of at a time: an empty line of one byte becomes an event of sixty."""
_LONGEST_S = 30 * 86400.0
"""A time limit beyond this is none: clocks cannot count so far."""
NO_CODE = -1
"""Of a shell that a signal ended, or whose end nobody knows."""
_STOPPING = "The server is stopping; the command was killed"
_LOST = "The sandbox ended before the command did, or was lost"
_BY_ITSELF = frozenset({Outcome.EXITED, Outcome.PROCESSES, Outcome.DISK})
"""Outcomes of what has called exit, whatever made it do so."""
_READING = Reading(until_closed=True, patience_s=math.inf)
"""Nobody else reads it: a client that takes its time holds its command back, as a pipe would."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a command ended, as clients are told."""

    code: int
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Runs commands of the shell."""

    sandboxes: Sandboxes
    metrics: Metrics
    room: Room
    max_output_bytes: int

    def operations(self) -> dict[str, Operation]:
        """By path."""
        return {
            "/run": Operation(
                method="POST",
                work=self.run,
                summary="Run a command",
                description="Answers when it has ended and nobody holds its output open any more.",
                responses=answer(stdout=STRING, stderr=STRING, code=INTEGER, error=STRING),
                extra=body({**COMMAND, "timeout": {**NUMBER, "description": "Seconds, after which it is killed."}}),
            ),
            "/run_streaming": Operation(
                method="POST",
                work=self.run_streaming,
                summary="Run a command and follow its output",
                description="Server-sent events: `output` for each line, then one `complete`.",
                responses=EVENTS_ANSWER,
                extra=body(COMMAND),
            ),
        }

    async def run(self, caller: Caller, fields: Fields, request: Request) -> Response:
        """Run a command and answer with all that it printed."""
        spec = to_spec(fields)
        timeout_s = fields.number("timeout") or math.inf
        if timeout_s < 0:
            raise BadRequest("Invalid request")
        spools = (self._spool(caller), self._spool(caller))
        began = time.monotonic()
        try:
            try:
                ending = await while_connected(
                    request, self._finished(caller, spec, spools, timeout_s if timeout_s < _LONGEST_S else None)
                )
            except asyncio.CancelledError:
                # Only a server that ends cancels requests; this one still has its answer.
                _go_on()
                ending = Ending(code=NO_CODE, error=_STOPPING)
            self.metrics.run_seconds.observe(time.monotonic() - began)
            return _reply(request, spools, ending)
        except BaseException:
            _close(spools)
            raise

    async def _finished(
        self, caller: Caller, spec: ExecSpec, spools: tuple[Spool, Spool], timeout_s: float | None
    ) -> Ending:
        if timeout_s is None:
            # A command that prints little and is soon over costs one exchange with its sandbox.
            return await self._collected(caller, spec, spools, gather=PIECE, least=PIECE)
        try:
            async with asyncio.timeout(timeout_s):
                # What it has printed by then is answered, so it is taken as it comes.
                return await self._collected(caller, spec, spools, gather=1, least=1)
        except TimeoutError:
            return Ending(code=NO_CODE, error=f"Command timed out after {timeout_s:g} seconds")

    async def _collected(
        self, caller: Caller, spec: ExecSpec, spools: tuple[Spool, Spool], *, gather: int, least: int
    ) -> Ending:
        try:
            execution = await self._start(caller, spec, gather=gather)
        except (BackendLost, NoAnswer) as error:  # it may have begun
            return _lost(error)
        try:
            return await self._drained(execution.streams, spools, least)
        except StockadeError as error:
            return _lost(error)
        except OSError as error:
            log.warning("executor.output_not_kept", error=str(error))
            return Ending(code=NO_CODE, error=f"The command was killed: its output cannot be kept: {error}")
        except Exception:
            log.exception("executor.run_crashed")
            return Ending(code=NO_CODE, error="The command was killed: internal error of the server")
        finally:
            # When the answer is on its way: the warden is woken by it, and would take the processor from us before.
            asyncio.get_running_loop().call_soon(execution.discard)

    async def _drained(self, streams: Streams, spools: tuple[Spool, Spool], least: int) -> Ending:
        """Keep all that comes, of both streams at once, until the end."""
        at = [0, 0]
        lost = 0
        while True:
            output = await streams.read(at[0], at[1], most=PIECE, least=least)
            slices = (output.stdout, output.stderr)
            for spool, one in zip(spools, slices, strict=True):
                room = self.max_output_bytes - spool.size
                await spool.append(one.data[:room])
                if len(one.data) > room:
                    most = self.max_output_bytes
                    return Ending(code=NO_CODE, error=f"The command was killed: it printed more than {most} bytes")
            lost += sum(one.dropped for one in slices)
            if output.end is not None:
                ending = _ended(output.end)
                if lost:
                    return Ending(code=ending.code, error=f"{lost} bytes of its output are lost")
                return ending
            at = [one.end for one in slices]

    async def run_streaming(self, caller: Caller, fields: Fields, request: Request) -> Response:
        """Run a command and send its output as it comes. The head is sent only once it has begun."""
        try:
            execution = await while_connected(request, self._start(caller, to_spec(fields), gather=0))
        except asyncio.CancelledError:  # the server stops; the engine sees to what may have begun
            _go_on()
            return _told(request, _complete(NO_CODE))
        except (BackendLost, NoAnswer):  # it may have begun
            return _told(request, _complete(NO_CODE))
        lines = tuple(
            LineEvents(lambda: self._spool(caller), is_stderr=one, longest=self.max_output_bytes)
            for one in (False, True)
        )
        following = _Following(execution.streams, lines)

        def close() -> None:
            execution.discard()
            following.close()

        return Streaming(request, following.send, headers=EVENTS, close=close, stopped=lambda: _complete(NO_CODE))

    def _spool(self, caller: Caller) -> Spool:
        return Spool(self.room, caller.sandbox_id)

    async def _start(self, caller: Caller, spec: ExecSpec, *, gather: int) -> Execution:
        try:
            execution = await self.sandboxes.exec(
                caller.actor, caller.sandbox_id, spec, reading=_READING, gather=gather
            )
        except Invalid:
            raise BadRequest("Failed to start command") from None
        refusal = execution.streams.refusal
        if refusal is not None:
            execution.discard()
            raise refused(refusal, spec.cwd)
        return execution


class _Following:
    """Sends a command's output as events."""

    def __init__(self, streams: Streams, lines: tuple[LineEvents, ...]) -> None:
        """*lines*: of standard output and standard error."""
        self._streams = streams
        self._lines = lines

    async def send(self, emit: Emit) -> None:
        """All of it, until the end, which is told in any case."""
        try:
            code = await self._send_output(emit)
        except StockadeError as error:
            code = _lost(error).code
        except OSError as error:
            log.warning("executor.line_not_kept", error=str(error))
            text = f"[the command was killed: a line of it cannot be kept: {error}]"
            await emit(output_events(text.encode(), is_stderr=True))
            code = NO_CODE
        await emit(_complete(code))

    async def _send_output(self, emit: Emit) -> int:
        at = [0, 0]
        while True:
            output = await self._streams.read(at[0], at[1], most=EVENTS_PIECE)
            await self._tell_of_loss(output, emit)
            for is_stderr, data in in_order(output):
                async for piece in self._lines[is_stderr].take(data):
                    await emit(piece)
            if output.end is not None:
                for lines in self._lines:
                    async for piece in lines.finish():
                        await emit(piece)
                return code_of(output.end)
            at = [output.stdout.end, output.stderr.end]

    async def _tell_of_loss(self, output: Output, emit: Emit) -> None:
        for lines, one, name in zip(self._lines, (output.stdout, output.stderr), ("stdout", "stderr"), strict=True):
            if one.dropped:
                lines.drop()
                text = f"[{one.dropped} bytes of {name} are lost: they were not taken in time]"
                await emit(output_events(text.encode(), is_stderr=True))

    def close(self) -> None:
        for lines in self._lines:
            lines.close()


def to_spec(fields: Fields) -> ExecSpec:
    """The process that a request asks for.

    Raises:
        BadRequest: a member has the wrong type, or there can be no such working directory.
    """
    command, cwd, env = fields.text("cmd"), fields.text("cwd"), fields.env()
    if "\0" in cwd:
        raise refused(Refusal.CWD, cwd)
    argv: tuple[str, ...] = ("sh", "-c", command)
    if "PATH" in env:
        # It is the command's, and the shell is not to be looked for in it. The last word is what messages begin with.
        argv = ("/bin/sh", "-c", command, "sh")
    return ExecSpec(argv=argv, env=env, cwd=cwd or None, stdin=False)


def refused(refusal: Refusal, cwd: str | None) -> BadRequest:
    """What is answered where the command was not started."""
    if refusal is Refusal.CWD:
        return BadRequest(f"Invalid working directory: {cwd or ''}")
    return BadRequest("Failed to start command")


def code_of(end: ProcessEnd) -> int:
    """The shell's exit status; -1 where a signal ended it."""
    return end.exit_code if end.outcome in _BY_ITSELF else NO_CODE


def _ended(end: ProcessEnd) -> Ending:
    code = code_of(end)
    return Ending(code=code, error="Non-zero exit code" if code else None)


def _lost(error: StockadeError) -> Ending:
    log.warning("executor.command_lost", code=error.code, reason=str(error))
    return Ending(code=NO_CODE, error=_LOST)


def _reply(request: Request, spools: tuple[Spool, Spool], ending: Ending) -> Response:
    """The answer of `/run`; closes *spools* once it is sent."""
    stdout, stderr = spools
    rest: dict[str, object] = {"code": ending.code}
    if ending.error is not None:
        rest["error"] = ending.error
    if stdout.size + stderr.size <= PIECE:
        return json_reply({"stdout": decode(stdout.whole()), "stderr": decode(stderr.whole()), **rest})
    whole = _Whole(spools, rest)
    return Streaming(
        request, whole.send, headers={"content-type": JSON}, close=lambda: _close(spools), stopped=whole.cut_off
    )


class _Whole:
    """The answer of `/run` that is too long for one piece."""

    def __init__(self, spools: tuple[Spool, Spool], rest: Mapping[str, object]) -> None:
        self._spools = spools
        self._left = ['{"stdout":"', '","stderr":"', '",' + json.dumps(rest, separators=(",", ":"))[1:] + "\n"]
        """What lies between the streams, and behind them."""

    async def send(self, emit: Emit) -> None:
        for spool in self._spools:
            await emit(self._left.pop(0).encode("ascii"))
            async for piece in spool.json():
                await emit(piece)
        await emit(self._left.pop(0).encode("ascii"))

    def cut_off(self) -> bytes:
        """What makes JSON of the answer where no more of the streams is to be sent."""
        return "".join(self._left).encode("ascii")


def _told(request: Request, last: bytes) -> Response:
    """A stream of events with nothing but the last one."""

    async def produce(emit: Emit) -> None:
        await emit(last)

    return Streaming(request, produce, headers=EVENTS, close=lambda: None, stopped=lambda: b"")


def _complete(code: int) -> bytes:
    return frame("complete", {"code": code, "error": code != 0})


def _go_on() -> None:
    """This request's task goes on although it was cancelled."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


def _close(spools: tuple[Spool, Spool]) -> None:
    for spool in spools:
        spool.close()
