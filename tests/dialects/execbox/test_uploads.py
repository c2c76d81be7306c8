"""Bodies of uploads, as they come."""

import pytest
from starlette.requests import Request
from starlette.types import Message

from stockade.dialects.execbox.file_routes import _Body

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("announced", "is_read"), [(b"1", True), (b"2", False), (None, False)])
async def test_a_body_is_read_once_its_last_byte_has_come(announced: bytes | None, is_read: bool) -> None:
    """Who refuses it then has nothing more to wait for: the client waits for us."""
    came = [b"x"]

    async def receive() -> Message:
        return {"type": "http.request", "body": came.pop(), "more_body": True}

    headers = [] if announced is None else [(b"content-length", announced)]
    body = _Body(Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive), 5)
    parts = body.parts()
    assert await anext(parts) == b"x"
    assert body.is_read is is_read
    await parts.aclose()


async def test_an_empty_body_is_read_before_it_is_asked_for() -> None:
    async def receive() -> Message:
        raise AssertionError("not to be asked for")

    headers = [(b"content-length", b"0")]
    assert _Body(Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive), 5).is_read
