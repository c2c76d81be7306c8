"""Commands over the sandbox-executor dialect: what one costs, and many, and long output; beside no isolation at all.

All in one sandbox of a server of its own, in turns with `unisolated`: the same answers from the same kind of server
process, which starts `sh -c` as it is.
"""

import contextlib
import os
import re
import secrets
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import cpu, generators, processes
from bench.context import CLIENTS, Bench, ratio
from bench.docker import docker
from bench.executor_client import Executor, Told
from bench.executor_proxy import proxy
from bench.generators import Load
from bench.measure import BenchError, Figure, Sample, Timing, interleaved
from bench.programs import bubblewrap
from bench.server import Server, serving
from bench.sessions_client import Client
from bench.table import Results

__all__ = ["executor", "unisolated"]

RUN, FIRST = "POST /run true", "POST /run_streaming, first output"
BARE_RUN, BARE_FIRST = "unisolated true", "unisolated, first output"
BUBBLEWRAP, DOCKER = "bubblewrap sh -c true", "docker exec sh -c true"
LINES, LONG_LINE, REPLY, LOGS = "stream of lines", "stream of one long line", "POST /run, long reply", "log stream"
QUARTER_BYTES = 25_000_000
OUTPUT_BYTES = 4 * QUARTER_BYTES
LINE_BYTES = 100
"""With its newline."""
TURNS = 3
CPU_S = 4.0
WARM_UP_S = 1.0
MIB = 1 << 20
_SHELL = "/bin/sh"
_LINES_PATH, _LONG_PATH = "/tmp/lines", "/tmp/long"
LOG_REPEATS = 5
_LOG_EVENT = (
    'event: log\ndata: {"timestamp":"2026-03-01T09:30:00.123456789Z","stream":"stdout","data":"'
    + "x" * (LINE_BYTES - 1)
    + '"}\n\n'
)
_DONE = b'"code":0'
_STARTED = b'"data":"hi"'
_CONFIG = """
[server]
api_key = "{key}"
"""


@dataclass(frozen=True, kw_only=True)
class _Commands:
    """Where commands are run: a connection, the address behind it, and what opens it."""

    client: Executor
    url: str
    secret: str

    def running(self, command: str) -> Sample:
        """One command that ends with 0."""
        request = self.client.prepare("POST", "/run", {"cmd": command})
        return lambda: self.client.timed(request, _DONE)

    def beginning(self) -> Sample:
        """Until `hi` is there."""
        request = self.client.prepare("POST", "/run_streaming", {"cmd": "echo hi"})
        return lambda: self.client.first(request, _STARTED)

    def told(self, path: str, command: str) -> Told:
        """A long answer, counted."""
        return self.client.counted(self.client.prepare("POST", path, {"cmd": command}), _DONE)

    def streaming(self, path: str, command: str) -> Sample:
        """How long a long answer takes."""
        return lambda: self.told(path, command).seconds

    def load(self, *, seconds: float) -> Load:
        """16 clients at once."""
        return generators.closed_load(
            self.url,
            clients=CLIENTS,
            seconds=seconds,
            body=b'{"cmd":"true"}',
            expected=_DONE,
            path="/run",
            headers=(f"Authorization: Bearer {self.secret}",),
        )


def executor(bench: Bench) -> None:
    """All of it, the small before the large."""
    directory = bench.directory / "executor"
    directory.mkdir()
    key = f"sk_{secrets.token_hex(32)}"
    with (
        serving(directory, config=_CONFIG.format(key=key)) as server,
        contextlib.closing(Client(server.url, key)) as client,
        unisolated() as url,
        _commands(url, "none is asked for") as plain,
        _sandbox(client, server) as ours,
    ):
        idle = _held(server)
        _in_turns(bench, ours, plain)
        _beside_docker(bench, ours)
        _throughput(bench, server, ours, plain)
        _cpu(bench, server, ours)
        _check(ours)
        _make_sources(ours)
        _make_sources(plain, directory)
        _streams(bench, ours, plain)
        _reply(bench, server, ours, idle)
        _logs(bench, ours)
        proxy(bench, client, server.url)


@contextlib.contextmanager
def _commands(url: str, secret: str) -> Iterator[_Commands]:
    with contextlib.closing(Executor(url, secret)) as client:
        yield _Commands(client=client, url=url, secret=secret)


@contextlib.contextmanager
def _sandbox(client: Client, server: Server) -> Iterator[_Commands]:
    """Commands in a sandbox that is killed with the block."""
    session = client.made(network="none", executor=True)
    try:
        with _commands(server.url, session["executor"]["secret"]) as commands:
            yield commands
    finally:
        client.kill(session["id"])


@contextlib.contextmanager
def unisolated() -> Iterator[str]:
    """Address of the yardstick, which ends with the block."""
    command = [sys.executable, "-m", "bench.unisolated"]
    with subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise BenchError("the unisolated server did not start")
            yield url
        finally:
            process.kill()


