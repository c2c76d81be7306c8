"""Many clients: how much the machine gives, where its CPU goes, and what happens when more is asked of it."""

import statistics

from bench import cpu, generators, growth
from bench.context import CLIENTS, Bench
from bench.generators import Load
from bench.measure import Figure

__all__ = ["cpu_table", "growth_figures", "overload", "throughput"]

WARM_UP_S = 1.0
CPU_S = 5.0
GROWTH_CLIENTS = 4
OVERLOAD_WINDOWS = 2
OVERLOAD_S = 6.0
"""Long enough for a queue to fill up to where requests are refused."""


def throughput(bench: Bench) -> None:
    """16 clients against two bare interpreters at a time, window by window; the load generator shares the machine."""
    server, options = bench.server, bench.options
    generators.closed_load(server.url, clients=CLIENTS, seconds=WARM_UP_S)
    plain: list[Load] = []
    ours: list[Load] = []
    for _ in range(options.windows):
        plain.append(generators.bare_load(options.window_s))
        ours.append(generators.closed_load(server.url, clients=CLIENTS, seconds=options.window_s))
        server.belongings()  # at rest: nothing of it is left for the bare ones' window
    runs = sum(load.runs for load in ours)
    bare_rate, rate = (statistics.median(load.rate for load in loads) for loads in (plain, ours))
    generator_ms = sum(load.cpu_s for load in ours) / runs * 1e3
    p50, p99 = (statistics.median(times) for times in ([x.p50_s for x in ours], [x.p99_s for x in ours]))
    bench.results.figures += [
        Figure(
            name=f"throughput, {CLIENTS} clients ÷ bare two at a time",
            value=rate / bare_rate,
            least=1.7,
            note=f"{rate:.0f} ÷ {bare_rate:.0f} runs a second, medians of {options.windows} windows; all {runs:,} "
            f"answers checked by {generators.generator()}, which used {generator_ms:.2f} ms of CPU for each",
        ),
        Figure(
            name=f"latency with {CLIENTS} clients, p50",
            value=p50 * 1e3,
            unit="ms",
            note=f"p99 {p99 * 1e3:.1f} ms, medians of the windows",
        ),
    ]
    refused = sum(load.refused for load in ours)
    if refused:
        bench.results.figures.append(Figure(name="refused meanwhile", value=refused))
    bench.results.details["throughput_runs_per_s"] = {
        "bare": [load.rate for load in plain],
        "http": [load.rate for load in ours],
    }


def cpu_table(bench: Bench) -> None:
    """CPU time of a run by process."""
    generators.closed_load(bench.server.url, clients=CLIENTS, seconds=WARM_UP_S)
    bench.results.sheets.append(cpu.sheet(cpu.spent(bench.server, clients=CLIENTS, seconds=CPU_S)))


def overload(bench: Bench) -> None:
    """Twice what saturates the server: twice the clients, and twice the rate from clients that do not wait.

    Each beside a window of its own at the peak, by the same generator.
    """
    url, seconds = bench.server.url, OVERLOAD_S
    generators.our_closed_load(url, clients=CLIENTS, seconds=WARM_UP_S)
    peaks: list[Load] = []
    doubled: list[Load] = []
    for _ in range(OVERLOAD_WINDOWS):
        peaks.append(generators.our_closed_load(url, clients=CLIENTS, seconds=seconds))
        doubled.append(generators.open_load(url, rate=2 * peaks[-1].rate, seconds=seconds))
        bench.server.belongings()
    peak, kept = (statistics.median(load.rate for load in loads) for loads in (peaks, doubled))
    refused = sum(load.refused for load in doubled)
    unsent = sum(load.unsent for load in doubled)
    asked = sum(2 * load.rate * seconds for load in peaks)
    p50, p99 = (statistics.median(times) for times in ([x.p50_s for x in doubled], [x.p99_s for x in doubled]))
    at_peak = generators.closed_load(url, clients=CLIENTS, seconds=bench.options.window_s)
    more = generators.closed_load(url, clients=2 * CLIENTS, seconds=bench.options.window_s)
    bench.results.figures += [
        Figure(
            name="overload, twice the saturating rate ÷ peak",
            value=kept / peak,
            least=0.9,
            note=f"{kept:.0f} ÷ {peak:.0f} runs a second; clients that do not wait for answers",
        ),
        Figure(
            name="latency of what was admitted, p50",
            value=p50 * 1e3,
            unit="ms",
            note=f"p99 {p99 * 1e3:.0f} ms, from when each request was due",
        ),
        Figure(
            name="refused under overload",
            value=refused / asked * 100,
            unit="%",
            note=f"of {asked:.0f} requests" + (f"; for {unsent} there was no connection left" if unsent else ""),
        ),
        Figure(
            name=f"{2 * CLIENTS} clients ÷ {CLIENTS} clients",
            value=more.rate / at_peak.rate,
            least=0.9,
            note=f"{more.rate:.0f} ÷ {at_peak.rate:.0f} runs a second, p99 {more.p99_s * 1e3:.0f} ms, "
            f"{more.refused} refused",
        ),
    ]


def growth_figures(bench: Bench) -> None:
    """Many runs in a row: does anything grow? `soak` looks for longer."""
    url = bench.server.url
    points = growth.watch(
        bench.server,
        bench.options.runs,
        lambda count: generators.counted_load(url, clients=min(GROWTH_CLIENTS, count), runs=count),
    )
    bench.results.figures += growth.figures(points)
    bench.results.details["growth"] = [point.facts() for point in points]
