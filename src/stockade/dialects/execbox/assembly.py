"""Puts the execbox dialect together, once for each server."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry

from stockade import registry
from stockade.accounts import Accounts
from stockade.dialects.execbox.accounting import Accounting
from stockade.dialects.execbox.edge import Edge
from stockade.dialects.execbox.executor import NAME as EXECUTOR
from stockade.dialects.execbox.executor import ExecutorApi
from stockade.dialects.execbox.service import Sessions
from stockade.dialects.execbox.settings import ExecboxSettings
from stockade.engine import Sandboxes
from stockade.wire.dialect import Services
from stockade.wire.rates import Concurrency, RateLimiter

__all__ = ["Parts", "parts_of"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the routes are made over."""

    sessions: Sessions
    accounting: Accounting
    edge: Edge


# An app of its own and the merged one share rates: a second port must not double anybody's quota.
_by_server: WeakKeyDictionary[CollectorRegistry, Parts] = WeakKeyDictionary()


def parts_of(services: Services) -> Parts | None:
    """The dialect's parts on this server, made when first asked for; `None` where there is nothing to make them of."""
    if services.engine.sandboxes is None or services.accounts is None:
        return None
    parts = _by_server.get(services.registry)
    if parts is None:
        parts = _by_server[services.registry] = _assemble(services, services.engine.sandboxes, services.accounts)
    return parts


def _assemble(services: Services, sandboxes: Sandboxes, accounts: Accounts) -> Parts:
    settings: ExecboxSettings = services.settings
    return Parts(
        sessions=Sessions(
            sandboxes=sandboxes,
            limits=sandboxes.limits,
            settings=settings,
            image_cwd=lambda name: sandboxes.images.find(name).cwd,
            executor_api=ExecutorApi(
                url=settings.executor_url,
                server=services.server,
                is_merged=EXECUTOR in (services.server.dialects or registry.names("dialects")),
            ),
        ),
        accounting=Accounting(accounts=accounts),
        edge=Edge(
            keys=accounts,
            rates=RateLimiter(),
            public_rates=RateLimiter(per_minute=60 * settings.public_rate_per_s, burst=settings.public_rate_per_s),
            streams=Concurrency(per_actor=settings.streams_per_key),
            settings=settings,
            body_timeout_s=services.server.body_timeout_s,
        ),
    )
