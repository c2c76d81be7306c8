"""The isobox dialect: one POST runs a program in a fresh sandbox.  Wire: docs/dialects/isobox.md

| module | holds |
|---|---|
| `wire` | what clients send and get |
| `translate` | pure functions between the wire and the engine |
| `service` | runs, test cases, kept answers |
| `edge`, `failures`, `access` | who asks, how often, what is refused and how that is worded |
| `routes`, `rpc` | HTTP and gRPC |
| `settings`, `assembly` | what an operator can set; how it all is put together |
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import APIRouter

from stockade import __version__
from stockade.config import is_loopback
from stockade.dialects.isobox.access import access
from stockade.dialects.isobox.assembly import edge_of, isobox_of
from stockade.dialects.isobox.routes import make_router
from stockade.dialects.isobox.settings import IsoboxSettings
from stockade.errors import Unsupported
from stockade.wire.dialect import Dialect, Services

__all__ = ["dialect"]


def health(_services: Services) -> dict[str, object]:
    """What isobox's clients look for in `GET /health`."""
    return {"status": "healthy", "service": "isobox", "version": __version__}


def router(services: Services) -> APIRouter:
    """The HTTP routes.

    Raises:
        Invalid, Unsupported: the settings are wrong; see `access`.
    """
    isobox = isobox_of(services)
    return make_router(isobox, edge_of(services, isobox, access(services)))


@asynccontextmanager
async def listeners(services: Services) -> AsyncIterator[None]:
    """Serve gRPC where a port is set; let go of the cache at the end.

    Raises:
        Unsupported: a port is set and the extra `grpc` is not installed.
        Unavailable: the port is taken.
    """
    isobox = isobox_of(services)
    settings: IsoboxSettings = services.settings
    try:
        if not settings.grpc_port:
            yield
            return
        # gRPC writes what clients do wrong on standard error, in words of its own between the lines of our log.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            from stockade.dialects.isobox import rpc
        except ImportError:
            raise Unsupported("dialects.isobox: grpc_port needs: pip install 'stockade[grpc]'") from None
        # gRPC listens on the merged server's host, so that host decides whether it needs a key.
        host = services.server.host
        reach = replace(services, open_access=is_loopback(host) or services.server.insecure)
        async with rpc.serving(isobox, access(reach), host=host, server=services.server):
            yield
    finally:
        if isobox.cache is not None:
            await isobox.cache.close()


dialect = Dialect(
    name="isobox",
    summary="One POST runs a program: /execute, test cases, languages; isobox's clients work unchanged.",
    router=router,
    settings=IsoboxSettings,
    health=health,
    listeners=listeners,
)
