"""What has been done in boxes since the server was started: the counters that the protocol's metrics show."""

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["BoxCounts", "Counts"]

MOST_BOXES = 10_000
MOST_OWNERS = 10_000


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
    """Of all boxes, and of each owner's together: what others do in theirs is nobody's to see. Of more than
    `MOST_BOXES`, or `MOST_OWNERS`, the one that was used longest ago begins anew.
    """

    def __init__(self) -> None:
        self._boxes: OrderedDict[str, BoxCounts] = OrderedDict()
        self._owners: OrderedDict[str, BoxCounts] = OrderedDict()

    def of(self, box_id: str) -> BoxCounts:
        """Those of a box, to be read and added to."""
        return _kept(self._boxes, box_id, MOST_BOXES)

    def of_owner(self, owner: str) -> BoxCounts:
        """Executions in all boxes that *owner* (`Actor.owner`) has, or had."""
        return _kept(self._owners, owner, MOST_OWNERS)

    def add_execution(self, owner: str, box_id: str) -> None:
        """One was started."""
        self.of_owner(owner).executed += 1
        self.of(box_id).executed += 1

    def add_failure(self, owner: str, box_id: str) -> None:
        """One could not be."""
        self.of_owner(owner).failed += 1
        self.of(box_id).failed += 1

    def forget(self, box_id: str) -> None:
        """The box is gone. Idempotent."""
        self._boxes.pop(box_id, None)


def _kept(known: "OrderedDict[str, BoxCounts]", name: str, most: int) -> BoxCounts:
    found = known.get(name)
    if found is None:
        found = known[name] = BoxCounts()
        if len(known) > most:
            known.popitem(last=False)
    known.move_to_end(name)
    return found
