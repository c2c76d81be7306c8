"""The output of a process that lives: rings in a memory file, and those who read them.

The warden moves bytes from a pipe (or a terminal) into the ring without looking at them; readers, in other processes,
read the ring through a descriptor of their own and are told how far it is filled. What does not fit is gone, the oldest
first. A reader that keeps up is waited for: nothing that it has not read is overwritten, so the process is
slowed down to its pace. One that takes next to nothing for some seconds, or does not want it, is not waited for.

One file holds all of a process:

    a page for whoever is not waited for: FLOORS, before which something may be overwritten just now
    the ring of standard output, then that of standard error, `most` bytes each
    the ring of marks, MOST_MARKS of MARK each: which stream had come how far when
"""

import os
import struct
import time
from dataclasses import dataclass, field

__all__ = ["FLOORS", "HEAD_BYTES", "MARK", "MOST_MARKS", "PATIENCE_S", "Log", "Marks", "Reader", "for_reading"]

FLOORS = struct.Struct("<QQQ")
"""First offset of standard output, of standard error, and number of the first mark, that will not be overwritten."""
HEAD_BYTES = 4096
MARK = struct.Struct("<QQ")
"""Nanoseconds since the epoch; twice the offset up to which the stream has come then, and 1 for standard error."""
MOST_MARKS = 16384
PATIENCE_S = 5.0
"""So long a process waits for a reader that takes less than `_LEAST_STEP`, where the reader does not say otherwise."""
_LEAST_PATIENCE_S = 0.05
_LEAST_STEP = 64 << 10
_SPLICE = 1 << 20
_MOST_A_TURN = 4 << 20  # then the other sandboxes have theirs
_MOVES_A_TURN = 64  # also when each moves next to nothing: one who writes byte by byte could keep us here
_ONE_MOMENT_NS = 1_000_000


def for_reading(file: int) -> int:
    """A descriptor for others to read a process's file by; the caller's to close."""
    return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)


@dataclass(eq=False)
class Reader:
    """Somebody who reads a process's output: where they are in each stream."""

    at: list[int]
    most_patience_s: float = PATIENCE_S
    """How long they want the process to wait for them."""
    until_closed: bool = False
    """Whether they are told of its end only when nobody holds its output open any more."""
    is_waited_for: bool = True
    """Whether bytes that they have not read are kept."""
    patience_s: float = field(init=False)
    """How long the process waits for them the next time."""
    blocks_since: float | None = None
    """Since when it has been waiting, ..."""
    blocks_at: int = 0
    """... and how much they had read then."""

    def __post_init__(self) -> None:
        self.is_waited_for = self.most_patience_s > 0
        self.patience_s = self.most_patience_s

    def ask(self, at: list[int], starts: list[int], ends: list[int]) -> list[int]:
        """They have read up to *at* and want what follows; returns from where they can have it.

        From there on it is kept for them, for as long as they do not try the process's patience.
        """
        if self.blocks_since is not None and sum(at) - self.blocks_at >= _LEAST_STEP:
            self.blocks_since = None
        if at == ends:  # caught up
            self.patience_s, self.blocks_since = self.most_patience_s, None
        self.at = [max(one, start) for one, start in zip(at, starts, strict=True)]
        self.is_waited_for = self.most_patience_s > 0
        return self.at

    def tries_patience(self, now: float) -> float:
        """Note that the process waits for them; returns how long it still will, and stops waiting at 0."""
        if self.blocks_since is None:
            self.blocks_since, self.blocks_at = now, sum(self.at)
        left = self.blocks_since + self.patience_s - now
        if left <= 0:
            self.is_waited_for = False
            self.blocks_since = None
            self.patience_s = max(min(_LEAST_PATIENCE_S, self.most_patience_s), self.patience_s / 2)
        return left


