"""The way out of a sandbox, on an internet of the test's own: what is reached, what is not, and what is left."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from stockade.warden import egress, outgoing
from stockade.warden.egress_gateway import CONNECTIONS
from stockade.warden.fields import Refused
from tests.warden.world import (
    DNS,
    HOST,
    METADATA,
    PRIVATE,
    SHARED,
    WEB,
    WEB_TOO,
    Place,
    World,
    make_world,
)

REFUSED = {
    "private, class A": PRIVATE,
    "private, class B": "172.16.5.5",
    "private, class C": "192.168.1.1",
    "the clouds' metadata": METADATA,
    "shared by a provider's customers": SHARED,
    "the host's own": HOST,
    "nobody's": "0.1.2.3",
    "reserved": "240.0.0.1",
    "the listener's own": outgoing.LISTENER[0],
}


@pytest.fixture(scope="module", params=["root", "ordinary user"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with make_world(as_user=request.param == "ordinary user") as world:
        yield world


@pytest.fixture
def box(world: World) -> Iterator[Place]:
    with world.sandbox() as box:
        yield box


def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {within_s:g} s"
        time.sleep(0.01)


def lookup(box: Place, name: str) -> list[str]:
    """What a program's own resolver makes of a name."""
    found = box.run(
        f"""
        try:
            result = sorted({{one[4][0] for one in socket.getaddrinfo({name!r}, 80, type=socket.SOCK_STREAM)}})
        except OSError:
            result = []
        """
    )
    return list(found)


def test_a_public_address_is_reached_and_what_is_moved_is_counted(world: World, box: Place) -> None:
    assert box.attempt(WEB) == "ok"
    assert world.usage(box) == (5, 5)
    assert box.attempt(WEB_TOO) == "ok"
    assert world.usage(box) == (10, 10)


def test_each_side_may_end_its_half_first(box: Place) -> None:
    """The server says how much it got once the program has ended its half, which by then cannot write."""
    total = box.run(
        f"""
        with socket.create_connection(({WEB!r}, 9), timeout=20) as one:
            for _ in range(64):
                one.sendall(bytes(1 << 20))
            one.shutdown(socket.SHUT_WR)
            result = one.recv(100).decode()
        """
    )
    assert total == str(64 << 20)


def test_all_that_is_sent_arrives_as_it_was(box: Place) -> None:
    same = box.run(
        f"""
        import os, threading
        sent = os.urandom(8 << 20)
        with socket.create_connection(({WEB!r}, 7), timeout=20) as one:
            def send(): one.sendall(sent); one.shutdown(socket.SHUT_WR)
            thread = threading.Thread(target=send); thread.start()
            got = bytearray()
            while part := one.recv(1 << 16): got += part
            thread.join()
        result = bytes(got) == sent
        """
    )
    assert same is True


