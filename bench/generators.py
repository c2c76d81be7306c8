"""Load by a process of its own: wrk where it is installed, for it costs next to nothing, else our own (`load`).

Whichever it is, every answer is checked, and its CPU time is told: on a machine that it shares with the server,
that time is missing there.
"""

import contextlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError
from bench.server import BODY, EXPECTED, PATH

__all__ = [
    "Load",
    "bare_load",
    "bubblewrap_load",
    "closed_load",
    "counted_load",
    "generator",
    "jobs_load",
    "open_load",
    "our_closed_load",
    "steady_load",
]

DEADLINE_S = 900.0
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a load generator saw."""

    runs: int
    """Answers that were as they should be."""
    seconds: float
    p50_s: float
    p95_s: float
    p99_s: float
    min_s: float
    max_s: float
    refused: int = 0
    unsent: int = 0
    """Requests for which there was no connection left: the server kept all of them waiting."""
    cpu_s: float = 0.0
    """The generator's own."""

    @property
    def rate(self) -> float:
        """Runs a second."""
        return self.runs / self.seconds


def generator() -> str:
    """Which one is used here."""
    return "wrk" if shutil.which("wrk") else "bench.load (wrk is not installed)"


def closed_load(
    url: str,
    *,
    clients: int,
    seconds: float,
    body: bytes = BODY,
    expected: bytes = EXPECTED,
    path: str = PATH,
    headers: Sequence[str] = (),
) -> Load:
    """*clients* at once, each asking again as soon as it is answered.

    Args:
        headers: beside what every request has, as `Name: value`.

    Raises:
        BenchError: an answer was wrong, or none came. Refusals (429, 503) are counted.
    """
    program = shutil.which("wrk")
    if program is None:
        return _ours("http", url, str(clients), str(seconds), body.decode(), expected.decode(), path, *headers)
    command = [
        program, "--threads", "1", "--connections", str(clients), "--duration", f"{max(1, round(seconds))}s",
        "--timeout", "30s", "--script", str(_HERE / "hello.lua"), f"{url}{path}", "--",
        body.decode(), expected.decode(), *headers,
    ]  # fmt: skip
    output, cpu_s = _do(command)
    line = next((line for line in output.splitlines() if line.startswith("BENCH ")), None)
    if line is None:
        raise BenchError(f"wrk said nothing that we understand: {output[-500:]}")
    told = json.loads(line.removeprefix("BENCH "))
    if told["wrong"] or told["errors"] or not told["checked"]:
        raise BenchError(
            f"{told['wrong']} wrong answers, {told['errors']} without one, {told['checked']} right: {told['sample']}"
        )
    return Load(
        runs=told["checked"],
        seconds=told["took_us"] / 1e6,
        p50_s=told["p50_us"] / 1e6,
        p95_s=told["p95_us"] / 1e6,
        p99_s=told["p99_us"] / 1e6,
        min_s=told["min_us"] / 1e6,
        max_s=told["max_us"] / 1e6,
        refused=told["refused"],
        cpu_s=cpu_s,
    )


def our_closed_load(url: str, *, clients: int, seconds: float, body: bytes = BODY, expected: bytes = EXPECTED) -> Load:
    """As `closed_load`, by our own generator in any case: for comparison with `open_load`, which wrk cannot do."""
    return _ours("http", url, str(clients), str(seconds), body.decode(), expected.decode())


def open_load(url: str, *, rate: float, seconds: float, body: bytes = BODY, expected: bytes = EXPECTED) -> Load:
    """*rate* requests a second, whether or not earlier ones have been answered.

    `runs` counts the answers that came while it lasted; how long each took is counted from when it was due.
    """
    return _ours("open", url, str(rate), str(seconds), body.decode(), expected.decode())


@contextlib.contextmanager
def steady_load(url: str, *, rate: float, seconds: float, every_s: float) -> Iterator["subprocess.Popen[bytes]"]:
    """`open_load` in the background. Each *every_s* it prints a line of JSON about that time: the members of `Load`."""
    command = [
        sys.executable, "-m", "bench.load", "open", url, str(rate), str(seconds), BODY.decode(), EXPECTED.decode(),
        str(every_s),
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=_HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def counted_load(url: str, *, clients: int, runs: int) -> Load:
    """That many requests in all."""
    return _ours("count", url, str(clients), str(runs))


def bare_load(seconds: float) -> Load:
    """Two bare interpreters at a time."""
    return _ours("bare", str(seconds))


def bubblewrap_load(seconds: float) -> Load:
    """Two interpreters in bubblewrap at a time."""
    return _ours("bubblewrap", str(seconds))


def jobs_load(url: str, *, clients: int, seconds: float) -> Load:
    """*clients* at once, each submitting a job as soon as it has the result of the one before."""
    return _ours(url, str(clients), str(seconds), module="bench.jobs_client")


def _ours(*arguments: str, module: str = "bench.load") -> Load:
    output, cpu_s = _do([sys.executable, "-m", module, *arguments])
    return Load(**json.loads(output.splitlines()[-1]), cpu_s=cpu_s)


def _do(command: Sequence[str]) -> tuple[str, float]:
    """What it printed, and the CPU seconds of it and of all that it started and reaped."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=_HERE.parent, capture_output=True, text=True, timeout=DEADLINE_S)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise BenchError(f"load generator: {(done.stderr.strip() or done.stdout.strip())[-500:]}")
    return done.stdout, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
