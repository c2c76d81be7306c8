"""A server that was taken over speaks to root's warden with its own, unprivileged identity: what it cannot do.

Each test says whatever it likes over a raw socket that user 65534 has connected; the warden is root's. What it *can* do
is listed in docs/isolation.md.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stockade.warden import disk_store
from stockade.warden.init import ROOT_CAPABILITIES
from tests.fuzz.messages import in_order
from tests.warden.raw import LIMITS, Client, Warden, memory_file, request, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
SERVER, OTHER = 65534, 65533
OUTSIDE = 0x7000_0000
"""Host ids from there on are those of sandboxes."""
SHADOW = "/etc/shadow"
WITHIN_S = 30.0


def as_user(user: int, work: Callable[[], list[int]]) -> list[int]:
    """Descriptors that *work* got as an unprivileged user of the host."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            socket.send_fds(theirs, [b"."], work())
        finally:
            os._exit(0)
    theirs.close()
    ours.settimeout(WITHIN_S)
    with ours:
        data, fds, _, _ = socket.recv_fds(ours, 1, 8)
    os.waitpid(pid, 0)
    assert data, "it could not"
    return fds


@pytest.fixture(scope="module")
def warden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warden]:
    folder = tmp_path_factory.mktemp("taken")
    words = ("--allow-uid", str(SERVER), "--allow-uid", str(OTHER), "--disks", str(folder / "disks"))
    warden = Warden(folder, *words, "--disks-kind", "directory")
    assert warden.word == {"ok": True}
    for path in warden.path.parents:
        if not path.stat().st_mode & 0o001:  # as pytest makes them
            path.chmod(path.stat().st_mode | 0o011)
    warden.path.chmod(0o666)
    yield warden
    warden.close()


@contextlib.contextmanager
def connected(warden: Warden, user: int) -> Iterator[Client]:
    """A connection of that user's: the kernel notes whose it is when it is made."""

    def connect() -> list[int]:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        one.connect(str(warden.path))
        return [one.detach()]

    client = Client(socket.socket(fileno=as_user(user, connect)[0]))
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def server(warden: Warden) -> Iterator[Client]:
    with connected(warden, SERVER) as client:
        yield client


@pytest.fixture
def other(warden: Warden) -> Iterator[Client]:
    with connected(warden, OTHER) as client:
        yield client


