"""Sandboxes of an account, whichever of its keys made them; the engine knows each to its own key only."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from stockade.config import is_loopback
from stockade.config_ports import PortsConfig
from stockade.engine import Sandboxes
from stockade.engine.sandboxes import Page
from stockade.model import (
    Actor,
    LimitOverrides,
    Limits,
    Network,
    NetworkMode,
    Port,
    Protocol,
    Sandbox,
    SandboxRequest,
    SandboxState,
)
from stockade.web.failures import FieldInvalid
from stockade.web.wire import SandboxBody

__all__ = ["AccountSandboxes", "urls_of"]

DIALECT = "portal"
_MIB = 1024 * 1024
_LIFETIME_S = 3600.0
_MEMORY_BYTES = 512 * _MIB
_DISK_BYTES = 512 * _MIB
_PROCESSES = 256
_OPEN_FILES = 1024
_CPUS = 1.0

_STATES = {
    "living": frozenset(SandboxState) - {SandboxState.ENDED},
    "ended": frozenset({SandboxState.ENDED}),
    "all": None,
}


@dataclass(frozen=True, kw_only=True)
class AccountSandboxes:
    """What the portal does with sandboxes."""

    engine: Sandboxes

    async def bearer(self, actor: Actor, sandbox_id: str) -> Actor:
        """*actor* as the key of theirs that made a sandbox.

        Raises:
            NotFound: there is no such sandbox, or it is another account's; which of these is not told.
        """
        return replace(actor, id=(await self.engine.of_account(actor.account_id, sandbox_id)).key_id)

    async def list(self, actor: Actor, state: str, *, limit: int, cursor: str | None) -> Page:
        """The account's sandboxes, newest first.

        Raises:
            Invalid: *state* or *cursor* is none of ours.
        """
        if state not in _STATES:
            raise FieldInvalid("state", "state: must be living, ended or all")
        states = _STATES[state]
        return await self.engine.list_of_account(actor.account_id, states=states, limit=limit, cursor=cursor)

    def request(self, actor: Actor, body: SandboxBody) -> SandboxRequest:
        """The sandbox that *body* asks for; what it leaves open is what the server and the actor's plan allow."""
        mode = NetworkMode(body.network)
        ports = tuple(Port(container=one.port, protocol=Protocol(one.protocol)) for one in body.ports)
        if ports and mode is not NetworkMode.EXPOSED:
            raise FieldInvalid("ports", "ports: can only be reached with the network mode exposed")
        return SandboxRequest(
            id=f"sbx-{secrets.token_hex(8)}",
            image=body.image,
            command=tuple(body.command),
            limits=self._limits(actor, body),
            network=Network(mode=mode, ports=ports),
            dialect=DIALECT,
            backend=body.backend,
        )

    def _limits(self, actor: Actor, body: SandboxBody) -> Limits:
        maximum = self.engine.limits.maximum
        wall_s = body.timeout_s or min(_LIFETIME_S, maximum.wall_s, actor.max_duration_s or maximum.wall_s)
        memory_bytes = body.memory_bytes or min(
            _MEMORY_BYTES, maximum.memory_bytes, actor.max_memory_bytes or maximum.memory_bytes
        )
        cpus = min(_CPUS, maximum.cpus)
        given = self.engine.limits.resolve(
            LimitOverrides(),
            LimitOverrides(
                # It is bounded by its life and its rate; a sum of CPU time beside them would only surprise.
                cpu_s=wall_s * cpus,
                cpus=cpus,
                disk_bytes=_DISK_BYTES,
                disk_inodes=maximum.disk_inodes,
                processes=_PROCESSES,
                open_files=_OPEN_FILES,
            ),
            cap=True,
        )
        # Not cut: who asks for too much is told so when it is made.
        return replace(given, wall_s=wall_s, memory_bytes=memory_bytes)


def urls_of(sandbox: Sandbox, ports: PortsConfig, *, host: str, scheme: str) -> Mapping[Port, str]:
    """Where browsers reach what a sandbox exposes: by a host of its own, where our own name is one that the domain has;
    else by a path, else by the port of the host that leads there.

    Args:
        host: the request's `Host`.
        scheme: by which the request came.
    """
    name = _name_of(host)
    colon_port = f":{number}" if (number := _port_of(host)) else ""
    domain = ports.domain
    by_host = bool(domain) and (
        name == domain or name.endswith(f".{domain}") or (domain == "localhost" and is_loopback(name))
    )
    urls: dict[Port, str] = {}
    for port in sandbox.network.ports:
        if port.protocol is not Protocol.TCP or port.container == Port.BOUND:
            continue
        if by_host:
            urls[port] = f"{scheme}://{port.container}-{sandbox.id.replace('_', '-')}.{domain}{colon_port}/"
        elif ports.by_path:
            urls[port] = f"/sandboxes/{sandbox.id}/ports/{port.container}/"
        else:
            shown = f"[{ports.host}]" if ":" in ports.host else ports.host
            urls[port] = f"http://{shown}:{port.host}/"
    return urls


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _port_of(host: str) -> int | None:
    try:
        return urlsplit(f"//{host}").port
    except ValueError:
        return None
