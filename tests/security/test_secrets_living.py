"""Secrets of a whole sandbox: real programs, a warden on the host of an internet of the test's own, and TLS."""

import asyncio
import ctypes
import json
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.backends.sandboxing import Sandboxing
from stockade.engine.diversions import Admission, Diversions
from stockade.model import Network, NetworkMode, SecretRule
from tests.backends.living import ENV, live_spec, ran
from tests.engine.secret_hosts import make_authority, make_certificate
from tests.warden.raw import Warden
from tests.warden.world import WEB, WEB_TOO, World, make_world

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to lay out hosts"),
]
T = TypeVar("T")
API, MINE = "web.example.org", "other.example.net"
VALUE, PLACEHOLDER = "the-real-value", "<SECRET:svc>"
RULE = SecretRule(name="API_KEY", value=VALUE, placeholder=PLACEHOLDER, hosts=(API,))
CLONE_NEWNET = 0x40000000


class HostLoop:
    """An event loop in a thread whose sockets are of the test's host."""

    def __init__(self, pid: int) -> None:
        self.loop = asyncio.new_event_loop()
        self._entered = threading.Event()
        threading.Thread(target=self._run, args=(pid,), daemon=True).start()
        assert self._entered.wait(30)

    def _run(self, pid: int) -> None:
        with open(f"/proc/{pid}/ns/net") as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0
        self._entered.set()
        self.loop.run_forever()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def authority(folder: Path) -> tuple[Path, Any]:
    return make_authority(folder)


@pytest.fixture(scope="module")
def world(folder: Path, authority: tuple[Path, Any]) -> Iterator[World]:
    """`API` on one address, the tenant's own host `MINE` on another; each with and without TLS."""
    api, mine = (make_certificate(folder, authority[1], name) for name in (API, MINE))
    with make_world(as_user=False) as world:
        world.internet.run(
            f"""
            from tests.engine.secret_hosts import Host
            hosts = [
                Host("{WEB}", 443, certificate="{api}"), Host("{WEB}", 80),
                Host("{WEB_TOO}", 443, certificate="{mine}"), Host("{WEB_TOO}", 80),
            ]
            """
        )
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


@pytest.fixture(scope="module")
def on_host(world: World) -> Iterator[HostLoop]:
    loop = HostLoop(world.host.pid)
    yield loop
    loop.close()


@pytest.fixture(scope="module")
async def diversions(on_host: HostLoop, authority: tuple[Path, Any]) -> AsyncIterator[Diversions]:
    diversions = Diversions(key="ef" * 32, trusted=authority[0])
    serving = diversions.running()
    await on_host.run(serving.__aenter__())
    yield diversions
    await on_host.run(serving.__aexit__(None, None, None))


class Box:
    """A sandbox with secrets, and the environment of its programs."""

    def __init__(self, sandboxing: Sandboxing, name: str, admission: Admission) -> None:
        self.sandboxing, self.name, self.admission = sandboxing, name, admission

    async def run(self, *argv: str, **members: Any) -> str:
        env = {**ENV, **self.admission.env}
        out, err, code = await ran(self.sandboxing, self.name, *argv, env=env, **members)
        assert code == 0, (code, out, err)
        return str(out.decode())

    async def curl(self, *words: str) -> dict[str, Any]:
        """What the host says it was sent."""
        return dict(json.loads(await self.run("curl", "-sS", "--max-time", "30", *words)))


@asynccontextmanager
async def made(
    sandboxing: Sandboxing, diversions: Diversions, on_host: HostLoop, *rules: SecretRule, name: str
) -> AsyncIterator[Box]:
    async def admit() -> Admission:
        return diversions.admit(name, rules)

    async def forget() -> None:
        diversions.forget(name)

    admission = await on_host.run(admit())
    spec = replace(live_spec(network=Network(mode=NetworkMode.OUTGOING)), diversion=admission.diversion)
    await sandboxing.create(name, spec)
    try:
        files = await sandboxing.files(name, user="root")
        await diversions.install(files, admission)
        files.close()
        yield Box(sandboxing, name, admission)
    finally:
        await sandboxing.remove(name)
        await on_host.run(forget())


