"""Who is let in, in which order things are refused, and how processes and ports are worded."""

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from stockade.backends.sandboxing import LiveProcess, ProcessEnd, Refusal
from stockade.dialects.executor.access import WrongSecrets, by_secret
from stockade.dialects.executor.failures import refusal
from stockade.dialects.executor.operation import BadRequest, Caller
from stockade.dialects.executor.ports import PortOperations
from stockade.dialects.executor.processes import ProcessOperations, item, to_signal
from stockade.engine.bindings import AlreadyBound
from stockade.engine.process_lines import Lines
from stockade.engine.processes import CannotStart, HasEnded
from stockade.engine.secrets import Grant
from stockade.errors import BackendLost, Conflict, Fault, Invalid, NotFound, Unavailable
from stockade.model import (
    Actor,
    EndedBy,
    ExecSpec,
    Network,
    NetworkMode,
    Outcome,
    Port,
    Sandbox,
    SandboxState,
)  # fmt: skip
from tests.dialects.executor.fakes import CALLER, SECRET, Client, Sandboxes, commands, events
from tests.engine.live_fakes import limits

UNAUTHORIZED = (401, b"Unauthorized\n")


def asking(**options: Any) -> Client:
    return Client(commands(Sandboxes()), **options)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "authorization",
    [
        None, "", "Bearer", "Bearer ", f"bearer {SECRET}", f"Basic {SECRET}", f"Bearer  {SECRET}", SECRET,
        f"Bearer {SECRET} x", f"Bearer\t{SECRET}", f"Bearer {SECRET}x", "Bearer " + "x" * 60_000, "Bearer \x85ä",
    ],
)  # fmt: skip
async def test_nothing_but_the_secret_lets_in(authorization: str | None) -> None:
    client = asking()
    assert await client.ask("/run", {"cmd": "x"}, authorization=authorization) == UNAUTHORIZED
    assert client.headers == {"content-type": "text/plain; charset=utf-8", "content-length": "13"}


@pytest.mark.anyio
async def test_white_space_after_the_secret_is_none_of_it() -> None:
    assert (await asking().ask("/run", {"cmd": "x"}, authorization=f"Bearer {SECRET} \t"))[0] == 200


@pytest.mark.anyio
async def test_the_secret_comes_before_the_method_and_that_before_the_body() -> None:
    client = asking()
    assert await client.ask("/run", b"{bad", method="GET", authorization="Bearer x") == UNAUTHORIZED
    assert await client.ask("/run", b"{bad", method="GET") == (405, b"Method not allowed\n")
    assert client.headers["allow"] == "POST"
    assert await client.ask("/run", b"{bad") == (400, b"Invalid request\n")
    assert (await client.ask("/run", b"x" * (2 << 20)))[0] == 413


@pytest.mark.anyio
async def test_an_address_that_guesses_is_not_listened_to_for_a_while() -> None:
    now = 0.0
    client = asking(wrong=WrongSecrets(per_s=10, burst=3, clock=lambda: now))
    for _ in range(3):
        assert await client.ask("/run", {}, authorization="Bearer wrong") == UNAUTHORIZED
    assert (await client.ask("/run", {}))[0] == 429, "whatever it sends"
    assert client.headers["retry-after"] == "1"
    assert (await client.ask("/run", {}, address="192.0.2.2"))[0] == 200
    now = 0.11
    assert (await client.ask("/run", {}))[0] == 200
    assert await client.ask("/run", {}, authorization="Bearer wrong") == UNAUTHORIZED
    assert (await client.ask("/run", {}))[0] == 429


@pytest.mark.anyio
async def test_who_shows_no_secret_does_not_guess() -> None:
    client = asking(wrong=WrongSecrets(per_s=10, burst=1))
    for _ in range(5):
        assert await client.ask("/run", {}, authorization=None) == UNAUTHORIZED
    assert (await client.ask("/run", {}))[0] == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (Unavailable("the database is away"), (503, b"the database is away\n")),
        (Fault("cannot write /secret"), (500, b"Internal Server Error\n")),
        (ValueError("a bug"), (500, b"Internal Server Error\n")),
    ],
)
async def test_who_cannot_be_looked_up_is_told(failure: Exception, answer: tuple[int, bytes]) -> None:
    async def who(_secret: str) -> Caller | None:
        raise failure

    assert await asking(who=who).ask("/run", {}) == answer


