"""A command with a real terminal: what it shows, what is typed, and in which mode it leaves the terminal."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

DEADLINE_S = 30.0


class Session:
    """A running command whose three standard streams are a terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(24, 80)
        self.before = self.attributes()
        self.output = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environment,
        )

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    @property
    def is_raw(self) -> bool:
        return not self.attributes()[3] & termios.ICANON

    def resize(self, rows: int, columns: int) -> None:
        """As a window manager does it: the kernel then signals the terminal's foreground processes."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, text: bytes) -> bytes:
        """Read on until *text* is shown; what was shown before it, since the last time. It counts as read."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.output:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} is not in {self.output!r}"
            self._read(min(left, 0.5))
        before, _, self.output = self.output.partition(text)
        return before

    def wait(self) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end; it shows {self.output!r}"
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.returncode

    def signal(self, number: int) -> None:
        """To the command itself; `setsid --wait` is its parent."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            children = [int(child) for child in file.read().split()]
        os.kill(children[0] if children else self.process.pid, number)

    def _read(self, wait_s: float) -> bool:
        if not select.select([self.master], [], [], wait_s)[0]:
            return False
        part = os.read(self.master, 65536)
        self.output += part
        return bool(part)


@contextlib.contextmanager
def terminal(command: list[str], environment: dict[str, str]) -> Iterator[Session]:
    session = Session(command, environment)
    try:
        yield session
    finally:
        if session.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                session.signal(signal.SIGKILL)
            session.process.kill()
            session.process.wait(60)
        os.close(session.master)
        os.close(session.slave)
