"""A whole sandbox with a way out: a warden on the host of an internet of the test's own, and real programs."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.backends.sandboxing import Sandboxing
from stockade.model import Network, NetworkMode
from tests.backends.living import eventually, living, ran
from tests.warden.raw import Warden
from tests.warden.world import METADATA, PRIVATE, WEB, WEB_TOO, World, make_world

pytestmark = pytest.mark.anyio
OUTGOING = Network(mode=NetworkMode.OUTGOING)
CALL = """
import errno, socket, sys
try:
    one = socket.create_connection((sys.argv[1], 7), timeout=10)
    one.sendall(b"hello")
    one.shutdown(socket.SHUT_WR)
    print(one.recv(100).decode())
except OSError as error:
    is_reset = error.errno in (errno.ENOTCONN, errno.EPIPE)
    print("ECONNRESET" if is_reset else errno.errorcode.get(error.errno, type(error).__name__))
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with make_world(as_user=False) as world:
        yield world


@pytest.fixture(scope="module")
def warden(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warden]:
    enter = ("nsenter", "--target", str(world.host.pid), "--net", "--mount", "--")
    warden = Warden(tmp_path_factory.mktemp("warden"), prefix=enter)
    assert warden.word == {"ok": True}
    yield warden
    warden.close()


@pytest.fixture(scope="module")
async def sandboxing(warden: Warden) -> AsyncIterator[Sandboxing]:
    backend = NativeBackend(BackendOptions(data_dir=warden.path.parent, warden_socket=warden.path))
    await backend.start()
    yield backend.sandboxing
    await backend.close()


async def call(sandboxing: Sandboxing, name: str, where: str, **members: str) -> str:
    out, err, _ = await ran(sandboxing, name, "python3", "-c", CALL, where, **members)
    assert not err
    return str(out.decode().strip())


@pytest.mark.parametrize("user", ["user", "root"])
async def test_a_program_reaches_a_name_on_the_internet(sandboxing: Sandboxing, user: str) -> None:
    async with living(sandboxing, network=OUTGOING) as name:
        assert await call(sandboxing, name, "web.example.org", user=user) == "hello"
        assert await call(sandboxing, name, WEB_TOO, user=user) == "hello"
        assert await call(sandboxing, name, "nowhere.example.org", user=user) == "gaierror"
        for refused in (PRIVATE, METADATA, "127.0.0.1"):
            assert await call(sandboxing, name, refused, user=user) in {"EHOSTUNREACH", "ECONNREFUSED"}


async def test_lists_of_a_sandbox_hold(sandboxing: Sandboxing) -> None:
    network = Network(mode=NetworkMode.OUTGOING, allow_domains=("*.example.org",))
    async with living(sandboxing, network=network) as name:
        assert await call(sandboxing, name, "other.example.net") == "gaierror"
        assert await call(sandboxing, name, WEB_TOO) == "ECONNRESET"
        assert await call(sandboxing, name, "web.example.org") == "hello"
    network = Network(mode=NetworkMode.OUTGOING, allow_cidrs=(f"{WEB_TOO}/32",))
    async with living(sandboxing, network=network) as name:
        assert await call(sandboxing, name, WEB_TOO) == "hello"
        assert await call(sandboxing, name, WEB) == "ENETUNREACH"


async def test_without_a_way_out_nothing_is_reached(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        assert await call(sandboxing, name, WEB) == "ENETUNREACH"
        assert await call(sandboxing, name, "web.example.org") == "gaierror"


@pytest.mark.parametrize("user", ["user", "root"])
async def test_a_tenant_changes_nothing_of_its_network(sandboxing: Sandboxing, user: str) -> None:
    """Neither may it speak to the packet filter, nor change routes, nor take what is ours."""
    attempt = """
import errno, socket, struct
def what(name, work):
    try:
        work(); print(name, "done")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
what("filter", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
def route():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
        body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 4, 254, 2, 0)
        body += struct.pack("=HH4s", 8, 1, bytes([10, 9, 9, 9]))
        one.send(struct.pack("=IHHII", 16 + len(body), 24, 0x405, 1, 0) + body)
        error, = struct.unpack_from("=i", one.recv(4096), 16)
        if error: raise OSError(-error, "")
what("route", route)
for address, port in (("10.0.2.2", 1), ("10.0.2.3", 53)):
    one = socket.socket(); one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    def take(one=one, address=address, port=port): one.bind((address, port)); one.listen()
    what(f"{address}:{port}", take)
"""
    async with living(sandboxing, network=OUTGOING) as name:
        out, err, _ = await ran(sandboxing, name, "python3", "-c", attempt, user=user)
        found = dict(line.split() for line in out.decode().splitlines())
        assert not err
        assert found.pop("filter") in {"EPROTONOSUPPORT", "EPERM"}
        assert found.pop("route") == "EPERM"
        assert set(found.values()) <= {"EADDRINUSE", "EACCES"}
        assert await call(sandboxing, name, WEB) == "hello"


async def test_what_was_moved_is_in_the_usage_also_after_the_end(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, network=OUTGOING) as name:
        assert await call(sandboxing, name, WEB) == "hello"
        usage = (await sandboxing.inspect(name)).usage
        assert (usage.bytes_in, usage.bytes_out) == (5, 5)
        await sandboxing.kill(name)
        usage = (await asyncio.wait_for(sandboxing.ended(name), 20)).usage
        assert (usage.bytes_in, usage.bytes_out) == (5, 5)


async def test_sandboxes_that_come_and_go_leave_no_descriptor(sandboxing: Sandboxing, warden: Warden) -> None:
    egress = _child_called(warden.process.pid, "stockade-egress")

    async def counts() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{egress}/fd")), len(os.listdir(f"/proc/{warden.process.pid}/fd"))

    async def come_and_go() -> None:
        async with living(sandboxing, network=OUTGOING) as name:
            assert await call(sandboxing, name, WEB) == "hello"

    await come_and_go()
    before = await counts()
    for _ in range(12):
        await come_and_go()

    async def is_as_before() -> bool:
        now = await counts()
        return now[0] <= before[0] and now[1] <= before[1] + 16  # a cell that is being made ahead has some

    await eventually(is_as_before)


def _child_called(pid: int, name: str) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(child) for child in children if Path(f"/proc/{child}/comm").read_text().strip() == name)
