"""Things on the host that a sandbox must not reach, set out while a corpus runs.

A program that looks for "some service on the host" proves nothing where there is none; so there is one, and it
remembers who came.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["Bait"]

_IPC_RMID: Final = 0
_IPC_CREAT: Final = 0o1000
_BACKLOG: Final = 64
_PROGRAMS: Final = ("env", "id", "true", "false", "sleep", "expr", "nproc", "tty", "yes", "comm", "join", "tsort")
"""In /usr/bin, where every Linux has them, and every image that is made of a host shows them."""
_AGAIN_S: Final = 0.02
_BEGIN_S: Final = 30.0
_KEEP_OPENING: Final = """
import os, sys, time
path, again_s, owner = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
while os.getppid() == owner:
    with open(path, "rb") as again:
        again.read(1)
    if sys.stdout is not None:
        print("begun", flush=True)
        sys.stdout.close()
        sys.stdout = None
    time.sleep(again_s)
"""


class Bait:
    """A loopback listener, sockets with and without a file, a readable file, shared memory, an environment variable,
    and a program of the host that somebody uses: it is locked, and opened again and again.

    Use as a context manager; all of it is gone afterwards.
    """

    def __init__(self) -> None:
        self._canary = secrets.token_hex(16)
        self._stack = contextlib.ExitStack()
        self._listeners: dict[str, socket.socket] = {}
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._set_out(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def facts(self) -> dict[str, Any]:
        """What to tell the attacks, as JSON on their standard input."""
        return dict(self._facts)

    @property
    def stdin(self) -> bytes:
        return json.dumps(self._facts).encode()

    def visitors(self) -> tuple[str, ...]:
        """Names of the listeners that somebody has connected to."""
        seen = []
        for name, listener in self._listeners.items():
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                seen.append(name)
        return tuple(seen)

    def _set_out(self, stack: contextlib.ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stockade-bait-")))
        directory.chmod(0o755)
        file = directory / "readable"
        file.write_text(self._canary)
        file.chmod(0o644)
        abstract = f"stockade-bait-{self._canary}"
        self._listen(stack, "tcp", socket.AF_INET, ("127.0.0.1", 0))
        self._listen(stack, "abstract", socket.AF_UNIX, f"\0{abstract}")
        self._listen(stack, "unix", socket.AF_UNIX, str(directory / "socket"))
        (directory / "socket").chmod(0o666)
        posix_name = f"stockade-bait-{self._canary}"
        memory = Path("/dev/shm") / posix_name  # the place that shm_open(3) uses
        memory.write_text(self._canary)
        stack.callback(memory.unlink, missing_ok=True)
        os.environ["STOCKADE_BAIT"] = self._canary
        stack.callback(os.environ.pop, "STOCKADE_BAIT", None)
        self._facts = {
            "busy": self._use(stack),
            "abstract": abstract,
            "canary": self._canary,
            "file": str(file),
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "posix_name": posix_name,
            "shm_key": _make_segment(stack),
            "tcp_port": self._listeners["tcp"].getsockname()[1],
            "unix": str(directory / "socket"),
        }

    def _use(self, stack: contextlib.ExitStack) -> str:
        """Have a program locked and opened, as the host's own work might. Returns its path."""
        path = _lock(stack)
        stack.callback(_end, _start_opening(path))
        return path

    def _listen(self, stack: contextlib.ExitStack, name: str, family: int, address: tuple[str, int] | str) -> None:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(_BACKLOG)
        self._listeners[name] = listener


def _lock(stack: contextlib.ExitStack) -> str:
    """Lock a program that nobody else has locked: somebody else's bait may be out at the same time."""
    for name in _PROGRAMS:
        path = f"/usr/bin/{name}"
        try:
            file = stack.enter_context(open(path, "rb"))  # noqa: SIM115  # the stack closes it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # locked, or not on this host
            continue
        return path
    raise OSError(f"none of {', '.join(_PROGRAMS)} in /usr/bin can be locked: they are the bait")


def _start_opening(path: str) -> "subprocess.Popen[bytes]":
    """Have *path* opened again and again, from now on, until this process ends or ends that.

    By a process of its own: a thread would take descriptors of this one, and fail where they have run out. It is none
    of a session of its own, which `Remains` would take for what a server has left.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _KEEP_OPENING, path, str(_AGAIN_S), str(os.getpid())],
        env={},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C is for us
    )
    assert process.stdout is not None
    with process.stdout as begun:
        waiting = select.poll()
        waiting.register(begun, select.POLLIN)
        if waiting.poll(_BEGIN_S * 1000) and begun.read(1):
            return process
    _end(process)
    raise OSError(f"the program of the bait that is to open {path} does not begin, within {_BEGIN_S:.0f} s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def _make_segment(stack: contextlib.ExitStack) -> int:
    """A System V segment that everybody may read. Returns its key."""
    libc = ctypes.CDLL(None, use_errno=True)
    key = secrets.randbelow(1 << 30) + 1
    segment = libc.shmget(key, 4096, _IPC_CREAT | 0o666)
    if segment < 0:
        raise OSError(ctypes.get_errno(), "shmget: no shared memory segment for the bait")
    stack.callback(libc.shmctl, segment, _IPC_RMID, None)
    return key