@dataclass(eq=False)
class Marks:
    """When a process's output came, for both streams together: so they can be put in order."""

    file: int
    place: int
    """Where in the file their ring begins."""
    count: int = 0
    """How many there have been."""
    _last: tuple[int, int] = (-1, 0)
    """Stream and time of the last one."""

    @property
    def bytes(self) -> int:
        return min(self.count, MOST_MARKS) * MARK.size

    def note(self, number: int, end: int) -> None:
        """A stream has come to *end* now. What comes of one stream in one moment has one mark."""
        now = time.time_ns()
        stream, since = self._last
        if stream == number and 0 <= now - since < _ONE_MOMENT_NS:
            now = since
            index = self.count - 1
        else:
            index = self.count
            if index >= MOST_MARKS:
                os.pwrite(self.file, (index + 1 - MOST_MARKS).to_bytes(8, "little"), 16)
            self.count += 1
            self._last = (number, now)
        os.pwrite(self.file, MARK.pack(now, end << 1 | number), self.place + index % MOST_MARKS * MARK.size)


@dataclass(eq=False)
class Log:
    """One stream."""

    number: int
    """Its place in a reader's `at`."""
    most: int
    """Bytes that are kept."""
    source: int | None
    """Reading end of the pipe, or master side of the terminal; `None` once that has ended."""
    file: int
    """Of the process; not ours to close."""
    is_terminal: bool = False
    end: int = 0
    """Bytes that the stream has had so far."""
    blocked: bool = False
    """Whether somebody must read before more can be taken."""
    is_drained: bool = False
    """Whether there was nothing more to take when we last looked."""
    error: str = ""
    _place: int = field(init=False)

    def __post_init__(self) -> None:
        self._place = HEAD_BYTES + self.number * self.most

    @property
    def start(self) -> int:
        """Offset of the oldest byte that is kept."""
        return max(0, self.end - self.most)

    def room(self, readers: list[Reader]) -> int:
        """How many bytes may be taken without overwriting what somebody is to read."""
        slowest = min((reader.at[self.number] for reader in readers if reader.is_waited_for), default=self.end)
        return self.most - max(0, self.end - max(slowest, self.start))

    def pump(self, readers: list[Reader], marks: Marks) -> bool:
        """Take what there is; False when the stream has ended.

        Sets `blocked` when readers have to go on first, and `is_drained`.
        """
        self.is_drained = False
        self.blocked = False
        if self.source is None:
            self.is_drained = True
            return False
        before = self.end
        try:
            return self._take(readers, before)
        finally:
            if self.end > before:
                marks.note(self.number, self.end)

    def put(self, text: bytes, marks: Marks) -> None:
        """Add something of ours, which fits."""
        os.pwrite(self.file, text, self._place + self.end)
        self.end += len(text)
        marks.note(self.number, self.end)

    def _take(self, readers: list[Reader], before: int) -> bool:
        for _ in range(_MOVES_A_TURN):
            if self.end - before >= _MOST_A_TURN:
                break
            room = self.room(readers)
            if room <= 0:
                self.blocked = True
                return True
            place = self.end % self.most
            most = min(room, self.most - place, _SPLICE)
            has_wrapped = self.end + most > self.most
            if has_wrapped:  # before it happens: who is not waited for looks after having read
                self._set_floor(self.end + most)
            moved = self._move(most, self._place + place)
            self.end += max(0, moved)
            if has_wrapped:
                self._set_floor(self.end)
            if moved <= 0:
                self.is_drained = True
                return moved < 0
        return True

    def _set_floor(self, end: int) -> None:
        os.pwrite(self.file, max(0, end - self.most).to_bytes(8, "little"), 8 * self.number)

    def _move(self, most: int, place: int) -> int:
        """How many bytes have been moved; 0 at the end of the stream, -1 when there are none now."""
        assert self.source is not None
        try:
            if self.is_terminal:
                data = os.read(self.source, min(most, 65536))
                return os.pwrite(self.file, data, place) if data else 0
            return os.splice(self.source, self.file, most, offset_dst=place, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return -1
        except OSError as error:  # a terminal's last process has gone (EIO); or no memory for the ring
            if not self.is_terminal:
                self.error = str(error)
            return 0

    def close_source(self) -> None:
        if self.source is not None:
            if not self.is_terminal:  # the master side is the process's, which also writes to it
                os.close(self.source)
            self.source = None
