"""Request bodies: what is taken for a JSON object, and what is refused."""

import asyncio
import json
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from stockade.wire.bodies import BodyTimeout, BodyTooLarge, NotJson, Upload, parse_object

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(text, values, max_size=5)


@given(objects, st.booleans())
def test_every_json_object_is_read_back(value: dict[str, Any], escaped: bool) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_refused(raw: bytes) -> None:
    try:
        value = parse_object(raw)
    except NotJson:
        return
    assert isinstance(value, dict)


@given(objects)
def test_what_is_cut_off_is_refused(value: dict[str, Any]) -> None:
    raw = json.dumps(value).encode()
    with pytest.raises(NotJson):
        parse_object(raw[:-1])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", ""),
        (b"{", ""),
        (b"\xff\xfe{}", ""),
        ('{"a": "é"}'.encode("latin-1"), ""),
        ("{}".encode("utf-16"), ""),
        (b"\xef\xbb\xbf{}", ""),
        (b"{} {}", ""),
        (b"{'a': 1}", ""),
        (b'{"a": 1,}', ""),
        (b"[" * 100_000, ""),
        (b'{"a":' * 100_000, ""),
        (b'{"a": ' + b"9" * 5000 + b"}", ""),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a": 1, "a": 1}', "duplicate key 'a'"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate key 'b'"),
        (b'{"a": 1, "\\u0061": 2}', "duplicate key 'a'"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"\\uDFFF": 1}', "lone surrogate"),
        (b'{"a": [{"b": ["x\\udc00y"]}]}', "lone surrogate"),
        (b'{"a": "\xed\xa0\x80"}', ""),
    ],
)
def test_what_is_no_object_is_refused_with_the_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(NotJson) as refused:
        parse_object(raw)
    assert reason in refused.value.reason
    assert bool(reason) == bool(refused.value.reason)


@pytest.mark.parametrize("raw", [b'{"a": "\\ud83d\\ude00"}', '{"a": "😀"}'.encode(), b'{"a": "\\\\ud800"}'])
def test_surrogate_pairs_and_escaped_backslashes_are_text(raw: bytes) -> None:
    assert parse_object(raw)["a"] in ("😀", "\\ud800")


def asked(receive: Receive, announced: bytes | None) -> Request:
    headers = [] if announced is None else [(b"content-length", announced)]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


async def unasked() -> Message:
    raise AssertionError("not to be asked for")


@pytest.mark.anyio
@pytest.mark.parametrize(("announced", "is_read"), [(b"1", True), (b"2", False), (None, False)])
async def test_an_upload_is_read_once_its_last_byte_has_come(announced: bytes | None, is_read: bool) -> None:
    """Who refuses it then has nothing more to wait for: the client waits for us."""
    came = [b"x"]

    async def receive() -> Message:
        return {"type": "http.request", "body": came.pop(), "more_body": True}

    body = Upload(asked(receive, announced), 5)
    parts = body.parts()
    assert await anext(parts) == b"x"
    assert body.is_read is is_read
    await parts.aclose()
    if is_read:
        await body.discard()


@pytest.mark.anyio
async def test_an_empty_upload_is_read_before_it_is_asked_for() -> None:
    body = Upload(asked(unasked, b"0"), 5)
    assert body.is_read
    await body.discard()


@pytest.mark.anyio
@pytest.mark.parametrize(("most", "announced", "taken"), [(4, b"5", 0), (4, None, 4), (None, b"5", 5), (None, None, 5)])
async def test_an_upload_may_be_as_long_as_was_said(most: int | None, announced: bytes | None, taken: int) -> None:
    came = [b"x", b"", b"xx", b"xx"]

    async def receive() -> Message:
        return {"type": "http.request", "body": came.pop(), "more_body": bool(came)}

    size = 0
    with nullcontext() if most is None else pytest.raises(BodyTooLarge, match=f"than {most} bytes"):
        async for part in Upload(asked(receive, announced), 5, most=most).parts():
            size += len(part)
    assert size == taken


@pytest.mark.anyio
@pytest.mark.parametrize(("most", "told"), [(4, 4), (None, 3)])
async def test_the_guard_may_find_an_upload_too_long(most: int | None, told: int) -> None:
    async def receive() -> Message:
        raise HTTPException(413)

    with pytest.raises(BodyTooLarge) as refused:
        await anext(Upload(asked(receive, b"3"), 5, most=most).parts())
    assert refused.value.maximum == told


@pytest.mark.anyio
async def test_who_sends_nothing_is_given_up() -> None:
    async def receive() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    with pytest.raises(BodyTimeout):
        await anext(Upload(asked(receive, None), 0.01).parts())
