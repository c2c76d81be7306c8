"""The output of a process that lives: a ring in a memory file for each stream, and those who read it.

The warden moves bytes from a pipe (or a terminal) into the ring without looking at them; readers, in other processes,
read the ring through a descriptor of their own and are told how far it is filled. What does not fit is gone, the oldest
first. A reader that keeps up is waited for: nothing that it has not read is overwritten, so the process is
slowed down to its pace. One that takes next to nothing for some seconds is not waited for any longer.
"""

import os
from dataclasses import dataclass, field

from . import protocol

__all__ = ["PATIENCE_S", "Log", "Reader"]

PATIENCE_S = 5.0
"""So long a process waits for a reader that takes less than `_LEAST_STEP`."""
_LEAST_PATIENCE_S = 0.05
_LEAST_STEP = 64 << 10
_SPLICE = 1 << 20
_MOST_A_TURN = 4 << 20  # then the other sandboxes have theirs
_MOVES_A_TURN = 64  # also when each moves next to nothing: one who writes byte by byte could keep us here


@dataclass(eq=False)
class Reader:
    """Somebody who reads a process's output: where they are in each stream."""

    at: list[int]
    is_waited_for: bool = True
    """Whether bytes that they have not read are kept."""
    patience_s: float = PATIENCE_S
    """How long the process waits for them."""
    blocks_since: float | None = None
    """Since when it has been waiting, ..."""
    blocks_at: int = 0
    """... and how much they had read then."""

    def ask(self, at: list[int], starts: list[int], ends: list[int]) -> list[int]:
        """They have read up to *at* and want what follows; returns from where they can have it.

        From there on it is kept for them, for as long as they do not try the process's patience.
        """
        if self.blocks_since is not None and sum(at) - self.blocks_at >= _LEAST_STEP:
            self.blocks_since = None
        if at == ends:  # caught up
            self.patience_s, self.blocks_since = PATIENCE_S, None
        self.at = [max(one, start) for one, start in zip(at, starts, strict=True)]
        self.is_waited_for = True
        return self.at

    def tries_patience(self, now: float) -> float:
        """Note that the process waits for them; returns how long it still will, and stops waiting at 0."""
        if self.blocks_since is None:
            self.blocks_since, self.blocks_at = now, sum(self.at)
        left = self.blocks_since + self.patience_s - now
        if left <= 0:
            self.is_waited_for = False
            self.blocks_since = None
            self.patience_s = max(_LEAST_PATIENCE_S, self.patience_s / 2)
        return left


@dataclass(eq=False)
class Log:
    """One stream."""

    number: int
    """Its place in a reader's `at`."""
    most: int
    """Bytes that are kept."""
    source: int | None
    """Reading end of the pipe, or master side of the terminal; `None` once that has ended."""
    is_terminal: bool = False
    end: int = 0
    """Bytes that the stream has had so far."""
    blocked: bool = False
    """Whether somebody must read before more can be taken."""
    is_drained: bool = False
    """Whether there was nothing more to take when we last looked."""
    error: str = ""
    file: int = field(init=False)

    def __post_init__(self) -> None:
        self.file = protocol.memory_file("log")

    @property
    def start(self) -> int:
        """Offset of the oldest byte that is kept."""
        return max(0, self.end - self.most)

    def for_reading(self) -> int:
        """A descriptor for others to read the ring by; the caller's to close."""
        return os.open(f"/proc/self/fd/{self.file}", os.O_RDONLY | os.O_CLOEXEC)

    def room(self, readers: list[Reader]) -> int:
        """How many bytes may be taken without overwriting what somebody is to read."""
        slowest = min((reader.at[self.number] for reader in readers if reader.is_waited_for), default=self.end)
        return self.most - max(0, self.end - max(slowest, self.start))

    def pump(self, readers: list[Reader]) -> bool:
        """Take what there is; False when the stream has ended.

        Sets `blocked` when readers have to go on first, and `is_drained`.
        """
        self.is_drained = False
        self.blocked = False
        if self.source is None:
            self.is_drained = True
            return False
        before = self.end
        for _ in range(_MOVES_A_TURN):
            if self.end - before >= _MOST_A_TURN:
                break
            room = self.room(readers)
            if room <= 0:
                self.blocked = True
                return True
            place = self.end % self.most
            try:
                moved = self._move(min(room, self.most - place, _SPLICE), place)
            except BlockingIOError:
                self.is_drained = True
                return True
            except OSError as error:  # a terminal's last process has gone (EIO); or no memory for the ring
                if not self.is_terminal:
                    self.error = str(error)
                moved = 0
            if moved == 0:
                self.is_drained = True
                return False
            self.end += moved
        return True

    def _move(self, most: int, place: int) -> int:
        assert self.source is not None
        if self.is_terminal:
            data = os.read(self.source, min(most, 65536))
            return os.pwrite(self.file, data, place) if data else 0
        return os.splice(self.source, self.file, most, offset_dst=place, flags=os.SPLICE_F_NONBLOCK)

    def close_source(self) -> None:
        if self.source is not None:
            if not self.is_terminal:  # the master side is the process's, which also writes to it
                os.close(self.source)
            self.source = None

    def close(self) -> None:
        self.close_source()
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
