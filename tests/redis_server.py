"""A Redis of our own: on a UNIX socket in a temporary folder, and on a free port where it is asked for."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

__all__ = ["RedisServer", "redis_server"]

PROGRAM = shutil.which("redis-server")
START_S = 60.0


@dataclass(kw_only=True)
class RedisServer:
    """It keeps what it has acknowledged, also when it is killed."""

    folder: Path
    port: int = 0
    """0: it listens on no port."""
    is_durable: bool = True
    process: "subprocess.Popen[bytes] | None" = field(default=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.folder / 'redis.sock'}"

    def start(self) -> None:
        assert PROGRAM is not None
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.folder / "redis.sock")]
        words += ["--save", "", "--dir", str(self.folder), "--loglevel", "warning"]
        words += ["--appendonly", "yes", "--appendfsync", "always"] if self.is_durable else ["--appendonly", "no"]
        (self.folder / "redis.sock").unlink(missing_ok=True)
        self.process = subprocess.Popen([PROGRAM, *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server did not come up"
            time.sleep(0.02)

    def end(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, and wait for the end."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(START_S)
            self.process = None

    def command(self, *words: str) -> bytes:
        """What it answers, as it comes over the wire."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(START_S)
            connection.connect(str(self.folder / "redis.sock"))
            parts = [word.encode() for word in words]
            lines = [b"*%d" % len(parts), *(line for part in parts for line in (b"$%d" % len(part), part)), b""]
            connection.sendall(b"\r\n".join(lines))
            return connection.recv(1 << 20)

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith(b"+PONG")
        except OSError:
            return False


@contextlib.contextmanager
def redis_server(folder: Path, *, has_port: bool = False, is_durable: bool = True) -> Iterator[RedisServer]:
    """A running server; ended with the block. Skips the test where none is installed."""
    if PROGRAM is None:
        pytest.skip("redis-server is not installed (Debian package redis-server)")
    port = 0
    if has_port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder=folder, port=port, is_durable=is_durable)
    server.start()
    try:
        yield server
    finally:
        server.end()
