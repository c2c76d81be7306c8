"""What clients may do to the warden, and to one another: nothing that was not asked for."""

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stockade.warden import protocol
from stockade.warden.server import _LONGEST_WAIT_S
from tests.backends.sandboxes import children
from tests.warden.raw import Client, Warden, memory_file, request, until

ENDLESS = ("/bin/sleep", "1000")


def sandboxed_processes(name: str) -> list[int]:
    """Pids on the host of processes of that name with a sandbox's user id."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            is_inside = entry.name.isdigit() and entry.stat().st_uid >= 0x7000_0000
            if is_inside and (entry / "comm").read_text().strip() == name:
                found.append(int(entry.name))
    return found


def test_a_run_is_answered_with_its_output(client: Client) -> None:
    answer, contents = client.run(request(7, "/bin/sh", "-c", "cat; echo bad >&2; exit 3"), b"good")
    assert answer["re"] == 7
    assert answer["ok"]["reason"] is None
    assert os.waitstatus_to_exitcode(answer["ok"]["status"]) == 3
    assert contents == [b"good", b"bad\n"]


MALFORMED = {
    "not JSON": b"hello?",
    "not UTF-8": b'{"op": "\xff\xfe',
    "not an object": b"[1, 2, 3]",
    "a bare number": b"NaN",
    "an unended object": b'{"op": "run"',
    "deeper than any parser goes": b"[" * 100_000,
    "a number of a hundred thousand digits": b'{"id":' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_message_ends_that_client_only(warden: Warden, client: Client, data: bytes) -> None:
    """Its own runs die with it; those of others go on."""
    client.start(request(1, "/bin/cat", "/dev/stdin"))
    with warden.client() as other:
        other.send(data)
        with pytest.raises(EOFError):
            other.receive()
    assert "ok" in client.answer()[0]
    assert client.is_alive()


ODD = {
    "no operation": {"id": 1},
    "unknown operation": {"op": "format", "id": 1},
    "an operation that is none": {"op": {"run": []}, "id": 1},
    "an operation as long as fits": {"op": "x" * 150_000, "id": 1},
    "an id as long as fits": {"op": "x", "id": "9" * 150_000},
    "a lone surrogate as id": {"op": "x", "id": "\ud800"},
    "a lone surrogate as operation": {"op": "\ud800", "id": 1},
    "a deep id": {"op": "x", "id": json.loads("[" * 900 + "]" * 900)},
    "no version": {"op": "hello", "id": 1},
    "another version": {"op": "hello", "id": 1, "version": 99},
    "a run of nothing": {"op": "run", "id": 1},
    "a run without limits": {"op": "run", "id": 1, "argv": ["x"], "limits": None},
    "an image as long as fits": request(1, image="x" * 150_000),
    "an unknown image": request(1, image="debian:99"),
    "an image with a lone surrogate": request(1, image="\udc00\ud800"),
    "no standard input": request(1),
}


@pytest.mark.parametrize("message", ODD.values(), ids=ODD.keys())
def test_an_odd_message_is_refused_in_few_words(client: Client, message: dict[str, Any]) -> None:
    """And the client, which at least speaks our language, stays."""
    fds = () if "no standard input" in str(message) else (memory_file(),)
    if message == request(1):
        os.close(fds[0])
        fds = ()
    client.send(message, fds)
    for fd in fds:
        os.close(fd)
    answer, _ = client.receive()
    assert answer["error"]["kind"] in ("invalid", "unsupported")
    assert 0 < len(answer["error"]["message"]) <= 4000
    assert client.is_alive()


@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
@pytest.mark.parametrize("member", ["argv", "env", "env name", "cwd"])
def test_text_that_the_kernel_cannot_be_given_is_refused(client: Client, member: str, text: str) -> None:
    changes: dict[str, Any] = {
        "argv": {"argv": ["/bin/true", text]},
        "env": {"env": {"A": text}},
        "env name": {"env": {text: "a"}},
        "cwd": {"cwd": f"/{text}"},
    }[member]
    answer, _ = client.run(request(1, **changes))
    assert answer["error"]["kind"] == "invalid"
    assert client.is_alive()


def test_bytes_that_are_not_text_reach_the_program_as_they_are(client: Client) -> None:
    """Unix arguments are bytes: they travel as surrogate escapes."""
    message = (
        json.dumps(request(1, "/usr/bin/printf", "%s", "@"), ensure_ascii=False).encode().replace(b"@", b"\xff\xfe")
    )
    fd = memory_file()
    client.send(message, (fd,))
    os.close(fd)
    assert client.answer()[1] == [b"\xff\xfe"]


def test_an_id_that_is_in_use_is_refused(client: Client) -> None:
    """And the run that has it goes on."""
    client.start(request(5, *ENDLESS))
    client.start(request(5, *ENDLESS))
    answer, _ = client.answer()
    assert answer == {"re": 5, "error": {"kind": "invalid", "message": "id 5 is in use"}}
    client.send({"op": "cancel", "id": 5})
    answer, _ = client.answer()
    assert answer["ok"]["reason"] == "cancelled"


def test_cancelling_what_is_not_there_is_no_matter(client: Client) -> None:
    for number in (99, -1, "x", None, [], True):
        client.send({"op": "cancel", "id": number})
    assert client.is_alive()


@pytest.mark.parametrize("kind", ["directory", "device", "socket", "pipe"])
def test_descriptors_of_anything_but_files_are_refused(client: Client, kind: str) -> None:
    """A directory would lead out of the sandbox."""
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        stack.callback(theirs.close)
        read, write = os.pipe()
        fds = {
            "directory": os.open("/", os.O_RDONLY),
            "device": os.open("/dev/zero", os.O_RDONLY),
            "socket": os.dup(ours.fileno()),
            "pipe": os.dup(read),
        }
        for fd in (read, write, *fds.values()):
            stack.callback(os.close, fd)
        client.send(request(1), (fds[kind],))
        answer, _ = client.receive()
    assert answer["error"]["kind"] == "invalid"
    assert "regular files" in answer["error"]["message"]


def test_output_goes_to_memory_files_alone(client: Client, tmp_path: Path) -> None:
    """Another file could be one of a file system that makes the warden wait."""
    stdin = memory_file()
    with open(tmp_path / "output", "w+b") as other:
        client.send(request(1, watched=True), (stdin, stdin, other.fileno()))
        answer, _ = client.receive()
        assert (answer["error"]["kind"], "memory files" in answer["error"]["message"]) == ("invalid", True)
    client.send(request(2, watched=True), (stdin, stdin))
    answer, _ = client.receive()
    assert (answer["error"]["kind"], "output" in answer["error"]["message"]) == ("invalid", True)
    os.close(stdin)


def test_what_a_program_prints_is_in_the_files_of_a_client_that_watches(warden: Warden, client: Client) -> None:
    """Also where they turn out not to be writable: then that run fails, and nothing else."""
    client.hello()
    before = warden.descriptors()
    stdin, out, err = memory_file(), memory_file(), memory_file()
    client.send(request(1, "/bin/sh", "-c", "echo out; echo err >&2", watched=True), (stdin, out, err))
    answer, contents = client.answer()
    assert (answer["ok"]["status"], contents) == (0, [b"out\n", b"err\n"])
    assert (os.pread(out, 10, 0), os.pread(err, 10, 0)) == (b"out\n", b"err\n")
    sealed = memory_file()
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    client.send(request(2, "/bin/sh", "-c", "echo out", watched=True), (stdin, sealed, err))
    answer, _ = client.answer()
    assert answer["error"]["kind"] == "unavailable"
    for fd in (stdin, out, err, sealed):
        os.close(fd)
    until(lambda: warden.descriptors() == before)


def test_too_many_bundles_are_refused(client: Client) -> None:
    fd = memory_file()
    client.send(request(1, collect=True), (fd,) * protocol.MOST_DESCRIPTORS)
    os.close(fd)
    assert client.receive()[0]["error"]["kind"] == "invalid"


def test_more_descriptors_than_fit_end_the_client_and_stay_nowhere(warden: Warden, client: Client) -> None:
    client.hello()
    before = warden.descriptors()
    with warden.client() as other:
        fd = memory_file()
        other.send(request(1), (fd,) * 60)
        os.close(fd)
        with pytest.raises(EOFError):
            other.receive()
    assert client.is_alive()
    until(lambda: warden.descriptors() <= before)


def test_a_client_that_goes_takes_its_runs_with_it(warden: Warden, client: Client) -> None:
    """Those of other clients stay."""
    client.start(request(1, "/bin/sleep", "1001"))
    with warden.client() as other:
        for number in range(6):  # more than are kept ready
            other.start(request(number, "/bin/tail", "-f", "/dev/null"))
        until(lambda: len(sandboxed_processes("tail")) == 6)
    until(lambda: not sandboxed_processes("tail"))
    assert sandboxed_processes("sleep")
    client.send({"op": "cancel", "id": 1})
    assert client.answer()[0]["ok"]["reason"] == "cancelled"


def test_a_client_that_goes_at_once_leaves_nothing_running(warden: Warden, client: Client) -> None:
    before = warden.descriptors()
    for _ in range(5):
        with warden.client() as other:
            for number in range(10):
                other.start(request(number, "/bin/tail", "-f", "/dev/null"))
    until(lambda: client.is_alive() and warden.descriptors() <= before + 16)
    until(lambda: not sandboxed_processes("tail"))


def test_a_burst_of_runs_is_served_in_full(warden: Warden) -> None:
    """More than are kept ready by far, and more orders than fit into a socket at once."""
    many = 400
    with warden.client() as client:
        for number in range(many):
            client.start(request(number, "/bin/true"))
        answers = {client.answer()[0]["re"] for _ in range(many)}
        assert answers == set(range(many))
        assert client.is_alive()


def test_a_client_that_does_not_read_costs_little(warden: Warden, client: Client) -> None:
    """What it asks for stays in its own socket once some answers wait; other clients do not notice."""
    client.hello()
    descriptors, memory = warden.descriptors(), warden.memory()
    with warden.client() as deaf:
        deaf.connection.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 200_000:
                deaf.send({"op": "hello", "version": 1, "id": sent})
                sent += 1
        assert sent < 200_000, "the warden reads on and on"
        assert client.is_alive()
        assert warden.memory() - memory < 4 << 20
        # As soon as it listens it gets all answers, in order.
        deaf.connection.settimeout(20)
        assert [deaf.receive()[0]["re"] for _ in range(sent)] == list(range(sent))
    with warden.client() as deaf:
        deaf.connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            for number in range(500):
                deaf.start(request(number, "/bin/echo", "x" * 100))
        assert "ok" in client.run(request())[0]
        assert warden.descriptors() - descriptors < 3 * 500
    until(lambda: client.is_alive() and warden.descriptors() <= descriptors + 16)


def test_others_than_root_and_those_named_may_not_connect(tmp_path: Path) -> None:
    """The socket's mode keeps them out; the kernel's word about who they are does too, when the mode is wide open."""
    if os.geteuid() != 0:
        pytest.skip("only root can try to connect as somebody else")
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.connect(sys.argv[1])\n"
        "s.settimeout(20)\n"
        'try:\n s.send(b\'{"op":"hello","version":1}\'); print(len(s.recv(65536)) > 0)\n'
        "except OSError: print(False)\n"
    )

    def knock(uid: int) -> str:
        argv = ["setpriv", "--reuid", str(uid), "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c", script]
        done = subprocess.run([*argv, str(warden.path)], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1].split(":")[0]

    warden = Warden(tmp_path, "--allow-uid", "65533")
    try:
        for directory in (tmp_path, *tmp_path.parents):
            if directory.stat().st_uid == os.geteuid() and not directory.stat().st_mode & 0o001:
                directory.chmod(0o711)
        assert warden.path.stat().st_mode & 0o777 == 0o600
        assert knock(65534) == "PermissionError"
        warden.path.chmod(0o666)
        assert knock(65534) == "False"
        assert knock(65533) == "True"
    finally:
        warden.close()


def test_a_second_warden_on_the_same_socket_is_refused(tmp_path: Path) -> None:
    first = Warden(tmp_path)
    second = Warden(tmp_path)
    try:
        assert first.word == {"ok": True}
        assert "another warden" in second.word["error"]
        assert second.process.wait(20) == 1
        with first.client() as client:
            assert client.is_alive()
    finally:
        second.close()
        first.close()


def test_a_dead_wardens_socket_is_taken_over(tmp_path: Path) -> None:
    first = Warden(tmp_path)
    first.process.kill()
    first.process.wait()
    assert first.path.exists()
    second = Warden(tmp_path)
    try:
        assert second.word == {"ok": True}
        with second.client() as client:
            assert "ok" in client.run(request())[0]
    finally:
        assert second.stop() == 0
    assert not second.path.exists()


def test_warden_shows_neither_arguments_nor_environment(warden: Warden) -> None:
    """Its own paths are nobody's business, nor those of its processes in sandboxes."""
    assert Path(f"/proc/{warden.pid}/cmdline").read_bytes().rstrip(b"\0") == b"stockade-warden"
    assert Path(f"/proc/{warden.pid}/environ").read_bytes().strip(b"\0") == b""


