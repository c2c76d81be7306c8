"""What the warden is told by processes that may have been taken over: it neither believes it nor falls over it.

Over the real sockets, by the real functions; only who would have to be taken over is played.
"""

import asyncio
import json
import math
import os
import socket
import struct
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stockade.warden import init, protocol
from stockade.warden.disks import Disks
from stockade.warden.egress import COUNTERS, SLOTS, Egress
from stockade.warden.egress_gateway import Budget, Gateway
from stockade.warden.egress_policy import Policy
from stockade.warden.egress_resolver import Resolver
from stockade.warden.fields import Refused
from stockade.warden.image import Image
from stockade.warden.logs import Reader
from stockade.warden.pools import Template
from stockade.warden.request import RunRequest
from stockade.warden.resident import Resident, Wait
from stockade.warden.resident_request import SpawnRequest, StayRequest
from stockade.warden.residents import Residents
from stockade.warden.sandbox import Sandbox
from tests.fuzz.messages import EDGES, fast, in_order
from tests.warden.raw import request

FAST = fast(100)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12)
anything = st.sampled_from(EDGES) | st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def say(theirs: socket.socket, message: object, fds: tuple[int, ...] = ()) -> None:
    socket.send_fds(theirs, [json.dumps(message).encode()], list(fds))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Group:
    """Counters that nobody moves."""

    oom_event = None

    def cpu_us(self) -> tuple[int, int]:
        return 1000, 1000

    def oom_kills(self) -> int:
        return 0

    forks_refused = memory_peak = memory_bytes = oom_kills

    def shed(self) -> None: ...

    def limit(self, _: object) -> None: ...


class Cell:
    """One whose PID 1 says what the test says."""

    def __init__(self) -> None:
        self.control, self.theirs = pair()
        self.outputs = (-1, -1)
        self.group = Group()
        self.ids = None
        self.host = SimpleNamespace(null=-1, processors=2)
        self.killed = False
        self.purpose = None

    def kill(self) -> None:
        self.killed = True

    def close_outputs(self) -> None: ...

    def close(self) -> None:
        self.control.close()
        self.theirs.close()


# ── PID 1 of a run ──────────────────────────────────────────────────────────────────────────────────────────────────

