"""Request bodies: what is taken for a JSON object, and what is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.wire.bodies import NotJson, parse_object

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
