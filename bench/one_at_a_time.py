"""One client: what a run costs when the machine has nothing else to do, beside what people use today."""

from bench.context import Bench, ratio
from bench.docker import docker
from bench.engine import sandboxed_true
from bench.measure import BenchError, Figure, Sample, Timing, interleaved
from bench.programs import HELLO, PYTHON, TRUE, bare, bubblewrap
from bench.server import hello
from bench.table import Results

__all__ = ["BARE", "beside_docker", "hello_figures", "idle_memory"]

IN_A_ROW = 300
MOST_IDLE_MIB = 120

BARE, BUBBLEWRAP, STOCKADE = "bare python3 -c", "bubblewrap + python3", "Stockade over HTTP"
BARE_TRUE, BUBBLEWRAP_TRUE, STOCKADE_TRUE = "bare true", "bubblewrap + true", "Stockade engine API + true"
IN_TURN, TRUE_IN_TURN = f"{STOCKADE}, in a row", f"{STOCKADE_TRUE}, in a row"
DOCKER, DOCKER_NO_NETWORK = "docker run --rm", "docker run --rm --network none"


def idle_memory(bench: Bench) -> None:
    """After the first run, when everything is loaded that a run needs."""
    hello(bench.server)()
    bench.server.belongings()  # comes to rest
    memory = bench.server.memory()
    mib = 1 << 20
    lasting = {part: sizes["rss"] / mib for part, sizes in memory.items() if part != "sandboxes" and sizes["rss"]}
    proportional = sum(sizes["pss"] for sizes in memory.values()) / mib
    bench.results.figures += [
        Figure(
            name="idle, resident memory",
            value=sum(lasting.values()),
            unit="MiB",
            most=MOST_IDLE_MIB,
            note=", ".join(f"{part} {size:.1f}" for part, size in lasting.items()),
        ),
        Figure(
            name="idle, proportional memory with the waiting sandboxes",
            value=proportional,
            unit="MiB",
            note=f"waiting sandboxes {memory['sandboxes']['pss'] / mib:.1f}",
        ),
    ]
    bench.results.details["idle_memory_bytes"] = memory


def hello_figures(bench: Bench) -> None:
    """Python's hello in turn with bare Python and bubblewrap, and a sandbox by itself in turn with `true`."""
    results = bench.results
    over_http = hello(bench.server)
    with sandboxed_true(bench.directory / "engine") as engine_true:
        contestants: dict[str, Sample] = {BARE: bare((PYTHON, "-c", HELLO), b"hello\n")}
        confined = bubblewrap((PYTHON, "-c", HELLO), b"hello\n")
        confined_true = bubblewrap((TRUE,), b"")
        if confined is not None:
            contestants[BUBBLEWRAP] = confined
        contestants |= {STOCKADE: over_http, BARE_TRUE: bare((TRUE,), b"")}
        if confined_true is not None:
            contestants[BUBBLEWRAP_TRUE] = confined_true
        else:
            results.skipped.append("bubblewrap, which is not installed (Debian package bubblewrap)")
        contestants[STOCKADE_TRUE] = engine_true
        results.add(interleaved(contestants, rounds=bench.options.rounds))
        in_turn = tuple(over_http() for _ in range(IN_A_ROW))
        in_turn_true = tuple(engine_true() for _ in range(IN_A_ROW))
    results.add({IN_TURN: Timing(name=IN_TURN, seconds=in_turn)})
    results.add({TRUE_IN_TURN: Timing(name=TRUE_IN_TURN, seconds=in_turn_true)})
    _judge(results)


def _judge(results: Results) -> None:
    times = results.timings
    plain, ours = times[BARE], times[STOCKADE]
    note = f"{ours.median * 1e3:.2f} ms ÷ {plain.median * 1e3:.2f} ms"
    results.figures += [
        Figure(name="hello over HTTP ÷ bare", value=ratio(times, STOCKADE, BARE), most=0.5, note=note),
        Figure(
            name="hello over HTTP, p99 ÷ bare p50",
            value=ours.quantile(0.99) / plain.median,
            most=1.5,
            note=f"{ours.quantile(0.99) * 1e3:.2f} ms ÷ {plain.median * 1e3:.2f} ms; bare p99 ÷ bare p50 is "
            f"{plain.quantile(0.99) / plain.median:.2f}",
        ),
        Figure(
            name="the same in a row ÷ bare",
            value=ratio(times, IN_TURN, BARE),
            note="no pause in which sandboxes could be made ahead",
        ),
        Figure(name="sandbox alone (true, engine API)", value=times[STOCKADE_TRUE].median * 1e3, unit="ms", most=4),
    ]
    if BUBBLEWRAP in times:
        results.figures.append(Figure(name="bubblewrap ÷ bare", value=ratio(times, BUBBLEWRAP, BARE)))
    spread = (plain.quantile(0.95) - plain.quantile(0.05)) / plain.median
    results.figures.append(
        Figure(
            name="noise of the machine",
            value=spread * 100,
            unit="%",
            note=f"bare python, (p95 - p5) ÷ p50; from {min(plain.seconds) * 1e3:.1f} to "
            f"{max(plain.seconds) * 1e3:.1f} ms",
        )
    )


def beside_docker(bench: Bench) -> None:
    """In rounds of their own: what the engine does after a container would be on the others' bill."""
    results = bench.results
    ours = f"{STOCKADE}, beside docker"
    try:
        with docker(bench.directory) as engine:
            contestants: dict[str, Sample] = {
                f"{BARE}, beside docker": bare((PYTHON, "-c", HELLO), b"hello\n"),
                ours: hello(bench.server),
                DOCKER: engine.run(),
                DOCKER_NO_NETWORK: engine.run("--network", "none"),
            }
            results.add(interleaved(contestants, rounds=bench.options.docker_rounds, warm_up=1))
            results.details["docker"] = {"version": engine.version, "engine": engine.about}
    except BenchError as error:
        results.skipped.append(f"docker run: {error}")
        return
    results.figures += [
        Figure(
            name="hello over HTTP ÷ docker run --rm",
            value=ratio(results.timings, ours, DOCKER),
            most=0.1,
            note=f"Docker {engine.version}, {engine.about}",
        ),
        Figure(
            name="hello over HTTP ÷ docker run --rm --network none",
            value=ratio(results.timings, ours, DOCKER_NO_NETWORK),
        ),
    ]
