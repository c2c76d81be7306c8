"""A sandbox that says what it is told to say, and requests that need no server."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from stockade.backends.sandboxing import Output, OutputSlice, ProcessEnd, Reading, Refusal
from stockade.dialects.executor.access import Access, Who, WrongSecrets
from stockade.dialects.executor.bounds import Bounds
from stockade.dialects.executor.commands import Commands
from stockade.dialects.executor.edge import Edge
from stockade.dialects.executor.metrics import Metrics
from stockade.dialects.executor.operation import Caller, Operation
from stockade.dialects.executor.output import Room
from stockade.model import Actor, ExecSpec, Outcome

SECRET = "s" * 24
_LARGE = 10_000
CALLER = Caller(actor=Actor(id="key"), sandbox_id="box", has_bound_port=True)
ENDED = ProcessEnd(outcome=Outcome.EXITED, exit_code=0)


class Streams:
    """Says its steps one after the other: output, an error to raise, or `None` for silence without end."""

    def __init__(self, *steps: bytes | tuple[bytes, bytes] | Exception | ProcessEnd | None) -> None:
        self.steps = list(steps)
        self.refusal: Refusal | None = None
        self.pid = 7
        self.is_discarded = False
        self.is_silent = asyncio.Event()

    async def read(self, stdout_at: int, stderr_at: int, *, most: int = 1 << 18, least: int = 1) -> Output:
        await asyncio.sleep(0)
        step = self.steps.pop(0) if self.steps else ENDED
        if step is None:
            self.is_silent.set()
            await asyncio.Event().wait()
        if isinstance(step, Exception):
            raise step
        end = step if isinstance(step, ProcessEnd) else None
        stdout, stderr = (b"", b"") if end or step is None else step if isinstance(step, tuple) else (step, b"")
        assert isinstance(stdout, bytes)
        return Output(
            stdout=OutputSlice(data=stdout, at=stdout_at), stderr=OutputSlice(data=stderr, at=stderr_at), end=end
        )

    def discard(self) -> None:
        self.is_discarded = True


@dataclass
class Execution:
    streams: Any

    def discard(self) -> None:
        self.streams.discard()


@dataclass
class Sandboxes:
    """Starts what it is given, or fails so."""

    streams: Streams = field(default_factory=Streams)
    failure: BaseException | None = None
    asked: list[tuple[ExecSpec, int]] = field(default_factory=list)

    async def exec(
        self, actor: Actor, sandbox_id: str, spec: ExecSpec, /, *, reading: Reading, gather: int
    ) -> Execution:
        await asyncio.sleep(0)
        assert (actor, sandbox_id) == (CALLER.actor, CALLER.sandbox_id)
        self.asked.append((spec, gather))
        if self.failure is not None:
            raise self.failure
        return Execution(self.streams)


class Client:
    """Sends requests to operations, and takes what they answer."""

    def __init__(
        self, operations: dict[str, Operation], *, who: Who | None = None, wrong: WrongSecrets | None = None
    ) -> None:
        self.operations = operations
        self.edge = Edge(
            access=Access(who or knows(SECRET), wrong or WrongSecrets(per_s=10, burst=50)),
            metrics=Metrics(CollectorRegistry()),
            bounds=Bounds(requests_per_sandbox=100, bodies_bytes=1 << 20),
            max_body_bytes=1 << 20,
            body_timeout_s=5,
        )
        self.left = asyncio.Event()
        """Set where the client hangs up."""
        self.sent: list[Message] = []
        self.is_sending = asyncio.Event()
        """Set once a large piece of an answer is on its way."""
        self.extensions: dict[str, Any] = {}
        """What the server offers beyond what all do."""
        self.fail_to_send: Callable[[], object] = lambda: None

    async def ask(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "POST",
        authorization: str | None = f"Bearer {SECRET}",
        query: str = "",
        address: str = "192.0.2.1",
    ) -> tuple[int, bytes]:
        """Status and body of the answer."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        came = [raw]

        async def receive() -> Message:
            if came:
                return {"type": "http.request", "body": came.pop(), "more_body": False}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            await asyncio.sleep(0)
            self.fail_to_send()
            self.sent.append(message)
            if len(message.get("body", b"")) > _LARGE:
                self.is_sending.set()

        self.sent.clear()
        headers = [(b"content-length", str(len(raw)).encode())]
        headers += [] if authorization is None else [(b"authorization", authorization.encode())]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": headers,
            "client": (address, 1),
            "extensions": self.extensions,
        }
        response: Response = await self.edge.answer(Request(scope, receive), path, self.operations[path])
        await response(scope, receive, send)
        head, *parts = self.sent
        assert self.left.is_set() or not parts[-1].get("more_body", False)
        return head["status"], b"".join(part["body"] for part in parts)

    @property
    def headers(self) -> dict[str, str]:
        """Of the last answer."""
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}


def knows(*secrets: str) -> Who:
    async def who(secret: str) -> Caller | None:
        return CALLER if secret in secrets else None

    return who


def commands(sandboxes: Sandboxes, *, max_output_bytes: int = 1 << 28) -> dict[str, Operation]:
    made = Commands(
        sandboxes=sandboxes,
        metrics=Metrics(CollectorRegistry()),
        room=Room(1 << 30),
        max_output_bytes=max_output_bytes,
    )
    return made.operations()


def client(
    *steps: Any, failure: BaseException | None = None, max_output_bytes: int = 1 << 28
) -> tuple[Client, Streams]:
    """One whose commands say *steps*."""
    sandboxes = Sandboxes(streams=Streams(*steps), failure=failure)
    return Client(commands(sandboxes, max_output_bytes=max_output_bytes)), sandboxes.streams


def events(body: bytes) -> Sequence[tuple[str, dict[str, Any]]]:
    found = []
    for one in body.decode("ascii").split("\n\n")[:-1]:
        name, data = one.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