@pytest.fixture(scope="module")
async def box(sandboxing: Sandboxing, diversions: Diversions, on_host: HostLoop) -> AsyncIterator[Box]:
    async with made(sandboxing, diversions, on_host, RULE, name="box") as box:
        yield box


def heard(world: World) -> str:
    """All that any host was sent."""
    return json.dumps(world.internet.run("result = [host.heard for host in hosts]"))


PYTHON = f"""
import os, urllib.request
asked = urllib.request.Request("https://{API}/", headers={{"X-Key": os.environ["API_KEY"]}})
print(urllib.request.urlopen(asked, timeout=30).read().decode())
"""
NODE = f"""
const asked = {{ host: "{API}", headers: {{ "X-Key": process.env.API_KEY }} }};
require("https").get(asked, (answer) => answer.pipe(process.stdout));
"""
OPENSSL = f"""
printf 'GET / HTTP/1.1\\r\\nHost: {API}\\r\\nConnection: close\\r\\nX-Key: %s\\r\\n\\r\\n' "$API_KEY" |
openssl s_client -quiet -verify_return_error -verify_hostname {API} -servername {API} -connect {API}:443 2>/dev/null |
tail -n 1
"""
PROGRAMS = {
    "curl": ("curl", "-sS", "--max-time", "30", "-H", f"X-Key: {PLACEHOLDER}", f"https://{API}/"),
    "python3": ("python3", "-c", PYTHON),
    "node": ("node", "-e", NODE),
    "openssl": ("sh", "-c", OPENSSL),
}


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_program_uses_a_secret_that_it_does_not_know(box: Box, program: str) -> None:
    if not await box.run("sh", "-c", f"command -v {program} || true"):
        pytest.skip(f"{program} is not there")
    told = json.loads(await box.run(*PROGRAMS[program]))
    assert told["headers"]["x-key"] == VALUE


async def test_a_body_and_a_form_carry_it_and_plain_http_too(box: Box) -> None:
    assert (await box.curl(f"https://{API}/", "--data-urlencode", f"k={PLACEHOLDER}"))["body"] == f"k={VALUE}"
    kind = ("-H", "Content-Type: application/json")
    told = await box.curl(f"http://{API}/?k=%3CSECRET:svc%3E", *kind, "-d", f'{{"k": "{PLACEHOLDER}"}}')
    assert (told["target"], told["body"]) == (f"/?k={VALUE}", f'{{"k": "{VALUE}"}}')
    told = await box.curl(f"https://{API}/", "-u", f"me:{PLACEHOLDER}", "--http2")
    assert told["headers"]["authorization"] == "Basic bWU6dGhlLXJlYWwtdmFsdWU="


async def test_other_hosts_and_other_ports_see_the_placeholder(box: Box, world: World) -> None:
    """And the host's own certificate, which nobody in the sandbox knows here."""
    assert (await box.curl("-k", "-H", f"X-Key: {PLACEHOLDER}", f"https://{MINE}/"))["headers"]["x-key"] == PLACEHOLDER
    assert (await box.curl("-H", f"X-Key: {PLACEHOLDER}", f"http://{MINE}/"))["headers"]["x-key"] == PLACEHOLDER


