"""Output as lines, and lines as events."""

import asyncio
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.backends.sandboxing import Mark, Output, OutputSlice, in_order
from stockade.dialects.executor import lines as module
from stockade.dialects.executor.encoding import decode
from stockade.dialects.executor.events import log_events, output_events, timestamp
from stockade.dialects.executor.lines import LineEvents
from stockade.dialects.executor.output import IN_MEMORY, NoRoom, Room, Spool
from stockade.wire.events import frame

MIB = 1 << 20


def heard(stream: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Events as the strictest client reads them."""
    assert stream.isascii()
    *events, rest = stream.split(b"\n\n")
    assert rest == b""
    found = []
    for one in events:
        name, data = one.split(b"\n")
        assert name.startswith(b"event: ")
        assert data.startswith(b"data: ")
        found.append((name[7:].decode(), json.loads(data[6:])))
    return found


ROOM = Room(1 << 40)


def spool() -> Spool:
    return Spool(ROOM, "box")


async def told(pieces: list[bytes], *, longest: int = 1 << 30) -> list[str]:
    events = LineEvents(spool, is_stderr=False, longest=longest)
    stream = b""
    for piece in pieces:
        stream += b"".join([one async for one in events.take(piece)])
    stream += b"".join([one async for one in events.finish()])
    events.close()
    said = heard(stream)
    assert all(name == "output" and data["stream"] == "stdout" for name, data in said)
    return [data["data"] for _, data in said]


def lines_of(output: bytes) -> list[str]:
    """By the protocol: split at line feeds, all carriage returns before them removed, a last line without end told."""
    *lines, rest = output.split(b"\n")
    return [decode(line.rstrip(b"\r")) for line in [*lines, *([rest] if rest else [])]]


@given(st.lists(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\xff", "é".encode(), b"\xe2\x82"])).map(b"".join)))
@settings(deadline=None)
def test_lines_are_the_same_however_the_output_comes_in_pieces(pieces: list[bytes]) -> None:
    assert asyncio.run(told(pieces)) == lines_of(b"".join(pieces))


@pytest.mark.anyio
async def test_long_lines_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With pieces, characters and carriage returns cut anywhere."""
    monkeypatch.setattr(module, "_LONG", 5)
    chance = random.Random(5)
    for _ in range(300):
        output = bytes(chance.choice(b"aaaaaaaaaaaa\xc3\xa9\xff\r\r\n") for _ in range(60))
        cuts = sorted(chance.sample(range(60), 5))
        pieces = [output[a:b] for a, b in zip([0, *cuts], [*cuts, 60], strict=True)]
        assert await told(pieces) == lines_of(output)


@pytest.mark.anyio
async def test_a_line_beyond_memory_is_whole() -> None:
    pieces = [b"x" * 200_000] * 16 + [b"\r", b"\r\nnext\n"]
    first, second = await told(pieces)
    assert (first, second) == ("x" * 3_200_000, "next")


@pytest.mark.anyio
async def test_a_line_that_is_too_long_is_said_to_be() -> None:
    with pytest.raises(NoRoom):
        await told([b"x" * MIB] * 4, longest=3 * MIB)


@pytest.mark.anyio
async def test_what_is_missing_ends_the_line_that_had_begun() -> None:
    events = LineEvents(spool, is_stderr=True, longest=MIB)
    assert [one async for one in events.take(b"begun")] == []
    events.drop()
    assert heard(b"".join([one async for one in events.take(b"new\n")])) == [
        ("output", {"stream": "stderr", "data": "new"})
    ]


def test_events_are_framed_as_the_protocol_says() -> None:
    assert frame("complete", {"code": 0, "error": False}) == b'event: complete\ndata: {"code":0,"error":false}\n\n'
    assert heard(log_events('a\u2028\n"\x85\\'.encode(), is_stderr=True, at_ns=1_772_357_400_123_456_789)) == [
        ("log", {"timestamp": "2026-03-01T09:30:00.123456789Z", "stream": "stderr", "data": text})
        for text in ("a\u2028", '"\x85\\')
    ]
    assert timestamp(1) == "1970-01-01T00:00:00.000000001Z"


@given(st.text(st.sampled_from('ab \t"\\/~\n\r\x7f\x00é\U0001f600')).map(str.encode))
def test_simple_output_is_written_as_any_other(lines: bytes) -> None:
    """There is a faster way for it."""
    expected = [("output", {"stream": "stderr", "data": line.rstrip("\r")}) for line in lines.decode().split("\n")]
    assert heard(output_events(lines, is_stderr=True)) == expected


def slice_of(data: bytes, at: int) -> OutputSlice:
    return OutputSlice(data=data, at=at)


def test_pieces_come_in_the_order_in_which_they_were_captured() -> None:
    marks = tuple(
        Mark(at_ns=n, is_stderr=is_stderr, end=end)
        for n, (is_stderr, end) in enumerate(
            [(True, 101), (False, 12), (False, 14), (True, 103), (True, 104), (False, 20), (True, 110)]
        )
    )
    output = Output(stdout=slice_of(b"ABCDEF", 10), stderr=slice_of(b"vwxyz", 100), end=None, marks=marks)
    assert list(in_order(output)) == [
        (True, b"v"), (False, b"ABCD"), (True, b"wxy"), (False, b"EF"), (True, b"z"),
    ]  # fmt: skip


def test_pieces_without_marks_are_told_all_the_same() -> None:
    none = Output(stdout=slice_of(b"ab", 0), stderr=slice_of(b"cd", 0), end=None)
    assert list(in_order(none)) == [(False, b"ab"), (True, b"cd")]
    one = Output(stdout=slice_of(b"", 0), stderr=slice_of(b"cd", 0), end=None)
    assert list(in_order(one)) == [(True, b"cd")]


@given(st.data())
def test_nothing_is_lost_or_told_twice_by_ordering(data: st.DataObject) -> None:
    sizes = data.draw(st.tuples(st.integers(0, 30), st.integers(0, 30)))
    marks = data.draw(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=10))
    slices = [slice_of(bytes(range(size)), at) for size, at in zip(sizes, (7, 20), strict=True)]
    ends = {False: 0, True: 0}
    made = []
    for n, (is_stderr, end) in enumerate(marks):
        ends[is_stderr] = max(ends[is_stderr], end)
        made.append(Mark(at_ns=n, is_stderr=is_stderr, end=ends[is_stderr]))
    output = Output(stdout=slices[0], stderr=slices[1], end=None, marks=tuple(made))
    pieces = list(in_order(output))
    assert all(piece for _, piece in pieces)
    for number in (False, True):
        assert b"".join(piece for is_stderr, piece in pieces if is_stderr == number) == slices[number].data


