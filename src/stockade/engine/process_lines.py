"""Lines of a process's output, in the order and at the time at which they came, made of what can be read of it.

The backend gives bytes of two streams, and marks: when which of them came. `_segments` puts these in order, `LineMaker`
makes lines of them, and `LastLines` finds where the last so many lines begin. None of them waits for anything, and none
has a loop per line: what is done per line is done in C.

A line whose beginning is no longer kept is not shown as if it were one: its rest is left out, unless what is left of
it is half of what can be kept, or the process ended in it. Then one line was longer than all that is kept, and what is
kept of it is shown.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from stockade.backends.sandboxing import Output, OutputSlice

__all__ = ["LastLines", "LineMaker", "Lines", "Start", "Stretch", "skip_lines"]

_NEWLINE = b"\n"
_PIECE = 1 << 16
"""Bytes that are split at a time: short lines take twenty times their size while they are looked at."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of one stream that ended at the same time."""

    at_ns: int
    """Nanoseconds since the epoch."""
    is_stderr: bool
    lines: list[bytes]
    """At least one; without their newlines."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """Bytes of one stream that came together."""

    at_ns: int
    is_stderr: bool
    at: int
    """Offset in everything that the stream has ever produced."""
    data: bytes


def _segments(output: Output, at: list[int], most: int, *, unknown_ns: int) -> Iterator[_Segment]:
    """What *output* has from *at* on, in the order in which it came; moves *at* behind each segment.

    Where a slice was cut off because there was more than could be read at once, what came after its last byte is left
    for the next time, also of the other stream: else it would be told before what came earlier.

    Args:
        at: what is known already of both streams. A slice may begin before that.
        most: how much was asked for of each stream.
        unknown_ns: when bytes came of which nothing is known.
    """
    slices, marks = (output.stdout, output.stderr), output.marks
    for number, one in enumerate(slices):
        at[number] = max(at[number], one.at)
    last = [-1, -1]
    for place, mark in enumerate(marks):
        last[mark.is_stderr] = place
    until = min((last[n] for n in range(2) if _is_cut_off(output, slices[n], most)), default=len(marks))
    for number, one in enumerate(slices):
        if last[number] < 0 and at[number] < one.end:  # without a mark: it is older than all that have one
            yield _cut(one, at, number, one.end, marks[0].at_ns if marks else unknown_ns)
    for place, mark in enumerate(marks[: until + 1]):
        number = int(mark.is_stderr)
        end = slices[number].end if place == last[number] else min(mark.end, slices[number].end)
        if at[number] < end:
            yield _cut(slices[number], at, number, end, mark.at_ns)


def _is_cut_off(output: Output, one: OutputSlice, most: int) -> bool:
    # By its end, not by its length: what was overwritten while it was read is missing at its beginning.
    return output.end is None and one.end - (one.at - one.dropped) >= most


def _cut(one: OutputSlice, at: list[int], number: int, end: int, at_ns: int) -> _Segment:
    begin, at[number] = at[number], end
    whole = begin == one.at and end == one.end
    data = one.data if whole else one.data[begin - one.at : end - one.at]
    return _Segment(at_ns, bool(number), begin, data)


@dataclass(slots=True)
class _Unfinished:
    """The line of a stream whose end has not come yet."""

    data: bytearray = field(default_factory=bytearray)
    at_ns: int = 0
    """When its last byte came."""
    is_cut: bool = False
    """Its beginning is gone."""


class LineMaker:
    """Makes lines of a process's output."""

    def __init__(self, start: "Start | None" = None, *, longest: int, unknown_ns: int = 0) -> None:
        """Begin at the beginning of the output, or at *start*.

        Args:
            longest: bytes kept of a line that has not ended, its last ones.
            unknown_ns: see `_segments`.
        """
        self.longest = longest
        """May be changed at any time."""
        self.at = [0, 0] if start is None else list(start.at)
        """What has been taken of both streams: from here on is to be read next."""
        self._unknown_ns = unknown_ns
        cut = (False, False) if start is None else start.is_cut
        self._unfinished = tuple(_Unfinished(is_cut=one) for one in cut)

    @property
    def held(self) -> int:
        """Bytes of lines that have not ended."""
        return sum(len(one.data) for one in self._unfinished)

    def take(self, output: Output, most: int) -> Iterator[Lines]:
        """The lines that end in *output*, which was read from `at` on; take all of them before the next.

        *most*: how much was asked for of each stream.
        """
        for number, one in enumerate((output.stdout, output.stderr)):
            if one.at > self.at[number]:
                self._unfinished[number].data.clear()
                self._unfinished[number].is_cut = True
        for segment in _segments(output, self.at, most, unknown_ns=self._unknown_ns):
            for begin in range(0, len(segment.data), _PIECE):
                piece = segment.data[begin : begin + _PIECE]
                lines = self._split(self._unfinished[segment.is_stderr], segment.at_ns, piece)
                if lines:
                    yield Lines(segment.at_ns, segment.is_stderr, lines)

    def finish(self) -> Iterator[Lines]:
        """The last line of each stream, where it has no newline at its end, in the order in which they came."""
        for number in sorted((0, 1), key=lambda number: self._unfinished[number].at_ns):
            last = self._unfinished[number]
            if last.data:
                yield Lines(last.at_ns, bool(number), [bytes(last.data)])
                last.data.clear()

    def _split(self, unfinished: _Unfinished, at_ns: int, piece: bytes) -> list[bytes]:
        last = piece.rfind(_NEWLINE)
        lines: list[bytes] = []
        if last >= 0:
            lines = piece[:last].split(_NEWLINE)
            if unfinished.data:
                lines[0] = bytes(unfinished.data + lines[0])
                unfinished.data.clear()
            if unfinished.is_cut:
                unfinished.is_cut = False
                if len(lines[0]) < self.longest // 2:
                    del lines[0]
        if last + 1 < len(piece):
            unfinished.at_ns = at_ns
            unfinished.data += piece[last + 1 :]
            if len(unfinished.data) > self.longest:
                del unfinished.data[: -self.longest]
                unfinished.is_cut = False  # so much of it is worth showing
        return lines


