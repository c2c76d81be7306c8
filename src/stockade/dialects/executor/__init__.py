"""The executor dialect: one sandbox, opened by its own secret: commands, files, processes, one port.

Koyeb's clients (Python, JavaScript, command line) work unchanged.  Wire: docs/dialects/executor.md

| module | holds |
|---|---|
| `operation`, `parsing` | what an operation is, what it is given, and how that is read |
| `replies`, `encoding`, `events`, `lines`, `output` | what is answered, and how output becomes JSON and events |
| `commands`, `processes`, `ports`, `files` | the operations |
| `edge`, `access`, `bounds` | who asks, and how much at once |
| `failures`, `metrics` | what is refused and how that is worded; what is counted |
| `routes`, `settings`, `assembly` | paths; what an operator can set; how it all is put together |
"""

from fastapi import APIRouter, Response

from stockade.dialects.executor.assembly import parts_of
from stockade.dialects.executor.failures import refusal
from stockade.dialects.executor.routes import make_router, unsupported_router
from stockade.dialects.executor.settings import ExecutorSettings
from stockade.wire.dialect import Dialect, Services

__all__ = ["dialect"]


def health(services: Services) -> dict[str, object]:
    """What the protocol's clients look for in `GET /health`."""
    return parts_of(services).health()


def router(services: Services) -> APIRouter:
    """The routes; where the backend has no sandboxes that live, or nothing to record them in, all of them say so."""
    parts = parts_of(services)
    if parts.edge is None:
        return unsupported_router()
    return make_router(parts.edge, parts.operations, parts.health)


def largest_body(services: Services, path: str) -> int | None:
    """The largest body of a request to *path*, where that is not the server's own."""
    settings: ExecutorSettings = services.settings
    return settings.max_body_bytes if path in parts_of(services).paths else None


def bounds_itself(services: Services, path: str) -> bool:
    """Whether *path* is one of ours: a command takes as long as it takes, and a log is followed for days."""
    return path in parts_of(services).paths


def worded(status: int) -> Response | None:
    """What the server refuses by itself, where it speaks nothing but this protocol."""
    return refusal(status)


dialect = Dialect(
    name="executor",
    summary="One sandbox opened by its own secret: /run, files, processes, a port; Koyeb's clients work unchanged.",
    router=router,
    settings=ExecutorSettings,
    health=health,
    largest_body=largest_body,
    bounds_itself=bounds_itself,
    refusal=worded,
)
