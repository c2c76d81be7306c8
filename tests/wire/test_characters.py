"""Streams cut between characters: nothing is lost, nothing is moved, and each piece decodes as the whole does."""

from hypothesis import given
from hypothesis import strategies as st

from stockade.wire.characters import Aligner, incomplete

_TEXT = st.text().map(str.encode)
_BYTES = st.one_of(_TEXT, st.binary(), st.lists(st.one_of(_TEXT, st.binary(max_size=3))).map(b"".join))


@st.composite
def _pieces(draw: st.DrawFn) -> list[bytes]:
    whole = draw(_BYTES)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)))))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@given(_pieces())
def test_pieces_are_the_whole_and_decode_as_it_does(pieces: list[bytes]) -> None:
    aligner = Aligner()
    taken = [*(aligner.take(one) for one in pieces), aligner.rest()]
    assert b"".join(taken) == b"".join(pieces)
    assert "".join(one.decode(errors="replace") for one in taken) == b"".join(pieces).decode(errors="replace")


@given(st.text(), st.data())
def test_text_never_shows_a_replacement(text: str, data: st.DataObject) -> None:
    """However it is cut, each piece but the rest is valid by itself, and nothing is left."""
    whole, aligner = text.encode(), Aligner()
    cut = data.draw(st.integers(0, len(whole)))
    for piece in (whole[:cut], whole[cut:]):
        aligner.take(piece).decode()
    assert aligner.held == 0


@given(_BYTES)
def test_no_more_is_held_than_a_character_lacks(data: bytes) -> None:
    aligner = Aligner()
    aligner.take(data)
    assert aligner.held == incomplete(data) <= 3
    assert aligner.held <= len(data)
