"""Settings of exposed ports."""

import ipaddress
import re
from dataclasses import dataclass

from stockade.settings import setting

__all__ = ["PortsConfig"]

_DOMAIN = re.compile(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*")


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("must be an IP address") from None


def _domain(text: str) -> str:
    name = text.lower().strip(".")
    if name and not _DOMAIN.fullmatch(name):
        raise ValueError("must be a domain name")
    return name


@dataclass(frozen=True, kw_only=True)
class PortsConfig:
    """How the ports that sandboxes expose are reached. Whoever can connect can use them: no key is asked for."""

    host: str = setting(
        "127.0.0.1",
        parse=_address,
        help="IP address of this machine on which exposed ports are opened; `0.0.0.0` for all. The service itself "
        "decides whom it answers.",
    )
    first: int = setting(
        20000,
        at_least=1024,
        at_most=65535,
        help="First of this machine's ports that sandboxes are given. Best below those of outgoing connections "
        "(`net.ipv4.ip_local_port_range`), which could otherwise hold one while the server is started again.",
    )
    last: int = setting(29999, at_least=1024, at_most=65535, help="Last of those ports.")
    domain: str = setting(
        "localhost",
        parse=_domain,
        help="Exposed HTTP services answer on the server's own port at `<port>-<sandbox id>.<domain>`, too. All names "
        "below it must lead to the server: `*.localhost` does in browsers. Empty: none does.",
    )
    by_path: bool = setting(
        True,
        help="Serve them at `/sandboxes/<id>/ports/<port>/` as well: needs no name of its own, but has limits for "
        "web pages. See [ports](ports.md).",
    )
    answer_s: float = setting(
        60.0, at_least=0.1, help="Time that a service has to begin its answer to an HTTP request; then 504."
    )
    idle_s: float = setting(
        3600.0, at_least=1.0, help="A connection through which nothing has passed for so long is closed."
    )
    connections: int = setting(
        2048,
        at_least=1,
        at_most=100_000,
        help="Connections that one sandbox may have at once, over all its ports and the ways by host and by path. "
        "Further ones are reset, or answered with 503.",
    )
    connections_of_all: int = setting(
        8192,
        at_least=1,
        at_most=1_000_000,
        help="Connections that all sandboxes may have at once. Each takes two descriptors of the server's "
        "(`LimitNOFILE` of its service).",
    )
