"""Placeholders in what a request consists of: where they are found, and what is put there."""

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from urllib.parse import quote, quote_plus, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.engine.diversion_texts import Replacement, Writing, writing_of
from stockade.model import SecretRule

PLACEHOLDERS = ("<S:one>", "<S:one>x", 'p"/\\&%', "<S")
RULES = [SecretRule(name=f"n{n}", value=f'v{n}"+/ é', placeholder=one) for n, one in enumerate(PLACEHOLDERS)]
VALUES = {rule.placeholder: rule.value for rule in RULES}
texts = st.lists(st.sampled_from([*PLACEHOLDERS, "<", "S:one", "-", '"', "é", "%3C"]), max_size=12).map("".join)


def replaced(text: str) -> str:
    """What a reader of *text* is to find: the longest placeholder that begins at a place, from left to right."""
    done, at = "", 0
    while at < len(text):
        found = max((one for one in PLACEHOLDERS if text.startswith(one, at)), key=len, default=None)
        done += text[at] if found is None else VALUES[found]
        at += 1 if found is None else len(found)
    return done


def in_parts(data: bytes, writing: Writing, cuts: list[int]) -> bytes:
    streamed = Replacement(RULES).body(writing)
    assert streamed is not None
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    parts = [data[first:last] for first, last in pairwise(edges)]
    return b"".join(map(streamed.feed, parts)) + streamed.end()


@given(texts, st.lists(st.integers(0, 1000), max_size=8))
def test_plain_text_is_replaced_however_it_is_cut(text: str, cuts: list[int]) -> None:
    assert in_parts(text.encode(), Writing.PLAIN, cuts).decode() == replaced(text)


@given(texts, st.lists(st.integers(0, 1000), max_size=8), st.booleans())
def test_json_is_replaced_however_it_is_written(text: str, cuts: list[int], is_ascii: bool) -> None:
    written = json.dumps({"k": text}, ensure_ascii=is_ascii)
    if is_ascii:  # as Go writes it, and JavaScript's careful ones
        written = written.replace("<", "\\u003c").replace("&", "\\u0026").replace("/", "\\/")
    assert json.loads(in_parts(written.encode(), Writing.JSON, cuts)) == {"k": replaced(text)}


@given(texts, st.lists(st.integers(0, 1000), max_size=8), st.sampled_from([quote, quote_plus]))
def test_a_form_is_replaced_however_it_is_written(text: str, cuts: list[int], write: Callable[..., str]) -> None:
    written = f"a=1&k={write(text, safe='')}&b=2"
    found = in_parts(written.encode(), Writing.PERCENT, cuts).decode()
    assert found.count("&") == 2
    assert unquote_plus(found) == f"a=1&k={replaced(text)}&b=2"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40), st.text(min_size=1))
def test_any_placeholder_is_found_in_each_writing(placeholder: str, value: str) -> None:
    placeholder = f"<S:{placeholder}>"
    value = value.encode(errors="ignore").decode() or "v"
    replacement = Replacement([SecretRule(name="n", value=value, placeholder=placeholder)])
    assert replacement.header(f"Bearer\t{placeholder}".encode()).decode().endswith(value)
    assert unquote_plus(replacement.target(b"/?" + quote(placeholder, safe="").encode()).decode()) == f"/?{value}"


@pytest.mark.parametrize("scheme", ["Basic ", "basic  "])
def test_credentials_are_looked_into(scheme: str) -> None:
    replacement = Replacement(RULES)
    header = scheme.encode() + base64.b64encode(b"me:<S:one>")
    assert base64.b64decode(replacement.header(header).split()[1]).decode() == f"me:{RULES[0].value}"
    for untouched in (b"Basic bWU6eW91", b"Basic !", b"Basic", b"Bearer bWU6PFM6b25lPg==", b""):
        assert replacement.header(untouched) == untouched


def test_of_two_rules_with_one_placeholder_the_first_holds() -> None:
    rules = [SecretRule(name="n", value=value, placeholder="<P>") for value in ("one", "two")]
    assert Replacement(rules).header(b"<P>") == b"one"


def test_a_value_is_not_looked_at_again() -> None:
    rules = [SecretRule(name="a", value="<B>", placeholder="<A>"), SecretRule(name="b", value="no", placeholder="<B>")]
    assert Replacement(rules).header(b"<A>") == b"<B>"


def test_nothing_is_replaced_where_there_is_no_secret() -> None:
    replacement = Replacement([])
    assert not replacement
    assert replacement.header(b"<A>") == replacement.target(b"<A>") == b"<A>"
    assert replacement.body(Writing.PLAIN) is None


@pytest.mark.parametrize(
    ("kind", "writing"),
    [
        ("application/json; charset=utf-8", Writing.JSON),
        ("application/problem+JSON", Writing.JSON),
        ("application/x-www-form-urlencoded", Writing.PERCENT),
        ("text/csv", Writing.PLAIN),
        ("application/soap+xml", Writing.PLAIN),
        ("application/x-ndjson", Writing.PLAIN),
        ("multipart/form-data; boundary=x", Writing.PLAIN),
        ("application/octet-stream", None),
        ("image/png", None),
        ("", None),
    ],
)
def test_what_is_text_is_known_by_its_type(kind: str, writing: Writing | None) -> None:
    assert writing_of(kind) is writing
