"""Sandboxes that live, over their own wire: what making one and using one cost, beside Docker, and many at once.

The server is one of its own: its key must be known, and its sandboxes must have room for a file of a gibibyte.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.context import Bench, ratio
from bench.docker import Container, docker
from bench.measure import BenchError, Figure, Sample, Timing, interleaved
from bench.programs import HELLO, PYTHON, TRUE, bare
from bench.server import Server, serving
from bench.sessions_client import Client
from bench.sessions_crowd import crowd, pause
from bench.table import Results

__all__ = ["sessions"]

KEY = f"sk_{'be' * 32}"
STREAM_BYTES = 1 << 30
FILE_BYTES = 1 << 30
STREAMS = 3
"""Turns of everything that moves a gibibyte."""
MIB = 1 << 20
_CONFIG = f"""
[server]
api_key = "{KEY}"
[sandbox.maximum]
disk_bytes = {4 * FILE_BYTES}
[dialects.execbox]
default_disk_bytes = {3 * FILE_BYTES}
default_memory_mb = 4096
"""
_CAT = ("/usr/bin/cat",)
_QUARTER = "/tmp/quarter"

FIRST, EXEC, STREAM = "create and first exec of true", "exec true", "1 GiB of standard output"
CONNECTED, IN_A_ROW = f"{FIRST}, with a way out", f"{FIRST}, in a row"
BARE = "bare python3 -c, between sandboxes that live"
DOCKER_RUN, DOCKER_EXEC, DOCKER_STREAM = "docker run --rm true", "docker exec true", "docker exec cat, 1 GiB"
UPLOAD, DOWNLOAD = "upload of 1 GiB", "download of 1 GiB"


def sessions(bench: Bench) -> None:
    """All of it, the small before the large."""
    directory = bench.directory / "sessions"
    directory.mkdir()
    with serving(directory, config=_CONFIG) as server, contextlib.closing(Client(server.url, KEY)) as client:
        _in_turns(bench, client)
        _beside_docker(bench, client)
        _files(bench, server, client)
        pause(bench, client)
        crowd(bench, server, client)


@contextlib.contextmanager
def _sandbox(client: Client, **body: object) -> Iterator[str]:
    """A sandbox, killed with the block."""
    name = client.create(**body)
    try:
        yield name
    finally:
        client.kill(name)


def _first(client: Client, network: str) -> Sample:
    """Create a sandbox and see `true` end in it. Its end is not on the bill."""

    def sample() -> float:
        began = time.perf_counter()
        name = client.create(network=network)
        client.exec(name, TRUE)
        seconds = time.perf_counter() - began
        client.kill(name)
        return seconds

    return sample


def _in_turns(bench: Bench, client: Client) -> None:
    """One client, in turns with bare Python; without Docker, which would leave us what it has to clear away."""
    results, rounds = bench.results, bench.options.rounds
    plain = bare((PYTHON, "-c", HELLO), b"hello\n")
    first, connected = _first(client, "none"), _first(client, "outgoing")
    with _sandbox(client, network="none") as name:
        in_turns: dict[str, Sample] = {FIRST: first, BARE: plain, EXEC: lambda: client.exec(name, TRUE)[0]}
        results.add(interleaved(in_turns, rounds=rounds))
        results.add(interleaved({CONNECTED: connected, f"{BARE}, later": plain}, rounds=rounds // 2))
        in_a_row = tuple(first() for _ in range(rounds))
    results.add({IN_A_ROW: Timing(name=IN_A_ROW, seconds=in_a_row)})
    times = results.timings
    share = f"{ratio(times, FIRST, BARE):.2f} of bare Python in the same turns"
    results.figures += [
        Figure(
            name=FIRST,
            value=times[FIRST].median * 1e3,
            unit="ms",
            most=8,
            note=f"over HTTP, then a WebSocket; {share}",
        ),
        Figure(name=EXEC, value=times[EXEC].median * 1e3, unit="ms", most=4, note="a WebSocket of its own each"),
    ]


def _beside_docker(bench: Bench, client: Client) -> None:
    """In turns with Docker: making, entering, and standard output."""
    results = bench.results
    ours = {name: f"{name}, beside docker" for name in (FIRST, EXEC, STREAM)}
    with _sandbox(client, network="none") as name:
        _make_quarter(client, name)
        stream = _stream(client, name)
        try:
            with docker(bench.directory) as engine, engine.container() as container:
                container.make(_QUARTER, FILE_BYTES // 4)
                small: dict[str, Sample] = {
                    ours[FIRST]: _first(client, "none"),
                    DOCKER_RUN: engine.running((TRUE,)),
                    ours[EXEC]: lambda: client.exec(name, TRUE)[0],
                    DOCKER_EXEC: container.executing((TRUE,)),
                }
                results.add(interleaved(small, rounds=bench.options.docker_rounds, warm_up=1))
                large = {ours[STREAM]: stream, DOCKER_STREAM: _docker_stream(container)}
                results.add(interleaved(large, rounds=STREAMS, warm_up=1))
        except BenchError as error:
            results.skipped.append(f"sandboxes that live beside docker: {error}")
            results.add(interleaved({ours[STREAM]: stream}, rounds=STREAMS, warm_up=1))
    _judge_docker(results, ours)


def _judge_docker(results: Results, ours: dict[str, str]) -> None:
    times = results.timings
    if DOCKER_RUN in times:
        results.figures += [
            Figure(name=f"{FIRST} ÷ docker run --rm", value=ratio(times, ours[FIRST], DOCKER_RUN), most=0.05),
            Figure(name="exec true ÷ docker exec true", value=ratio(times, ours[EXEC], DOCKER_EXEC)),
        ]
    results.figures.append(_rate(times[ours[STREAM]], STREAM, STREAM_BYTES, least=200, note="over one WebSocket"))
    if DOCKER_STREAM in times:
        results.figures.append(
            Figure(
                name="standard output ÷ docker exec cat",
                value=ratio(times, DOCKER_STREAM, ours[STREAM]),
                least=1,
                note=f"docker {STREAM_BYTES / times[DOCKER_STREAM].median / 1e6:.0f} MB/s",
            )
        )


def _rate(timing: Timing, name: str, size: int, *, least: float, note: str = "") -> Figure:
    """Millions of bytes a second, of the median."""
    return Figure(name=name, value=size / timing.median / 1e6, unit="MB/s", least=least, note=note)


def _make_quarter(client: Client, name: str) -> None:
    client.exec(name, "/usr/bin/dd", "if=/dev/zero", f"of={_QUARTER}", "bs=1M", f"count={FILE_BYTES // 4 // MIB}")


def _stream(client: Client, name: str) -> Sample:
    """`cat` of a gibibyte: a file of a quarter of that, four times, as large as Docker's."""

    def sample() -> float:
        seconds, count = client.exec(name, *_CAT, *[_QUARTER] * 4)
        _expect(count, STREAM_BYTES, STREAM)
        return seconds

    return sample


