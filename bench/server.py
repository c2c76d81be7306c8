"""A real `stockade serve` in a process of its own, and what can be seen of it from outside."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench import processes
from bench.measure import BenchError, Sample
from bench.programs import HELLO

__all__ = ["BODY", "EXPECTED", "PATH", "UNENFORCED", "Server", "asking", "hello", "program", "serving"]

END_S = 30.0
ANSWER_S = 30.0
SETTLE_S = 5.0
PATH = "/execute"
BODY = json.dumps({"language": "python", "code": HELLO}).encode()
EXPECTED = b'"stdout":"hello\\n"'
UNENFORCED = ["memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers at `url`."""

    url: str
    pid: int

    def processes(self) -> dict[str, list[int]]:
        """Its processes by part, see `processes.PARTS`.

        Raises:
            BenchError: it has no warden.
        """
        found = processes.parts(self.pid)
        if not found["warden"]:
            raise BenchError("the server has no warden")
        return found

    def memory(self) -> dict[str, dict[str, int]]:
        """Resident and proportional bytes of each part."""
        return {part: processes.memory(pids) for part, pids in self.processes().items()}

    def belongings(self) -> dict[str, int]:
        """What must not grow: counts, taken when nothing runs and two takes in a row agree.

        Raises:
            BenchError: they did not come to rest.
        """
        deadline = time.monotonic() + SETTLE_S
        before = processes.belongings(self.processes())
        while time.monotonic() < deadline:
            time.sleep(0.05)
            now = processes.belongings(self.processes())
            if now == before:
                return now
            before = now
        raise BenchError(f"the server does not come to rest within {SETTLE_S:g} s: {before}")


@contextlib.contextmanager
def serving(data_dir: Path, *, config: str = "") -> Iterator[Server]:
    """A server on a free loopback port; ended in good order when the block ends.

    Args:
        config: what stands in its configuration file. For an ordinary user it gets leave to go without the limits that
            only root, or somebody with control groups of their own, can have.

    Raises:
        BenchError: it did not start; the message has what it said.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKADE_")}
    environment.pop("PORT", None)
    log_path = data_dir / "server.log"
    file = data_dir / "bench.toml"
    file.write_text(
        config if os.geteuid() == 0 else f"{config}\n[sandbox]\nallow_unenforced = {json.dumps(UNENFORCED)}\n"
    )
    command = [
        sys.executable, "-m", "stockade", "serve", "--port", "0", "--data-dir", str(data_dir / "data"),
        "--config", str(file),
    ]  # fmt: skip
    with (
        log_path.open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            url = ""
            for line in process.stdout:
                if line.startswith("Stockade answers at"):
                    url = line.split()[-1]
                if line.strip().startswith("curl"):  # the last line of what it prints
                    break
            else:
                raise BenchError(f"the server did not start:\n{log_path.read_text()[-2000:]}")
            yield Server(url=url, pid=process.pid)
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def program(language: str, code: str, **more: object) -> bytes:
    """The body of a request that runs *code*."""
    return json.dumps({"language": language, "code": code, **more}).encode()


def asking(server: Server, body: bytes | Iterator[bytes], expected: bytes) -> Sample:
    """One run over a kept-alive connection: request sent to answer read, seconds.

    Args:
        body: what to send, or one for each time.
        expected: what the answer's body contains.
    """
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=ANSWER_S)

    def sample() -> float:
        content = body if isinstance(body, bytes) else next(body)
        began = time.perf_counter()
        connection.request("POST", PATH, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        seconds = time.perf_counter() - began
        if response.status != 200 or expected not in answer:
            raise BenchError(f"the server answered {response.status}: {answer[:500]!r}")
        return seconds

    return sample


def hello(server: Server) -> Sample:
    """Python's hello."""
    return asking(server, BODY, EXPECTED)
