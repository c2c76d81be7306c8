"""Queued jobs: what the queue costs, how many it moves, and how it bears a backlog."""

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import generators
from bench.context import CLIENTS, Bench
from bench.generators import Load
from bench.jobs_backlog import backlog
from bench.jobs_client import POLL_S, Client, Done
from bench.measure import Figure, Sample, Timing, interleaved
from bench.programs import HELLO, PYTHON, bare
from bench.server import Server, hello, serving
from bench.services import NotHere, postgresql, redis

__all__ = ["jobs", "waiting"]

WARM_UP = 30
WINDOW_AT_ONCE_S = 1.0
SQLITE, POSTGRESQL, REDIS = "SQLite", "PostgreSQL", "Redis + PostgreSQL"
_BARS: dict[str, float | None] = {SQLITE: 5, POSTGRESQL: None, REDIS: 8}
"""Milliseconds of overhead, p50."""
_WAITING = "-waiting"
_DATABASE = "data/state/stockade.db"


@dataclass(frozen=True, kw_only=True)
class _Store:
    """Where jobs are kept, and what says so in a server's configuration."""

    name: str
    database_url: str = ""
    redis_url: str = ""

    @property
    def config(self) -> str:
        return f'[database]\nurl = "{self.database_url}"\n[jobs]\nredis_url = "{self.redis_url}"\n'


def jobs(bench: Bench) -> None:
    """What the queue costs, and how many it moves."""
    for store in _stores(bench):
        with _server(bench, store) as server, contextlib.closing(Client(server.url)) as client:
            _overhead(bench, store, server, client)
            _throughput(bench, store, server)


def waiting(bench: Bench) -> None:
    """How each store bears many jobs that wait: the server runs none."""
    for store in _stores(bench):
        with _server(bench, store, more="places = 0\nmost_of_account = 1000000\n", place=_WAITING) as server:
            database = store.database_url or _directory(bench, store, _WAITING) / _DATABASE
            backlog(bench, store.name, server, database=database, redis_url=store.redis_url)


def _stores(bench: Bench) -> Iterator[_Store]:
    """Those that can be had here, each while it is looked at."""
    yield _Store(name=SQLITE)
    try:
        with postgresql() as database_url:
            yield _Store(name=POSTGRESQL, database_url=database_url)
        with postgresql() as database_url, redis() as redis_url:
            yield _Store(name=REDIS, database_url=database_url, redis_url=redis_url)
    except NotHere as error:
        bench.results.skipped.append(f"jobs on other stores than SQLite: {error}")


def _directory(bench: Bench, store: _Store, place: str) -> Path:
    return bench.directory / f"jobs-{store.name}{place}"


@contextlib.contextmanager
def _server(bench: Bench, store: _Store, *, more: str = "", place: str = "") -> Iterator[Server]:
    """A server of its own on *store*."""
    directory = _directory(bench, store, place)
    directory.mkdir()
    with serving(directory, config=store.config + more) as server:
        yield server


def _overhead(bench: Bench, store: _Store, server: Server, client: Client) -> None:
    """One client, in turns: a job that it waits for, one that it polls for, and a run without a queue."""
    found: dict[bool, list[Done]] = {False: [], True: []}

    def job(*, polls: bool) -> Sample:
        def sample() -> float:
            found[polls].append(client.job(polls=polls))
            return found[polls][-1].readable_s

        return sample

    names = ("job, waited for", "job, polled", "POST /execute", "bare python3 -c, between jobs")
    waited, polled, direct, plain = (f"{name}, {store.name}" for name in names)
    contestants = {
        waited: job(polls=False),
        polled: job(polls=True),
        direct: hello(server),
        plain: bare((PYTHON, "-c", HELLO), b"hello\n"),
    }
    rounds = max(2, bench.options.rounds)
    results = bench.results
    results.add(interleaved(contestants, rounds=rounds, warm_up=WARM_UP))
    times = results.timings
    for polls, name in ((False, "waited for"), (True, f"polled every {POLL_S * 1e3:.0f} ms")):
        overhead = Timing(name=name, seconds=tuple(done.overhead_s for done in found[polls][WARM_UP:]))
        accepted = statistics.median(done.accepted_s for done in found[polls][WARM_UP:])
        results.figures.append(
            Figure(
                name=f"queue overhead, {store.name}, {name}",
                value=overhead.median * 1e3,
                unit="ms",
                most=_BARS[store.name] if not polls else None,
                note=f"from the request to the result read, less the program's own time; the least "
                f"{min(overhead.seconds) * 1e3:.1f}, p99 {overhead.quantile(0.99) * 1e3:.1f} ms; accepted after "
                f"{accepted * 1e3:.1f}; bare Python {times[plain].median * 1e3:.1f}",
            )
        )
    results.figures.append(
        Figure(
            name=f"a job, {store.name}, beyond a run without a queue",
            value=(times[waited].median - times[direct].median) * 1e3,
            unit="ms",
            note=f"waited for, less POST /execute in the same turns: {times[waited].median * 1e3:.1f} − "
            f"{times[direct].median * 1e3:.1f}",
        )
    )


def _throughput(bench: Bench, store: _Store, server: Server) -> None:
    """16 clients that wait for their jobs; on SQLite beside runs without a queue, and without us."""
    seconds, windows = bench.options.window_s, bench.options.windows
    kinds: dict[str, Callable[[], Load]] = {
        "jobs": lambda: generators.jobs_load(server.url, clients=CLIENTS, seconds=seconds)
    }
    if store.name == SQLITE:
        kinds |= {
            "POST /execute": lambda: generators.our_closed_load(server.url, clients=CLIENTS, seconds=seconds),
            "bare python3 -c, two at a time": lambda: generators.bare_load(seconds),
            "bubblewrap, two at a time": lambda: generators.bubblewrap_load(seconds),
        }
    generators.jobs_load(server.url, clients=CLIENTS, seconds=WINDOW_AT_ONCE_S)
    loads: dict[str, list[Load]] = {name: [] for name in kinds}
    for _ in range(windows):
        for name, take in kinds.items():
            loads[name].append(take())
            server.belongings()  # at rest: nothing of it is left for the next one's window
    rates = {name: statistics.median(load.rate for load in taken) for name, taken in loads.items()}
    ours = loads["jobs"]
    generator_ms = 1e3 * sum(load.cpu_s for load in ours) / sum(load.runs for load in ours)
    p50, p99 = (statistics.median(times) for times in ([one.p50_s for one in ours], [one.p99_s for one in ours]))
    beside = "; ".join(f"{name} {rate:.0f}" for name, rate in rates.items() if name != "jobs")
    bench.results.figures.append(
        Figure(
            name=f"jobs a second, {store.name}, {CLIENTS} clients",
            value=rates["jobs"],
            unit="/s",
            least=150,
            note=f"p50 {p50 * 1e3:.0f}, p99 {p99 * 1e3:.0f} ms; the generator took {generator_ms:.2f} ms of CPU each"
            + (f"; beside it: {beside}" if beside else ""),
        )
    )
    bench.results.details[f"jobs_per_s, {store.name}"] = {
        name: [load.rate for load in taken] for name, taken in loads.items()
    }
