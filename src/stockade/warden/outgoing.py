"""A sandbox's way out, from the inside: what PID 1 does in its network namespace while it may.

Every IPv4 destination is made one of the namespace's own, and TCP to it is handed to a listener of ours, whoever it
was meant for (TPROXY): the listener's descriptor goes to the egress process (`egress`), which sees in each connection
where the program wanted to go, decides, and connects from the host's side. No packet ever leaves the namespace; the
host's network, its routes and its filters stay as they are; no connection tracking is involved, whose table is the
kernel's and not charged to anybody. IPv6 has no route.
"""

import contextlib
import functools
import os
import socket
from collections.abc import Mapping
from typing import Any

from . import netlink
from .egress_policy import Network, Policy

__all__ = ["ADDRESS", "DNS", "INTERNAL", "LISTENER", "open_outgoing", "write_resolver_file"]

ADDRESS = "10.0.2.15"
"""The sandbox's own, as its programs see it."""
DNS = "10.0.2.3"
LISTENER = ("10.0.2.2", 1)
"""A port on which no program wants to listen: one that takes all addresses would collide with it."""
INTERNAL = frozenset({ADDRESS, DNS, LISTENER[0]})
_LOOPBACK = "127.0.0.0/8"
_TABLE = "stockade"
_PRE_ROUTING, _LOCAL_OUT = 0, 3  # NF_INET_…
_MANGLE, _FILTER = -150, 0  # NF_IP_PRI_…
_BACKLOG = 128


def open_outgoing(policy: Mapping[str, Any] | None = None) -> list[int]:
    """Lay the network out and return what the egress process is given: a TCP listener, DNS over UDP, DNS over TCP.

    Needs CAP_NET_ADMIN and CAP_NET_BIND_SERVICE over the network namespace, and `lo` up in it. With *policy* (as
    `Policy.parse` reads it) a program hears at once, when it connects, that a network is out of its reach
    (EHOSTUNREACH, ENETUNREACH); without, it hears of it after, by a reset connection.

    Raises:
        OSError: the kernel cannot; the text says what it refused.
        ValueError: not a policy.
    """
    routes = Policy.parse(policy).routes() if policy is not None else {_EVERYWHERE: True}
    netlink.talk(netlink.ROUTE, [*_ADDRESSES, *(_route(*one) for one in routes.items())])
    netlink.talk(netlink.NETFILTER, _RULES)
    opened: list[socket.socket] = []
    try:
        listener = _bound(opened, socket.SOCK_STREAM, LISTENER, transparent=True)
        listener.listen(_BACKLOG)
        _bound(opened, socket.SOCK_DGRAM, (DNS, 53))
        _bound(opened, socket.SOCK_STREAM, (DNS, 53)).listen(_BACKLOG)
    except BaseException:
        for one in opened:
            one.close()
        raise
    return [one.detach() for one in opened]


def _filter() -> list[netlink.Message]:
    local = (_LOOPBACK, *(f"{address}/32" for address in sorted(INTERNAL)))
    incoming, leaving = "incoming", "leaving"
    return [
        netlink.add_table(_TABLE),
        netlink.add_chain(_TABLE, incoming, hook=_PRE_ROUTING, priority=_MANGLE, drops=False),
        netlink.add_rule(
            _TABLE, incoming, netlink.protocol_is_not(socket.IPPROTO_TCP), netlink.accept(), what="not TCP"
        ),
        *(
            netlink.add_rule(_TABLE, incoming, netlink.address_is(one), netlink.accept(), what=f"to {one}")
            for one in local
        ),
        netlink.add_rule(_TABLE, incoming, netlink.to_listener(*LISTENER), netlink.accept(), what="to the listener"),
        # No listener: the egress process is dead, or has let go of this sandbox.
        netlink.add_rule(_TABLE, incoming, netlink.reset_tcp(), what="reset"),
        # Dropped when it leaves, a datagram is an error of the call that sent it (EPERM), not a time-out.
        netlink.add_chain(_TABLE, leaving, hook=_LOCAL_OUT, priority=_FILTER, drops=True),
        netlink.add_rule(_TABLE, leaving, netlink.protocol_is(socket.IPPROTO_TCP), netlink.accept(), what="TCP"),
        *(
            netlink.add_rule(_TABLE, leaving, netlink.address_is(one), netlink.accept(), what=f"leaving to {one}")
            for one in local
        ),
    ]


@functools.lru_cache(maxsize=256)
def _route(network: Network, is_reachable: bool) -> netlink.Message:
    if is_reachable:
        return netlink.add_route(str(network), source=ADDRESS)
    return netlink.add_route(str(network), kind=netlink.UNREACHABLE)


# What is alike for all is made when this is imported, in a process that PID 1 is forked from: in a fork, each object
# that is touched is on a page that is copied first, and making these took a millisecond of each sandbox's start.
_EVERYWHERE = Network(0, 0)
_ADDRESSES = tuple(netlink.add_address("lo", one) for one in sorted(INTERNAL))
_RULES = tuple(netlink.batch(_filter()))
for _known in Policy.parse({}).routes().items():
    _route(*_known)


def _bound(
    opened: list[socket.socket], kind: int, address: tuple[str, int], *, transparent: bool = False
) -> socket.socket:
    one = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    opened.append(one)
    if kind == socket.SOCK_STREAM:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if transparent:
        one.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
    one.bind(address)
    return one


def write_resolver_file(root: str = "/") -> None:
    """Have the programs below *root* ask us for names. To be called as its root, before any program runs there."""
    path = os.path.join(root, "etc/resolv.conf")
    # Replaced, not opened: the image's may be a link to somewhere else.
    temporary = f"{path}.new"
    with contextlib.suppress(OSError):  # of a start that was broken off, or a tenant's
        os.unlink(temporary)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "w") as file:
        file.write(f"nameserver {DNS}\n")
    os.rename(temporary, path)
