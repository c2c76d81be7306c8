"""What has been done in boxes since the server was started: the counters that the protocol's metrics show."""

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["BoxCounts", "Counts"]

MOST_BOXES = 10_000


@dataclass(kw_only=True)
class BoxCounts:
    """Of one box."""

    executed: int = 0
    """Executions that were started."""
    failed: int = 0
    """Those that could not be."""
    sent_bytes: int = 0
    """To standard inputs."""
    received_bytes: int = 0
    """Of output, as clients got it."""
    cpu: tuple[float, float] | None = None
    """A moment (monotonic) and the CPU seconds used until then: of the last look at the box's metrics."""


class Counts:
    """Of all boxes. Of more than `MOST_BOXES` the one that was used longest ago begins anew."""

    def __init__(self) -> None:
        self.executed = 0
        self.failed = 0
        self._boxes: OrderedDict[str, BoxCounts] = OrderedDict()

    def of(self, box_id: str) -> BoxCounts:
        """Those of a box, to be read and added to."""
        found = self._boxes.get(box_id)
        if found is None:
            found = self._boxes[box_id] = BoxCounts()
            if len(self._boxes) > MOST_BOXES:
                self._boxes.popitem(last=False)
        self._boxes.move_to_end(box_id)
        return found

    def add_execution(self, box_id: str) -> None:
        """One was started."""
        self.executed += 1
        self.of(box_id).executed += 1

    def add_failure(self, box_id: str) -> None:
        """One could not be."""
        self.failed += 1
        self.of(box_id).failed += 1

    def forget(self, box_id: str) -> None:
        """The box is gone. Idempotent."""
        self._boxes.pop(box_id, None)
