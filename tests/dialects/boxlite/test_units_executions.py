"""Executions between the wire and the engine, without a server: events, endings, what a request asks for."""

import asyncio
import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.backends.sandboxing import LiveProcess, Mark, Output, OutputSlice, ProcessEnd
from stockade.dialects.boxlite.execution_wire import Ending, ExecBody, ending_of, status_of, to_spec
from stockade.dialects.boxlite.file_routes import absolute
from stockade.dialects.boxlite.sse import event, output_events
from stockade.dialects.boxlite.wire import checked
from stockade.engine.executions import Follower
from stockade.errors import BackendLost, Fault, Invalid, NotFound, StockadeError
from stockade.model import ExecSpec, Outcome, TerminalSize

EXITED = ProcessEnd(outcome=Outcome.EXITED, exit_code=0)


@dataclass
class Printed:
    """Streams that give these pieces of output, one at a time, then the end or an error."""

    pieces: list[tuple[bool, bytes]]
    error: StockadeError | None = None
    dropped: int = 0

    async def read(self, stdout_at: int, stderr_at: int, *, most: int = 1 << 18, least: int = 1) -> Output:
        del most, least
        data, at, mark = {False: b"", True: b""}, [stdout_at, stderr_at], ()
        if self.pieces:
            is_stderr, data[is_stderr] = self.pieces.pop(0)
            mark = (Mark(at_ns=1, is_stderr=is_stderr, end=at[is_stderr] + len(data[is_stderr])),)
        elif self.error is not None:
            raise self.error
        dropped, self.dropped = self.dropped, 0
        return Output(
            stdout=OutputSlice(data=data[False], at=stdout_at + dropped, dropped=dropped),
            stderr=OutputSlice(data=data[True], at=stderr_at),
            end=None if self.pieces or self.error else EXITED,
            marks=mark,
        )


def events_of(streams: Printed) -> tuple[list[tuple[str, Any]], int]:
    """What clients are told, and how many bytes are counted."""
    counted: list[int] = []

    async def ending(end: ProcessEnd) -> Ending:
        return Ending(status="completed", exit_code=end.exit_code, duration_ms=7)

    async def told() -> bytes:
        follower = Follower(streams, (0, 0))  # type: ignore[arg-type]
        return b"".join([one async for one in output_events(follower, ending, sent=counted.append)])

    found = []
    for block in asyncio.run(told()).decode("ascii").split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found, sum(counted)


def text_of(events: list[tuple[str, Any]], name: str) -> str:
    """Each chunk has to be whole by itself."""
    return "".join(base64.b64decode(data["data"], validate=True).decode() for kind, data in events if kind == name)


@given(
    st.lists(
        st.tuples(st.booleans(), st.one_of(st.binary(min_size=1, max_size=6), st.text(min_size=1).map(str.encode)))
    )
)
def test_events_decode_as_the_whole_output_does(pieces: list[tuple[bool, bytes]]) -> None:
    events, counted = events_of(Printed(list(pieces)))
    for name, wanted in (("stdout", False), ("stderr", True)):
        whole = b"".join(data for is_stderr, data in pieces if is_stderr is wanted)
        assert text_of(events, name) == whole.decode(errors="replace")
    assert counted == sum(len(data) for _, data in pieces)
    assert events[-1] == ("exit", {"exit_code": 0, "duration_ms": 7})


def test_an_event_is_written_with_a_space_after_each_colon() -> None:
    assert event(False, b"hi\n") == b'event: stdout\ndata: {"data":"aGkK"}\n\n'
    assert event(True, b"oops\n") == b'event: stderr\ndata: {"data":"b29wcwo="}\n\n'


def test_what_is_lost_is_told() -> None:
    events, _ = events_of(Printed([(False, b"rest")], dropped=1000))
    assert "1000 bytes of stdout are lost" in text_of(events, "stderr")
    assert text_of(events, "stdout") == "rest"


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (NotFound("gone"), ("exit", {"exit_code": 137, "duration_ms": 0, "error": "killed: the box was stopped"})),
        (BackendLost("the warden died"), ("error", {"message": "the warden died"})),
        (Fault("/etc/secret is broken"), ("error", {"message": "internal server error"})),
    ],
)
def test_a_stream_that_breaks_says_so_at_its_end(error: StockadeError, last: tuple[str, Any]) -> None:
    events, _ = events_of(Printed([(False, b"begun \xc3")], error))
    assert text_of(events, "stdout") == "begun \ufffd"
    assert events[-1] == last


