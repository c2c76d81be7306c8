"""Other languages than Python: Node, which starts slowly; C and Go, which are compiled first."""

import itertools
import os
import shutil
import time
from collections.abc import Iterator

from bench import generators
from bench.context import Bench, ratio
from bench.measure import BenchError, Figure, Sample, Timing, interleaved
from bench.programs import ENVIRONMENT, bare, spawn
from bench.server import asking, program

__all__ = ["c_hello", "go_hello", "node_hello"]

NODE_ROUNDS = 12
NODE_PACE_S = 1.0
NODE_CLIENTS = 8
SATURATION_S = 3.0
HALF_S = 6.0
C_ROUNDS = 25
GO_ROUNDS = 8
EXPECTED = b'"stdout":"hello\\n"'

NODE_BARE, NODE = "bare node -e", "Stockade over HTTP, Node, one a second"
C_BARE, C_COLD, C_CACHED = "bare gcc && ./main", "Stockade over HTTP, C, cold", "Stockade over HTTP, C, cached"
TOOLCHAIN_S = 60.0
GO_BARE, GO = "bare go run, warm cache", "Stockade over HTTP, Go, cold"

_NODE = "console.log('hello')"
_C = '#include <stdio.h>\nint main(void) {{ puts("hello"); return 0; }} /* {} */\n'
_GO = 'package main\n\nimport "fmt"\n\nfunc main() {{ fmt.Println("hello") }} // {}\n'


def node_hello(bench: Bench) -> None:
    """At one request a second, when ready interpreters have time to be made again, and at half of saturation."""
    node = _found(bench, "node", "nodejs")
    if node is None:
        return
    results = bench.results
    body = program("node", _NODE)
    over_http = asking(bench.server, body, EXPECTED)
    plain = bare((node, "-e", _NODE), b"hello\n")
    taken: dict[str, list[float]] = {NODE_BARE: [], NODE: []}
    for number in range(-1, NODE_ROUNDS):
        began = time.perf_counter()
        sample = {NODE: over_http(), NODE_BARE: plain()}
        if number >= 0:
            for name, seconds in sample.items():
                taken[name].append(seconds)
        time.sleep(max(0.0, NODE_PACE_S - (time.perf_counter() - began)))
    results.add({name: Timing(name=name, seconds=tuple(seconds)) for name, seconds in taken.items()})
    url = bench.server.url
    peak = generators.our_closed_load(url, clients=NODE_CLIENTS, seconds=SATURATION_S, body=body, expected=EXPECTED)
    half = generators.open_load(url, rate=peak.rate / 2, seconds=HALF_S, body=body, expected=EXPECTED)
    bench.server.belongings()
    plain_s = results.timings[NODE_BARE].median
    results.figures += [
        Figure(
            name="Node hello, one a second ÷ bare node -e",
            value=ratio(results.timings, NODE, NODE_BARE),
            most=0.2,
            note=f"{results.timings[NODE].median * 1e3:.1f} ms ÷ {plain_s * 1e3:.1f} ms",
        ),
        Figure(
            name="Node hello, half of saturation ÷ bare node -e",
            value=half.p50_s / plain_s,
            most=0.2,
            note=f"{half.p50_s * 1e3:.1f} ms at {peak.rate / 2:.1f} a second; saturated at {peak.rate:.1f} with "
            f"{NODE_CLIENTS} clients",
        ),
    ]


def c_hello(bench: Bench) -> None:
    """Compile included: a source that was never seen before, and one that was."""
    gcc = _found(bench, "gcc", "gcc")
    if gcc is None:
        return
    directory = bench.directory / "c"
    directory.mkdir()
    number = itertools.count()

    def plain() -> float:
        (directory / "main.c").write_text(_C.format(f"bare {next(number)}"))
        command = f"cd {directory} && {gcc} -O2 -o main main.c -lm && ./main"
        return spawn(["/bin/sh", "-c", command], b"hello\n")

    contestants: dict[str, Sample] = {
        C_BARE: plain,
        C_COLD: asking(bench.server, _unique("c", _C), EXPECTED),
        C_CACHED: asking(bench.server, program("c", _C.format("always the same")), EXPECTED),
    }
    bench.results.add(interleaved(contestants, rounds=C_ROUNDS))
    times = bench.results.timings
    bench.results.figures += [
        Figure(name="C hello, compiled before", value=times[C_CACHED].median * 1e3, unit="ms", most=6),
        Figure(
            name="C hello, never seen before ÷ bare gcc and run",
            value=ratio(times, C_COLD, C_BARE),
            note=f"{times[C_COLD].median * 1e3:.1f} ms ÷ {times[C_BARE].median * 1e3:.1f} ms",
        ),
    ]


def go_hello(bench: Bench) -> None:
    """A source that was never seen before, against `go run` of one, whose cache has the standard library."""
    go = _found(bench, "go", "golang-go")
    if go is None:
        return
    directory = bench.directory / "go"
    directory.mkdir()
    source = directory / "main.go"
    number = itertools.count()
    environment = {
        **ENVIRONMENT, "HOME": str(directory), "GOCACHE": str(directory / "cache"), "GOPATH": str(directory / "path"),
        "GO111MODULE": "off", "CGO_ENABLED": "0", "GOTELEMETRY": "off", "GOTOOLCHAIN": "local",
    }  # fmt: skip

    def plain() -> float:
        source.write_text(_GO.format(f"bare {next(number)}"))
        return spawn([go, "run", str(source)], b"hello\n", environment=environment)

    ask = asking(bench.server, _unique("go", _GO), EXPECTED)
    ask()
    _await_toolchain(bench, "go")
    contestants: dict[str, Sample] = {GO_BARE: plain, GO: ask}
    bench.results.add(interleaved(contestants, rounds=GO_ROUNDS))
    times = bench.results.timings
    bench.results.figures.append(
        Figure(
            name="Go hello, never seen before ÷ bare go run",
            value=ratio(times, GO, GO_BARE),
            most=0.8,
            note=f"{times[GO].median * 1e3:.0f} ms ÷ {times[GO_BARE].median * 1e3:.0f} ms",
        )
    )


def _await_toolchain(bench: Bench, language: str) -> None:
    """Wait until the server has made the language's toolchain cache, which it does when it is first asked for it."""
    caches = bench.directory / "data" / "caches"
    deadline = time.monotonic() + TOOLCHAIN_S
    while not any(caches.glob(f"{language}-*")):
        if time.monotonic() > deadline:
            raise BenchError(f"no toolchain cache for {language} within {TOOLCHAIN_S:g} s")
        time.sleep(0.1)


def _unique(language: str, template: str) -> Iterator[bytes]:
    """Requests of which no two are alike, in this run of the benchmark or in others."""
    for number in itertools.count():
        yield program(language, template.format(f"{os.getpid()} {time.time_ns()} {number}"))


def _found(bench: Bench, name: str, package: str) -> str | None:
    """The program as sandboxes find it; where there is none, that is told."""
    path = shutil.which(name, path=ENVIRONMENT["PATH"])
    if path is None:
        bench.results.skipped.append(f"{name}: not installed (Debian package {package})")
    return path