def _docker_stream(container: Container) -> Sample:
    def sample() -> float:
        seconds, count = container.stream((*_CAT, *[_QUARTER] * 4))
        _expect(count, STREAM_BYTES, DOCKER_STREAM)
        return seconds

    return sample


def _expect(count: int, expected: int, what: str) -> None:
    if count != expected:
        raise BenchError(f"{what}: {count} bytes came, not {expected}")


@dataclass(frozen=True, kw_only=True)
class _Peak:
    """How far the server's memory rose while something was done."""

    before: int
    pids: tuple[int, ...]

    @classmethod
    def begin(cls, server: Server) -> "_Peak":
        parts = server.processes()
        pids = (*parts["server"], *parts["warden"])
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew: proc_pid_clear_refs(5)
        return cls(before=processes.resident(pids), pids=pids)

    def growth(self) -> int:
        """Bytes; the sum of the processes' peaks, which need not have been at the same moment."""
        return sum(map(processes.peak, self.pids)) - self.before


def _files(bench: Bench, server: Server, client: Client) -> None:
    """A file of a gibibyte, in and out again; its bytes are compared in a smaller one, the time is its own."""
    results = bench.results
    found: dict[str, list[float]] = {UPLOAD: [], DOWNLOAD: []}
    with _sandbox(client, network="none") as name, _file(bench.directory / "random", os.urandom, MIB) as small:
        client.upload(name, "/tmp/small", small, MIB)
        if client.read(name, "/tmp/small") != os.pread(small, MIB, 0):
            raise BenchError("a file came back other than it was sent")
        peak = _Peak.begin(server)
        with _file(bench.directory / "gibibyte", bytes, FILE_BYTES) as source:
            for _ in range(STREAMS):
                found[UPLOAD].append(client.upload(name, "/tmp/file", source, FILE_BYTES))
                seconds, count = client.download(name, "/tmp/file")
                _expect(count, FILE_BYTES, DOWNLOAD)
                found[DOWNLOAD].append(seconds)
        growth = peak.growth()
    results.add({name: Timing(name=name, seconds=tuple(seconds)) for name, seconds in found.items()})
    results.figures += [
        _rate(results.timings[UPLOAD], UPLOAD, FILE_BYTES, least=300),
        _rate(results.timings[DOWNLOAD], DOWNLOAD, FILE_BYTES, least=300),
        Figure(
            name="growth of the server's memory meanwhile",
            value=growth / MIB,
            unit="MiB",
            most=64,
            note=f"peaks of server and warden over {STREAMS} turns, above what they held before",
        ),
    ]


@contextlib.contextmanager
def _file(path: Path, content: Callable[[int], bytes], size: int) -> Iterator[int]:
    """A descriptor of a file in memory that holds *size* bytes of *content*; *path* names it."""
    descriptor = os.memfd_create(path.name)
    try:
        for _ in range(0, size, MIB):
            os.write(descriptor, content(MIB))
        yield descriptor
    finally:
        os.close(descriptor)
