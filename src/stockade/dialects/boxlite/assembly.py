"""Puts the dialect together: what all apps of a server share, and what each has."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from stockade.dialects.boxlite.access import Access
from stockade.dialects.boxlite.account_routes import account_routes, configuration
from stockade.dialects.boxlite.box_routes import box_routes
from stockade.dialects.boxlite.counts import Counts
from stockade.dialects.boxlite.disk_routes import disk_routes
from stockade.dialects.boxlite.edge import Edge
from stockade.dialects.boxlite.entry_routes import entry_routes
from stockade.dialects.boxlite.execution_routes import execution_routes
from stockade.dialects.boxlite.executions import executions_of
from stockade.dialects.boxlite.file_routes import file_routes
from stockade.dialects.boxlite.image_routes import image_routes
from stockade.dialects.boxlite.metrics_routes import metrics_routes
from stockade.dialects.boxlite.network_routes import network_routes
from stockade.dialects.boxlite.registry_routes import registry_routes
from stockade.dialects.boxlite.service import Context, box_limits
from stockade.dialects.boxlite.settings import BoxliteSettings
from stockade.dialects.boxlite.slots import ScopedRouter
from stockade.dialects.boxlite.tunnels import Tunnels
from stockade.dialects.boxlite.unknown_routes import refusing_router
from stockade.dialects.boxlite.volume_routes import volume_routes
from stockade.engine.tasks import Tasks
from stockade.errors import Unsupported
from stockade.wire.dialect import Services
from stockade.wire.rates import Concurrency, RateLimiter

__all__ = ["make_router", "running"]


_NO_BOXES = "this server has no boxes: its backend, its disks or a database are missing"


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What all apps of a server share: a second port must not double anybody's quota, nor forget what ran."""

    rates: RateLimiter
    streams: Concurrency
    counts: Counts = field(default_factory=Counts)
    tasks: Tasks = field(default_factory=Tasks)
    tunnels: Tunnels | None


_by_server: WeakKeyDictionary[CollectorRegistry, _Shared] = WeakKeyDictionary()


def make_router(services: Services) -> APIRouter:
    """All routes; where the server has no boxes, those that need some say so."""
    settings: BoxliteSettings = services.settings
    shared, engine = _shared(services), services.engine
    boxes, volumes, images = engine.boxes, engine.volumes, engine.images
    edge = Edge(
        access=Access(keys=services.keys, is_open=services.open_access),
        rates=shared.rates,
        streams=shared.streams,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=services.server.body_timeout_s,
    )
    router = ScopedRouter(tags=["boxlite"])
    limits = None
    if boxes is not None and engine.sandboxes is not None:
        limits = box_limits(engine.sandboxes.limits, boxes.options)
    config = configuration(settings, limits, has_archives=engine.archives is not None)
    router.add(account_routes(edge, services.accounts, config))
    if boxes is None or shared.tunnels is None:
        router.add(refusing_router(edge, Unsupported(_NO_BOXES)))
        return router
    context = Context(
        services=services,
        settings=settings,
        edge=edge,
        boxes=boxes,
        counts=shared.counts,
        tasks=shared.tasks,
    )
    # In this order: `import`, `registries` and the like stand where the name of a box or an image does.
    router.add(disk_routes(context, engine.archives))
    router.add(box_routes(context, shared.tunnels))
    router.add(execution_routes(context))
    router.add(file_routes(context))
    router.add(entry_routes(context))
    router.add(network_routes(context, shared.tunnels))
    router.add(metrics_routes(context))
    if engine.registries is not None:
        router.add(registry_routes(context, engine.registries))
    if volumes is not None:
        router.add(volume_routes(context, volumes))
    if images is not None:
        router.add(image_routes(context, images))
    for name, part in (("volumes", volumes), ("images", images)):
        if part is None:
            missing = Unsupported(f"this server has no {name}")
            router.add(refusing_router(edge, missing, resources=frozenset({name})))
    router.add(refusing_router(edge))
    return router


@asynccontextmanager
async def running(services: Services) -> AsyncIterator[None]:
    """What the dialect does by itself, during the block: tunnels, and what goes on beyond a request."""
    shared = _shared(services)
    async with shared.tasks.running():
        if shared.tunnels is None:
            yield
            return
        async with shared.tunnels.running(), executions_of(services).running():
            yield


def _shared(services: Services) -> _Shared:
    shared = _by_server.get(services.registry)
    if shared is None:
        settings: BoxliteSettings = services.settings
        shared = _by_server[services.registry] = _Shared(
            rates=RateLimiter(),
            streams=Concurrency(per_actor=settings.streams_per_key),
            tunnels=_tunnels(services, settings),
        )
    return shared


def _tunnels(services: Services, settings: BoxliteSettings) -> Tunnels | None:
    boxes, sandboxes = services.engine.boxes, services.engine.sandboxes
    if boxes is None or sandboxes is None:
        return None
    return Tunnels(
        host=settings.tunnel_host or services.server.host,
        dialler=sandboxes.lives.backend,
        boxes=boxes,
        most_of_actor=settings.tunnels_per_key,
        idle_s=settings.tunnel_idle_s,
    )
