"""Where a sandbox may connect: decided on the numeric address, never on a name.

What is not public is refused whatever anybody allows, apart from networks that the operator permits. A sandbox's own
lists can only narrow what is left. An address of this host is refused even inside a permitted network: it takes a
`/32` of its own.
"""

import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .egress_divert import Divert
from .egress_names import MOST_ENTRIES, Names, names_of, texts_of

__all__ = ["MOST_ENTRIES", "NOT_PUBLIC", "Network", "Policy", "number_of", "text_of"]

_PREFIX = re.compile(r"[0-9]{1,2}")
_ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
_BITS = 32


def number_of(address: str) -> int:
    """The 32 bits of an address that the kernel gave."""
    return int.from_bytes(socket.inet_aton(address), "big")


def text_of(address: int) -> str:
    return socket.inet_ntoa(address.to_bytes(4, "big"))


@dataclass(frozen=True, order=True)
class Network:
    """An IPv4 network."""

    first: int
    prefix: int

    @classmethod
    def parse(cls, text: str) -> "Network":
        """Read `a.b.c.d/n`; without `/n` it is one address.

        Raises:
            ValueError: it is none, or has bits set behind its prefix.
        """
        address, slash, prefix = text.partition("/")
        try:
            if not _ADDRESS.fullmatch(address) or (slash and not _PREFIX.fullmatch(prefix)):
                raise ValueError("not of the form a.b.c.d/n")
            # Not inet_aton, for which 010 is 8.
            first = int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big")
        except (OSError, ValueError) as error:
            raise ValueError(f"{text!r} is no IPv4 network; write it as a.b.c.d/n") from error
        network = cls(first, int(prefix) if slash else _BITS)
        if network.prefix > _BITS or first & (network.size - 1):
            raise ValueError(f"{text!r} is no IPv4 network: bits are set behind its prefix")
        return network

    @property
    def size(self) -> int:
        return 1 << (_BITS - self.prefix)

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.first <= address < self.first + self.size

    def covers(self, other: "Network") -> bool:
        return self.prefix <= other.prefix and other.first in self

    def __str__(self) -> str:
        return f"{text_of(self.first)}/{self.prefix}"


NOT_PUBLIC = tuple(
    Network.parse(text)
    for text in (
        # What IANA's registry of special-purpose addresses (RFC 6890) has as not globally reachable,
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
        # relays that lead who knows where (RFC 7526), and what is no single host.
        "192.88.99.0/24", "224.0.0.0/4",
    )
)  # fmt: skip
_NO_ROUTE_NEEDED = frozenset({Network.parse("0.0.0.0/8"), Network.parse("127.0.0.0/8")})


@dataclass(frozen=True)
class Policy:
    """What one sandbox may reach."""

    cidrs: tuple[Network, ...] | None = None
    """Only these, and what `domains` led to."""
    domains: tuple[str, ...] | None = None
    """Only these names are resolved; `*.` before one stands for all below it."""
    permitted: tuple[Network, ...] = ()
    """Not public, and reachable all the same: the operator says so."""
    refused: tuple[Network, ...] = ()
    """Public, and not reachable all the same: the operator says so."""
    divert: Divert | None = None
    """What of the rest goes to a listener of the server's instead."""

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> "Policy":
        """Read `allow_cidrs`, `allow_domains` (lists or `None`); `permit_private`, `refuse` (lists) and `divert` (as
        `Divert.parse` reads it) may be missing.

        Raises:
            ValueError: says which entry cannot be meant.
        """
        cidrs, domains = message.get("allow_cidrs"), message.get("allow_domains")
        return cls(
            cidrs=None if cidrs is None else _networks("allow_cidrs", cidrs),
            domains=None if domains is None else names_of("allow_domains", domains),
            permitted=_networks("permit_private", message.get("permit_private") or ()),
            refused=_networks("refuse", message.get("refuse") or ()),
            divert=None if message.get("divert") is None else Divert.parse(message["divert"]),
        )

    def refusal(self, address: int, *, is_own: bool, is_resolved: bool) -> str | None:
        """Why *address* may not be connected to; `None` when it may.

        Args:
            is_own: it is one of this host's.
            is_resolved: an answer to a name that is allowed gave it.
        """
        if is_own and Network(address, _BITS) not in self.permitted:
            return "an address of the host"
        if any(address in network for network in NOT_PUBLIC) and not any(address in n for n in self.permitted):
            return "not a public address"
        if any(address in network for network in self.refused):
            return "refused by the operator"
        if self.cidrs is None and self.domains is None:
            return None
        if self.domains is not None and is_resolved:
            return None
        if self.cidrs is not None and any(address in network for network in self.cidrs):
            return None
        return "not on the sandbox's list"

    def allows_name(self, name: str) -> bool:
        """Whether a name, in lower case and without the last dot, may be resolved."""
        if self.domains is None:
            return True
        return name in self._names

    @cached_property
    def _names(self) -> Names:
        return Names(self.domains or ())

    def routes(self) -> dict[Network, bool]:
        """The networks that are worth an attempt (True) and those that are not, the longest prefix deciding.

        No more than what can be known without names and without this host's addresses: whoever relays asks `refusal`.
        """
        is_listed = self.cidrs is not None or self.domains is not None
        routes: dict[Network, bool] = {}
        if not is_listed or self.domains:
            routes[Network(0, 0)] = True
        for network in self.cidrs or ():
            routes[network] = True
        for network in self.permitted:
            # Of those that are not listed nothing is reached, and the way there is already closed.
            if not is_listed or self.domains or any(cidr.covers(network) for cidr in self.cidrs or ()):
                routes[network] = True
        for network in NOT_PUBLIC:
            if network not in _NO_ROUTE_NEEDED and not any(one.covers(network) for one in self.permitted):
                routes[network] = False
        for network in self.refused:
            if network not in self.permitted:
                routes[network] = False
        return routes


def _networks(name: str, values: object) -> tuple[Network, ...]:
    try:
        return tuple(_unique(Network.parse(text) for text in texts_of(name, values)))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def _unique(networks: Iterable[Network]) -> Iterable[Network]:
    return dict.fromkeys(networks)
