"""Routes of figures: of a box, and of all boxes of the server."""

import time
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response

from stockade.dialects.boxlite.counts import BoxCounts
from stockade.dialects.boxlite.documented import operation
from stockade.dialects.boxlite.engine_needs import BoxTiming
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter
from stockade.dialects.boxlite.wire import BoxMetricsAnswer, MetricsAnswer
from stockade.errors import NotFound
from stockade.model import Actor, Box, BoxState, Usage

__all__ = ["boot_timing", "cpu_percent", "metrics_routes"]


class UsageNow(Protocol):
    @property
    def usage(self) -> Usage: ...

    @property
    def memory_bytes(self) -> int: ...


def metrics_routes(context: Context) -> APIRouter:
    """The routes, over *context*."""
    router = ScopedRouter()
    edge, boxes = context.edge, context.boxes

    @router.get(
        "/v1/boxes/{box_id}/metrics",
        **operation("box_metrics", "Figures of a box", answer=BoxMetricsAnswer, errors=(404,)),
    )
    async def of_box(request: Request, box_id: str) -> Response:
        """What its processes use now; what was executed in it since the server was started."""

        async def work(actor: Actor) -> object:
            found = await boxes.get(actor, box_id)
            counts = context.counts.of(found.id)
            now = await _usage(context, found)
            return {
                "commands_executed_total": counts.executed,
                "exec_errors_total": counts.failed,
                "bytes_sent_total": counts.sent_bytes,
                "bytes_received_total": counts.received_bytes,
                "cpu_percent": None if now is None else cpu_percent(counts, now.usage, at=time.monotonic()),
                "memory_bytes": None if now is None else now.memory_bytes,
                "network_bytes_sent": 0 if now is None else now.usage.bytes_out,
                "network_bytes_received": 0 if now is None else now.usage.bytes_in,
                "network_tcp_connections": None,
                "network_tcp_errors": None,
                "boot_timing": boot_timing(boxes.timing(found.id)),
            }

        return await edge.call(request, work)

    @router.get("/v1/metrics", **operation("metrics", "Figures of all boxes of the account", answer=MetricsAnswer))
    async def of_all(request: Request) -> Response:
        """Of the account, since the server was started. What runs is what was created (here: what was to be started),
        less what failed and what stopped."""

        async def work(actor: Actor) -> object:
            seen, done = boxes.counts(actor), context.counts.of_owner(actor.owner)
            return {
                "boxes_created_total": seen.started + seen.failed,
                "boxes_failed_total": seen.failed,
                "boxes_stopped_total": seen.stopped,
                "num_running_boxes": seen.running,
                "total_commands_executed": done.executed,
                "total_exec_errors": done.failed,
            }

        return await edge.call(request, work)

    return router


async def _usage(context: Context, box: Box) -> UsageNow | None:
    """What the box's sandbox uses; `None` where none runs."""
    sandboxes = context.services.engine.sandboxes
    if box.state not in (BoxState.RUNNING, BoxState.PAUSED) or box.sandbox_id is None or sandboxes is None:
        return None
    try:
        return await sandboxes.usage(context.boxes.acting(box), box.sandbox_id)
    except NotFound:
        return None  # it has just ended


def cpu_percent(counts: BoxCounts, usage: Usage, *, at: float) -> float:
    """What of a processor was used since the last look; at the first one, since the box was started."""
    before_at, before_s = counts.cpu or (at - usage.wall_s, 0.0)
    counts.cpu = (at, usage.cpu_s)
    elapsed_s = at - before_at
    if elapsed_s <= 0 or usage.cpu_s < before_s:  # it has been started anew since
        elapsed_s, before_s = usage.wall_s, 0.0
    return round(100 * (usage.cpu_s - before_s) / elapsed_s, 2) if elapsed_s > 0 else 0.0


def boot_timing(timing: BoxTiming | None) -> dict[str, Any]:
    """The steps of the last start, in whole milliseconds; those that there are none of here are left out."""
    if timing is None:
        return {}
    steps = {
        "total_create_ms": timing.total_s,
        "image_prepare_ms": timing.image_s,
        "filesystem_setup_ms": timing.disk_s,
        "guest_boot_ms": timing.sandbox_s,
        "container_init_ms": timing.main_s,
    }
    return {name: round(1000 * seconds) for name, seconds in steps.items()}
