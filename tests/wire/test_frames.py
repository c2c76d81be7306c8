"""execbox's frames: the reference's own bytes, and properties of all others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.wire.frames import (
    MOST_DATA_BYTES,
    MOST_ERROR_BYTES,
    BadFrame,
    Frame,
    FrameType,
    decode,
    encode,
)

DATA_TYPES = (FrameType.STDIN, FrameType.STDOUT, FrameType.STDERR)

REFERENCE = [
    (Frame(type=FrameType.STDIN, data=b"ok\n"), "01 00 00 00 03 6f 6b 0a"),
    (Frame(type=FrameType.STDOUT, data=b"hallo\n"), "02 00 00 00 06 68 61 6c 6c 6f 0a"),
    (Frame(type=FrameType.STDERR), "03 00 00 00 00"),
    (Frame(type=FrameType.EXIT), "04 00 00 00 00"),
    (Frame(type=FrameType.EXIT, exit_code=42), "04 00 00 00 2a"),
    (Frame(type=FrameType.EXIT, exit_code=137), "04 00 00 00 89"),
    (Frame(type=FrameType.ERROR, data=b"boom"), "05 00 00 00 04 62 6f 6f 6d"),
    (Frame(type=FrameType.STDIN_CLOSE), "06"),
]


@pytest.mark.parametrize(("frame", "text"), REFERENCE)
def test_frames_have_the_bytes_of_the_reference(frame: Frame, text: str) -> None:
    message = bytes.fromhex(text)
    assert encode(frame) == message
    assert decode(message) == frame


@given(st.sampled_from(DATA_TYPES), st.binary(max_size=4096))
def test_data_comes_back_as_it_was_sent(kind: FrameType, data: bytes) -> None:
    frame = Frame(type=kind, data=data)
    message = encode(frame)
    assert decode(message) == frame
    assert int.from_bytes(message[1:5], "big") == len(message) - 5 == len(data)


@given(st.integers(0, 2**32 - 1))
def test_an_exit_is_five_bytes_and_keeps_its_code(code: int) -> None:
    message = encode(Frame(type=FrameType.EXIT, exit_code=code))
    assert len(message) == 5
    assert decode(message).exit_code == code


@given(st.text(max_size=1500))
def test_the_text_of_an_error_fits_and_is_cut_between_characters(text: str) -> None:
    data = text.encode(errors="replace")
    message = encode(Frame(type=FrameType.ERROR, data=data))
    sent = decode(message).data
    assert len(sent) <= MOST_ERROR_BYTES
    assert data.startswith(sent)
    assert len(data) <= MOST_ERROR_BYTES or len(sent) > MOST_ERROR_BYTES - 4
    sent.decode()


@given(st.binary(max_size=64), st.booleans())
def test_any_message_is_a_frame_or_refused(message: bytes, resize: bool) -> None:
    try:
        frame = decode(message, resize=resize)
    except BadFrame:
        return
    assert encode(frame) == message


@pytest.mark.parametrize(
    "text", ["", "00", "07", "08", "ff", "01", "0100000003 6f6b", "01 00000001 6f6b", "0600", "04"]
)
def test_what_is_no_frame_is_refused(text: str) -> None:
    with pytest.raises(BadFrame, match="invalid binary message: "):
        decode(bytes.fromhex(text))


def test_the_longest_data_is_taken_and_a_byte_more_is_not() -> None:
    data = bytes(MOST_DATA_BYTES)
    assert decode(encode(Frame(type=FrameType.STDIN, data=data))).data == data
    with pytest.raises(ValueError, match="at most"):
        encode(Frame(type=FrameType.STDOUT, data=data + b"x"))
    with pytest.raises(BadFrame):
        decode(b"\x01" + (MOST_DATA_BYTES + 1).to_bytes(4, "big") + data + b"x")


def test_a_negative_exit_code_is_never_sent() -> None:
    with pytest.raises(ValueError, match="no sign"):
        encode(Frame(type=FrameType.EXIT, exit_code=-1))


@given(st.integers(1, 0xFFFF), st.integers(1, 0xFFFF))
def test_a_resize_is_known_only_where_it_is_allowed(rows: int, columns: int) -> None:
    message = encode(Frame(type=FrameType.RESIZE, rows=rows, columns=columns))
    assert decode(message, resize=True) == Frame(type=FrameType.RESIZE, rows=rows, columns=columns)
    with pytest.raises(BadFrame, match="unknown type 0x07"):
        decode(message)


@pytest.mark.parametrize("size", [(0, 80), (24, 0), (65536, 80)])
def test_a_terminal_of_an_impossible_size_is_refused(size: tuple[int, int]) -> None:
    message = encode(Frame(type=FrameType.RESIZE, rows=size[0], columns=size[1]))
    with pytest.raises(BadFrame, match="rows and columns"):
        decode(message, resize=True)