@dataclass
class Secrets:
    """One secret, and the sandbox that it opens."""

    sandbox: Sandbox

    async def find(self, secret: str, /) -> Grant | None:
        return Grant(actor=CALLER.actor, sandbox=self.sandbox) if secret == SECRET else None


def sandbox(**changes: Any) -> Sandbox:
    made = Sandbox(
        id=CALLER.sandbox_id,
        account_id="",
        key_id=CALLER.actor.id,
        dialect="",
        state=SandboxState.RUNNING,
        image="host",
        command=(),
        env={},
        cwd="/",
        user="user",
        limits=limits(),
        network=Network(),
        labels={},
        created_at=datetime.now(UTC),
    )
    return replace(made, **changes)


@pytest.mark.anyio
async def test_the_secret_of_a_sandbox_that_has_ended_says_so() -> None:
    """And is no wrong one, however often it comes."""
    ended = sandbox(state=SandboxState.ENDED, ended_by=EndedBy.DEADLINE)
    client = asking(who=by_secret(Secrets(ended)), wrong=WrongSecrets(per_s=1, burst=1))
    for _ in range(3):
        answer = await client.ask("/run", {"cmd": "x"})
        assert answer == (410, b"The sandbox of this secret has ended (deadline); nothing was done\n")
    assert await client.ask("/run", {}, authorization="Bearer x") == UNAUTHORIZED


@pytest.mark.anyio
async def test_a_port_can_be_bound_where_one_leads_to_it() -> None:
    exposed = Network(mode=NetworkMode.EXPOSED, ports=(Port(container=80), Port(container=Port.BOUND, host=4000)))
    for network, can in ((Network(), False), (replace(exposed, ports=exposed.ports[:1]), False), (exposed, True)):
        caller = await by_secret(Secrets(sandbox(network=network)))(SECRET)
        assert caller is not None
        assert caller.has_bound_port is can


def test_an_address_of_its_own_refuses_in_the_protocol_s_words() -> None:
    for status, text in (
        (404, b"404 page not found\n"),
        (405, b"Method not allowed\n"),
        (413, b"Request body too large\n"),
    ):
        response = refusal(status)
        assert response is not None
        assert (response.status_code, response.body) == (status, text)
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert refusal(418) is None


@dataclass
class Processes:
    """Answers with what it is given, or fails so."""

    answer: Any = None
    asked: list[Any] = field(default_factory=list)

    async def start(self, actor: Actor, sandbox_id: str, spec: ExecSpec, /, *, id: str) -> LiveProcess:
        self.asked.append((spec, id))
        return self._answer(replace(RUNNING, name=id))

    async def list(self, actor: Actor, sandbox_id: str, /) -> Sequence[LiveProcess]:
        return self._answer([])

    async def kill(self, actor: Actor, sandbox_id: str, id: str, /, *, number: int) -> LiveProcess:
        self.asked.append((id, number))
        return self._answer(RUNNING)

    async def logs(self, actor: Actor, sandbox_id: str, id: str, /, *, most_lines: int) -> AsyncGenerator[Lines, None]:
        self.asked.append((id, most_lines))
        for one in self._answer([]):
            if isinstance(one, Exception):
                raise one
            yield one

    def _answer(self, default: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return default if self.answer is None else self.answer


RUNNING = LiveProcess(name="p", argv=("sh", "-c", "cmd"), pid=9, started_at=1_772_357_400.25)
COMPLETED = replace(RUNNING, ended_at=1_772_357_401.5, end=ProcessEnd(outcome=Outcome.EXITED, exit_code=0))
FAILED = replace(COMPLETED, end=ProcessEnd(outcome=Outcome.EXITED, exit_code=137))
KILLED = replace(COMPLETED, end=ProcessEnd(outcome=Outcome.SIGNALED, exit_code=137))


def with_processes(answer: Any = None) -> tuple[Client, Processes]:
    processes = Processes(answer)
    return Client(ProcessOperations(processes=processes, log_lines=77).operations()), processes


@pytest.mark.anyio
async def test_a_process_is_started() -> None:
    client, processes = with_processes()
    status, body = await client.ask("/start_process", {"cmd": "  ", "cwd": "/tmp"})
    ((spec, id),) = processes.asked
    assert (status, json.loads(body)) == (201, {"id": id, "pid": 9, "status": "running"})
    assert spec == ExecSpec(argv=("sh", "-c", "  "), cwd="/tmp", stdin=False)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("failure", "status", "text"),
    [
        (CannotStart(Refusal.CWD, "no"), 400, "Invalid working directory: /x\n"),
        (Unavailable("no room"), 503, "no room\n"),
        (Conflict("sandbox box has ended"), 410, "sandbox box has ended\n"),
    ],
)
async def test_why_a_process_is_not_started(failure: Exception, status: int, text: str) -> None:
    client, _ = with_processes(failure)
    assert await client.ask("/start_process", {"cmd": "x", "cwd": "/x"}) == (status, text.encode())