@pytest.mark.parametrize("address", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("early", [False, True], ids=["policy told to egress", "policy told to the sandbox too"])
def test_what_is_not_public_is_refused(world: World, early: bool, address: str) -> None:
    with world.sandbox(early=early) as box:
        assert box.attempt(address) in {"ECONNRESET", "ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EINVAL"}
        assert box.attempt(outgoing.LISTENER[0], outgoing.LISTENER[1]) == "ECONNRESET"
        assert box.attempt(WEB) == "ok"


def test_loopback_is_the_sandboxs_own(box: Place) -> None:
    """The host serves on port 7 of its loopback."""
    assert box.attempt("127.0.0.1") == "ECONNREFUSED"
    box.run("own = socket.create_server(('127.0.0.1', 8080))")
    assert box.run("socket.create_connection(('127.0.0.1', 8080), timeout=30).close(); result = 'ok'") == "ok"


def test_an_address_of_the_host_takes_a_permission_of_its_own(world: World) -> None:
    with world.sandbox(permit_private=["45.83.64.0/24"]) as box:
        assert box.attempt(HOST) == "ECONNRESET"
    with world.sandbox(permit_private=[f"{HOST}/32"]) as box:
        # The one attempt that gets through: the host's listener takes the connection and says nothing.
        assert box.run(f"socket.create_connection(({HOST!r}, 7), timeout=30).close(); result = 'ok'") == "ok"


@pytest.mark.parametrize("early", [False, True])
def test_the_operator_may_permit_what_is_not_public(world: World, early: bool) -> None:
    with world.sandbox(early=early, permit_private=["10.9.0.0/16"]) as box:
        assert box.attempt(PRIVATE) == "ok"
        assert box.attempt("192.168.1.1") != "ok"


@pytest.mark.parametrize("early", [False, True])
def test_the_operator_may_refuse_what_is_public(world: World, early: bool) -> None:
    with world.sandbox(early=early, refuse=[f"{WEB}/32"]) as box:
        assert box.attempt(WEB) != "ok"
        assert box.attempt(WEB_TOO) == "ok"


@pytest.mark.parametrize("early", [False, True])
def test_a_list_of_networks_lets_only_those_through(world: World, early: bool) -> None:
    with world.sandbox(early=early, allow_cidrs=["93.184.0.0/16", "10.0.0.0/8"]) as box:
        assert box.attempt(WEB) == "ok"
        assert box.attempt(WEB_TOO) == ("ENETUNREACH" if early else "ECONNRESET")
        assert box.attempt(PRIVATE) != "ok"  # a tenant's list opens nothing


@pytest.mark.parametrize("early", [False, True])
def test_a_list_of_names_lets_only_what_they_lead_to_through(world: World, early: bool) -> None:
    with world.sandbox(early=early, allow_domains=["web.example.org"]) as box:
        assert box.attempt(WEB) == "ECONNRESET"
        assert lookup(box, "other.example.net") == []
        assert lookup(box, "web.example.org") == [WEB]
        assert box.attempt(WEB) == "ok"
        assert box.attempt(WEB_TOO) == "ECONNRESET"
    with world.sandbox(early=early, allow_domains=["*.example.net"], allow_cidrs=[f"{WEB}/32"]) as box:
        assert box.attempt(WEB) == "ok"
        assert box.attempt(WEB_TOO) == "ECONNRESET"
        assert lookup(box, "other.example.net") == [WEB_TOO]
        assert box.attempt(WEB_TOO) == "ok"
    with world.sandbox(early=early, allow_domains=[]) as box:
        assert box.attempt(WEB) != "ok"


def test_a_name_that_is_refused_is_not_asked_for(world: World) -> None:
    with world.sandbox(allow_domains=["*.example.org"]) as box:
        assert lookup(box, "secret.data.example.net") == []
        assert lookup(box, "web.example.org") == [WEB]
    asked = world.internet.run("result = asked")
    assert not [question for question in asked if "secret.data" in question]


@pytest.mark.parametrize("name", ["inside.example.org", "rebind.example.org"])
def test_a_name_opens_no_address_that_is_not_public(world: World, name: str) -> None:
    with world.sandbox(allow_domains=["*.example.org"]) as box:
        (address,) = lookup(box, name)
        assert box.attempt(address) == "ECONNRESET"


def test_names_are_resolved_as_the_host_resolves_them(world: World, box: Place) -> None:
    assert lookup(box, "web.example.org") == [WEB]
    assert lookup(box, "nowhere.example.org") == []
    received, sent = world.usage(box)
    assert received > sent > 0


def test_an_answer_that_does_not_fit_a_datagram_comes_by_stream(box: Place) -> None:
    assert len(lookup(box, "many.example.org")) == 199


def test_addresses_of_the_next_internet_are_not_told(world: World, box: Place) -> None:
    box.run("socket.getaddrinfo('web.example.org', 80, type=socket.SOCK_STREAM)")
    assert "web.example.org 28" not in world.internet.run("result = asked")


def test_a_name_server_that_is_silent_is_a_failure_of_the_lookup(box: Place) -> None:
    code = box.run(
        f"""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(20)
            question = b"\\x06silent\\x07example\\x03org\\0\\0\\1\\0\\1"
            one.sendto(b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + question, ({outgoing.DNS!r}, 53))
            answer = one.recv(600)
        result = [answer[:2].hex(), answer[3] & 15]
        """
    )
    assert code == ["1234", 2]


def test_nothing_but_tcp_and_names_leaves(box: Place) -> None:
    errors = box.run(
        f"""
        found = {{}}
        def what(name, work):
            try:
                work(); found[name] = "sent"
            except OSError as error:
                found[name] = error.errno
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        what("web", lambda: datagrams.sendto(b"x", ({WEB!r}, 53)))
        what("name server", lambda: datagrams.sendto(b"x", ({DNS!r}, 53)))
        what("private", lambda: datagrams.sendto(b"x", ({PRIVATE!r}, 53)))
        what("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
        what("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        six = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        what("six", lambda: six.connect(("2606:4700::1111", 80)))
        what("loopback", lambda: datagrams.sendto(b"x", ("127.0.0.1", 9)))
        result = found
        """
    )
    assert errors == {
        "web": 1, "name server": 1, "private": 1, "raw": 1, "packet": 1, "six": 101, "loopback": "sent",
    }  # fmt: skip


def test_two_sandboxes_do_not_see_each_other(world: World, box: Place) -> None:
    box.run("own = socket.create_server(('0.0.0.0', 7007))")
    assert box.run(f"socket.create_connection(({outgoing.ADDRESS!r}, 7007), timeout=30).close(); result = 1") == 1
    with world.sandbox() as other:
        assert other.attempt(outgoing.ADDRESS, 7007) == "ECONNREFUSED"
        assert other.attempt(WEB) == "ok"


def test_a_program_on_the_sandboxs_own_addresses_hears_nothing_of_what_leaves(box: Place) -> None:
    """Any address is local inside: whoever binds one must not get the connections to it."""
    box.run(f"own = socket.create_server(({WEB!r}, 7007)); own.settimeout(0.2)")
    assert box.attempt(WEB, 7007) == "ok"
    assert box.run("try:\n own.accept(); result = 'heard'\nexcept TimeoutError: result = 'nothing'") == "nothing"


def test_connections_that_come_and_go_leave_nothing(world: World, box: Place) -> None:
    assert box.attempt(WEB) == "ok"  # so its listeners have arrived
    before = world.open_descriptors()
    outcomes = box.run(
        f"""
        outcomes = set()
        for number in range(500):
            if number % 3:
                outcomes.add(attempt({WEB!r}, 7))
            else:  # gone without a word
                socket.create_connection(({WEB!r}, 19), timeout=30).close()
        result = sorted(outcomes)
        """
    )
    assert outcomes == ["ok"]
    until(lambda: world.open_descriptors() <= before)


def test_a_sandbox_that_is_closed_leaves_nothing(world: World) -> None:
    until(lambda: world.host.run("gate.hear(); result = not gate._closing"))
    before = world.open_descriptors()
    with world.sandbox() as box:
        box.run(f"many = [socket.create_connection(({WEB!r}, 19), timeout=30) for _ in range(100)]")
        box.run("waiting = socket.socket(); waiting.setblocking(False)")
        box.run("try: waiting.connect(('8.8.4.4', 81))\nexcept BlockingIOError: pass")
        until(lambda: world.open_descriptors() >= before + 203)
    until(lambda: world.open_descriptors() <= before)
    until(lambda: world.host.run("gate.hear(); result = not gate._closing"))


def test_more_connections_than_a_sandbox_may_have_are_reset_and_the_others_live(world: World, box: Place) -> None:
    more = 20
    box.run(
        f"""
        kept = [socket.create_connection(({WEB!r}, 1000), timeout=20) for _ in range({CONNECTIONS + more})]
        for one in kept:
            one.settimeout(0.0)
        """
    )
    count = """
        alive = []
        for one in kept:
            try:
                one.recv(1)
            except BlockingIOError:
                alive.append(one)
            except ConnectionResetError:
                pass
        result = len(alive)
        """
    until(lambda: box.run(count) == CONNECTIONS)
    with world.sandbox() as other:
        assert other.attempt(WEB) == "ok"


def test_a_connection_that_a_program_has_closed_makes_room_though_its_server_is_silent(box: Place) -> None:
    box.run(
        f"""
        for _ in range({CONNECTIONS}):
            socket.create_connection(({WEB!r}, 1000), timeout=20).close()
        """
    )
    assert box.attempt(WEB) == "ok"


def test_what_nobody_takes_is_not_gathered(box: Place) -> None:
    """A peer that reads nothing: what the program can write ends somewhere."""
    taken = box.run(
        f"""
        import select
        one = socket.create_connection(({WEB!r}, 1000), timeout=30)
        one.setblocking(False)
        taken = 0
        while select.select([], [one], [], 0.5)[1]:
            taken += one.send(bytes(1 << 16))
        result = taken
        """
    )
    assert taken < 32 << 20


def test_the_process_has_no_rights_and_cannot_be_looked_into(world: World, box: Place) -> None:
    until(lambda: box.attempt(WEB) == "ok")
    with open(f"/proc/{world.egress_pid}/status") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    assert status["Uid"].split() == ["4711" if world.as_user else "65534"] * 4
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert os.stat(f"/proc/{world.egress_pid}/mem").st_uid == 0  # not dumpable


def test_a_policy_that_cannot_be_meant_is_refused_and_its_descriptors_closed() -> None:
    gate = egress.start()
    try:
        read, write = os.pipe()
        with pytest.raises(Refused, match=r"allow_cidrs: '10\.0\.0\.1/8'"):
            gate.open("x", {"allow_cidrs": ["10.0.0.1/8"], "allow_domains": None}, (read,))
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")
        os.close(write)
        assert gate.usage("x") == (0, 0)
    finally:
        gate.shut()
        os.waitpid(gate.pid, 0)


def test_descriptors_of_another_kind_are_told_of() -> None:
    gate = egress.start()
    try:
        read, write = os.pipe()
        gate.open("x", {"allow_cidrs": None, "allow_domains": None}, (read, write))
        failed: list[tuple[str, str]] = []
        until(lambda: failed or failed.extend(gate.hear()) or failed)
        assert failed[0][0] == "x"
        assert gate.close("x") == (0, 0)
    finally:
        gate.shut()
        os.waitpid(gate.pid, 0)


def test_without_the_process_there_is_no_way_out_and_it_is_told() -> None:
    gate = egress.start()
    os.kill(gate.pid, signal.SIGKILL)
    os.waitpid(gate.pid, 0)
    assert gate.hear() == []
    assert gate.is_lost
    with pytest.raises(Refused, match="restart"):
        gate.open("x", {"allow_cidrs": None, "allow_domains": None}, ())
    assert gate.close("x") == (0, 0)
    gate.shut()


def test_a_sandbox_hears_at_once_that_the_process_is_gone() -> None:
    with make_world(as_user=False) as world, world.sandbox() as box:
        assert box.attempt(WEB) == "ok"
        world.host.run("import signal; os.kill(gate.pid, signal.SIGKILL); os.waitpid(gate.pid, 0)")
        assert box.attempt(WEB) == "ECONNREFUSED"
        assert lookup(box, "web.example.org") == []


def test_the_process_ends_with_who_started_it() -> None:
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        gate = egress.start()
        os.write(write, str(gate.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(middle, 0)
    pid = int(os.read(read, 100))
    os.close(read)
    os.close(write)

    def is_gone() -> bool:
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    until(is_gone)


def test_more_orders_than_the_channel_holds_are_carried_out_all_the_same() -> None:
    """The warden never waits: what does not fit goes when answers have made room."""
    before = len(os.listdir("/proc/self/fd"))
    gate = egress.start()
    os.kill(gate.pid, signal.SIGSTOP)
    try:
        names = [f"box-{n}" for n in range(3000)]
        for name in names:
            read, write = os.pipe()
            gate.open(name, {"allow_cidrs": None, "allow_domains": None}, (read, write))
            gate.close(name)
            if len(gate._outbox) > 100:
                break
        else:
            pytest.fail("the channel holds everything")
        os.kill(gate.pid, signal.SIGCONT)
        until(lambda: gate.hear() is not None and not gate._closing)
        assert not gate._outbox
    finally:
        os.kill(gate.pid, signal.SIGCONT)
        gate.shut()
        os.waitpid(gate.pid, 0)
    assert len(os.listdir("/proc/self/fd")) == before
