"""A real `stockade executor` in a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from tests.app.serving import START_S, command, environment
from tests.app.traces import until
from tests.faults.sessions import end_process, warden_of

__all__ = ["SECRET", "Executor", "arguments", "executing", "variables_of"]

SECRET = "the-secret-of-this-test"
OURS = ("SANDBOX_SECRET", "SANDBOX_AUTH_MODE", "SANDBOX_SECRET_PATH", "PROXY_PORT", "LOG_LEVEL", "RUST_LOG")


@dataclass(kw_only=True)
class Executor:
    """A running one."""

    process: "subprocess.Popen[bytes]"
    log: bytearray = field(default_factory=bytearray)
    """Its standard error."""

    @property
    def url(self) -> str:
        found = re.search(rb"server\.started.*(http://[0-9.:]+)", self.log)
        assert found, self.log.decode()
        return found[1].decode()

    @property
    def proxy_port(self) -> int:
        found = re.search(rb"executor\.started.*proxy_port=(\d+)", self.log)
        assert found, self.log.decode()
        return int(found[1])

    def ask(self, path: str, body: Any = None, *, secret: str = SECRET) -> httpx.Response:
        """GET, or POST of a body."""
        headers = {"Authorization": f"Bearer {secret}"}
        method = "GET" if body is None else "POST"
        return httpx.request(method, f"{self.url}{path}", json=body, headers=headers, timeout=30)

    def run(self, cmd: str) -> str:
        """The standard output of a command, which must succeed."""
        answer = self.ask("/run", {"cmd": cmd}).json()
        assert answer["code"] == 0, answer
        return str(answer["stdout"])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(START_S)


def variables_of(**variables: str) -> dict[str, str]:
    """The environment of an executor on free ports: ours, without what would configure it."""
    kept = {name: value for name, value in environment().items() if name not in OURS}
    return kept | {"PORT": "0", "PROXY_PORT": "0"} | variables


def arguments(folder: Path, *more: str) -> list[str]:
    return command("executor", "--host", "127.0.0.1", "--data-dir", str(folder), *more)


@contextlib.contextmanager
def executing(
    folder: Path, *more: str, waits: bool = True, stdin: int = subprocess.DEVNULL, **variables: str
) -> Iterator[Executor]:
    """An executor that answers; ended with the block, and whatever it would leave for a successor with it.

    Args:
        waits: until it answers; else the block begins at once.
        variables: further variables of its environment; SANDBOX_SECRET is set where none of them is.
    """
    if not any(name.startswith("SANDBOX_") for name in variables):
        variables["SANDBOX_SECRET"] = SECRET
    process = subprocess.Popen(
        arguments(folder, *more),
        env=variables_of(**variables),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    executor = Executor(process=process)
    assert process.stdout is not None
    assert process.stderr is not None
    reader = threading.Thread(target=_collect, args=(process.stderr, executor.log), daemon=True)
    reader.start()
    try:
        if waits:
            until(lambda: b"server.started" in executor.log or process.poll() is not None)
            assert process.poll() is None, executor.log.decode()
        yield executor
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        process.kill()
        process.wait(START_S)
        for warden in warden_of(folder):
            end_process(warden, signal.SIGTERM)
        reader.join(5)
        process.stdout.close()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _collect(stream: IO[bytes], text: bytearray) -> None:
    with stream:
        while part := os.read(stream.fileno(), 65536):
            text += part
