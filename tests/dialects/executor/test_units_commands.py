"""Commands whose sandbox, server or client goes away: nothing is answered so that a client would run them again."""

import asyncio
import json
from collections.abc import Callable
from itertools import count

import pytest

from stockade.backends.sandboxing import OutputSlice, ProcessEnd, Refusal
from stockade.dialects.executor.commands import code_of
from stockade.errors import BackendLost, Conflict, Invalid, NotFound, Unavailable
from stockade.model import Outcome
from stockade.wire.clients import HANG_UP
from tests.dialects.executor.fakes import Client, Sandboxes, Streams, client, commands, events

LOST = BackendLost("the warden is gone")
COMMAND = {"cmd": "x"}
STOPPED = ("complete", {"code": -1, "error": True})


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/run", "/run_streaming"])
async def test_before_a_command_began_it_may_be_sent_again(path: str) -> None:
    asked, _ = client(failure=Unavailable("no room", retry_after_s=2))
    assert await asked.ask(path, COMMAND) == (503, b"no room\n")
    assert asked.headers["retry-after"] == "2"


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/run", "/run_streaming"])
@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (Conflict("sandbox box has ended already (kill)"), (410, b"sandbox box has ended already (kill)\n")),
        (Invalid("env: no"), (400, b"Failed to start command\n")),
    ],
)
async def test_what_never_works_is_no_5xx(path: str, failure: Exception, answer: tuple[int, bytes]) -> None:
    asked, _ = client(failure=failure)
    assert await asked.ask(path, COMMAND) == answer


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/run", "/run_streaming"])
async def test_a_refusal_is_told_and_nothing_is_left(path: str) -> None:
    asked, streams = client()
    for refusal, text in ((Refusal.CWD, "Invalid working directory: /x"), (Refusal.PROGRAM, "Failed to start command")):
        streams.refusal, streams.is_discarded = refusal, False
        assert await asked.ask(path, {"cmd": "x", "cwd": "/x"}) == (400, f"{text}\n".encode())
        assert streams.is_discarded


@pytest.mark.anyio
@pytest.mark.parametrize("failure", [LOST, NotFound("its output is not kept any longer"), ValueError("a bug")])
async def test_a_command_that_is_lost_is_answered(failure: Exception) -> None:
    asked, streams = client((b"so far", b"e"), failure)
    status, body = await asked.ask("/run", COMMAND)
    answer = json.loads(body)
    assert (status, answer["stdout"], answer["stderr"], answer["code"]) == (200, "so far", "e", -1)
    assert answer["error"]
    assert streams.is_discarded


@pytest.mark.anyio
async def test_a_command_that_may_have_begun_is_answered() -> None:
    """The warden was lost while it was asked to start it."""
    asked, _ = client(failure=LOST)
    status, body = await asked.ask("/run", COMMAND)
    assert (status, json.loads(body)["code"]) == (200, -1)
    status, body = await asked.ask("/run_streaming", COMMAND)
    assert (status, list(events(body))) == (200, [STOPPED])


@pytest.mark.anyio
async def test_a_stream_that_is_lost_completes() -> None:
    asked, streams = client((b"begun\nhalf", b""), LOST)
    status, body = await asked.ask("/run_streaming", COMMAND)
    assert status == 200
    assert list(events(body)) == [("output", {"stream": "stdout", "data": "begun"}), STOPPED]
    assert streams.is_discarded


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/run", "/run_streaming"])
async def test_a_server_that_stops_answers(path: str) -> None:
    asked, streams = client(b"begun\n", None)
    asking = asyncio.create_task(asked.ask(path, COMMAND))
    await streams.is_silent.wait()
    asking.cancel()
    status, body = await asking
    assert status == 200
    assert streams.is_discarded
    if path == "/run":
        answer = json.loads(body)
        assert (answer["stdout"], answer["code"]) == ("begun\n", -1)
        assert "stopping" in answer["error"]
    else:
        assert list(events(body)) == [("output", {"stream": "stdout", "data": "begun"}), STOPPED]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/run", "/run_streaming"])
async def test_a_server_that_stops_while_it_starts_a_command_answers(path: str) -> None:
    asked, _ = client(failure=asyncio.CancelledError())
    status, body = await asked.ask(path, COMMAND)
    assert status == 200
    assert (json.loads(body)["code"] == -1) if path == "/run" else (list(events(body)) == [STOPPED])


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/run", "/run_streaming"])
async def test_a_client_that_leaves_ends_its_command(path: str) -> None:
    asked, streams = client(b"begun\n", None)
    asking = asyncio.create_task(asked.ask(path, COMMAND))
    await streams.is_silent.wait()
    assert not streams.is_discarded
    asked.left.set()
    await asyncio.wait([asking], timeout=30)
    assert streams.is_discarded
    assert not any(b"complete" in message.get("body", b"") for message in asked.sent)


