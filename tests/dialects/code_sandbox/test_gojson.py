"""Bodies as Go's `encoding/json` reads them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.dialects.code_sandbox.gojson import BadPayload, is_blank, parse_strings, trimmed

NAMES = frozenset(("language", "code", "stdin"))

READ: dict[bytes, dict[str, str]] = {
    b"{}": {},
    b"null": {},
    b" \r\n\tnull": {},
    b"nullx": {},
    b'{"code":"x"} trailing': {"code": "x"},
    b'{"code":"x"}{"code":"y"}': {"code": "x"},
    b'{"code":"x"}]': {"code": "x"},
    b'{"CODE":"x","Language":"go"}': {"code": "x", "language": "go"},
    b'{"code":"x","Code":"y"}': {"code": "y"},
    b'{"code":"x","code":null}': {"code": "x"},
    b'{"code":null}': {},
    b'{"extra":[1,{"code":2}],"code":"x"}': {"code": "x"},
    b'{"extra":1e999,"more":123456789012345678901234567890}': {},
    '{"\u017ftdin":"long s"}'.encode(): {"stdin": "long s"},
    '{"\ufb06din":"one letter for two"}'.encode(): {},
    b'{"code":"\\ud83d\\ude00"}': {"code": "\U0001f600"},
    b'{"code":"\\ud800x"}': {"code": "\ufffdx"},
    b'{"code":"\\udc00\\ud800"}': {"code": "\ufffd\ufffd"},
    b'{"code":"\xff"}': {"code": "\ufffd"},
    b'{"code":"\xe2\x82"}': {"code": "\ufffd\ufffd"},
    b'{"code":"\xed\xa0\x80"}': {"code": "\ufffd\ufffd\ufffd"},
    b'{"code":"\\u0000\\u00e9\\/"}': {"code": "\0\u00e9/"},
    b'{"x":' + b"9" * 5000 + b"}": {},
}
REFUSED = [
    b"", b" ", b"{", b"[]", b'"x"', b"1", b"true", b"nul", b"undefined", b"NaN", b'{"code":1}', b'{"code":true}',
    b'{"code":["x"]}', b'{"code":{}}', b'{"code":"x",}', b"{'code':'x'}", b'{"code":"x"',
    b'{"code":"\n"}', b'{"code":"\\x"}',
    b'{"code":"\\u12g4"}', b'{"x":01}', b'{"x":1.}', b'{"x":+1}', b'{"x":NaN}', b'{"x":Infinity}', b'{"x":-}', b'{x:1}',
    b'{"Code":"x","code":1}', b'\xef\xbb\xbf{}', b'\xff{}', b'[' * 100_000, b'{"a":' * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("body", READ, ids=repr)
def test_what_go_reads_is_read(body: bytes) -> None:
    assert parse_strings(body, NAMES) == READ[body]


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: repr(body[:20]))
def test_what_go_refuses_is_refused(body: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_strings(body, NAMES)


@given(st.binary(max_size=60))
def test_any_body_is_strings_or_refused(body: bytes) -> None:
    try:
        found = parse_strings(body, NAMES)
    except BadPayload:
        return
    for text in found.values():
        text.encode()


@given(st.dictionaries(st.sampled_from(sorted(NAMES)), st.text()), st.text())
def test_json_of_any_strings_comes_back(members: dict[str, str], trailing: str) -> None:
    body = (json.dumps(members) + " " + trailing).encode(errors="replace")
    assert parse_strings(body, NAMES) == members


def test_white_space_is_what_go_takes_for_it() -> None:
    assert is_blank(" \t\n\v\f\r\x85\xa0\u2003\u3000")
    assert not is_blank("\x1c")
    assert not is_blank("\u200b")
    assert trimmed("\u00a02s\n") == "2s"
