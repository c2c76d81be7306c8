"""The execbox dialect: sessions over HTTP and WebSocket, their files and ports; keys and usage.

Wire: docs/dialects/execbox.md

| module | holds |
|---|---|
| `wire`, `wire.frames` | what clients send and get |
| `translate`, `account_translate`, `queries` | pure functions between the wire and the engine |
| `service`, `accounting`, `streams`, `logs`, `sending` | what is done |
| `edge`, `failures` | who asks, how often, what is refused and how that is worded |
| `*_routes`, `documented` | HTTP and WebSocket |
| `settings`, `assembly` | what an operator can set; how it all is put together |
"""

from fastapi import APIRouter

from stockade.dialects.execbox.assembly import parts_of
from stockade.dialects.execbox.routes import make_router
from stockade.dialects.execbox.settings import ExecboxSettings
from stockade.dialects.execbox.unknown_routes import PATHS, unsupported_router
from stockade.wire.dialect import Dialect, Services

__all__ = ["dialect", "largest_body"]

UNBOUNDED = 1 << 62
"""The routes bound what they read themselves, and word the refusal; uploads are bounded by the session's disk."""


def health(_services: Services) -> dict[str, object]:
    """What execbox's clients look for in `GET /health`."""
    return {"status": "ok"}


def router(services: Services) -> APIRouter:
    """The routes; where the backend has no sandboxes that live, or nothing to record them in, all of them say so."""
    parts = parts_of(services)
    if parts is None:
        return unsupported_router()
    return make_router(parts.sessions, parts.accounting, parts.edge)


def largest_body(_services: Services, path: str) -> int | None:
    """The largest body of a request to *path*, where that is not the server's own."""
    return UNBOUNDED if path.startswith(PATHS) else None


dialect = Dialect(
    name="execbox",
    summary="Sandboxes that stay: /v1/sessions with streams, exec, files and ports; execbox's clients work unchanged.",
    router=router,
    settings=ExecboxSettings,
    health=health,
    largest_body=largest_body,
)