def process(
    outcome: Outcome, exit_code: int, *, lasted_s: float = 1.5, id: str = "exec-0123456789abcdef"
) -> LiveProcess:
    end = ProcessEnd(outcome=outcome, exit_code=exit_code)
    return LiveProcess(name=id, argv=("sleep", "9"), pid=2, started_at=1000.0, ended_at=1000.0 + lasted_s, end=end)


@pytest.mark.parametrize(
    ("of", "status", "error"),
    [
        (process(Outcome.EXITED, 0), "completed", None),
        (process(Outcome.EXITED, 137), "completed", None),
        (process(Outcome.DISK, 1), "completed", None),
        (process(Outcome.SIGNALED, 143), "killed", None),
        (process(Outcome.MEMORY, 137), "killed", "killed: the box has no more memory"),
        (process(Outcome.CANCELLED, 137), "killed", "killed: the box was stopped"),
        (process(Outcome.SIGNALED, 137, id="exec-0123456789abcdef3e8"), "timed_out", "timed out after 1 s"),
        (process(Outcome.SIGNALED, 137, id="exec-0123456789abcdefea60"), "killed", None),
    ],
)
def test_an_ending_says_what_ended_it(of: LiveProcess, status: str, error: str | None) -> None:
    assert of.end is not None
    ending = ending_of(of, of.end)
    assert (ending.status, ending.error, ending.duration_ms) == (status, error, 1500)
    assert ending.exit_code == of.end.exit_code
    assert ("error" in ending.event()) == (error is not None)
    told = status_of(of, is_attached=False, now=5000.0)
    assert (told["status"], told["error_message"], told["duration_ms"]) == (status, error, 1500)


def test_the_status_of_what_runs_has_no_code() -> None:
    running = LiveProcess(name="exec-0123456789abcdef", argv=("cat",), pid=2, started_at=1000.0)
    assert status_of(running, is_attached=True, now=1002.0) == {
        "execution_id": "exec-0123456789abcdef",
        "command": "cat",
        "status": "running",
        "attached": True,
        "exit_code": None,
        "started_at": "1970-01-01T00:16:40Z",
        "duration_ms": 2000,
        "error_message": None,
    }


@pytest.mark.parametrize(
    ("body", "spec"),
    [
        ({"command": "id"}, ExecSpec(argv=("id",), user="user")),
        (
            {"command": "sh", "args": ["-c", "x"], "env": {"A": "1"}, "working_dir": "/w", "tty": True, "user": "root"},
            ExecSpec(argv=("sh", "-c", "x"), env={"A": "1"}, cwd="/w", user="root", terminal=TerminalSize()),
        ),
        ({"command": "id", "args": None, "env": None, "tty": False, "unknown": 1}, ExecSpec(argv=("id",))),
    ],
)
def test_a_request_is_the_process_that_it_asks_for(body: dict[str, Any], spec: ExecSpec) -> None:
    assert to_spec(checked(ExecBody, body), user="user") == spec


@pytest.mark.parametrize("timeout", [0, -1, True, "5", 1e12])
def test_a_time_limit_must_be_one(timeout: Any) -> None:
    with pytest.raises(Invalid):
        checked(ExecBody, {"command": "id", "timeout_seconds": timeout})


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/a", "/a"), ("/a/", "/a/"), ("a", "/w/a"), ("./a/../b/", "/w/b/"), ("/", "/"), ("//a", "/a"), (".", "/w/"),
     ("/a/.", "/a/"), ("../..", "/")],
)  # fmt: skip
def test_a_slash_at_the_end_of_a_path_stays(path: str, expected: str) -> None:
    assert absolute(path, "/w") == expected
