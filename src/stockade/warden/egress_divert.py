"""Connections that do not go where they were meant to, but to a listener of the server's, which sees to them.

Only what the policy would let through is diverted, and the listener is told the address that was decided on: it
connects to just that. It is told by which names the sandbox knows the address, too, since whoever connects may call
it anything. Names come from the host's own name servers (`egress_resolver`): no tenant has a say in them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .egress_names import Names, names_of

__all__ = ["HOST", "MOST_LINE", "Divert", "Named"]

HOST = "127.0.0.1"
"""Where the listener is."""
MOST_LINE = 8192
"""Bytes of the line that it is sent first."""
_MOST_PORTS = 64
_MOST_TOKEN = 256
_HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Divert:
    """What of a sandbox's connections is diverted."""

    port: int
    token: str = field(repr=False)
    hosts: tuple[str, ...] = ()
    """Names, `*.` before one standing for all below it, or IPv4 addresses; empty for whatever is connected to."""
    ports: frozenset[int] = frozenset({80, 443})

    @classmethod
    def parse(cls, message: object) -> "Divert":
        """Read `port`, `token`, `hosts`, `ports`.

        Raises:
            ValueError: says what cannot be meant; never the token.
        """
        if not isinstance(message, Mapping):
            raise ValueError("divert: must be an object")
        token, ports = message.get("token"), message.get("ports")
        if not isinstance(token, str) or not token.isascii() or not 0 < len(token) <= _MOST_TOKEN:
            raise ValueError(f"divert.token: must be a string of 1 to {_MOST_TOKEN} ASCII characters")
        if not isinstance(ports, list | tuple) or not 0 < len(ports) <= _MOST_PORTS:
            raise ValueError(f"divert.ports: must be a list of 1 to {_MOST_PORTS} ports")
        return cls(
            port=_port("divert.port", message.get("port")),
            token=token,
            hosts=names_of("divert.hosts", message.get("hosts") or ()),
            ports=frozenset(_port("divert.ports", one) for one in ports),
        )

    def wants(self, name: str) -> bool:
        """Whether a name, in lower case and without the last dot, is one whose connections are diverted."""
        return not self.hosts or name in self._names

    @cached_property
    def _names(self) -> Names:
        return Names(self.hosts)

    def line(self, address: str, port: int, names: list[str]) -> bytes:
        """What the listener is told of a connection to *address*, which the sandbox knows by *names*."""
        said = {"token": self.token, "address": address, "port": port, "names": names}
        while len(line := json.dumps(said).encode() + b"\n") > MOST_LINE:
            names = names[1:]
            said["names"] = names
        return line


class Named:
    """By which names a sandbox knows addresses."""

    _MOST = 4096
    _MOST_NAMES = 16
    _LEAST_S, _MOST_S = 60, 86400

    def __init__(self) -> None:
        self._names: dict[int, dict[str, float]] = {}

    def add(self, address: int, name: str, lifetime_s: int, now: float) -> None:
        """An answer gave *address* for *name*."""
        names = self._names.pop(address, {})
        until = max(names.pop(name, 0.0), now + min(max(lifetime_s, self._LEAST_S), self._MOST_S))
        names[name] = until
        if len(names) > self._MOST_NAMES:
            del names[next(iter(names))]
        self._names[address] = names
        if len(self._names) > self._MOST:
            del self._names[next(iter(self._names))]  # the one that was not named for the longest time

    def knows(self, address: int) -> bool:
        """Whether it ever had a name: a program may keep what it looked up for longer than the answer held."""
        return address in self._names

    def of(self, address: int, now: float) -> list[str]:
        """Its names by answers that still hold: an address may be somebody else's soon after."""
        return [name for name, until in self._names.get(address, {}).items() if until > now]


def _port(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _HIGHEST_PORT:
        raise ValueError(f"{name}: {value!r} is no port; 1 to {_HIGHEST_PORT} are")
    return value
