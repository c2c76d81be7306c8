"""How fast places come free."""

import math

__all__ = ["Pace"]

FADE_S = 5.0
"""What was measured so long ago counts 1/e."""
KNOWN_AFTER_S = 1.0


class Pace:
    """Measures how many places come free a second, while somebody waits: else it would tell how many are asked for.

    Times are of one clock, in seconds.
    """

    def __init__(self) -> None:
        self._freed = 0.0
        self._time_s = 0.0
        self._at: float | None = None
        """Until when it is measured; `None` while nobody waits."""

    def begin(self, now: float) -> None:
        """Somebody waits from now on."""
        self._at = now

    def end(self, now: float) -> None:
        """Nobody waits any more."""
        self._pass(now)
        self._at = None

    def freed(self, now: float) -> None:
        """A place has come free while somebody waits."""
        self._pass(now)
        self._freed += 1

    def time_for(self, places: int, now: float) -> float:
        """Seconds until that many *places* have come free; 0 while that cannot be told."""
        self._pass(now)
        # One more is always on its way: without it, a set of long programs would look like a standstill.
        return places * self._time_s / (self._freed + 1) if self._time_s >= KNOWN_AFTER_S else 0.0

    def _pass(self, now: float) -> None:
        if self._at is None:
            return
        fading = math.exp((self._at - now) / FADE_S)
        self._freed *= fading
        self._time_s = self._time_s * fading + FADE_S * (1 - fading)
        self._at = now