@pytest.mark.anyio
async def test_whatever_goes_wrong_with_an_answer_ends_its_command() -> None:
    """Before its head is sent, while it is, and with what comes later."""
    for broken in range(3):
        asked, streams = client(b"begun\n", None)
        asked.extensions = {HANG_UP: {"left": asyncio.Future, "wait_for_reader": failing(0 if broken == 0 else 9)}}
        asked.fail_to_send = failing(broken - 1)
        with pytest.raises(ValueError, match="a bug"):
            await asked.ask("/run_streaming", COMMAND)
        assert streams.is_discarded


def failing(after: int) -> Callable[..., None]:
    """Fails when it is called once more than so many times."""
    left = count(after, -1)

    def fail(**_: object) -> None:
        if next(left) == 0:
            raise ValueError("a bug")

    return fail


@pytest.mark.anyio
async def test_a_large_answer_is_cut_off_whole_where_the_server_stops() -> None:
    """As JSON, that is: a client that sees an answer break off would run the command again."""
    asked, _ = client((b"x" * 200_000, b"y" * 200_000))
    asking = asyncio.create_task(asked.ask("/run", COMMAND))
    await asked.is_sending.wait()
    asking.cancel()
    status, body = await asking
    answer = json.loads(body)
    assert (status, answer["code"], answer["stdout"]) == (200, 0, "x" * 200_000)


@pytest.mark.anyio
async def test_more_than_may_be_kept_ends_the_command() -> None:
    asked, streams = client(b"x" * 700, b"x" * 700, None, max_output_bytes=1000)
    status, body = await asked.ask("/run", COMMAND)
    answer = json.loads(body)
    assert (status, len(answer["stdout"]), answer["code"]) == (200, 1000, -1)
    assert answer["error"] == "The command was killed: it printed more than 1000 bytes"
    assert streams.is_discarded


@pytest.mark.anyio
async def test_a_time_limit_answers_with_what_there_is() -> None:
    asked, streams = client(b"so far", None)
    status, body = await asked.ask("/run", {"cmd": "x", "timeout": 0.01})
    assert (status, json.loads(body)) == (
        200,
        {"stdout": "so far", "stderr": "", "code": -1, "error": "Command timed out after 0.01 seconds"},
    )
    assert streams.is_discarded


@pytest.mark.anyio
@pytest.mark.parametrize("timeout", [-1, "5", True])
async def test_a_time_limit_is_a_number(timeout: object) -> None:
    asked, _ = client()
    assert (await asked.ask("/run", {"cmd": "x", "timeout": timeout}))[0] == 400


@pytest.mark.anyio
async def test_output_that_is_lost_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a client that takes too long, the backend keeps only so much."""
    asked, streams = client(b"begun", b"late\nwhole\n")
    read = streams.read

    async def read_late(stdout_at: int, stderr_at: int, **options: int) -> object:
        output = await read(stdout_at, stderr_at, **options)
        if output.stdout.data.startswith(b"late"):
            late = OutputSlice(data=output.stdout.data, at=stdout_at + 9, dropped=9)
            return type(output)(stdout=late, stderr=output.stderr, end=output.end)
        return output

    monkeypatch.setattr(streams, "read", read_late)
    _, body = await asked.ask("/run_streaming", COMMAND)
    said = [data["data"] for name, data in events(body) if name == "output"]
    assert said == ["[9 bytes of stdout are lost: they were not taken in time]", "late", "whole"]


@pytest.mark.anyio
async def test_the_shell_is_not_looked_for_in_the_command_s_own_path() -> None:
    sandboxes = Sandboxes(streams=Streams())
    asked = Client(commands(sandboxes))
    await asked.ask("/run", {"cmd": "x"})
    await asked.ask("/run", {"cmd": "x", "env": {"PATH": "/nowhere"}, "cwd": "rel"})
    (plain, _), (own, _) = sandboxes.asked
    assert (plain.argv, plain.cwd, plain.stdin) == (("sh", "-c", "x"), None, False)
    assert (own.argv, own.cwd) == (("/bin/sh", "-c", "x", "sh"), "rel")


@pytest.mark.parametrize(
    ("outcome", "exit_code", "code"),
    [
        (Outcome.EXITED, 0, 0), (Outcome.EXITED, 137, 137), (Outcome.DISK, 1, 1), (Outcome.SIGNALED, 137, -1),
        (Outcome.MEMORY, 137, -1), (Outcome.CANCELLED, 137, -1), (Outcome.WALL_TIME, 137, -1),
    ],
)  # fmt: skip
def test_a_code_is_the_shell_s_own(outcome: Outcome, exit_code: int, code: int) -> None:
    assert code_of(ProcessEnd(outcome=outcome, exit_code=exit_code)) == code
