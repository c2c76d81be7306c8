"""A real server in a process of its own, for tests of what only a whole process shows."""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

START_S = 60
ALLOW_AS_USER = "memory,swap,processes,cpu_rate,cpu_time,own_ids"
"""What an ordinary user without delegated control groups goes without."""


@dataclass(kw_only=True)
class Server:
    """A running `stockade serve`."""

    process: "subprocess.Popen[str]"
    data_dir: Path = Path()
    banner: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.address("Stockade answers at")

    @property
    def curl(self) -> str:
        """The line that a new user pastes."""
        return next(line.strip() for line in self.banner.splitlines() if line.strip().startswith("curl"))

    def address(self, name: str) -> str:
        found = re.search(rf"^{name} +(\S+)$", self.banner, re.MULTILINE)
        assert found, f"{name} is not in the banner:\n{self.banner}"
        return found[1]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(START_S)


def environment(**more: str) -> dict[str, str]:
    """Ours without its settings, and what a user without root needs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STOCKADE_") and name != "PORT"}
    if os.geteuid():
        kept["STOCKADE_SANDBOX_ALLOW_UNENFORCED"] = ALLOW_AS_USER
    return kept | more


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stockade", *arguments]


@contextlib.contextmanager
def serving(data_dir: Path, *arguments: str, **variables: str) -> Iterator[Server]:
    """A server on a free port that answers; killed at the end where it still runs."""
    process = subprocess.Popen(
        command("serve", "--port", "0", "--data-dir", str(data_dir), *arguments),
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    server = Server(process=process, data_dir=data_dir)
    assert process.stdout is not None
    assert process.stderr is not None
    reader = threading.Thread(target=_collect, args=(process.stderr, server.log), daemon=True)
    reader.start()
    try:
        for line in process.stdout:
            server.banner += line
            if line.strip().startswith("curl"):
                break
        else:
            reader.join(5)
            raise AssertionError(f"the server did not start:\n{''.join(server.log)}")
        yield server
    finally:
        process.kill()
        process.wait(START_S)
        process.stdout.close()
        _let_end(reader, process.stderr)


def _collect(stream: IO[str], lines: list[str]) -> None:
    """Take what is written to the end, which comes when the last who holds the pipe has ended: the server, or a warden
    that outlives it because sandboxes live.
    """
    with stream:
        lines.extend(stream)


def _let_end(reader: threading.Thread, stream: IO[str]) -> None:
    """Wait until *reader* has all that is there."""
    with contextlib.suppress(ValueError):  # it has ended, and closed its stream
        while reader.is_alive() and select.select([stream], [], [], 0)[0]:
            reader.join(0.05)
