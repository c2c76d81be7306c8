"""What a request's body may be, by the reference's lenient rules."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.dialects.executor.operation import BadRequest, Fields
from stockade.dialects.executor.parsing import parse


@pytest.mark.parametrize(
    ("raw", "cmd"),
    [
        (b'{"cmd":"x"}', "x"),
        (b' \r\n\t{"cmd":"x"} trailing', "x"),
        (b'{"cmd":"a"}{"cmd":"b"}', "a"),
        (b'{"cmd":"a","cmd":"b"}', "b"),
        (b'{"other":[1,{}],"cmd":"x"}', "x"),
        (b'{"CMD":"x"}', ""),
        (b'{"cmd":null}', ""),
        (b"{}", ""),
        (b"null", ""),
        (b'{"cmd":"a\xff\xe2\x82b"}', "a\ufffd\ufffd\ufffdb"),
        (b'{"cmd":"\\ud800x\\udc00"}', "\ufffdx\ufffd"),
        (b'{"cmd":"\\ud83d\\ude00"}', "\U0001f600"),
        ('{"cmd":"ä\u2028"}'.encode(), "ä\u2028"),
    ],
)
def test_what_is_read(raw: bytes, cmd: str) -> None:
    assert parse(raw).text("cmd") == cmd


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"  ", b"{bad", b"[]", b'"x"', b"5", b"true", b"\xef\xbb\xbf{}",
        b'{"a":NaN}', b'{"a":-Infinity}', b"{'a':1}",
        b'{"a":' * 100_000, b"[" * 1_000_000, b'{"a":' + b"9" * 5000 + b"}", b'{"cmd":"a\nb"}',
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_no_request(raw: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^Invalid request$"):
        parse(raw)


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        ("text", 5), ("text", []), ("text", {}), ("text", True), ("env", []), ("env", "x"), ("env", {"A": 1}),
        ("env", {"A": []}), ("number", "5"), ("number", True), ("number", 10**400), ("flag", 1), ("flag", "true"),
        ("word", 1.5), ("word", True), ("word", []),
    ],
)  # fmt: skip
def test_a_wrong_type_makes_the_request_wrong(reader: str, value: object) -> None:
    fields = Fields({"x": value, "env": value})
    with pytest.raises(BadRequest, match=r"^Invalid request$"):
        fields.env() if reader == "env" else getattr(fields, reader)("x")


def test_missing_and_null_have_zero_values() -> None:
    for fields in (Fields({}), Fields(dict.fromkeys(("x", "env")))):
        assert (fields.text("x"), fields.env(), fields.number("x"), fields.flag("x"), fields.word("x")) == (
            "", {}, None, False, None,
        )  # fmt: skip
    assert Fields({"env": {"A": None, "\udc00": "\ud800"}}).env() == {"A": "", "\ufffd": "\ufffd"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
REQUESTS = st.dictionaries(st.sampled_from(["cmd", "cwd", "env", "timeout", "signal", "x"]), VALUES, max_size=4)


@given(st.one_of(st.binary(max_size=60), REQUESTS.map(lambda value: json.dumps(value).encode())), st.integers(0, 60))
def test_whatever_is_sent_it_is_read_or_refused(raw: bytes, cut: int) -> None:
    """Nothing but `BadRequest`, and nothing that cannot be passed on as UTF-8."""
    for body in (raw, raw[:cut]):
        try:
            fields = parse(body)
        except BadRequest:
            continue
        readers: list[Any] = [
            lambda f: f.text("cmd").encode(),
            lambda f: [(k.encode(), v.encode()) for k, v in f.env().items()],
            lambda f: f.number("timeout"),
            lambda f: f.flag("x"),
            lambda f: str(f.word("signal")).encode(),
        ]
        for reader in readers:
            try:
                reader(fields)
            except BadRequest:
                pass