def ask(client: Client, message: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
    client.send(message, fds)
    answer, found = client.receive()
    for fd in found:
        os.close(fd)
    return answer


def ran(client: Client, *argv: str, **changes: Any) -> str:
    """What a program printed in a run."""
    answer, contents = client.run(request(1, *argv, **changes))
    assert "ok" in answer, answer
    return b"".join(contents).decode()


@contextlib.contextmanager
def living(client: Client, name: str, **changes: Any) -> Iterator[dict[str, Any]]:
    answer = ask(client, {**in_order()["create"], "sandbox": name, **changes})
    yield answer
    ask(client, {**in_order()["remove"], "sandbox": name})


def printed(client: Client, sandbox: str, *argv: str, **changes: Any) -> str:
    """What a program printed in a sandbox that lives."""
    message = {**in_order()["exec"], "sandbox": sandbox, "process": "p1", "argv": list(argv), "gather": 1 << 20}
    client.send({**message, **changes})
    answer, fds = client.receive()
    assert "ok" in answer, answer
    text = os.pread(fds[0], answer["ok"]["position"]["ends"][0], 4096).decode()
    for fd in fds:
        os.close(fd)
    return text


# ── root ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_does_not_become_root(server: Client) -> None:
    """Whoever it says that a program is to be, outside that is one of the sandbox's own ids."""
    for user in ("user", "root", "0:0", "65534:65534", "1:0"):
        with living(server, "ids"):
            text = printed(server, "ids", "/bin/cat", "/proc/self/uid_map", "/proc/self/gid_map", user=user)
            assert [int(line.split()[1]) >= OUTSIDE for line in text.splitlines()] == [True, True], user
    for user in ("65535:0", "-1:0", "4294967295:0", "00:00:0", "０:０", 0, None, True, ["root"], "root\n"):
        with living(server, "ids"):
            answer = ask(server, {**in_order()["exec"], "sandbox": "ids", "process": "p1", "user": user})
            assert answer["error"]["kind"] == "invalid", user


def test_it_gains_no_capability_that_counts_outside(server: Client) -> None:
    """Root inside has eight, over the sandbox's own user namespace; no member of a message gives another."""
    more = {
        "capabilities": ["SYS_ADMIN"],
        "cap_add": ["ALL"],
        "privileged": True,
        "seccomp": None,
        "no_new_privs": False,
    }
    with living(server, "caps", drop_capabilities=["-SYS_ADMIN", "none", "\u212a"], **more):
        lines = printed(server, "caps", "/bin/cat", "/proc/self/status", user="root", **more).splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {
        f"{sum(1 << one for one in ROOT_CAPABILITIES):016x}"
    }
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    status = dict(
        line.split(":\t", 1)
        for line in ran(server, "/bin/cat", "/proc/self/status", **more).splitlines()
        if ":\t" in line
    )
    assert int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_it_does_not_reach_the_wardens_own_process(warden: Warden) -> None:
    """Neither its memory, nor its descriptors, nor its environment, nor its life."""

    def try_all() -> list[int]:
        found = []
        for name in ("mem", "environ", "maps", "fd/0", "cwd/x", "root/x"):
            with contextlib.suppress(PermissionError):
                found.append(os.open(f"/proc/{warden.pid}/{name}", os.O_RDONLY))
        with contextlib.suppress(PermissionError):
            os.kill(warden.pid, signal.SIGTERM)
            found.append(0)
        assert not found, found
        return [os.open("/dev/null", os.O_RDONLY)]

    for fd in as_user(SERVER, try_all):
        os.close(fd)


# ── out of a sandbox ────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_gets_no_file_of_the_hosts_shown(server: Client, tmp_path: Path) -> None:
    """There is no member that names a path of the host's, and names of disks are no paths."""
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    paths = {"host_paths": ["/etc:/x"], "binds": [["/", "/x"]], "image": "host", "stage": "/", "lower": "/"}
    with living(server, "paths", **paths):
        text = printed(server, "paths", "/bin/sh", "-c", f"ls -d /x {SHADOW} {secret}; ls /", user="root", **paths)
        assert "secret" not in text
        assert "/x" not in text
        assert SHADOW not in text
    assert "secret" not in ran(server, "/bin/sh", "-c", f"ls -d {SHADOW} {secret} 2>/dev/null; ls /", **paths)
    for image in ("/", "..", "../../etc", "host/../..", SHADOW, ["host"], None):
        assert ask(server, {**in_order()["create"], "sandbox": "x", "image": image})["error"]["kind"] == "invalid"
    for name in ("..", "/", "/etc", "a/b", "a\0", "A", "", "d" * 41, ".", None, 5):
        for op in ("disk_make", "disk_info", "disk_delete", "disk_seal", "disk_resize", "disk_replace"):
            assert ask(server, {**in_order()[op], "disk": name})["error"]["kind"] == "invalid", (op, name)
        for member in ({"disk": name or 0}, {"layers": [name]}, {"mounts": [{"disk": name, "path": "/m"}]}):
            assert ask(server, {**in_order()["create"], "sandbox": "x", **member})["error"]["kind"] == "invalid", member


def test_a_disk_is_shown_at_no_place_of_ours(server: Client) -> None:
    ask(server, {**in_order()["disk_make"], "disk": "placed"})
    for path in (
        "/",
        "/proc",
        "/proc/sys",
        "/dev",
        "/dev/shm",
        "/sys",
        "//proc",
        "/./dev",
        "/a/../proc",
        "proc",
        "",
        None,
    ):
        mounts = [{"disk": "placed", "path": path}]
        answer = ask(server, {**in_order()["create"], "sandbox": "x", "mounts": mounts})
        assert answer["error"]["kind"] == "invalid", path
    ask(server, {**in_order()["disk_delete"], "disk": "placed"})


def test_a_descriptor_lends_what_it_could_open_itself_and_no_more(server: Client) -> None:
    """O_PATH asks for no right to the file: such a descriptor is no input. Nor is a directory, or what is no file."""

    def find() -> list[int]:
        with pytest.raises(PermissionError):
            os.open(SHADOW, os.O_RDONLY)
        return [
            os.open(SHADOW, os.O_PATH),
            os.open("/", os.O_PATH),
            os.open("/", os.O_RDONLY),
            os.open("/proc/1", os.O_PATH),
        ]

    fds = as_user(SERVER, find)
    for fd in fds:
        assert ask(server, request(1, "/bin/cat", "/proc/self/fd/0"), (fd,))["error"]["kind"] == "invalid"
        stdin = memory_file()
        assert ask(server, request(1, "/bin/true"), (fd, stdin))["error"]["kind"] == "invalid"  # as a bundle
        answer = ask(server, {**in_order()["create"], "sandbox": "x", "layer": True}, (fd,))
        assert answer["error"]["kind"] == "invalid"
        answer = ask(server, request(1, "/bin/true", watched=True), (stdin, fd, stdin))
        assert answer["error"]["kind"] == "invalid"  # root would write to it
        os.close(stdin)
        os.close(fd)


def test_no_process_outside_is_signalled(server: Client) -> None:
    """Numbers of processes are those of the sandbox's own namespace, and the warden's own at that."""
    victim = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        with living(server, "signals"):
            message = {
                **in_order()["exec"],
                "sandbox": "signals",
                "process": "p1",
                "argv": ["/bin/sleep", "9"],
                "gather": 0,
            }
            assert "ok" in ask(server, message)
            for number in (9, 15, 19):
                spoilt = {"n": victim.pid, "pid": victim.pid, "ids": [0, 0], "do": "signal", "tree": True}
                ask(server, {**in_order()["signal"], "sandbox": "signals", "process": "p1", "signal": number, **spoilt})
            for process in (str(victim.pid), "1", "-1", "0"):
                answer = ask(server, {**in_order()["signal"], "sandbox": "signals", "process": process, "signal": 9})
                assert answer["error"]["kind"] == "not_found"
            for number in (0, -9, 65, 1 << 40, 9.0, True, "KILL"):
                answer = ask(server, {**in_order()["signal"], "sandbox": "signals", "process": "p1", "signal": number})
                assert answer["error"]["kind"] == "invalid"
        assert victim.poll() is None
        assert Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    finally:
        victim.kill()
        victim.wait()


def test_a_sandbox_has_no_network_of_the_hosts(server: Client) -> None:
    """None, or the way out that leads through `egress`; there is no word for the host's own."""
    for network in ("host", "bridge", "container:1", "", None, True, ["none"], "none\0"):
        for message in (request(1, network=network), {**in_order()["create"], "sandbox": "x", "network": network}):
            fd = memory_file()
            answer = ask(server, message, (fd,) if message["op"] == "run" else ())
            os.close(fd)
            assert answer["error"]["kind"] == "unsupported", network
    with socket.create_server(("127.0.0.1", 0)) as listener, living(server, "net", netns="/proc/1/ns/net"):
        port = listener.getsockname()[1]
        assert "error" in ask(server, {**in_order()["dial"], "sandbox": "net", "port": port})
        assert [
            line.split(":")[0].strip() for line in printed(server, "net", "/bin/cat", "/proc/net/dev").splitlines()[2:]
        ] == ["lo"]


# ── others ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_another_users_server_runs_is_out_of_reach(warden: Warden, server: Client, other: Client) -> None:
    """Numbers of requests are each connection's own; so are those of templates and readers."""
    other.start(request(7, "/bin/sleep", "1000"))
    with living(other, "theirs"):
        assert "ok" in ask(other, {**in_order()["exec"], "sandbox": "theirs", "process": "p1", "gather": 0})
        for number in (7, 1, 0):
            server.send({"op": "cancel", "id": number})
        assert ask(server, request(1, template=0), ())["error"]["kind"] == "invalid"
        for op, message in in_order().items():
            if "sandbox" in message and op != "create" and not op.startswith("disk"):
                spoilt = {**message, "sandbox": "theirs", "uid": OTHER, "owner": OTHER, "process": "p1"}
                answer = ask(server, spoilt)
                assert "ok" in answer if op == "remove" else answer["error"]["kind"] in ("not_found", "invalid"), op
        assert ask(server, in_order()["inventory"])["ok"]["sandboxes"] == []
        assert [one["sandbox"] for one in ask(other, in_order()["inventory"])["ok"]["sandboxes"]] == ["theirs"]
        assert "ok" in ask(other, {**in_order()["inspect"], "sandbox": "theirs"})
    other.send({"op": "cancel", "id": 7})
    assert other.answer()[0]["ok"]["reason"] == "cancelled"  # it was running until now


def test_a_list_of_disks_names_none_of_others(server: Client, other: Client) -> None:
    """Not even as the place where its next page begins."""
    names = [f"secret{number:04}" for number in range(disk_store._PAGE + 2)]
    for name in names:
        other.send({**in_order()["disk_make"], "disk": name})
        assert "ok" in other.receive()[0]
    ask(server, {**in_order()["disk_make"], "disk": "mine"})
    answer = ask(server, in_order()["disk_list"])
    assert [one["disk"] for one in answer["ok"]["disks"]] == ["mine"]
    assert answer["ok"]["after"] is None
    assert "secret" not in json.dumps(answer)
    first = ask(other, in_order()["disk_list"])["ok"]
    rest = ask(other, {**in_order()["disk_list"], "after": first["after"]})["ok"]
    assert [one["disk"] for one in (*first["disks"], *rest["disks"])] == names
    ask(server, {**in_order()["disk_delete"], "disk": "mine"})
    for name in names:
        ask(other, {**in_order()["disk_delete"], "disk": name})


def test_one_that_takes_all_it_can_leaves_others_theirs(warden: Warden, server: Client, other: Client) -> None:
    """Connections are counted for each user, and a client that says nothing sensible keeps nobody waiting."""
    crowd = []
    with contextlib.suppress(AssertionError):
        for _ in range(4):

            def connect() -> list[int]:
                found = []
                for _ in range(8):
                    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    one.connect(str(warden.path))
                    found.append(one.detach())
                return found

            crowd += as_user(SERVER, connect)
    for fd in crowd:
        with socket.socket(fileno=fd) as one, contextlib.suppress(OSError):
            one.settimeout(WITHIN_S)
            for _ in range(50):
                one.send(b'{"op":"living"}', socket.MSG_DONTWAIT)
    assert ran(other, "/bin/echo", "fine") == "fine\n"


# ── how much ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_no_limit_can_be_left_out_or_mean_none(server: Client, name: str) -> None:
    for value in (None, 0, -1, float("inf"), float("nan"), 1 << 63, "max", True, [], 1e30):
        fd = memory_file()
        answer = ask(server, request(1, **{name: value}), (fd,))
        os.close(fd)
        assert answer["error"]["kind"] == "invalid", value
        if name not in ("wall_s", "cpu_s", "output_bytes"):
            message = in_order()["create"]
            answer = ask(server, {**message, "sandbox": "x", "limits": {**message["limits"], name: value}})
            assert answer["error"]["kind"] == "invalid", value


def test_what_it_started_ends_with_it(warden: Warden) -> None:
    """Its runs. Sandboxes that live have their own end, which is the warden's to bring about."""
    with connected(warden, SERVER) as server:
        server.start(request(1, "/bin/sleep", "4321"))
        until(lambda: "4321" in sleeping())
    until(lambda: "4321" not in sleeping())


def sleeping() -> set[str]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if words[0] == b"/bin/sleep":
                found.add(words[1].decode())
    return found
