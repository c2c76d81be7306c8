"""Server-sent events: how one is framed, and how a stream of them ends."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from stockade.wire.clients import HANG_UP
from stockade.wire.events import EventStream, frame

WITHIN_S = 10.0


def test_an_event_is_framed_in_ascii() -> None:
    assert frame("output", {"text": "é\u2028\n"}) == b'event: output\ndata: {"text":"\\u00e9\\u2028\\n"}\n\n'
    assert frame("state", {}, id="1.2") == b"event: state\nid: 1.2\ndata: {}\n\n"


@dataclass
class Client:
    """Takes an answer, on a server like ours. `heard` is what came of the body, `did` what happened in which order."""

    heard: list[bytes] = field(default_factory=list)
    did: list[str] = field(default_factory=list)
    waits: list[bool] = field(default_factory=list)
    takes: int = 9
    """Messages, beginning with the head; before the next one it makes the sender wait."""
    is_stuck: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer = {"left": lambda: self.left, "wait_for_reader": self._wait}
        self.scope: dict[str, Any] = {"type": "http", "headers": [], "extensions": {HANG_UP: answer}}

    def _wait(self, *, however_long: bool) -> None:
        self.waits.append(however_long)

    async def frames(self, *given: bytes, then: Callable[[], Any] | None = None) -> AsyncGenerator[bytes, None]:
        try:
            for one in given:
                yield one
            if then is not None:
                await then()
        finally:
            self.did.append("closed")

    async def take(self, frames: AsyncGenerator[bytes, None], *, alive_s: float = WITHIN_S) -> None:
        async def let_go() -> None:
            await asyncio.sleep(0)
            self.did.append("let go")

        async def receive() -> Message:
            raise AssertionError("not to be asked for")

        held = AsyncExitStack()
        held.push_async_callback(let_go)
        answer = EventStream(Request(self.scope), frames, held, alive_s=alive_s)
        async with asyncio.timeout(WITHIN_S):
            await answer(self.scope, receive, self._send)

    async def _send(self, message: Message) -> None:
        if message.get("more_body") is False:
            self.did.append("ended")
            return
        if self.takes == 0:
            self.is_stuck.set()
            await forever()
        self.takes -= 1
        if message["type"] == "http.response.start":
            assert dict(message["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
        else:
            self.heard.append(message["body"])


async def forever() -> None:
    await asyncio.sleep(3600)


@pytest.mark.anyio
async def test_an_answer_ends_right_after_the_last_event() -> None:
    client = Client()
    await client.take(client.frames(b"a", b"b"))
    assert client.heard == [b"a", b"b"]
    assert client.did == ["closed", "let go", "ended"]
    assert client.waits == [True, False]


@pytest.mark.anyio
async def test_comments_come_while_nothing_happens() -> None:
    client = Client()
    await client.take(client.frames(b"a", then=lambda: asyncio.sleep(0.3)), alive_s=0.05)
    assert client.heard[0] == b"a"
    assert set(client.heard[1:]) == {b": alive\n\n"}
    assert client.did == ["closed", "let go", "ended"]


@pytest.mark.anyio
@pytest.mark.parametrize("takes", [1, 9])
async def test_a_client_that_leaves_ends_it(takes: int) -> None:
    """Be it that it does not take what happens, or that nothing does."""
    client = Client(takes=takes)

    async def idle() -> None:
        client.is_stuck.set()
        await forever()

    taking = asyncio.create_task(client.take(client.frames(b"a", then=idle)))
    await client.is_stuck.wait()
    client.left.set_result(None)
    await taking
    assert client.did == ["closed", "let go"]
    assert client.waits == [True, False]


@pytest.mark.anyio
async def test_a_client_that_left_before_the_first_event_is_let_go_of() -> None:
    client = Client()
    client.left.set_result(None)
    await client.take(client.frames(then=forever))
    assert client.did[-1] == "let go"
    assert client.heard == []


@pytest.mark.anyio
@pytest.mark.parametrize("takes", [0, 1, 9])
async def test_the_body_ends_as_it_should_where_the_server_ends(takes: int) -> None:
    client = Client(takes=takes)

    async def idle() -> None:
        client.is_stuck.set()
        await forever()

    frames = client.frames(b"a", then=idle)
    taking = asyncio.create_task(client.take(frames))
    await client.is_stuck.wait()
    taking.cancel()
    await taking
    assert client.did == (["closed"] if takes else []) + ["let go", "ended"]
    assert await anext(frames, None) is None
    assert not taking.cancelling()


@pytest.mark.anyio
async def test_an_error_breaks_the_answer_off() -> None:
    async def broken() -> None:
        raise KeyError("x")

    client = Client()
    with pytest.raises(KeyError):
        await client.take(client.frames(b"a", then=broken))
    assert client.heard == [b"a"]
    assert client.did == ["closed", "let go"]