@dataclass(frozen=True, slots=True)
class Start:
    """From where a process's lines are to be told."""

    at: tuple[int, int]
    """Offsets of both streams."""
    is_cut: tuple[bool, bool] = (False, False)
    """For each of them, whether that lies within a line whose beginning is gone."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some of a stream, in which lines end."""

    is_stderr: bool
    at: int
    end: int
    count: int
    """Lines that end in it."""
    before: tuple[int, int]
    """Where in each stream the line began that had not ended when it came."""


class LastLines:
    """Finds where the last so many lines of a process begin, over both streams.

    Memory is bounded by their number, not by that of all lines.
    """

    def __init__(self, most: int) -> None:
        """*most*: how many lines at most; one that has not ended is none, unless the process has ended."""
        self.at = [0, 0]
        """What has been counted of both streams."""
        self._most = max(0, most)
        self._first: list[int | None] = [None, None]
        """Where what is kept of each stream begins."""
        self._begun = [0, 0]
        """Where the last line of each stream begins, which has not ended."""
        self._rests = [0, 0]
        """Bytes of a line of each stream whose beginning is gone."""
        self._latest = 0
        """The stream that came last."""
        self._stretches: deque[Stretch] = deque()
        self._total = 0

    @property
    def again_at(self) -> tuple[int, int]:
        """From where to read what follows: one byte before, of each stream, so that there is something to be read."""
        out, err = (max(first or 0, at - 1) for first, at in zip(self._first, self.at, strict=True))
        return out, err

    def count(self, output: Output, most: int) -> bool:
        """Count the lines that end in *output*; whether there may be more to read at once.

        *most*: how much was asked for of each stream.
        """
        for number, one in enumerate((output.stdout, output.stderr)):
            if self._first[number] is None or one.at > self.at[number]:
                self._begin_anew(number, one.at)
        for segment in _segments(output, self.at, most, unknown_ns=0):
            self._add(segment)
        return any(_is_cut_off(output, one, most) for one in (output.stdout, output.stderr))

    def find(self, *, has_ended: bool) -> tuple[Start, Stretch | None, int]:
        """Where to start; and if that lies within a stretch, which, and how many of its lines to skip.

        *has_ended*: a last line without a newline is one, too.
        """
        begun = list(self._begun)
        unfinished = [n for n in (1 - self._latest, self._latest) if has_ended and self.at[n] > begun[n]]
        for number in unfinished[: max(0, len(unfinished) - self._most)]:
            begun[number] = self.at[number]
        most = max(0, self._most - len(unfinished))
        while self._stretches and self._total - self._stretches[0].count >= most:
            self._total -= self._stretches.popleft().count
        if not self._stretches:
            return self._start((begun[0], begun[1]), spare=most), None, 0
        first, skip = self._stretches[0], max(0, self._total - most)
        return self._start(first.before, spare=most - self._total), first if skip else None, skip

    def _start(self, at: tuple[int, int], *, spare: int) -> Start:
        places, is_cut = list(at), [False, False]
        for number, first in enumerate(self._first):
            if not first:
                continue
            rest, is_unfinished = self._rests[number], self._begun[number] == first
            is_oldest = places[number] in (first, first + rest + 1)
            if is_oldest and 2 * rest >= self.at[number] - first and (spare > 0 or is_unfinished):
                places[number] = first
                spare -= not is_unfinished
            else:
                is_cut[number] = places[number] == first
        return Start((places[0], places[1]), (is_cut[0], is_cut[1]))

    def _begin_anew(self, number: int, at: int) -> None:
        """What was counted of a stream is gone, if there was any: it is no longer kept."""
        self._first[number] = self._begun[number] = self.at[number] = at
        self._rests[number] = 0
        self._stretches = deque(one for one in self._stretches if one.is_stderr != bool(number))
        self._total = sum(one.count for one in self._stretches)

    def _add(self, segment: _Segment) -> None:
        number, data = int(segment.is_stderr), segment.data
        self._latest = number
        first, count = self._first[number] or 0, data.count(_NEWLINE)
        end = segment.at + len(data)
        if first and self._begun[number] == first:
            if not count:
                self._rests[number] = end - first
                return
            # The rest of a line whose beginning is gone is none.
            newline = segment.at + data.find(_NEWLINE)
            self._rests[number] = newline - first
            self._begun[number] = newline + 1
            count -= 1
        if not count:
            return
        begun = self._begun
        at = max(segment.at, begun[number])
        self._stretches.append(Stretch(segment.is_stderr, at, end, count, (begun[0], begun[1])))
        self._total += count
        begun[number] = segment.at + data.rfind(_NEWLINE) + 1
        while self._total - self._stretches[0].count >= self._most and len(self._stretches) > 1:
            self._total -= self._stretches.popleft().count


def skip_lines(start: Start, stretch: Stretch, skip: int, data: bytes) -> Start:
    """*start*, but in the stream of *stretch* behind its first *skip* lines, at least one; *data* is what it holds."""
    at, is_cut, number = list(start.at), list(start.is_cut), int(stretch.is_stderr)
    at[number], is_cut[number] = stretch.at + _behind(data, skip), False
    return Start((at[0], at[1]), (is_cut[0], is_cut[1]))


def _behind(data: bytes, count: int) -> int:
    """Where the line begins that follows the first *count* lines of *data*."""
    low, high = 0, len(data)
    while high - low > 1:  # by halves: all that is counted is as much as *data*
        middle = (low + high) // 2
        found = data.count(_NEWLINE, low, middle)
        if found < count:
            low, count = middle, count - found
        else:
            high = middle
    return high
