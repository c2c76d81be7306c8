"""Bytes of tenants as text and JSON, against readings that are slow and plain."""

import json

from hypothesis import given
from hypothesis import strategies as st

from stockade.dialects.executor.encoding import decode, json_array_of, json_text
from stockade.wire.characters import incomplete

BORDERS = bytes([0x0A, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED,
                 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF])  # fmt: skip
"""Where the rules of UTF-8 change."""
NASTY = st.lists(st.sampled_from(BORDERS), max_size=12).map(bytes)
ANY = st.one_of(NASTY, st.binary(max_size=40), st.text(max_size=20).map(lambda text: text.encode(errors="replace")))


def byte_by_byte(data: bytes) -> str:
    """As the reference does: a character where one begins, else one U+FFFD for one byte."""
    text = ""
    while data:
        for length in (1, 2, 3, 4):
            try:
                character = data[:length].decode()
            except UnicodeDecodeError:
                continue
            if len(character) == 1:
                break
        else:
            character, length = "\ufffd", 1
        text, data = text + character, data[length:]
    return text


@given(ANY)
def test_each_byte_that_is_no_character_becomes_one_replacement(data: bytes) -> None:
    assert decode(data) == byte_by_byte(data)


def test_a_cut_character_is_as_many_replacements_as_it_has_bytes() -> None:
    assert decode(b"a\xe2\x82b\xf0\x9f\x98") == "a\ufffd\ufffdb\ufffd\ufffd\ufffd"


@given(st.lists(NASTY, max_size=6))
def test_text_in_pieces_is_the_text(pieces: list[bytes]) -> None:
    """What may go on in the next piece is held back, and nothing else."""
    begun, text = b"", ""
    for piece in pieces:
        data = begun + piece
        cut = len(data) - incomplete(data)
        text, begun = text + decode(data[:cut]), data[cut:]
        assert len(begun) < 4
    assert text + decode(begun) == byte_by_byte(b"".join(pieces))


@given(ANY)
def test_json_text_is_ascii_and_reads_as_what_was_decoded(data: bytes) -> None:
    written = json_text(data)
    assert written.isascii()
    assert json.loads(b'"' + written + b'"') == decode(data)


@given(st.lists(st.text(), min_size=1, max_size=6))
def test_lines_are_written_with_any_text_between_them(lines: list[str]) -> None:
    text = json_array_of(lines, between="\n<>\n")
    assert text.isascii()
    assert [json.loads(one) for one in text.split("\n<>\n")] == [json.loads(json.dumps(line)) for line in lines]