@pytest.mark.anyio
@pytest.mark.parametrize("failure", [CannotStart(Refusal.PROGRAM, "no"), Invalid("no"), BackendLost("no")])
async def test_a_process_that_cannot_be_started_is_no_5xx(failure: Exception) -> None:
    client, _ = with_processes(failure)
    status, body = await client.ask("/start_process", {"cmd": "x"})
    answer = {"id": "", "pid": 0, "status": "", "error": "failed to start command: no"}
    assert (status, json.loads(body)) == (400, answer)


@pytest.mark.parametrize(
    ("process", "status", "exit_code"),
    [(RUNNING, "running", None), (COMPLETED, "completed", 0), (FAILED, "failed", 137), (KILLED, "killed", -1)],
)
def test_a_process_in_the_list(process: LiveProcess, status: str, exit_code: int | None) -> None:
    """With no member that the Python client does not know."""
    ended = {} if exit_code is None else {"exit_code": exit_code, "completed_at": "2026-03-01T09:30:01.500000Z"}
    begun = {"id": "p", "pid": 9, "status": status, "command": "cmd", "started_at": "2026-03-01T09:30:00.250000Z"}
    assert item(process) == begun | ended


@pytest.mark.anyio
async def test_a_process_is_killed_or_signalled() -> None:
    client, processes = with_processes()
    for sent, number, message in (
        (None, 9, "Process killed successfully"), ("", 9, "Process killed successfully"), (15, 15, "Signal 15 sent"),
        ("SIGTERM", 15, "Signal 15 sent"), ("int", 2, "Signal 2 sent"), ("10", 10, "Signal 10 sent"),
    ):  # fmt: skip
        status, body = await client.ask("/kill_process", {"id": "p", "signal": sent})
        assert (status, json.loads(body)) == (200, {"success": True, "message": message})
        assert processes.asked.pop() == ("p", number)


@pytest.mark.parametrize("word", ["SIGNOPE", "0", 0, -1, 65, "99999999999999999999", "²", "SIG_DFL"])
def test_what_is_no_signal(word: str | int) -> None:
    with pytest.raises(BadRequest):
        to_signal(word)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (NotFound("no"), "process not found: p"),
        (Invalid("no such name can be"), "process not found: p"),
        (HasEnded(FAILED), "process is not running (status: failed)"),
        (Unavailable("it did not end in time"), "it did not end in time"),
    ],
)
async def test_why_a_process_is_not_killed(failure: Exception, error: str) -> None:
    client, _ = with_processes(failure)
    status, body = await client.ask("/kill_process", {"id": "p"})
    assert (status, json.loads(body)) == (400, {"success": False, "error": error})
    assert await client.ask("/kill_process", {}) == (400, b"Process ID is required\n")


