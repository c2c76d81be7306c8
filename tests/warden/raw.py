"""A warden of its own for a test, and a client that says whatever the test wants said."""

import contextlib
import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stockade.backends.base import BackendOptions
from stockade.backends.native import launch
from stockade.warden import protocol

__all__ = ["LIMITS", "Client", "Warden", "memory_file", "read_file", "request", "until"]

WITHIN_S = 60.0
LIMITS: Mapping[str, Any] = {
    "wall_s": 20.0,
    "cpu_s": 20.0,
    "cpus": 2.0,
    "memory_bytes": 256 << 20,
    "processes": 64,
    "disk_bytes": 64 << 20,
    "disk_inodes": 10_000,
    "open_files": 256,
    "stack_bytes": 8 << 20,
    "output_bytes": 1 << 20,
}


def until(condition: Any, within_s: float = WITHIN_S) -> None:
    """Wait until *condition* holds; the test fails when it does not come to."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {within_s:g} s"
        time.sleep(0.01)


def memory_file(content: bytes = b"") -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read_file(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def request(number: int = 1, *argv: str, **changes: Any) -> dict[str, Any]:
    """A run that is in order, apart from *changes*; those named like a limit change that."""
    limits = {**LIMITS, **{k: v for k, v in changes.items() if k in LIMITS}}
    return {
        "op": "run",
        "id": number,
        "image": "host",
        "argv": list(argv or ("/bin/true",)),
        "env": {"PATH": "/usr/bin:/bin"},
        "cwd": "/code",
        "limits": limits,
        **{k: v for k, v in changes.items() if k not in LIMITS},
    }


class Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(WITHIN_S)

    def send(self, message: object, fds: tuple[int, ...] = ()) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.connection, [data], list(fds), socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next answer. Raises EOFError when the warden has hung up."""
        try:
            received = protocol.receive(self.connection)
        except ConnectionResetError:
            received = None
        if received is None:
            raise EOFError("the warden has hung up")
        return received

    def start(self, message: dict[str, Any], stdin: bytes = b"", bundles: tuple[int, ...] = ()) -> None:
        """Ask for a run."""
        fd = memory_file(stdin)
        try:
            self.send(message, (*bundles, fd))
        finally:
            os.close(fd)

    def run(self, message: dict[str, Any], stdin: bytes = b"") -> tuple[dict[str, Any], list[bytes]]:
        """Ask for a run and wait for the answer: it, and the content of its descriptors."""
        self.start(message, stdin)
        return self.answer()

    def answer(self) -> tuple[dict[str, Any], list[bytes]]:
        answer, fds = self.receive()
        contents = [read_file(fd) for fd in fds]
        for fd in fds:
            os.close(fd)
        return answer, contents

    def hello(self) -> dict[str, Any]:
        self.send({"op": "hello", "version": protocol.VERSION})
        return self.receive()[0]

    def is_alive(self) -> bool:
        return "ok" in self.hello()

    def close(self) -> None:
        self.connection.close()


class Warden:
    """A warden that listens on a socket in *directory*."""

    def __init__(
        self, directory: Path, *words: str, prefix: tuple[str, ...] = (), argv: list[str] | None = None
    ) -> None:
        self.path = directory / "warden.sock"
        read, write = os.pipe()
        argv = launch.command(BackendOptions(data_dir=directory)) if argv is None else argv
        self.process = subprocess.Popen(
            [*prefix, *argv, "--listen", str(self.path), "--ready-fd", str(write), *words],
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            pass_fds=(write,),
        )
        os.close(write)
        with open(read, "rb") as ready:
            assert select.select([ready], [], [], WITHIN_S)[0], "the warden says nothing"
            line = ready.readline()
        self.word: dict[str, Any] = json.loads(line) if line else {"error": "it ended without a word"}

    def connect(self) -> Client:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(WITHIN_S)
        connection.connect(str(self.path))
        return Client(connection)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        client = self.connect()
        try:
            yield client
        finally:
            client.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def descriptors(self) -> int:
        """Those of control groups left out: groups are kept, a limited number of them, to be used again."""
        found = 0
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found += not os.readlink(f"/proc/{self.pid}/fd/{name}").startswith(("/sys/fs/cgroup/", "anon_inode:"))
        return found

    def memory(self) -> int:
        """Bytes that it alone occupies."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Private_"))

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait(WITHIN_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(WITHIN_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
