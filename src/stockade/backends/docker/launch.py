"""Start a gate, or find the one that runs."""

import asyncio
import contextlib
import hashlib
import socket
import subprocess
import sys
from pathlib import Path

import stockade
from stockade.backends.base import BackendOptions
from stockade.errors import Unavailable

__all__ = ["GateProcess", "command", "launch"]

_DOWN_WITHIN_S = 25.0
# Isolated, without site-packages: the gate sees the standard library and ours, whatever is installed here.
_BOOT = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from stockade.backends.docker.gate import main; sys.exit(main(sys.argv[1:]))"
)


def command(options: BackendOptions) -> list[str]:
    """The gate's argument list without where it serves."""
    source = str(Path(stockade.__file__).parent.parent)
    # What an earlier server on this data directory has left is ours to clear up.
    instance = hashlib.sha256(f"{options.instance}\0{options.data_dir.resolve()}".encode()).hexdigest()[:16]
    words = ["--docker-socket", str(options.docker_socket), "--instance", instance]
    words += ["--image", options.docker_image, "--runtime", options.docker_runtime]
    words += [word for path in options.host_paths for word in ("--host-path", path)]
    return [sys.executable, "-I", "-S", "-c", _BOOT, source, *words]


class GateProcess:
    """A gate of our own, or the address of another's."""

    def __init__(
        self, *, path: Path | None, control: socket.socket | None, process: "subprocess.Popen[bytes] | None"
    ) -> None:
        self._path, self._control, self._process = path, control, process

    @property
    def is_alive(self) -> bool:
        """Whether there is any use in asking it; one that is another's may come back."""
        return self._process is None or self._process.poll() is None

    def connect(self) -> socket.socket:
        """A connection for one request; not blocking.

        Raises:
            Unavailable: there is no gate, or it takes no more.
        """
        try:
            if self._path is not None:
                ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                ours.setblocking(False)  # a UNIX socket connects at once, or tells that its queue is full
                ours.connect(str(self._path))
                return ours
            assert self._control is not None
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with theirs:
                ours.setblocking(False)
                socket.send_fds(self._control, [b"c"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            where = f" at {self._path}; start one with: stockade docker-gate" if self._path is not None else ""
            raise Unavailable(f"cannot reach the gate to Docker{where}: {error.strerror}") from error
        return ours

    async def close(self) -> None:
        """Have a gate of our own end all that it runs, and end. Idempotent."""
        if self._control is not None:
            with contextlib.suppress(OSError):  # a fork of this process may hold it open, too
                self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
        if self._process is not None:
            try:
                async with asyncio.timeout(_DOWN_WITHIN_S):
                    await asyncio.to_thread(self._process.wait)
            except TimeoutError:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)


async def launch(options: BackendOptions) -> GateProcess:
    """The gate at `options.docker_gate`, where that is set; else one of our own.

    Raises:
        Unavailable: it cannot be started.
    """
    if options.docker_gate is not None:
        return GateProcess(path=options.docker_gate, control=None, process=None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            process = await asyncio.to_thread(
                _spawn, [*command(options), "--client-fd", str(theirs.fileno())], theirs.fileno()
            )
        except OSError as error:
            ours.close()
            raise Unavailable(f"cannot start the gate to Docker: {error}") from error
    ours.setblocking(False)
    return GateProcess(path=None, control=ours, process=process)


def _spawn(argv: list[str], fd: int) -> "subprocess.Popen[bytes]":
    # No environment: a process's own stays readable in /proc for as long as it lives. No signals of our terminal.
    return subprocess.Popen(argv, env={}, cwd="/", stdin=subprocess.DEVNULL, pass_fds=(fd,), process_group=0)