@pytest.mark.anyio
async def test_logs_are_events() -> None:
    batches = [
        Lines(at_ns=1, is_stderr=False, lines=[b"a", b"", b"b\r\r", b"\xff\xe2\x82"]),
        Lines(at_ns=2, is_stderr=True, lines=[b""]),
    ]
    client, processes = with_processes(batches)
    status, body = await client.ask("/process_logs_streaming", method="GET", query="id=a%20b%22&follow=true&id=x")
    assert status == 200
    assert client.headers["content-type"] == "text/event-stream"
    said = [(data["timestamp"][-3:], data["stream"], data["data"]) for name, data in events(body) if name == "log"]
    one, two = ("01Z", "stdout"), ("02Z", "stderr")
    assert said == [(*one, "a"), (*one, ""), (*one, "b\r"), (*one, "\ufffd\ufffd\ufffd"), (*two, "")]
    assert events(body)[-1] == ("complete", {"message": "stream ended"})
    assert processes.asked == [('a b"', 77)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (NotFound("no"), 'process not found: a"b'),
        (Invalid("no such name can be"), 'process not found: a"b'),
        (BackendLost("gone"), "gone"),
    ],
)
async def test_logs_that_cannot_be_told_end_with_an_error(failure: Exception, error: str) -> None:
    client, _ = with_processes([failure])
    status, body = await client.ask("/process_logs_streaming", method="GET", query="id=a%22b")
    assert (status, list(events(body))) == (200, [("error", {"error": error})])
    for query in ("", "id="):
        answer = await client.ask("/process_logs_streaming", method="GET", query=query)
        assert answer == (400, b"Process ID is required\n")


@dataclass
class Bindings:
    """One port."""

    port: int | None = None

    async def bind(self, actor: Actor, sandbox_id: str, port: int, /) -> None:
        if self.port is not None:
            raise AlreadyBound(sandbox_id, self.port)
        self.port = port

    async def unbind(self, actor: Actor, sandbox_id: str, /) -> None:
        self.port = None

    async def bound(self, actor: Actor, sandbox_id: str, /) -> int | None:
        return self.port


@pytest.mark.anyio
async def test_a_port_is_bound_asked_for_and_let_go() -> None:
    client = Client(PortOperations(bindings=Bindings()).operations())

    async def ask(path: str, body: object = None, method: str = "POST") -> tuple[int, Any]:
        status, answer = await client.ask(path, body, method=method)
        return status, json.loads(answer)

    assert await ask("/port_status", method="GET") == (200, {"success": True})
    bound = {"success": True, "message": "Port binding configured", "port": "8080"}
    assert await ask("/bind_port", {"port": "8080"}) == (200, bound)
    taken = {"success": False, "error": "Port already bound", "current_port": "8080"}
    assert await ask("/bind_port", {"port": "8080"}) == (409, taken)
    assert await ask("/port_status", method="GET") == (200, {"success": True, "port": "8080"})
    for _ in range(2):
        assert await ask("/unbind_port", b"{bad") == (200, {"success": True, "message": "Port binding removed"})


@pytest.mark.anyio
@pytest.mark.parametrize("port", ["0", "65536", "80 ", "+80", "1_0", "٣", "8e3", "99999999999999"])
async def test_what_is_no_port(port: str) -> None:
    client = Client(PortOperations(bindings=Bindings()).operations())
    assert await client.ask("/bind_port", {"port": port}) == (400, b"Invalid port\n")


@pytest.mark.anyio
async def test_where_no_port_leads_to_the_sandbox_none_is_bound() -> None:
    async def who(_secret: str) -> Caller | None:
        return replace(CALLER, has_bound_port=False)

    bindings = Bindings()
    client = Client(PortOperations(bindings=bindings).operations(), who=who)
    status, body = await client.ask("/bind_port", {"port": "80"})
    assert status == 400
    assert b"exposed" in body
    assert bindings.port is None
