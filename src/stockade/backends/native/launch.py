"""Start a warden, or find the one that runs."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import stockade
from stockade.backends.base import BackendOptions
from stockade.errors import Unavailable

__all__ = ["Warden", "connect_or_launch"]

_UP_WITHIN_S = 15.0
_DOWN_WITHIN_S = 10.0
_BACK_WITHIN_S = 5.0

# Isolated, without site-packages: the warden sees the standard library and itself, whatever is installed here.
_BOOT = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from stockade.warden.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


class Warden:
    """A connection to a warden, and its process where it is ours."""

    def __init__(self, connection: socket.socket, process: "subprocess.Popen[bytes] | None") -> None:
        self.connection = connection
        self.process = process

    async def close(self) -> None:
        """Disconnect, which ends our runs; wait for a warden of our own to clear up and end."""
        with contextlib.suppress(OSError):  # it is lost already; else: a fork of this process may hold it open, too
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        if self.process is not None:
            try:
                async with asyncio.timeout(_DOWN_WITHIN_S):
                    await asyncio.to_thread(self.process.wait)
            except TimeoutError:
                self.process.kill()
                await asyncio.to_thread(self.process.wait)


def command(options: BackendOptions) -> list[str]:
    """The warden's argument list without the descriptors."""
    source = str(Path(stockade.__file__).parent.parent)
    paths = [word for path in options.host_paths for word in ("--host-path", path)]
    disks = []
    if options.disks != "none":
        disks = ["--disks", str(options.data_dir / "disks"), "--disks-kind", options.disks]
        if options.disks_bytes is not None:
            disks += ["--disks-bytes", str(options.disks_bytes)]
    return [sys.executable, "-I", "-S", "-c", _BOOT, source, *paths, *disks]


async def connect_or_launch(options: BackendOptions) -> Warden:
    """Connect to the warden at `options.warden_socket` where that is set, else start one of our own.

    Raises:
        Unavailable: no warden could be had; the message says what it said.
    """
    if options.warden_socket is not None and not options.embedded:
        return Warden(await _connect(options.warden_socket), None)
    return await _launch(options)


async def _connect(path: Path) -> socket.socket:
    """Wait a little for a warden that is being started again, or whose socket has not been handed over to us yet."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _BACK_WITHIN_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)  # a UNIX socket connects at once, or tells that its queue is full
        try:
            connection.connect(str(path))
            return connection
        except OSError as error:
            connection.close()
            if loop.time() > deadline:
                raise Unavailable(f"cannot reach the warden at {path}: {error.strerror}") from error
        await asyncio.sleep(0.05)


async def _launch(options: BackendOptions) -> Warden:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    fds = (theirs.fileno(), write)
    words = ["--client-fd", str(fds[0]), "--ready-fd", str(fds[1]), "--until-idle"]
    try:
        process = await asyncio.to_thread(_spawn, [*command(options), *words], fds)
    except OSError as error:
        ours.close()
        os.close(read)
        raise Unavailable(f"cannot start the warden: {error}") from error
    finally:
        theirs.close()
        os.close(write)
    warden = Warden(ours, process)
    try:
        async with asyncio.timeout(_UP_WITHIN_S):
            line = await _read_line(read)
    except TimeoutError:
        process.kill()
        await warden.close()
        raise Unavailable(f"the warden did not come up within {_UP_WITHIN_S:g} s") from None
    except BaseException:
        process.kill()
        await warden.close()
        raise
    finally:
        os.close(read)
    message = json.loads(line) if line else {"error": "it ended without a word"}
    if "error" in message:
        await warden.close()
        raise Unavailable(f"the warden cannot work on this host: {message['error']}")
    return warden


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _spawn(argv: list[str], fds: tuple[int, ...]) -> "subprocess.Popen[bytes]":
    # No environment: a process's own stays readable in /proc for as long as it lives.
    return subprocess.Popen(argv, env={}, cwd="/", stdin=subprocess.DEVNULL, pass_fds=fds)


async def _read_line(fd: int) -> bytes:
    """Everything up to the end of line or of file."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    data = b""
    while not data.endswith(b"\n"):
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(fd, _set, readable)
        try:
            await readable
        finally:
            loop.remove_reader(fd)
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(fd, 65536)
            if not chunk:
                break
            data += chunk
    return data
