"""Bytes of UTF-8 that come in pieces, for clients that take each piece for whole text."""

import re

__all__ = ["Aligner", "incomplete"]

_BEGUN = re.compile(rb"(?:[\xc2-\xf4]|[\xe0-\xf4][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{2})\Z")
"""Bytes at the end that may be the beginning of a character."""


def incomplete(data: bytes) -> int:
    """How many bytes at the end of *data* may belong to a character that goes on in what follows: 0 to 3."""
    begun = _BEGUN.search(data, max(0, len(data) - 3))
    return len(data) - begun.start() if begun else 0


class Aligner:
    """Cuts a stream between characters: what has begun at the end of a piece is held until the next."""

    def __init__(self) -> None:
        self._begun = b""

    @property
    def held(self) -> int:
        """Bytes that are held: 0 to 3."""
        return len(self._begun)

    def take(self, data: bytes) -> bytes:
        """What of *data*, and of what was held, is whole. Bytes that are no UTF-8 at all are passed on as they are."""
        data = self._begun + data
        cut = len(data) - incomplete(data)
        self._begun = data[cut:]
        return data[:cut]

    def rest(self) -> bytes:
        """What is held, which nothing follows."""
        data, self._begun = self._begun, b""
        return data
