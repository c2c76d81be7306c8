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

from bench.measure import BenchError, Sample
from bench.programs import HELLO

__all__ = ["BODY", "EXPECTED", "Server", "hello", "serving"]

START_S = 60.0
END_S = 30.0
ANSWER_S = 30.0
SETTLE_S = 5.0
BODY = json.dumps({"language": "python", "code": HELLO}).encode()
EXPECTED = b'"stdout":"hello\\n"'
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers at `url`."""

    url: str
    pid: int

    def processes(self) -> dict[str, list[int]]:
        """Its processes by part: `server`, `keeper`, `warden`, `mason` (makes cells), `cells` (that wait or run)."""
        parts: dict[str, list[int]] = {"server": [self.pid], "keeper": [], "warden": [], "mason": [], "cells": []}
        found = _descendants(self.pid)
        warden = next((pid for pid in found if _command(pid).startswith("stockade-warden")), None)
        if warden is None:
            raise BenchError("the server has no warden")
        parts["warden"] = [warden]
        below = _descendants(warden)
        for pid in below:
            parts["mason" if "stockade-mason" in _command(pid) else "cells"].append(pid)
        parts["keeper"] = [pid for pid in found if pid not in (warden, *below)]
        return parts

    def memory(self) -> dict[str, dict[str, int]]:
        """Resident and proportional bytes of each part."""
        return {part: _memory(pids) for part, pids in self.processes().items()}

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far; those of sandboxes come from what the warden has reaped."""
        parts = self.processes()
        own = {part: sum(sum(_times(pid)[:2]) for pid in parts[part]) for part in ("server", "warden", "mason")}
        return {**own, "sandboxes": sum(sum(_times(pid)[2:]) for pid in parts["warden"])}

    def belongings(self) -> dict[str, int]:
        """What must not grow: counts, taken when nothing runs and two takes in a row agree.

        Raises:
            BenchError: they did not come to rest.
        """
        deadline = time.monotonic() + SETTLE_S
        before = self._count()
        while time.monotonic() < deadline:
            time.sleep(0.05)
            now = self._count()
            if now == before:
                return now
            before = now
        raise BenchError(f"the server does not come to rest within {SETTLE_S:g} s: {before}")

    def _count(self) -> dict[str, int]:
        parts = self.processes()
        wardens = parts["warden"]
        return {
            "server descriptors": _descriptors(self.pid),
            "warden descriptors": sum(_descriptors(pid) for pid in (*wardens, *parts["mason"])),
            "warden mounts": sum(_mounts(pid) for pid in wardens),
            "host mounts": _mounts(os.getpid()),
            "control groups": sum(_groups(pid) for pid in wardens),
            "processes": sum(len(pids) for pids in parts.values()),
        }


@contextlib.contextmanager
def serving(data_dir: Path) -> Iterator[Server]:
    """A server on a free loopback port; ended in good order when the block ends.

    Raises:
        BenchError: it did not start; the message has what it said.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKADE_")}
    environment.pop("PORT", None)
    log_path = data_dir / "server.log"
    command = [sys.executable, "-m", "stockade", "serve", "--port", "0", "--data-dir", str(data_dir / "data")]
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


def hello(server: Server) -> Sample:
    """One Python hello over a kept-alive connection: request sent to answer read, seconds."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=ANSWER_S)

    def sample() -> float:
        began = time.perf_counter()
        connection.request("POST", "/execute", BODY, {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        seconds = time.perf_counter() - began
        if response.status != 200 or EXPECTED not in body:
            raise BenchError(f"the server answered {response.status}: {body[:500]!r}")
        return seconds

    return sample


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children: list[int] = []
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                with contextlib.suppress(OSError):
                    children += map(int, (task / "children").read_text().split())
        found += children
        waiting += children
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _memory(pids: list[int]) -> dict[str, int]:
    total = {"rss": 0, "pss": 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("Rss", "Pss"):
                    total[name.lower()] += int(value.split()[0]) * 1024
    return total


def _times(pid: int) -> tuple[float, float, float, float]:
    """User and system seconds of a process and of the children that it has reaped: proc_pid_stat(5), fields 14-17."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    user, system, child_user, child_system = (int(ticks) * _TICK_S for ticks in fields[11:15])
    return user, system, child_user, child_system


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _mounts(pid: int) -> int:
    return len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())


def _groups(warden: int) -> int:
    """Control groups of this warden's, in every hierarchy."""
    count = 0
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        kind = line.partition(" - ")[2].split()[0]
        if kind in ("cgroup", "cgroup2"):
            for top in Path(line.split()[4]).rglob(f"stockade-*-{warden}-*"):
                count += sum(entry.is_dir() for entry in top.iterdir())
    return count
