"""Netlink: how a process tells the kernel about addresses, routes and packet filters of its network namespace.

Messages are made by hand (netlink(7), rtnetlink(7), <linux/netfilter/nf_tables.h>): what is needed is little, and the
programs that do it (`ip`, `nft`) are neither everywhere nor wanted inside a sandbox.
"""

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "NETFILTER",
    "ROUTE",
    "UNREACHABLE",
    "Message",
    "accept",
    "add_address",
    "add_chain",
    "add_route",
    "add_rule",
    "add_table",
    "address_is",
    "batch",
    "protocol_is",
    "protocol_is_not",
    "reset_tcp",
    "talk",
    "to_listener",
]

ROUTE = 0  # NETLINK_ROUTE
NETFILTER = 12  # NETLINK_NETFILTER
_WITHIN_S = 5.0
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST, _ACK, _EXCL, _CREATE, _APPEND = 0x001, 0x004, 0x200, 0x400, 0x800
_ERROR = 2  # NLMSG_ERROR
_NESTED = 0x8000
_IPV4 = 2  # NFPROTO_IPV4, and AF_INET


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message, without its header."""

    kind: int
    body: bytes
    flags: int = 0
    """Beside NLM_F_REQUEST."""
    what: str
    """What it does, for whoever reads that the kernel refused it."""
    is_bracket: bool = False
    """Begins or ends a batch: the kernel answers it only to refuse it."""


def talk(family: int, messages: Sequence[Message]) -> None:
    """Send *messages* at once and wait until the kernel has carried them out, in this order.

    Raises:
        OSError: it refused one; the text says which.
    """
    # The kernel tells of each that it refuses, and else only of the last: many answers would not fit our buffer.
    last = max(number for number, message in enumerate(messages) if not message.is_bracket)
    data = bytearray()
    for number, message in enumerate(messages):
        flags = _REQUEST | message.flags | (_ACK if number == last else 0)
        data += _HEADER.pack(_HEADER.size + len(message.body), message.kind, flags, number, 0) + message.body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family) as channel:
        channel.settimeout(_WITHIN_S)
        try:
            channel.send(data)
            while not _is_done(channel.recv(1 << 16), messages, last):
                pass
        except TimeoutError as error:
            raise OSError(f"netlink: no answer within {_WITHIN_S:g} s") from error


def _is_done(data: bytes, messages: Sequence[Message], last: int) -> bool:
    """Whether the answers in *data* say that the last message was carried out. Raises OSError for one that was not."""
    while len(data) >= _HEADER.size + 4:
        length, kind, _, number, _ = _HEADER.unpack_from(data)
        if kind == _ERROR:
            (negative,) = struct.unpack_from("=i", data, _HEADER.size)
            if negative:
                what = messages[number].what if number < len(messages) else "netlink"
                raise OSError(-negative, f"{what}: {os.strerror(-negative)}")
            if number == last:
                return True
        data = data[max(_HEADER.size, (length + 3) & ~3) :]
    return False


def _attribute(kind: int, payload: bytes) -> bytes:
    """struct nlattr, padded."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    """32 bits in network order, as all of nf_tables."""
    return _attribute(kind, struct.pack(">i" if value < 0 else ">I", value))


# ── addresses and routes ─────────────────────────────────────────────────────────────────────────────────────────

_NEWADDR, _NEWROUTE = 20, 24
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_TABLE_MAIN, _BY_ADMIN, _SCOPE_UNIVERSE, _SCOPE_HOST = 254, 4, 0, 254
LOCAL, UNREACHABLE = 2, 7  # RTN_LOCAL, RTN_UNREACHABLE
_LOOPBACK = 1  # LOOPBACK_IFINDEX: `lo` is the first interface of each network namespace


def _index_of(interface: str) -> int:
    return _LOOPBACK if interface == "lo" else socket.if_nametoindex(interface)


def add_address(interface: str, address: str, prefix: int = 32) -> Message:
    """Give an interface another IPv4 address."""
    packed = socket.inet_aton(address)
    head = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, _SCOPE_UNIVERSE, _index_of(interface))
    body = head + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    return Message(kind=_NEWADDR, body=body, flags=_CREATE | _EXCL, what=f"add the address {address} to {interface}")


def add_route(network: str, *, kind: int = LOCAL, source: str | None = None) -> Message:
    """Have an IPv4 network delivered to ourselves (`LOCAL`), or refused when a program connects (`UNREACHABLE`).

    Args:
        network: `address/prefix`.
        source: the address that our own packets there come from.
    """
    address, _, prefix = network.partition("/")
    scope = _SCOPE_HOST if kind == LOCAL else _SCOPE_UNIVERSE
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, int(prefix), 0, 0, _TABLE_MAIN, _BY_ADMIN, scope, kind, 0)
    if int(prefix):
        body += _attribute(_RTA_DST, socket.inet_aton(address))
    if kind == LOCAL:
        body += _attribute(_RTA_OIF, struct.pack("=I", _LOOPBACK))
    if source is not None:
        body += _attribute(_RTA_PREFSRC, socket.inet_aton(source))
    return Message(kind=_NEWROUTE, body=body, flags=_CREATE | _EXCL, what=f"add a route to {network}")


# ── packet filters ───────────────────────────────────────────────────────────────────────────────────────────────

_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _NEWCHAIN, _NEWRULE = ((_NFTABLES << 8) | number for number in (0, 3, 6))
_REGISTER, _ANOTHER_REGISTER, _VERDICT_REGISTER = 1, 2, 0
_META_L4PROTO = 16
_NETWORK_HEADER, _DESTINATION = 1, 16  # where an IPv4 header has it
_DROP, _ACCEPT = 0, 1
_EQUAL, _UNEQUAL = 0, 1


def _head(family: int, resource: int = 0) -> bytes:
    """struct nfgenmsg"""
    return struct.pack(">BBH", family, 0, resource)


def batch(messages: Sequence[Message]) -> list[Message]:
    """All of them, or none."""
    head = _head(0, _NFTABLES)
    return [
        Message(kind=_BATCH_BEGIN, body=head, what="begin a change of the packet filter", is_bracket=True),
        *messages,
        Message(kind=_BATCH_END, body=head, what="end a change of the packet filter", is_bracket=True),
    ]


def add_table(table: str) -> Message:
    body = _head(_IPV4) + _text(1, table)
    return Message(kind=_NEWTABLE, body=body, flags=_CREATE, what=f"add the packet filter table {table}")


def add_chain(table: str, chain: str, *, hook: int, priority: int, drops: bool) -> Message:
    """A chain of rules for packets that pass *hook* (NF_INET_…); what no rule decides is accepted or dropped."""
    body = (
        _head(_IPV4)
        + _text(1, table)
        + _text(3, chain)
        + _nested(4, _number(1, hook), _number(2, priority))
        + _number(5, _DROP if drops else _ACCEPT)
        + _text(7, "filter")
    )
    return Message(kind=_NEWCHAIN, body=body, flags=_CREATE, what=f"add the packet filter chain {chain}")


def add_rule(table: str, chain: str, *expressions: bytes, what: str) -> Message:
    """A packet that passes one expression meets the next."""
    body = _head(_IPV4) + _text(1, table) + _text(2, chain) + _nested(4, *expressions)
    return Message(kind=_NEWRULE, body=body, flags=_CREATE | _APPEND, what=f"add the packet filter rule “{what}”")


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *attributes))


def _compare(operation: int, value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REGISTER), _number(2, operation), _nested(3, _attribute(1, value)))


def _protocol() -> bytes:
    return _expression("meta", _number(1, _REGISTER), _number(2, _META_L4PROTO))


def protocol_is(number: int) -> bytes:
    """Passed by packets of that protocol (IPPROTO_…)."""
    return _protocol() + _compare(_EQUAL, bytes([number]))


def protocol_is_not(number: int) -> bytes:
    return _protocol() + _compare(_UNEQUAL, bytes([number]))


def address_is(network: str) -> bytes:
    """Passed by packets to an address of *network* (`address/prefix`)."""
    address, _, prefix = network.partition("/")
    mask = ((0xFFFF_FFFF << (32 - int(prefix))) & 0xFFFF_FFFF).to_bytes(4, "big")
    load = _expression(
        "payload", _number(1, _REGISTER), _number(2, _NETWORK_HEADER), _number(3, _DESTINATION), _number(4, 4)
    )
    cut = _expression(
        "bitwise",
        _number(1, _REGISTER),
        _number(2, _REGISTER),
        _number(3, 4),
        _nested(4, _attribute(1, mask)),
        _nested(5, _attribute(1, bytes(4))),
    )
    return load + cut + _compare(_EQUAL, socket.inet_aton(address))


def accept() -> bytes:
    verdict = _nested(2, _number(1, _ACCEPT))
    return _expression("immediate", _number(1, _VERDICT_REGISTER), _nested(2, verdict))


def to_listener(address: str, port: int) -> bytes:
    """Hand the packet to the transparent listener there, its own destination unchanged; passed if there is one."""

    def load(register: int, value: bytes) -> bytes:
        return _expression("immediate", _number(1, register), _nested(2, _attribute(1, value)))

    return (
        load(_REGISTER, socket.inet_aton(address))
        + load(_ANOTHER_REGISTER, struct.pack(">H", port))
        + _expression("tproxy", _number(1, _IPV4), _number(2, _REGISTER), _number(3, _ANOTHER_REGISTER))
    )


def reset_tcp() -> bytes:
    """Answer a TCP packet as a host does on which nothing listens."""
    return _expression("reject", _number(1, 1), _attribute(2, b"\0"))
