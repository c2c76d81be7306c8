"""Puts the isobox dialect together, once for each server."""

from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry

from stockade.dialects.isobox.access import Access
from stockade.dialects.isobox.dedup import AnswerCache, MemoryCache, RedisCache
from stockade.dialects.isobox.edge import Edge
from stockade.dialects.isobox.metrics import Metrics
from stockade.dialects.isobox.service import DedupCounts, Isobox
from stockade.dialects.isobox.settings import IsoboxSettings
from stockade.wire.dialect import Services
from stockade.wire.fetch import Fetcher
from stockade.wire.rates import Concurrency, RateLimiter

__all__ = ["edge_of", "isobox_of"]

# An app of its own and the merged one share their server's registry, so they share rates, answers and counters too:
# a second port must not double anybody's quota, and a metric can be registered only once.
_by_server: WeakKeyDictionary[CollectorRegistry, Isobox] = WeakKeyDictionary()


def isobox_of(services: Services) -> Isobox:
    """The dialect's services on this server, made when first asked for.

    Raises:
        Unsupported: a needed extra is not installed.
    """
    isobox = _by_server.get(services.registry)
    if isobox is None:
        isobox = _by_server[services.registry] = _assemble(services)
    return isobox


def edge_of(services: Services, isobox: Isobox, access: Access) -> Edge:
    """What surrounds the routes of one app."""
    return Edge(
        access=access,
        settings=isobox.settings,
        server=services.server,
        metrics=isobox.metrics,
        rates=isobox.rates,
        queue=services.engine.queue if isobox.cache is None else None,
    )


def _assemble(services: Services) -> Isobox:
    settings: IsoboxSettings = services.settings
    return Isobox(
        engine=services.engine,
        settings=settings,
        metrics=Metrics(services.registry, services.engine.queue),
        rates=_rates(settings),
        concurrency=Concurrency(per_actor=settings.rate_limit_concurrent),
        fetcher=Fetcher(
            hosts=settings.test_url_hosts,
            max_bytes=settings.test_url_max_bytes,
            timeout_s=settings.test_url_timeout_s,
        ),
        cache=_cache(settings),
        dedup=DedupCounts(),
    )


def _rates(settings: IsoboxSettings) -> RateLimiter | None:
    per_minute = settings.rate_limit_per_minute
    if not per_minute:
        return None
    return RateLimiter(per_minute=per_minute, burst=settings.rate_limit_burst or per_minute)


def _cache(settings: IsoboxSettings) -> AnswerCache | None:
    if not settings.dedup_enabled:
        return None
    if settings.dedup_cache_type == "redis":
        return RedisCache(url=settings.dedup_redis_url, ttl_s=settings.dedup_cache_ttl_s)
    return MemoryCache(ttl_s=settings.dedup_cache_ttl_s, max_bytes=settings.dedup_memory_bytes)
