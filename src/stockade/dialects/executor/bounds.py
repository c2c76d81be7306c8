"""How much may be under way at once: requests take as long as their commands do, and bodies lie in memory."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stockade.errors import Unavailable

__all__ = ["Bounds", "NoPlace"]

_SMALL = 64 * 1024
"""Bytes of a body that are not counted: as much lies in buffers anyway."""


class NoPlace(Unavailable):
    """As much is under way as may be; nothing was done."""

    code = "executor.no_place"


class Bounds:
    """Counts requests of each sandbox, and the bytes of all large bodies."""

    def __init__(self, *, requests_per_sandbox: int, bodies_bytes: int) -> None:
        self._most = requests_per_sandbox
        self._requests: Counter[str] = Counter()
        self._left = bodies_bytes

    @contextmanager
    def request(self, sandbox_id: str) -> Iterator[None]:
        """Count a request of a sandbox's during the block. Raises NoPlace."""
        if self._requests[sandbox_id] >= self._most:
            raise NoPlace(f"{self._most} requests for this sandbox are under way already; retry when one has ended")
        self._requests[sandbox_id] += 1
        try:
            yield
        finally:
            self._requests[sandbox_id] -= 1
            if not self._requests[sandbox_id]:
                del self._requests[sandbox_id]

    @contextmanager
    def body(self, size: int) -> Iterator[None]:
        """Count a body of so many bytes during the block. Raises NoPlace."""
        if size <= _SMALL:
            yield
            return
        if size > self._left:
            raise NoPlace("too many large requests are under way; retry in a moment")
        self._left -= size
        try:
            yield
        finally:
            self._left += size
