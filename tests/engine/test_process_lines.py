"""Lines made of what can be read of a process: all of them, in order, at their time, whatever pieces they come in."""

import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stockade.engine.process_lines import LastLines, LineMaker, Start, Stretch, skip_lines
from tests.engine.process_fakes import Logged, Write, logged

Line = tuple[int, bool, bytes]
"""When, whether on standard error, and what."""

LONGEST = 1 << 22
fast = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
writes = st.lists(
    st.tuples(st.booleans(), st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\r\n", b"\n\n"])).map(b"".join)),
    max_size=30,
)


def expected(done: list[Write], *, has_ended: bool = True) -> list[Line]:
    """The slow way, a byte at a time."""
    lines: list[Line] = []
    unfinished: list[tuple[int, bytes]] = [(0, b""), (0, b"")]
    for place, (is_stderr, data) in enumerate(done):
        for byte in data:
            text = unfinished[is_stderr][1]
            if byte == 10:
                lines.append((1000 + place, is_stderr, text))
                unfinished[is_stderr] = (0, b"")
            else:
                unfinished[is_stderr] = (1000 + place, text + bytes([byte]))
    if has_ended:
        last = [(at_ns, bool(number), text) for number, (at_ns, text) in enumerate(unfinished) if text]
        lines += sorted(last, key=lambda one: one[0])
    return lines


def made(
    process: Logged,
    most: int,
    start: Start | None = None,
    *,
    longest: int = LONGEST,
    then: Callable[[], None] = lambda: None,
) -> list[Line]:
    """All lines, read *most* bytes at a time; *then* is called after every time."""

    def all_of_it() -> Iterator[Line]:
        maker = LineMaker(start, longest=longest)
        while True:
            output = process.output(*maker.at, most)
            assert output.stdout.data or output.stderr.data or output.end is not None
            for batch in maker.take(output, most):
                yield from ((batch.at_ns, batch.is_stderr, line) for line in batch.lines)
            if output.end is not None:
                break
            then()
        for batch in maker.finish():
            yield from ((batch.at_ns, batch.is_stderr, line) for line in batch.lines)

    return list(all_of_it())


def start_of_last(process: Logged, lines: int, most: int) -> Start:
    """As `Processes.logs` finds it."""
    last = LastLines(lines)
    output = process.output(0, 0, most)
    while last.count(output, most):
        output = process.output(*last.again_at, most)
        assert output.stdout.data or output.stderr.data
    start, stretch, skip = last.find(has_ended=output.end is not None)
    if stretch is None:
        return start
    at = list(start.at)
    at[stretch.is_stderr] = stretch.at
    output = process.output(at[0], at[1], stretch.end - stretch.at)
    return skip_lines(start, stretch, skip, (output.stderr if stretch.is_stderr else output.stdout).data)


def ended(done: list[Write], **members: int) -> Logged:
    process = logged(done, **members)
    process.finish()
    return process


@fast
@given(writes, st.integers(2, 9))
@example([(False, b"a"), (True, b"b\n"), (False, b"\n")], 2)
def test_lines_come_in_the_order_of_both_streams_at_their_time(done: list[Write], most: int) -> None:
    assert made(ended(done), most) == expected(done)


@fast
@given(writes, st.integers(0, 12), st.integers(2, 9), st.booleans())
def test_the_last_lines_are_the_last_of_both_streams(done: list[Write], count: int, most: int, has_ended: bool) -> None:
    process = logged(done)
    if has_ended:
        process.finish()
    elif not any(data for _, data in done):
        return
    start = start_of_last(process, count, most)
    process.finish()
    # Of a process that runs, a line that has not ended comes beside those that were asked for.
    known = expected(done, has_ended=has_ended)
    assert made(process, most, start) == known[max(0, len(known) - count) :] + expected(done)[len(known) :]


@fast
@given(writes, st.integers(1, 40), st.integers(1, 12), st.integers(2, 9))
def test_what_is_kept_of_a_ring_are_whole_lines(done: list[Write], kept: int, count: int, most: int) -> None:
    """But for the rest of one that is longer than half of what is kept, and then that stream's first."""
    process = ended(done, kept=kept)
    shown = made(process, most, start_of_last(process, count, most))
    assert len(shown) <= count
    for is_stderr in (False, True):
        of_stream = [(at_ns, line) for at_ns, stderr, line in shown if stderr is is_stderr]
        whole = [(at_ns, line) for at_ns, stderr, line in expected(done) if stderr is is_stderr]
        if of_stream and of_stream != whole[-len(of_stream) :]:
            assert of_stream[1:] == whole[len(whole) - len(of_stream) + 1 :]
            (at_ns, rest), (whole_ns, line) = of_stream[0], whole[-len(of_stream)]
            assert at_ns == whole_ns
            assert line.endswith(rest)
            assert 2 * len(rest) >= min(kept, len(line)) - 1


@fast
@given(writes, st.integers(0, 5), st.integers(2, 9))
def test_without_marks_nothing_is_lost(done: list[Write], kept_marks: int, most: int) -> None:
    shown = made(ended(done, kept_marks=max(1, kept_marks)), most)
    for is_stderr in (False, True):
        assert [line for _, stderr, line in shown if stderr is is_stderr] == [
            line for _, stderr, line in expected(done) if stderr is is_stderr
        ]


def test_what_has_no_mark_is_as_old_as_the_first_that_has() -> None:
    process = ended([(False, b"a\n"), (True, b"b\n"), (False, b"c\n"), (True, b"d\n")], kept_marks=2)
    assert made(process, 100) == [
        (1002, False, b"a"),
        (1002, False, b"c"),
        (1003, True, b"b"),
        (1003, True, b"d"),
    ]


def test_a_stream_without_any_mark_comes_before_the_other() -> None:
    process = ended([(True, b"old\n"), (False, b"a\n"), (False, b"b\n")], kept_marks=2)
    assert made(process, 100) == [(1001, True, b"old"), (1001, False, b"a"), (1002, False, b"b")]


def test_a_reader_who_falls_behind_goes_on_with_a_whole_line() -> None:
    process = logged([(False, b"".join(b"%04d\n" % n for n in range(100)))], kept=52)

    def overtake() -> None:
        if process.end is None:
            process.write(False, b"".join(b"%04d\n" % n for n in range(100, 200)))
            process.finish()

    shown = [line for _, _, line in made(process, 12, longest=1000, then=overtake)]
    # 52 bytes are the last two of a line and ten lines. Two of them are read, then all are overwritten.
    assert shown == [b"0090", b"0091", *(b"%04d" % n for n in range(190, 200))]


def test_of_a_line_longer_than_all_that_is_kept_the_last_of_it_is_shown() -> None:
    line = bytes(range(65, 91)) * 4
    process = ended([(False, line)], kept=20)
    assert made(process, 7, start_of_last(process, 10, 7)) == [(1000, False, line[-20:])]
    process = ended([(False, line + b"\n")], kept=20)
    assert made(process, 7, start_of_last(process, 10, 7)) == [(1000, False, line[-19:])]
    process = ended([(False, line + b"\nnext\n")], kept=20)
    assert made(process, 7, start_of_last(process, 10, 7)) == [(1000, False, line[-14:]), (1000, False, b"next")]


def test_no_more_of_a_line_is_held_than_is_asked_for() -> None:
    process = ended([(False, b"x" * 1000 + b"end"), (False, b"\nnext\n")])
    assert [line for _, _, line in made(process, 10, longest=20)] == [b"x" * 17 + b"end", b"next"]


@pytest.mark.parametrize("most", [1 << 16, 1 << 18])
def test_a_line_of_three_megabytes_is_one(most: int) -> None:
    line = b"abc" * (1 << 20)
    assert made(ended([(False, line + b"\nshort\n")]), most) == [(1000, False, line), (1000, False, b"short")]


def test_a_line_that_has_not_ended_is_told_only_at_the_end() -> None:
    maker = LineMaker(longest=LONGEST)
    process = logged([(True, b"one\ntw")])
    assert [one.lines for one in maker.take(process.output(0, 0, 100), 100)] == [[b"one"]]
    assert maker.held == 2
    process.write(True, b"o\n")
    assert [one.lines for one in maker.take(process.output(*maker.at, 100), 100)] == [[b"two"]]
    assert not list(maker.finish())


@fast
@given(st.lists(st.sampled_from([b"\n", b"a", b"bcd\n"]), min_size=1).map(b"".join), st.data())
def test_lines_are_skipped_by_halves(data: bytes, draw: st.DataObject) -> None:
    if lines := data.count(b"\n"):
        skip = draw.draw(st.integers(1, lines))
        stretch = Stretch(True, 100, 100 + len(data), lines, (0, 90))
        start = skip_lines(Start((5, 90), (True, True)), stretch, skip, data)
        assert start == Start((5, 100 + len(data) - len(data.split(b"\n", skip)[skip])), (True, False))


def test_to_find_the_last_of_many_lines_takes_little_memory() -> None:
    """Four million lines of two bytes, of which the last ten thousand are wanted."""
    process = ended([(False, b"x\n" * (1 << 20)), (True, b"y\n" * (1 << 20))] * 2)
    last = LastLines(10_000)
    tracemalloc.start()
    try:
        output = process.output(0, 0, 1 << 18)
        while last.count(output, 1 << 18):
            output = process.output(*last.again_at, 1 << 18)
        start, stretch, _ = last.find(has_ended=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stretch is not None
    assert len(made(process, 1 << 18, start_of_last(process, 10_000, 1 << 18))) == 10_000
    assert start.at[0] == 4 << 20
    assert peak < 4 << 20, peak


def test_ten_thousand_turns_between_streams_are_counted_in_bounded_memory() -> None:
    turns: list[Write] = [(bool(n % 2), b"%d\n" % n) for n in range(30_000)]
    process = ended(turns)
    shown = made(process, 1 << 18, start_of_last(process, 10_000, 1 << 18))
    assert [line for _, _, line in shown] == [b"%d" % n for n in range(20_000, 30_000)]
