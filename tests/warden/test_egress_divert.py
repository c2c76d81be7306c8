"""Connections that are handed to a listener of the host's, on an internet of the test's own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.warden.egress_divert import MOST_LINE, Divert, Named
from tests.warden.world import METADATA, PRIVATE, WEB, WEB_TOO, Place, World, make_world

TOKEN = "t" * 64
LISTEN = """
import json, threading
listener = socket.create_server(("127.0.0.1", 0))
lines = []
def serve():
    while True:
        try:
            one = listener.accept()[0]
        except OSError:
            return
        with one, one.makefile("rwb") as file:
            lines.append(file.readline().decode())
            file.write(b"ours: " + file.read1(100)); file.flush()
threading.Thread(target=serve, daemon=True).start()
result = listener.getsockname()[1]
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with make_world(as_user=False) as world:
        yield world


@pytest.fixture(scope="module")
def port(world: World) -> int:
    return int(world.host.run(LISTEN))


@contextmanager
def box(world: World, port: int, *hosts: str, ports: tuple[int, ...] = (7,), **policy: Any) -> Iterator[Place]:
    divert = {"port": port, "token": TOKEN, "hosts": hosts, "ports": ports}
    with world.sandbox(divert=divert, **policy) as place:
        yield place


def said(world: World) -> dict[str, Any]:
    """What the listener was told of the last connection."""
    line = world.host.run("result = lines[-1]")
    return dict(json.loads(line))


def lookup(place: Place, name: str) -> list[str]:
    found = place.run(f"result = sorted({{one[4][0] for one in socket.getaddrinfo({name!r}, 80)}})")
    return list(found)


def test_a_connection_to_a_name_goes_to_the_listener_which_is_told_whose_and_whereto(world: World, port: int) -> None:
    with box(world, port, "web.example.org") as place:
        assert place.attempt(WEB) == "ok"  # nobody has asked for the name
        assert lookup(place, "web.example.org") == [WEB]
        assert place.attempt(WEB) == "got b'ours: hello'"
        assert said(world) == {"token": TOKEN, "address": WEB, "port": 7, "names": ["web.example.org"]}
        assert world.usage(place)[1] >= len("hello")
        assert place.attempt(WEB, 7007) == "ok"
        assert lookup(place, "other.example.net") == [WEB_TOO]
        assert place.attempt(WEB_TOO) == "ok"


def test_names_below_one_an_address_and_everything_can_be_meant(world: World, port: int) -> None:
    with box(world, port, "*.example.org", WEB_TOO) as place:
        assert lookup(place, "web.example.org") == [WEB]
        assert place.attempt(WEB).startswith("got")
        assert place.attempt(WEB_TOO).startswith("got")
        assert said(world)["names"] == []
    with box(world, port) as place:
        assert place.attempt(WEB).startswith("got")
        assert lookup(place, "web.example.org") == [WEB]
        assert place.attempt(WEB).startswith("got")
        assert said(world)["names"] == ["web.example.org"]


def test_what_is_refused_is_not_handed_over(world: World, port: int) -> None:
    count = world.host.run("result = len(lines)")
    with box(world, port) as place:
        for address in (PRIVATE, METADATA):
            assert place.attempt(address) == "ECONNRESET"
        assert place.attempt("127.0.0.1", port) == "ECONNREFUSED"
    with box(world, port, "*.example.org", allow_domains=["web.example.org"]) as place:
        assert place.attempt(WEB) == "ECONNRESET"
        assert lookup(place, "web.example.org") == [WEB]
        assert world.host.run("result = len(lines)") == count
        assert place.attempt(WEB).startswith("got")


def test_without_a_listener_nothing_is_reached(world: World) -> None:
    """Not the host itself either: the secrets' host would get placeholders."""
    unused = world.host.run(
        """
        one = socket.create_server(("127.0.0.1", 0)); result = one.getsockname()[1]; one.close()
        """
    )
    with box(world, unused) as place:
        assert place.attempt(WEB) == "ECONNRESET"


def test_records_that_lead_past_the_name_are_kept_from_programs(world: World, port: int) -> None:
    asked = "result = asked"
    with box(world, port, "web.example.org") as place:
        for name, is_asked in (("web", False), ("many", True)):
            place.run(
                f"""
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                    one.settimeout(20)
                    question = b"\\x{len(name):02x}{name}\\x07example\\x03org\\0\\0\\x41\\0\\1"
                    one.sendto(b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + question, ("10.0.2.3", 53))
                    one.recv(600)
                """
            )
            assert (f"{name}.example.org 65" in world.internet.run(asked)) is is_asked


@pytest.mark.parametrize(
    "member",
    [{"port": 0}, {"port": "80"}, {"port": True}, {"token": ""}, {"token": 7}, {"ports": []}, {"ports": [70000]},
     {"hosts": ["a b"]}, {"hosts": "web"}],
    ids=str,
)  # fmt: skip
def test_a_member_that_cannot_be_meant_is_refused_without_its_token(member: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^divert") as caught:
        Divert.parse({"port": 1, "token": TOKEN, "hosts": [], "ports": [80], **member})
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(Divert.parse({"port": 1, "token": TOKEN, "hosts": [], "ports": [80]}))


@given(st.lists(st.text(st.sampled_from("a.é\\x00"), max_size=253), max_size=40))
def test_the_line_is_one_and_never_too_long(names: list[str]) -> None:
    line = Divert(port=1, token=TOKEN).line("1.2.3.4", 80, names)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= MOST_LINE
    assert json.loads(line)["address"] == "1.2.3.4"


def test_an_address_is_called_by_answers_that_hold_and_stays_known_after() -> None:
    named = Named()
    named.add(1, "one.example.org", 5, now=0.0)
    named.add(1, "two.example.org", 300, now=0.0)
    assert named.of(1, 59.0) == ["one.example.org", "two.example.org"]
    assert named.of(1, 61.0) == ["two.example.org"]
    assert named.of(1, 301.0) == []
    assert named.knows(1)
    assert not named.knows(2)


def test_what_is_remembered_of_names_is_bounded() -> None:
    named = Named()
    for number in range(5000):
        named.add(number, "one.example.org", 60, now=0.0)
        named.add(7, f"n{number}.example.org", 60, now=0.0)
    assert len(named.of(7, 1.0)) == 16
    assert not named.knows(1)
    assert named.knows(4999)
