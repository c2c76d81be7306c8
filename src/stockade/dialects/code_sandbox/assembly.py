"""Puts the dialect together for each app that mounts it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry

from stockade.accounts import Accounts
from stockade.dialects.code_sandbox.access import Access
from stockade.dialects.code_sandbox.edge import Edge
from stockade.dialects.code_sandbox.metrics import Metrics
from stockade.dialects.code_sandbox.service import CodeSandbox
from stockade.dialects.code_sandbox.settings import CodeSandboxSettings
from stockade.dialects.code_sandbox.translate import SPELLINGS, Defaults
from stockade.model import Actor
from stockade.wire.dialect import Services
from stockade.wire.rates import Concurrency

__all__ = ["edge_of", "sandbox_of"]

_ANY = "*"


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What all apps of one server share: a metric can be registered only once, and a second port must not double what
    anybody may have at once."""

    metrics: Metrics
    streams: Concurrency


_by_server: WeakKeyDictionary[CollectorRegistry, _Shared] = WeakKeyDictionary()


def sandbox_of(services: Services) -> CodeSandbox:
    """The dialect's services."""
    settings: CodeSandboxSettings = services.settings
    return CodeSandbox(
        engine=services.engine,
        defaults=Defaults.of(
            timeout_s=settings.timeout_s,
            max_timeout_s=settings.max_timeout_s,
            maximum=services.engine.limits.maximum,
        ),
        spellings=None if settings.all_languages else SPELLINGS,
        streams=_shared(services).streams,
    )


def edge_of(services: Services) -> Edge:
    """What surrounds the routes of one app."""
    settings: CodeSandboxSettings = services.settings
    access = Access(
        keys=services.keys,
        token_actor=None if services.accounts is None else _token_actor(services.accounts),
        is_open=services.open_access and not settings.auth_required,
    )
    return Edge(
        access=access,
        settings=settings,
        metrics=_shared(services).metrics,
        body_timeout_s=services.server.body_timeout_s,
        cors={} if services.server.cors_enabled and settings.cors_origin == _ANY else _cors(settings.cors_origin),
    )


def _shared(services: Services) -> _Shared:
    settings: CodeSandboxSettings = services.settings
    shared = _by_server.get(services.registry)
    if shared is None:
        shared = _by_server[services.registry] = _Shared(
            metrics=Metrics(services.registry), streams=Concurrency(per_actor=settings.streams_per_key)
        )
    return shared


def _token_actor(accounts: Accounts) -> Callable[[str], Awaitable[Actor]]:
    async def actor(token: str) -> Actor:
        return await accounts.users.actor(await accounts.tokens.verify(token))

    return actor


def _cors(origin: str) -> dict[str, str]:
    """Headers that let pages of *origin* read answers; none for none."""
    if not origin:
        return {}
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": "GET, POST, PUT, DELETE, OPTIONS",
        "access-control-allow-headers": "Content-Type, Authorization",
        "access-control-max-age": "86400",
        **({} if origin == _ANY else {"vary": "Origin"}),
    }