def test_warden_imports_the_standard_library_and_itself(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.append(sys.argv[1]); import stockade.warden.__main__\n"
        "print('\\n'.join(n for n in sys.modules if n.split('.')[0] not in sys.stdlib_module_names))"
    )
    source = str(Path(__file__).parents[2] / "src")
    argv = [sys.executable, "-I", "-S", "-c", script, source]
    names = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    assert [n for n in names if n not in ("__main__", "stockade") and not n.startswith("stockade.warden")] == []


def test_sandboxes_of_runs_that_were_cancelled_are_not_kept_and_a_warden_at_rest_does_not_spin(
    warden: Warden, client: Client
) -> None:
    """Beyond those that are kept ready anyway: four, a margin of two, and the processes that make them, connect them,
    and keep disks.
    """
    with warden.client() as other:
        for number in range(24):
            other.start(request(number, *ENDLESS))
    until(lambda: client.is_alive() and len(children(warden.pid)) <= 9, 60)
    client.run(request())

    def turns() -> int:
        lines = Path(f"/proc/{warden.pid}/status").read_text(encoding="utf-8").splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    def cpu_ticks() -> int:
        fields = Path(f"/proc/{warden.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    began, turned, used = time.monotonic(), turns(), cpu_ticks()
    until(lambda: time.monotonic() > began + 1.0)
    assert turns() - turned < 100
    assert cpu_ticks() - used < 20


def test_the_longest_wait_is_one_that_the_kernel_takes() -> None:
    """There may be nothing to look after but a sandbox that has a year left."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with contextlib.closing(select.epoll()) as epoll:
        epoll.register(reading, select.EPOLLIN)
        os.write(writing, b"x")
        assert epoll.poll(_LONGEST_WAIT_S) == [(reading, select.EPOLLIN)]
        with pytest.raises(OverflowError):
            epoll.poll(25 * 86400.0)
    os.close(reading)
    os.close(writing)
