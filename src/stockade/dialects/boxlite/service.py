"""What all routes of the dialect stand on."""

from dataclasses import dataclass, replace

from stockade.dialects.boxlite.counts import Counts
from stockade.dialects.boxlite.edge import Edge
from stockade.dialects.boxlite.engine_needs import Boxes
from stockade.dialects.boxlite.settings import BoxliteSettings
from stockade.engine.box_needs import BoxOptions
from stockade.engine.limits import LimitPolicy
from stockade.engine.tasks import Tasks
from stockade.wire.dialect import Services

__all__ = ["Context", "box_limits"]


def box_limits(sandboxes: LimitPolicy, options: BoxOptions) -> LimitPolicy:
    """What boxes may have: as sandboxes that stay, but for their disks."""
    return LimitPolicy(
        defaults=replace(sandboxes.defaults, disk_bytes=options.default_disk_bytes),
        maximum=replace(sandboxes.maximum, disk_bytes=options.most_disk_bytes),
    )


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the routes are made over; one for each app that mounts them.

    A route's handler is `async def f(request: Request, box_id: str, …) -> Response`, added to a `ScopedRouter` with the
    path that has no slot (`/v1/boxes/{box_id}/exec`), and goes through `edge`:

        return await context.edge.call(request, work, status=201)

    where `work(actor)` gives an object to be written as JSON, a `Response`, or `None`, and raises `StockadeError`
    (`failures.Refused` for what has a status and a code of its own in the protocol).
    """

    services: Services
    settings: BoxliteSettings
    edge: Edge
    boxes: Boxes
    counts: Counts
    """What has been done in each box; shared by all apps of the server."""
    tasks: Tasks
    """Of the dialect, as long as the server runs; shared by all apps of the server."""

    @property
    def limits(self) -> LimitPolicy:
        """Of boxes."""
        sandboxes = self.services.engine.sandboxes
        assert sandboxes is not None  # what boxes run in
        return box_limits(sandboxes.limits, self.boxes.options)
