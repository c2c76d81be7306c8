"""A real server in a process of its own, for tests of what only a whole process shows."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_S = 60
ALLOW_AS_USER = "memory,swap,processes,cpu_rate,cpu_time,own_ids"
"""What an ordinary user without delegated control groups goes without."""


@dataclass(kw_only=True)
class Server:
    """A running `stockade serve`."""

    process: "subprocess.Popen[str]"
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
    with subprocess.Popen(
        command("serve", "--port", "0", "--data-dir", str(data_dir), *arguments),
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        server = Server(process=process)
        assert process.stdout is not None
        assert process.stderr is not None
        reader = threading.Thread(target=lambda stream=process.stderr: server.log.extend(stream), daemon=True)
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
            reader.join(5)
