"""An internet of its own on one machine: network namespaces, and a process in each that does what a test says.

`internet` has public and other addresses and serves on them; `host` is connected to it and runs the egress process;
a `sandbox` has a namespace of its own. Nothing of the real host's network is touched.
"""

import contextlib
import encodings.idna  # noqa: F401  what looks names up needs it, and a user may not read it
import errno
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stockade.warden import egress, egress_process, kernel, outgoing

assert egress_process  # imported here: an ordinary user of the tests may not be able to read it

__all__ = ["DNS", "HOST", "METADATA", "PRIVATE", "SHARED", "WEB", "WEB_TOO", "Place", "World", "make_world"]

WITHIN_S = 60.0
WEB, WEB_TOO, DNS = "93.184.216.34", "151.101.1.69", "9.9.9.9"
PRIVATE, METADATA, SHARED = "10.9.9.9", "169.254.169.254", "100.64.1.1"
HOST = "45.83.64.1"
"""The host's own address, a public one."""
_INTERNET = "45.83.64.2"
ORDINARY = 4711


class Place:
    """A child process that runs Python when told to, and answers with JSON and descriptors."""

    def __init__(self, prepare: Callable[[], dict[str, Any]], name: str = "") -> None:
        self.name = name
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = ours
        ours.settimeout(WITHIN_S)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ours.close()
                kernel.set_parent_death_signal(9)
                _obey(theirs, prepare())
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()

    def run(self, code: str, *descriptors: int) -> Any:
        """Run *code*; what it leaves in `result`. It finds the descriptors in `fds`. Its error is ours."""
        return self.run_for_descriptors(code, *descriptors)[0]

    def run_for_descriptors(self, code: str, *descriptors: int) -> tuple[Any, list[int]]:
        """The same, with the descriptors that it leaves in `give`: they are then the caller's."""
        socket.send_fds(self.channel, [textwrap.dedent(code).encode()], list(descriptors))
        data, fds, _, _ = socket.recv_fds(self.channel, 1 << 16, 16)
        answer = json.loads(data)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["result"], list(fds)

    def attempt(self, host: str, port: int = 7) -> str:
        """What comes of a TCP connection: `ok` when the echo came back, or the error's name."""
        return str(self.run(f"result = attempt({host!r}, {port})"))

    def descriptors(self) -> int:
        return int(self.run("import os; result = len(os.listdir('/proc/self/fd'))"))

    def close(self) -> None:
        self.channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _obey(channel: socket.socket, scope: dict[str, Any]) -> None:
    scope["attempt"] = _attempt
    while True:
        data, fds, _, _ = socket.recv_fds(channel, 1 << 16, 16)
        if not data:
            os._exit(0)
        scope.update(fds=list(fds), give=[], result=None)
        try:
            exec(data.decode(), scope)
            answer = {"result": scope["result"]}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        socket.send_fds(channel, [json.dumps(answer).encode()], scope["give"])
        for fd in scope["give"]:
            os.close(fd)


def _attempt(host: str, port: int, *, source: str | None = None) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.settimeout(WITHIN_S / 2)
        try:
            if source is not None:
                one.bind((source, 0))
            one.connect((host, port))
            one.sendall(b"hello")
            one.shutdown(socket.SHUT_WR)
            data = b""
            while part := one.recv(100):
                data += part
            return "ok" if data == b"hello" else f"got {data!r}"
        except TimeoutError:
            return "time-out"
        except OSError as error:
            # What a reset is called depends on the call that it comes before.
            is_reset = error.errno in (errno.ENOTCONN, errno.EPIPE)
            return "ECONNRESET" if is_reset else errno.errorcode[error.errno or 0]


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, 0x8914, struct.pack("16sh14x", b"lo", 0x41))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=WITHIN_S)


# ── the internet ─────────────────────────────────────────────────────────────────────────────────────────────────


def _be_internet() -> dict[str, Any]:
    kernel.unshare(kernel.CLONE_NEWNET)
    raise_loopback()
    for address in (WEB, WEB_TOO, DNS, PRIVATE, METADATA, SHARED, "172.16.5.5", "192.168.1.1"):
        _ip("address", "add", f"{address}/32", "dev", "lo")
    zone: dict[str, list[str]] = {
        "web.example.org": [WEB],
        "other.example.net": [WEB_TOO],
        "inside.example.org": [PRIVATE],
        "rebind.example.org": [METADATA],
        "many.example.org": [f"1.0.0.{n}" for n in range(1, 200)],
    }
    asked: list[str] = []
    _serve_echo()
    _serve_names(zone, asked)
    return {"zone": zone, "asked": asked, "ip": _ip}