ATTACKS = {
    "an address of its own as the host's, in TLS": ("-k", "--resolve", f"{API}:443:{WEB_TOO}", f"https://{API}/"),
    "an address of its own as the host's": ("--resolve", f"{API}:80:{WEB_TOO}", f"http://{API}/"),
    "its own host behind the host's name": ("-H", f"Host: {MINE}", f"https://{API}/"),
    "the host's name to its own host": ("-k", "-H", f"Host: {API}", f"https://{MINE}/"),
    "the host's name to its own host, without TLS": ("-H", f"Host: {API}", f"http://{MINE}/"),
    "a proxy": ("--proxy", f"http://{API}:80", f"http://{MINE}/"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_no_host_of_the_tenants_hears_the_value(box: Box, world: World, attack: str) -> None:
    command = ("curl", "-sS", "--max-time", "30", "-H", f"X-Key: {PLACEHOLDER}", *ATTACKS[attack])
    out, err, _ = await ran(box.sandboxing, box.name, *command, env={**ENV, **box.admission.env})
    assert VALUE not in (out + err).decode()
    mine = world.internet.run("result = [host.heard for host in hosts[2:]]")
    assert VALUE not in json.dumps(mine)


async def test_an_answer_that_leads_elsewhere_leads_there_with_the_placeholder(box: Box, world: World) -> None:
    told = await box.curl("-k", "-L", "-H", f"X-Key: {PLACEHOLDER}", f"https://{API}/to/{MINE}")
    assert (told["headers"]["host"], told["headers"]["x-key"]) == (MINE, PLACEHOLDER)


async def test_nothing_in_the_sandbox_knows_the_value_or_the_token(box: Box) -> None:
    """Neither what its processes show of themselves, nor its files; as root inside."""
    search = """
import os, sys
needles = [word.encode() for word in sys.stdin.read().split()]
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) == os.getpid():
        continue
    for name in ("environ", "cmdline", "mem"):
        try:
            if name != "mem":
                data = open(f"/proc/{pid}/{name}", "rb").read()
            else:
                data = b""
                with open(f"/proc/{pid}/mem", "rb", 0) as memory:
                    for line in open(f"/proc/{pid}/maps"):
                        if " rw" in line:
                            first, last = (int(end, 16) for end in line.split()[0].split("-"))
                            memory.seek(first)
                            data += memory.read(last - first)
        except OSError:
            continue
        found += [(pid, name) for needle in needles if needle in data]
for path in ("/etc/stockade/ca-bundle.pem", "/etc/stockade/secrets-ca.pem", "/etc/resolv.conf"):
    data = open(path, "rb").read()
    found += [path for needle in (*needles, b"PRIVATE") if needle in data]
print(found)
"""
    words = f"{VALUE} {box.admission.diversion.token}".encode()
    assert await box.run("python3", "-c", search, user="root", stdin=words) == "[]\n"


async def test_the_listener_is_not_reached_from_inside(box: Box, world: World) -> None:
    port = box.admission.diversion.port
    attempt = f"""
import socket
for address in ("127.0.0.1", "{WEB}", "10.0.2.2", "10.0.2.15", "45.83.64.1"):
    try:
        with socket.create_connection((address, {port}), timeout=20) as one:
            one.sendall(b"x")
            print(address, one.recv(10))
    except OSError as error:
        print(address, "refused")
"""
    lines = (await box.run("python3", "-c", attempt)).split("\n")
    assert [line.split(" ", 1)[1] for line in lines if line] == ["refused"] * 5


async def test_another_sandboxs_programs_get_another_sandboxs_secrets(
    box: Box, sandboxing: Sandboxing, diversions: Diversions, on_host: HostLoop
) -> None:
    rule = SecretRule(name="API_KEY", value="another-value", placeholder=PLACEHOLDER, hosts=(API,))
    async with made(sandboxing, diversions, on_host, rule, name="box-2") as other:
        told, told_other = await asyncio.gather(
            *(one.curl("-H", f"X-Key: {PLACEHOLDER}", f"https://{API}/") for one in (box, other))
        )
        assert (told["headers"]["x-key"], told_other["headers"]["x-key"]) == (VALUE, "another-value")


async def test_the_authority_is_installed_once_however_often(box: Box, sandboxing: Sandboxing) -> None:
    """A disk that sandboxes have used before knows the last one's alone."""
    files = await sandboxing.files(box.name, user="root")
    try:
        for _ in range(2):
            await Diversions(key="00" * 32).install(files, box.admission)
    finally:
        files.close()
    count = await box.run("sh", "-c", "cat /etc/stockade/ca-bundle.pem | grep -c 'authority of this sandbox'")
    assert count == "1\n"
    total = await box.run("sh", "-c", "grep -c BEGIN /etc/stockade/ca-bundle.pem")
    assert int(total) > 100, "the image's own authorities are trusted still"
