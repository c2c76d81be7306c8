"""Puts the executor dialect together, once for each server."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry

from stockade import __version__
from stockade.dialects.executor.access import Access, WrongSecrets, by_secret, sole
from stockade.dialects.executor.bounds import Bounds
from stockade.dialects.executor.commands import Commands
from stockade.dialects.executor.edge import Edge
from stockade.dialects.executor.files import file_operations
from stockade.dialects.executor.metrics import Metrics
from stockade.dialects.executor.operation import Operation
from stockade.dialects.executor.output import Room
from stockade.dialects.executor.ports import PortOperations
from stockade.dialects.executor.processes import ProcessOperations
from stockade.dialects.executor.routes import PREFIX
from stockade.dialects.executor.settings import ExecutorSettings
from stockade.wire.dialect import Services

__all__ = ["Parts", "parts_of"]

_UNBOUNDED = 1 << 30
"""Requests to a server whose whole purpose is one sandbox: its descriptors are the bound."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the routes are made over."""

    edge: Edge | None = None
    """`None` where there is nothing that the operations could be done with."""
    operations: Mapping[str, Operation] = field(default_factory=dict)
    proxy_port: int | None = None
    """Where the server is there for one sandbox."""
    started: float = field(default_factory=time.monotonic)

    @cached_property
    def paths(self) -> frozenset[str]:
        """Of all operations."""
        return frozenset(prefix + path for path in self.operations for prefix in ("", PREFIX))

    def health(self) -> dict[str, object]:
        """What clients look for, and what the command line client shows."""
        members: dict[str, object] = {
            "status": "ok",
            "version": __version__,
            "uptime": round(time.monotonic() - self.started, 3),
        }
        return members if self.proxy_port is None else {**members, "proxy_port": self.proxy_port}


# An app of its own and the merged one share counts: a second port must not double anybody's guesses.
_by_server: WeakKeyDictionary[CollectorRegistry, Parts] = WeakKeyDictionary()


def parts_of(services: Services) -> Parts:
    """The dialect's parts on this server, made when first asked for."""
    parts = _by_server.get(services.registry)
    if parts is None:
        parts = _by_server[services.registry] = _assemble(services)
    return parts


def _assemble(services: Services) -> Parts:
    engine, only = services.engine, services.sole
    settings: ExecutorSettings = services.settings
    sandboxes, processes, bindings = engine.sandboxes, engine.processes, engine.bindings
    if sandboxes is None or processes is None or bindings is None or (only is None and engine.secrets is None):
        return Parts()
    if only is not None:
        who = sole(only)
    else:
        assert engine.secrets is not None
        who = by_secret(engine.secrets)
    wrong = WrongSecrets(per_s=settings.wrong_secrets_per_s, burst=settings.wrong_secrets_burst)
    metrics = Metrics(services.registry)
    edge = Edge(
        access=Access(who, wrong),
        metrics=metrics,
        bounds=Bounds(
            requests_per_sandbox=settings.requests_per_sandbox if only is None else _UNBOUNDED,
            bodies_bytes=max(settings.bodies_bytes, settings.max_body_bytes),
        ),
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=services.server.body_timeout_s,
    )
    room = Room(settings.spool_bytes)
    commands = Commands(sandboxes=sandboxes, metrics=metrics, room=room, max_output_bytes=settings.max_output_bytes)
    return Parts(
        edge=edge,
        operations={
            **commands.operations(),
            **file_operations(sandboxes, max_read_bytes=settings.max_read_bytes),
            **ProcessOperations(processes=processes, log_lines=settings.log_lines).operations(),
            **PortOperations(bindings=bindings).operations(),
        },
        proxy_port=None if only is None else only.proxy_port,
    )
