"""How many clients a listener keeps, and what they may leave unread: who only waits makes room for who asks.

| threat | mechanism |
|---|---|
| connections that send nothing, or a byte now and then, until no descriptor is left | beyond a bound, the one that has waited longest is ended for each that comes |
| requests that never end to come, or answers that nobody takes, until no place is left | beyond the places, the oldest of those is cut off for each that comes |
| many large answers asked for and not read | beyond a bound for all together, who has left theirs longest is cut off |
"""  # noqa: E501

from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["MOST_UNREAD_BYTES", "Kept", "Room"]

MOST_UNREAD_BYTES = 256 * 1024 * 1024
"""Of answers that are complete on our side and wait in memory for their clients to take them, together."""
_SMALL_BYTES = 64 * 1024
"""Answers below are not counted: sending them is the kernel's business in all but a moment."""


class Kept(Protocol):
    """A connection, as far as its room knows it."""

    def unread(self) -> int:
        """Bytes of answers that its client has not taken."""
        ...

    def cut(self) -> None:
        """End it at once, with whatever is on its way."""
        ...


@dataclass(kw_only=True)
class Room:
    """The connections of one listener that wait for something to ask, and those with much to take."""

    most: int
    """Connections at once, of all kinds."""
    most_unread_bytes: int = MOST_UNREAD_BYTES
    _waiting: dict[Kept, None] = field(default_factory=dict)
    """In the order in which they began to."""
    _unread: dict[Kept, None] = field(default_factory=dict)

    def waits(self, one: Kept) -> None:
        """*one* has no request under way from now on. What it has not taken of the last answer is counted."""
        self._waiting.pop(one, None)
        self._waiting[one] = None
        if one.unread() > _SMALL_BYTES:
            self._unread.pop(one, None)
            self._unread[one] = None
            self._shed()

    def works(self, one: Kept) -> None:
        """*one* has asked for something, and is not ended for others any more."""
        self._waiting.pop(one, None)

    def leaves(self, one: Kept) -> None:
        """*one* is gone."""
        self._waiting.pop(one, None)
        self._unread.pop(one, None)

    def make(self, connections: int) -> bool:
        """Whether another may stay where *connections* are, itself included: one that waits is ended for it."""
        if connections <= self.most:
            return True
        for longest in self._waiting:
            self.leaves(longest)
            longest.cut()
            return True
        return False

    def _shed(self) -> None:
        sizes = {one: one.unread() for one in self._unread}
        for one, size in sizes.items():
            if size <= _SMALL_BYTES:
                del self._unread[one]
        too_much = sum(sizes.values()) - self.most_unread_bytes
        for one in list(self._unread):
            if too_much <= 0:
                return
            too_much -= sizes[one]
            self.leaves(one)
            one.cut()
