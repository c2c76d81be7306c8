"""The way out from the inside: what PID 1 lays out in its namespace, and what the kernel says where it cannot."""

import os
import socket
from pathlib import Path

import pytest

from stockade.warden import kernel, netlink, outgoing
from tests.warden.world import Place, raise_loopback


def place(*, may: bool = True) -> Place:
    """A process in namespaces of its own; `may` not: it has lost its rights over them."""

    def prepare() -> dict[str, object]:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET)
        raise_loopback()
        if not may:
            kernel.drop_capabilities()
        return {"outgoing": outgoing, "netlink": netlink, "socket": socket, "os": os}

    return Place(prepare)


def test_three_listening_descriptors_are_handed_out() -> None:
    inside = place()
    try:
        addresses = inside.run(
            """
            fds = outgoing.open_outgoing()
            found = []
            for fd in fds:
                one = socket.socket(fileno=fd)
                found.append([one.type, *one.getsockname(), os.get_inheritable(fd), os.get_blocking(fd)])
            result = found
            """
        )
    finally:
        inside.close()
    assert addresses == [
        [socket.SOCK_STREAM, *outgoing.LISTENER, False, False],
        [socket.SOCK_DGRAM, outgoing.DNS, 53, False, False],
        [socket.SOCK_STREAM, outgoing.DNS, 53, False, False],
    ]


def test_as_many_networks_as_a_policy_may_name_can_be_laid_out() -> None:
    inside = place()
    try:
        count = inside.run(
            """
            def many(first): return [f"{first}.{n}.0.0/16" for n in range(256)]
            lists = {"allow_cidrs": many(20), "allow_domains": ["example.org"], "permit_private": many(10)}
            lists["refuse"] = many(30)
            outgoing.open_outgoing(lists)
            result = len(open("/proc/self/net/route").readlines())
            """
        )
    finally:
        inside.close()
    assert count > 256


def test_what_the_kernel_refuses_is_named() -> None:
    inside = place(may=False)
    try:
        with pytest.raises(AssertionError, match=r"add the address 10\.0\.2\.\d+ to lo: Operation not permitted"):
            inside.run("outgoing.open_outgoing()")
        with pytest.raises(AssertionError, match="begin a change of the packet filter: Operation not permitted"):
            inside.run("netlink.talk(netlink.NETFILTER, netlink.batch([netlink.add_table('x')]))")
    finally:
        inside.close()


def test_the_message_that_is_refused_is_the_one_that_is_named() -> None:
    inside = place()
    try:
        with pytest.raises(AssertionError, match=r"add a route to 10\.0\.0\.0/8: File exists"):
            inside.run(
                """
                twice = netlink.add_route("10.0.0.0/8", kind=netlink.UNREACHABLE)
                others = [netlink.add_route(f"{n}.0.0.0/8", kind=netlink.UNREACHABLE) for n in range(20, 80)]
                netlink.talk(netlink.ROUTE, [twice, *others[:30], twice, *others[30:]])
                """
            )
        with pytest.raises(AssertionError, match="rule “of no chain”: No such file"):
            inside.run(
                """
                rule = netlink.add_rule("t", "nowhere", netlink.accept(), what="of no chain")
                netlink.talk(netlink.NETFILTER, netlink.batch([netlink.add_table("t"), rule, netlink.add_table("u")]))
                """
            )
    finally:
        inside.close()


def test_a_resolver_file_that_is_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "elsewhere").write_text("as it was")
    (tmp_path / "etc/resolv.conf").symlink_to(tmp_path / "elsewhere")
    outgoing.write_resolver_file(str(tmp_path))
    assert (tmp_path / "elsewhere").read_text() == "as it was"
    assert (tmp_path / "etc/resolv.conf").read_text() == f"nameserver {outgoing.DNS}\n"
    assert (tmp_path / "etc/resolv.conf").stat().st_mode & 0o777 == 0o644
    assert sorted(one.name for one in (tmp_path / "etc").iterdir()) == ["resolv.conf"]