def _thread(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _serve_echo() -> None:
    """Ports 7, 7007: what came, back, after its end. 9: counts it. 19: sends without end. 1000: takes nothing."""

    def echo(one: socket.socket) -> None:
        with contextlib.suppress(OSError), one:
            data = bytearray()
            while part := one.recv(1 << 16):
                data += part
            one.sendall(data)

    def count(one: socket.socket) -> None:
        with contextlib.suppress(OSError), one:
            total = 0
            while part := one.recv(1 << 20):
                total += len(part)
            one.sendall(str(total).encode())

    def flood(one: socket.socket) -> None:
        with contextlib.suppress(OSError), one:
            while True:
                one.sendall(bytes(1 << 20))

    def accept(listener: socket.socket, handler: Callable[[socket.socket], None] | None) -> None:
        kept = []
        while True:
            one = listener.accept()[0]
            if handler is None:
                kept.append(one)
            else:
                _thread(handler, one)

    for port, handler in ((7, echo), (7007, echo), (9, count), (19, flood), (1000, None)):
        _thread(accept, socket.create_server(("0.0.0.0", port), backlog=512), handler)


def _serve_names(zone: dict[str, list[str]], asked: list[str]) -> None:
    def answer(query: bytes, *, is_stream: bool) -> bytes:
        labels, position = [], 12
        while query[position]:
            labels.append(query[position + 1 : position + 1 + query[position]].decode())
            position += 1 + query[position]
        end = position + 5
        name, kind = ".".join(labels).lower(), int.from_bytes(query[position + 1 : position + 3], "big")
        asked.append(f"{name} {kind}")
        if name == "silent.example.org":
            return b""
        addresses = zone.get(name, []) if kind == 1 else []
        flags = 0x8180 if name in zone else 0x8183
        if len(addresses) > 20 and not is_stream:
            addresses, flags = [], flags | 0x0200
        head = query[:2] + struct.pack(">HHHHH", flags, 1, len(addresses), 0, 0) + query[12:end]
        return head + b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + socket.inet_aton(a) for a in addresses)

    def datagrams(one: socket.socket) -> None:
        while True:
            query, asker = one.recvfrom(4096)
            if data := answer(query, is_stream=False):
                one.sendto(data, asker)

    def streams(listener: socket.socket) -> None:
        while True:
            with contextlib.suppress(OSError), listener.accept()[0] as one:
                query = one.recv(4096)
                data = answer(query[2:], is_stream=True)
                one.sendall(len(data).to_bytes(2, "big") + data)

    channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    channel.bind((DNS, 53))
    _thread(datagrams, channel)
    _thread(streams, socket.create_server((DNS, 53)))


# ── the host, and sandboxes ──────────────────────────────────────────────────────────────────────────────────────


def _be_host(resolver_file: Path) -> dict[str, Any]:
    kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount(str(resolver_file), "/etc/resolv.conf", None, kernel.MS_BIND)
    raise_loopback()
    return {"egress": egress, "ip": _ip, "os": os, "socket": socket}


def _be_sandbox(policy: dict[str, Any] | None, resolver_file: Path, *, as_user: bool) -> dict[str, Any]:
    if as_user:
        os.setgroups([])
        os.setresgid(ORDINARY, ORDINARY, ORDINARY)
        os.setresuid(ORDINARY, ORDINARY, ORDINARY)
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET | kernel.CLONE_NEWNS)
    kernel.mount(str(resolver_file), "/etc/resolv.conf", None, kernel.MS_BIND)
    raise_loopback()
    fds = outgoing.open_outgoing(policy)
    kernel.drop_capabilities()
    kernel.set_no_new_privileges()
    return {"listeners": fds, "socket": socket}


class World:
    """Host and internet, connected; and an egress process on the host."""

    def __init__(self, folder: Path, *, as_user: bool) -> None:
        self.as_user = as_user
        self._count = 0
        resolver_file = folder / "resolv.conf"
        resolver_file.write_text(f"search example.org\nnameserver {DNS}\n")
        root = folder / "root"
        (root / "etc").mkdir(parents=True)
        outgoing.write_resolver_file(str(root))
        self._inner_file = root / "etc/resolv.conf"
        self.internet = Place(_be_internet)
        self.host = Place(lambda: _be_host(resolver_file))
        self.internet.run("pass")  # from here on it is in its own namespace: only then may a link be given to it
        self.host.run(
            f"""
            ip("link", "add", "wan", "type", "veth", "peer", "name", "wan", "netns", "{self.internet.pid}")
            ip("address", "add", "{HOST}/30", "dev", "wan")
            ip("link", "set", "wan", "up")
            """
        )
        self.internet.run(
            f"""
            ip("address", "add", "{_INTERNET}/30", "dev", "wan")
            ip("link", "set", "wan", "up")
            """
        )
        self.host.run(f"ip('route', 'add', 'default', 'via', '{_INTERNET}')")
        self.host.run(
            f"""
            own = [socket.create_server((address, 7)) for address in ("127.0.0.1", "{HOST}")]
            if {as_user}:
                os.setgroups([]); os.setresgid({ORDINARY}, {ORDINARY}, {ORDINARY})
                os.setresuid({ORDINARY}, {ORDINARY}, {ORDINARY})
            gate = egress.start()
            """
        )
        self.egress_pid = int(self.host.run("result = gate.pid"))

    @contextlib.contextmanager
    def sandbox(self, *, early: bool = False, **policy: Any) -> Iterator[Place]:
        """One whose egress is open; *early*: it knows its policy, and has routes for it."""
        self._count += 1
        name = f"box-{self._count}"
        early_policy = policy if early else None
        place = Place(lambda: _be_sandbox(early_policy, self._inner_file, as_user=self.as_user), name)
        try:
            _, fds = place.run_for_descriptors("give = listeners; listeners = []")
            self.host.run(f"gate.open({name!r}, {policy!r}, tuple(fds))", *fds)
            for fd in fds:
                os.close(fd)
            yield place
        finally:
            self.host.run(f"gate.close({name!r})")
            place.close()

    def usage(self, place: Place) -> tuple[int, int]:
        received, sent = self.host.run(f"result = gate.usage({place.name!r})")
        return received, sent

    def open_descriptors(self) -> int:
        """Of the egress process."""
        return len(os.listdir(f"/proc/{self.egress_pid}/fd"))

    def close(self) -> None:
        self.host.close()
        self.internet.close()


@contextlib.contextmanager
def make_world(*, as_user: bool) -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root to lay out hosts")
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2 (`ip`)")
    # Not pytest's folder: an ordinary user has no way there.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        world = World(Path(folder), as_user=as_user)
        try:
            yield world
        finally:
            world.close()