@pytest.mark.anyio
@pytest.mark.parametrize("count", [1, 3, 9])
async def test_what_is_kept_is_answered_whole(count: int) -> None:
    """In memory and beyond it, with characters cut between the pieces."""
    whole = ("é" * 100_001).encode()[1:] * count
    kept = spool()
    for at in range(0, len(whole), 77_777):
        await kept.append(whole[at : at + 77_777])
    assert kept.size == len(whole)
    assert (kept.size > IN_MEMORY) == (count == 9)
    text = b"".join([piece async for piece in kept.json()])
    assert json.loads(b'"' + text + b'"') == decode(whole)
    kept.close()
    kept.close()


@pytest.mark.anyio
async def test_one_sandbox_does_not_fill_the_disk() -> None:
    room = Room(40 * MIB)
    first, second, other = Spool(room, "a"), Spool(room, "a"), Spool(room, "b")
    await first.append(bytes(9 * MIB))
    await second.append(bytes(MIB))
    with pytest.raises(NoRoom):
        await second.append(b"x")
    await other.append(bytes(9 * MIB))
    first.close()
    first.close()
    again = Spool(room, "a")
    await again.append(bytes(10 * MIB))
    with pytest.raises(NoRoom):
        await again.append(b"x")
    for one in (second, other, again):
        one.close()
    assert room.__dict__ == Room(40 * MIB).__dict__