def _in_turns(bench: Bench, ours: _Commands, plain: _Commands) -> None:
    """One client, one command at a time."""
    results = bench.results
    contestants: dict[str, Sample] = {
        RUN: ours.running("true"),
        BARE_RUN: plain.running("true"),
        FIRST: ours.beginning(),
        BARE_FIRST: plain.beginning(),
    }
    confined = bubblewrap((_SHELL, "-c", "true"), b"")
    if confined is not None:
        contestants[BUBBLEWRAP] = confined
    else:
        results.skipped.append("commands in bubblewrap, which is not installed (Debian package bubblewrap)")
    results.add(interleaved(contestants, rounds=bench.options.rounds, warm_up=5))
    in_a_row = f"{RUN}, in a row"
    sample = contestants[RUN]
    seconds = tuple(sample() for _ in range(bench.options.rounds))
    results.add({in_a_row: Timing(name=in_a_row, seconds=seconds)})
    times = results.timings
    note = f"{ratio(times, RUN, BARE_RUN):.1f} × unisolated in the same turns; in a row {_ms(times[in_a_row]):.2f} ms"
    first = f"{ratio(times, FIRST, BARE_FIRST):.1f} × unisolated; `echo hi`, from the request to its event"
    results.figures += [
        Figure(name=RUN, value=_ms(times[RUN]), unit="ms", most=3, note=note),
        Figure(name=FIRST, value=_ms(times[FIRST]), unit="ms", most=3, note=first),
    ]


def _ms(timing: Timing) -> float:
    return timing.median * 1e3


def _beside_docker(bench: Bench, ours: _Commands) -> None:
    results = bench.results
    name = f"{RUN}, beside docker"
    try:
        with docker(bench.directory) as engine, engine.container() as container:
            contestants: dict[str, Sample] = {
                name: ours.running("true"),
                DOCKER: container.executing((_SHELL, "-c", "true")),
            }
            results.add(interleaved(contestants, rounds=bench.options.docker_rounds, warm_up=1))
    except BenchError as error:
        results.skipped.append(f"commands beside docker: {error}")
        return
    times = results.timings
    results.figures.append(Figure(name=f"{RUN} ÷ docker exec", value=ratio(times, name, DOCKER)))


def _throughput(bench: Bench, server: Server, ours: _Commands, plain: _Commands) -> None:
    """16 clients, window by window; the load generator shares the machine."""
    ours.load(seconds=WARM_UP_S)
    plain_loads: list[Load] = []
    our_loads: list[Load] = []
    for _ in range(bench.options.windows):
        plain_loads.append(plain.load(seconds=bench.options.window_s))
        our_loads.append(ours.load(seconds=bench.options.window_s))
        server.belongings()  # at rest
    rate, plain_rate = (statistics.median(load.rate for load in loads) for loads in (our_loads, plain_loads))
    p50, p99 = (statistics.median(times) for times in zip(*((x.p50_s, x.p99_s) for x in our_loads), strict=True))
    refused = sum(load.refused for load in our_loads)
    took = sum(load.seconds for load in our_loads) * (os.cpu_count() or 1)
    share = sum(load.cpu_s for load in our_loads) / took
    bench.results.figures.append(
        Figure(
            name=f"{RUN}, {CLIENTS} clients",
            value=rate,
            unit="/s",
            least=700,
            note=f"p50 {p50 * 1e3:.1f}, p99 {p99 * 1e3:.1f} ms; unisolated {plain_rate:.0f}/s; {refused} refused; "
            f"{generators.generator()} took {share:.0%} of the processors",
        )
    )


def _cpu(bench: Bench, server: Server, ours: _Commands) -> None:
    """Where the CPU of a command goes."""
    answer = ours.client.ask("POST", "/run", {"cmd": "readlink /proc/self/ns/pid"})
    spent = cpu.spent_inside(server, lambda: ours.load(seconds=CPU_S), namespace=str(answer.json()["stdout"]).strip())
    bench.results.sheets.append(cpu.sheet(spent, "CPU time of POST /run true by process, in milliseconds"))


def _check(ours: _Commands) -> None:
    """What is only counted later on is compared here, in a shorter answer."""
    answer = ours.client.ask("POST", "/run", {"cmd": "seq 1 100000"}).json()
    expected = "".join(f"{n}\n" for n in range(1, 100_001))
    if answer != {"stdout": expected, "stderr": "", "code": 0}:
        raise BenchError("POST /run does not answer with what seq prints")
    body = ours.client.ask("POST", "/run_streaming", {"cmd": "seq 1 20000"}).body
    if re.findall(rb'"data":"(\d+)"', body) != [str(n).encode() for n in range(1, 20_001)]:
        raise BenchError("POST /run_streaming does not answer with what seq prints")


def _make_sources(where: _Commands, directory: Path | None = None) -> None:
    """Files to be printed: lines, and one long line. In *directory*, outside of a sandbox."""
    line = "x" * (LINE_BYTES - 1)
    make = (
        f"yes {line} | head -c {QUARTER_BYTES} > {_path(_LINES_PATH, directory)} && "
        f"yes {line} | tr -d '\\n' | head -c {QUARTER_BYTES} > {_path(_LONG_PATH, directory)}"
    )
    where.client.ask("POST", "/run", {"cmd": make})