times = st.floats() | st.sampled_from([0.0, -1.0, 1e300, math.inf, -math.inf, math.nan])
counters = st.binary(max_size=40) | st.sampled_from(
    [b"", b"9" * 30, b"user_usec 99999999\nsystem_usec 9999999\n", b"9" * 5000]
)
started = st.builds(lambda at, text: init.STARTED + init.STARTED_HEAD.pack(at) + text, times, counters)
exited = st.builds(
    lambda at, status, flags: init.EXITED + init.STATUS.pack(at, status, *flags),
    times,
    st.integers(-(2**31), 2**31 - 1),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
pieces = st.builds(
    lambda kind, rest: kind + rest,
    st.sampled_from([init.STARTED, init.EXITED, init.FAILED, init.UNCOLLECTED, init.READY, b"?"]),
    st.binary(max_size=60),
)


@given(st.lists(started | exited | pieces, min_size=1, max_size=6))
@FAST
def test_no_deadline_is_put_off_by_what_the_first_process_of_a_run_says(news: list[bytes]) -> None:
    """The end that it tells of is brought about, too; what makes no sense ends it."""
    cell: Any = Cell()
    try:
        sandbox = Sandbox(request=RunRequest.parse(request(1), 1), cell=cell)
        for one in news:
            cell.theirs.send(one)
        goes_on = sandbox.read_control()
        now = time.monotonic()
        assert goes_on or cell.killed
        if sandbox.started is not None:
            assert sandbox.began <= sandbox.started <= now
        if sandbox.status is not None or sandbox.alone:
            assert cell.killed
        elif not cell.killed:
            assert sandbox.check(now) <= now + 20.0
            late = now + 10_000.0
            sandbox.check(late)
            assert cell.killed
        answer, _ = sandbox.finish()
        assert math.isfinite(answer["wall_s"])
        assert 0 <= answer["cpu_user_us"] <= 1000
        protocol.send(cell.theirs, answer)
    finally:
        cell.close()


def test_who_floods_the_warden_with_news_is_heard_in_turns() -> None:
    cell: Any = Cell()
    sandbox = Sandbox(request=RunRequest.parse(request(1), 1), cell=cell)
    for _ in range(100):
        cell.theirs.send(init.READY)
    assert sandbox.read_control()
    assert len(cell.control.recv(100)) == 1, "all was taken in one turn"
    cell.close()


# ── PID 1 of a sandbox that lives ───────────────────────────────────────────────────────────────────────────────────


class World:
    """Residents with one sandbox and one process in it; remembers what clients were told."""

    def __init__(self) -> None:
        nobody: Any = None
        self.answers: list[dict[str, Any]] = []
        self.put_off: list[Any] = []
        self.residents = Residents(
            nobody,
            SimpleNamespace(watch=lambda *_: None, forget=lambda *_: None, put_off=self.put_off.append),
            answer=self.answer,
            refuse=lambda client, number, refusal: self.answer(client, {"re": number, "error": str(refusal)[:100]}, ()),
            egress=None,
            disks=nobody,
        )
        self.cell: Any = Cell()
        message = in_order()
        stay = StayRequest.parse(message["create"], 0)
        self.resident = Resident(request=stay, owner=0, cell=self.cell, creator=Wait("client", 1))
        self.residents._all[stay.name] = self.resident
        self.resident.up = time.monotonic()
        spawn = SpawnRequest.parse({**message["exec"], "keep": True})
        self.process = self.resident.spawn(
            spawn,
            Wait("client", 2, Reader(at=[0, 0]), is_opening=True),
            watch=lambda _: None,
            drop=lambda one: one.close(),
        )
        self.resident.asked[7] = Wait("client", 7)
        self.resident.enders.append(Wait("client", 8))
        self.process.enders.append(Wait("client", 9))
        received = protocol.receive(self.cell.theirs)
        assert received is not None
        for fd in received[1]:
            os.close(fd)

    def answer(self, client: object, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        for fd in fds:
            os.fstat(fd)
        protocol._ENCODER.encode(message).encode("utf-8", "surrogateescape")
        self.answers.append(message)

    def hear(self) -> None:
        self.residents._hear(self.resident)
        for work in self.put_off:
            work()
        self.put_off.clear()

    def close(self) -> None:
        self.process.close()
        self.cell.close()


keys = st.sampled_from(["spawned", "exited", "dialled", "up", "failed"])
members = st.dictionaries(
    st.sampled_from(["status", "at", "disk_full", "busy", "pid", "refused", "code", "cwd", "where", "x"]),
    anything,
    max_size=5,
)
news_of_stewards = st.builds(
    lambda kind, value, rest: rest | {kind: value}, keys, st.sampled_from([1, 7, 1, True, 1.0]) | anything, members
)


@given(st.lists(st.tuples(news_of_stewards, st.integers(0, 3)), min_size=1, max_size=5))
@example([({"up": 1.0}, 0), ({"failed": "\ud800"}, 0)])
@example([({"spawned": 1, "busy": EDGES[-1]}, 0)])
@example([({"spawned": 1, "pid": 5, "refused": "x" * 9000}, 0), ({"spawned": 1, "refused": "y" * 9000}, 0)])
@example([({"dialled": 1}, 2)])
@example([({"exited": 1, "status": 10**400, "at": 0.0, "disk_full": False}, 0)])
@FAST
def test_a_first_process_that_lies_is_ended_or_believed_in_what_may_be(said: list[tuple[dict[str, Any], int]]) -> None:
    before = descriptors()
    world = World()
    bystander, other = socket.socketpair()
    try:
        for message, fds in said:
            say(world.cell.theirs, message, (bystander.fileno(),) * fds)
        world.hear()
        info = world.resident.info(in_full=False)
        protocol.send(world.cell.theirs, info)
        if world.process.file >= 0:  # else it was let go of
            assert os.fstat(world.process.file).st_size <= 2 * world.process.logs[0].most + 4096 + 16 * 16384
        world.resident.settle_end()
        protocol.send(world.cell.theirs, world.resident.info())
    finally:
        world.close()
        bystander.close()
        other.close()
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["directory", "file", "pipe", "two sockets"])
def test_a_connection_is_a_socket_and_one(kind: str, tmp_path: Any) -> None:
    """What a server takes for one it would use as one."""
    world = World()
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    directory, file = os.open("/", os.O_RDONLY), os.open("/etc/passwd", os.O_RDONLY)
    fds = {"directory": (directory,), "file": (file,), "pipe": (read,), "two sockets": (ours.fileno(), theirs.fileno())}
    say(world.cell.theirs, {"dialled": 7}, fds[kind])
    world.hear()
    assert not world.answers
    assert world.cell.killed
    for fd in (read, write, directory, file):
        os.close(fd)
    ours.close()
    theirs.close()
    world.close()


# ── templates, the egress process, the disks process ────────────────────────────────────────────────────────────────


@given(st.dictionaries(st.sampled_from(["ready", "path", "x"]), anything | st.lists(st.text(), max_size=3)))
@example({"ready": True, "path": ["/usr/a\0b", "/usr/\ud800", "/usr/../../etc"]})
@example({"ready": True, "path": ["/usr"] * 10_000})
@FAST
def test_a_template_may_say_anything_of_where_it_has_its_modules_from(news: dict[str, Any]) -> None:
    template = Template.__new__(Template)
    template._image = Image(name="host", lower="/", binds=(("/usr", "usr"),))
    template._hear(news)
    assert len(template.__dict__.get("_watched", {})) <= 256
    assert type(template.is_ready) is bool


@given(
    st.lists(st.dictionaries(st.sampled_from(["opened", "closed", "slot", "error"]), anything, max_size=4), max_size=4)
)
@example([{"closed": "x", "slot": [1]}, {"opened": EDGES[-1], "error": EDGES[-1]}])
@FAST
def test_the_egress_process_may_say_anything(news: list[dict[str, Any]]) -> None:
    ours, theirs = pair()
    counters = protocol.memory_file("counters")
    os.ftruncate(counters, SLOTS * COUNTERS.size)
    egress = Egress(0, ours, counters)
    egress.open("one", {}, ())
    egress.close("one")
    free = len(egress._free)
    for message in news:
        say(theirs, message)
    for name, why in egress.hear():
        assert len(name) <= 64
        assert len(why) <= 500
        (name + why).encode()
    assert not egress.is_lost
    assert free <= len(egress._free) <= SLOTS
    assert len(set(egress._free)) == len(egress._free), "two sandboxes would share a slot"
    egress.shut()
    theirs.close()


def test_the_egress_process_is_heard_in_turns() -> None:
    ours, theirs = pair()
    egress = Egress(0, ours, os.dup(0))
    for _ in range(70):
        say(theirs, {"error": "x"})
    assert len(egress.hear()) < 70
    assert len(egress.hear()) > 0
    egress.shut()
    theirs.close()


@given(st.lists(st.dictionaries(st.sampled_from(["n", "ok", "error"]), anything | members, max_size=3), max_size=4))
@example([{"n": [1]}, {"n": 1, "error": 5}, {"n": 1}])
@FAST
def test_the_disks_process_may_say_anything(news: list[dict[str, Any]]) -> None:
    """Whoever asked is told, if not now then when it is gone."""
    ours, theirs = pair()
    disks, told = Disks(0, ours), []
    disks.ask({"op": "facts"}, (), lambda reply, _: told.append(reply))
    for message in news:
        say(theirs, message)
    disks.hear()
    theirs.close()
    disks.hear()
    assert disks.is_lost
    assert len(told) <= 1
    assert all(isinstance(one, Refused) or one is not None for one in told)
    disks.shut()


def odd_sockets() -> dict[str, socket.socket]:
    unix, other = socket.socketpair()
    other.close()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    return {
        "unix": unix,
        "idle": socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "listener": socket.create_server(("127.0.0.1", 0)),
        "listener 6": socket.create_server(("::1", 0), family=socket.AF_INET6),
        "datagrams": datagrams,
        "netlink": socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    }


@pytest.mark.parametrize(
    "names",
    [
        ("unix", "unix", "unix"),
        ("listener", "datagrams", "idle"),
        ("listener", "unix", "listener"),
        ("datagrams", "datagrams", "datagrams"),
        ("listener", "netlink", "listener"),
        ("listener 6", "datagrams", "listener"),
        ("listener", "datagrams"),
        ("listener", "datagrams", "listener", "listener"),
        (),
    ],
    ids="-".join,
)
def test_a_way_out_is_the_sockets_of_one(names: tuple[str, ...]) -> None:
    """Others would be ready for ever for what the egress process cannot do, and keep it from all other sandboxes."""
    found = odd_sockets()
    fds = [os.dup(found[name].fileno()) for name in names]

    async def begin() -> None:
        with pytest.raises((OSError, ValueError)):
            Gateway(Policy(), fds, resolver=Resolver(), budget=Budget(1), count=lambda *_: None)

    asyncio.run(begin())
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    for one in found.values():
        one.close()


# ── the framing itself ──────────────────────────────────────────────────────────────────────────────────────────────


@given(st.binary(min_size=1, max_size=200) | st.builds(lambda m: json.dumps(m).encode(), anything), st.integers(0, 14))
@example(b"[" * 5000, 1)
@example(b'{"a":' * 3000, 1)
@example(struct.pack("<Q", 0), 0)
@FAST
def test_what_is_no_message_costs_no_descriptor(data: bytes, fds: int) -> None:
    ours, theirs = pair()
    before = descriptors()
    socket.send_fds(theirs, [data], [theirs.fileno()] * fds)
    try:
        received = protocol.receive(ours)
    except protocol.ProtocolError:
        pass
    else:
        assert received is not None
        assert isinstance(received[0], dict)
        assert len(received[1]) == fds <= protocol.MOST_DESCRIPTORS
        for fd in received[1]:
            os.close(fd)
    assert descriptors() == before
    ours.close()
    theirs.close()
