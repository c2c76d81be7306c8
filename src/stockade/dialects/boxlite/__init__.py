"""The boxlite dialect: boxes that are stopped and started again; BoxLite's clients, 0.9.0 to 0.10.8, work unchanged.

Wire: docs/dialects/boxlite.md

| module | holds |
|---|---|
| `slots` | which paths are ours, whatever slot they have |
| `wire`, `execution_wire`, `translate`, `image_objects`, `queries` | what clients send and get; pure functions to the engine, and from it |
| `service`, `engine_needs`, `counts` | what the routes stand on |
| `executions`, `attach`, `sse`, `tunnels` | what goes on beyond a request |
| `edge`, `access`, `failures` | who asks, what is refused and how that is worded |
| `*_routes`, `documented` | HTTP and WebSocket |
| `settings`, `assembly` | what an operator can set; how it all is put together |
"""  # noqa: E501

from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, Response

from stockade.dialects.boxlite.assembly import make_router, running
from stockade.dialects.boxlite.edge import json_response
from stockade.dialects.boxlite.failures import Failure
from stockade.dialects.boxlite.settings import BoxliteSettings
from stockade.dialects.boxlite.slots import is_ours
from stockade.dialects.boxlite.translate import NAME
from stockade.wire.dialect import Dialect, Services

__all__ = ["dialect"]

UNBOUNDED = 1 << 62
"""The routes bound what they read themselves, and word the refusal."""
_WORDED = {
    404: Failure(status=404, type="NotFoundError", code="not_found", message="there is no such path"),
    405: Failure(status=405, type="InvalidArgumentError", code="invalid_argument", message="method not allowed"),
    413: Failure(status=413, type="InvalidArgumentError", code="invalid_argument", message="the body is too large"),
}


def router(services: Services) -> APIRouter:
    """The routes."""
    return make_router(services)


def largest_body(_services: Services, path: str) -> int | None:
    """The largest body of a request to *path*, where that is not the server's own."""
    return UNBOUNDED if is_ours(path) else None


def bounds_itself(_services: Services, path: str) -> bool:
    """Whether *path* is an execution's output, which lasts as long as the execution, or its input, which may."""
    return path.endswith(("/output", "/input")) and is_ours(path)


def refusal(status: int) -> Response | None:
    """What the server refuses by itself, where it speaks nothing but this protocol."""
    found = _WORDED.get(status)
    return None if found is None else json_response(found.body(), status)


def listeners(services: Services) -> AbstractAsyncContextManager[None]:
    """Tunnels, and tasks of executions."""
    return running(services)


dialect = Dialect(
    name=NAME,
    summary="Boxes with a disk that stays: /v1/boxes, /v1/default/boxes, snapshots, volumes, images; BoxLite's clients "
    "work unchanged.",
    router=router,
    settings=BoxliteSettings,
    largest_body=largest_body,
    bounds_itself=bounds_itself,
    refusal=refusal,
    listeners=listeners,
)