def _path(path: str, directory: Path | None) -> str:
    return path if directory is None else f"{directory}{path.removeprefix('/tmp')}"


def _printing(path: str, directory: Path | None = None) -> str:
    """The command that prints a file of ours four times."""
    return f"cat {' '.join([_path(path, directory)] * 4)}"


def _streams(bench: Bench, ours: _Commands, plain: _Commands) -> None:
    """Long output as events."""
    results, directory = bench.results, bench.directory / "executor"
    told = ours.told("/run_streaming", _printing(_LINES_PATH))
    events = OUTPUT_BYTES // LINE_BYTES
    if told.wire_bytes < OUTPUT_BYTES + events * len('event: output\ndata: {"stream":"stdout","data":""}\n'):
        raise BenchError(f"{LINES}: {told.wire_bytes} bytes are too few for {events} events")
    contestants: dict[str, Sample] = {
        LINES: ours.streaming("/run_streaming", _printing(_LINES_PATH)),
        f"unisolated, {LINES}": plain.streaming("/run_streaming", _printing(_LINES_PATH, directory)),
        LONG_LINE: ours.streaming("/run_streaming", _printing(_LONG_PATH)),
    }
    results.add(interleaved(contestants, rounds=TURNS, warm_up=0))
    plain_rate = OUTPUT_BYTES / results.timings[f"unisolated, {LINES}"].median / 1e6
    results.figures += [
        _rate(
            results,
            LINES,
            least=100,
            note=f"of {LINE_BYTES} bytes; {told.wire_bytes / OUTPUT_BYTES:.2f} × as many as events, unisolated "
            f"{plain_rate:.0f} MB/s; the client took {told.cpu_s / told.seconds:.0%} of a processor",
        ),
        _rate(results, LONG_LINE, least=100, note=f"{OUTPUT_BYTES / 1e6:.0f} MB in one event"),
    ]


def _rate(results: Results, name: str, *, least: float | None = None, note: str = "") -> Figure:
    """Millions of bytes of output a second, of the median."""
    value = OUTPUT_BYTES / results.timings[name].median / 1e6
    return Figure(name=name, value=value, unit="MB/s", least=least, note=note)


def _held(server: Server) -> dict[str, int]:
    """Resident bytes of server and warden."""
    parts = server.processes()
    return {part: processes.resident(parts[part]) for part in ("server", "warden")}


def _reply(bench: Bench, server: Server, ours: _Commands, idle: dict[str, int]) -> None:
    """100 MB in one answer, and what server and warden hold of it at most, beyond what they held when *idle*."""
    results = bench.results
    parts = server.processes()
    seconds: list[float] = []
    copies: dict[str, list[float]] = {part: [] for part in idle}
    for _ in range(TURNS):
        for pid in (*parts["server"], *parts["warden"]):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew: proc_pid_clear_refs(5)
        seconds.append(ours.told("/run", _printing(_LINES_PATH)).seconds)
        for part, before in idle.items():
            copies[part].append((sum(map(processes.peak, parts[part])) - before) / OUTPUT_BYTES)
    results.add({REPLY: Timing(name=REPLY, seconds=tuple(seconds))})
    results.figures += [
        _rate(results, REPLY, note=f"{OUTPUT_BYTES / 1e6:.0f} MB of lines of {LINE_BYTES} bytes in one field"),
        Figure(
            name="copies of it in the server's memory",
            value=max(copies["server"]),
            most=3,
            note=f"its peak beyond what it held before the first command, the most of {TURNS} turns; "
            f"the warden's {max(copies['warden']):.2f}",
        ),
    ]


def _logs(bench: Bench, ours: _Commands) -> None:
    """A process's output, told while it comes: faster than it can be told, for nobody waits for who reads a log."""
    printed = LOG_REPEATS * OUTPUT_BYTES
    command = f"sleep 0.3; {'; '.join([_printing(_LINES_PATH)] * LOG_REPEATS)}"
    rates: list[float] = []
    shares: list[float] = []
    for _ in range(TURNS):
        started = ours.client.ask("POST", "/start_process", {"cmd": command}, status=201).json()
        request = ours.client.prepare("GET", f"/process_logs_streaming?id={started['id']}")
        told = ours.client.counted(request, b"stream ended")
        count = told.wire_bytes / len(_LOG_EVENT)
        rates.append(count * LINE_BYTES / (told.seconds - told.first_s) / 1e6)
        shares.append(count * LINE_BYTES / printed)
    bench.results.figures.append(
        Figure(
            name=LOGS,
            value=statistics.median(rates),
            unit="MB/s",
            note=f"of {printed / 1e6:.0f} MB, printed as fast as the process could; {min(shares):.0%} of it was told",
        )
    )
