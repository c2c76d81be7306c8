"""Measure everything side by side and print it. Bars are stated, never enforced: the exit status is 0 in any case."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import (
    boxes,
    executor,
    growth,
    jobs,
    languages,
    machine,
    mixed,
    one_at_a_time,
    portal,
    science,
    sessions,
    under_load,
)
from bench.context import Bench, Options, Section
from bench.measure import BenchError
from bench.server import hello, serving
from bench.table import Results

__all__ = ["SECTIONS", "main"]

SECTIONS: dict[str, Section] = {
    "idle": one_at_a_time.idle_memory,
    "hello": one_at_a_time.hello_figures,
    "docker": one_at_a_time.beside_docker,
    "throughput": under_load.throughput,
    "cpu": under_load.cpu_table,
    "science": science.slow_imports,
    "node": languages.node_hello,
    "c": languages.c_hello,
    "go": languages.go_hello,
    "sessions": sessions.sessions,
    "executor": executor.executor,
    "boxes": boxes.boxes,
    "jobs": jobs.jobs,
    "backlog": jobs.waiting,
    "portal": portal.portal,
    "overload": under_load.overload,
    "mixed": mixed.mixed,
    "crowd": mixed.crowd,
    "growth": under_load.growth_figures,
    "machine": machine.facts,
}
"""In the order in which they are measured: what leaves much behind comes last."""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 also where a bar is missed, 1 when a server could not be had at all."""
    chosen, options, form = _options(arguments)
    console = Console(stderr=True)
    results = Results()
    began = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="stockade-bench-", dir="/var/tmp") as name,
            console.status("") as status,
        ):
            directory = Path(name)
            with serving(directory) as server:
                bench = Bench(server=server, directory=directory, options=options, results=results)
                hello(server)()
                for section in chosen:
                    status.update(f"{section} …")
                    try:
                        SECTIONS[section](bench)
                    except BenchError as error:
                        results.skipped.append(f"{section}: {error}")
    except BenchError as error:
        console.print(f"bench: {error}", style="red", markup=False, highlight=False)
        return 1
    results.took_s = time.monotonic() - began
    if form == "json":
        print(results.to_json())
    elif form == "markdown":
        print(results.to_markdown(), end="")
    else:
        results.show(Console(width=max(120, console.width)))
    return 0


def _options(arguments: Sequence[str]) -> tuple[list[str], Options, str]:
    """Sections, how long to look, and how to print."""
    usual = Options()
    names = ", ".join(SECTIONS)
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", metavar="SECTION,…", help=f"measure only these: {names}")
    parser.add_argument("--without", metavar="SECTION,…", default="", help="leave these out")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="turns of each contestant (%(default)s)")
    parser.add_argument(
        "--docker-rounds", type=int, default=usual.docker_rounds, help="turns where docker takes part (%(default)s)"
    )
    parser.add_argument("--windows", type=int, default=usual.windows, help="measurements of throughput (%(default)s)")
    parser.add_argument("--window-s", type=float, default=usual.window_s, help="seconds of each (%(default)s)")
    parser.add_argument("--runs", type=int, default=usual.runs, help="runs while watching for growth (%(default)s)")
    forms = parser.add_mutually_exclusive_group()
    for form, text in (("json", "print JSON"), ("markdown", "print the tables of docs/performance.md")):
        forms.add_argument(f"--{form}", action="store_const", dest="form", const=form, default="table", help=text)
    given = parser.parse_args(arguments)
    if given.rounds < 2 or given.docker_rounds < 2 or given.windows < 1 or given.runs < growth.CHECKPOINTS:
        parser.error(f"at least 2 rounds, 2 rounds of docker, 1 window and {growth.CHECKPOINTS} runs")
    only = given.only.split(",") if given.only else list(SECTIONS)
    without = [name for name in given.without.split(",") if name]
    unknown = {*only, *without} - set(SECTIONS)
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {names}")
    options = Options(
        rounds=given.rounds,
        docker_rounds=given.docker_rounds,
        windows=given.windows,
        window_s=given.window_s,
        runs=given.runs,
    )
    return [name for name in SECTIONS if name in only and name not in without], options, given.form


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
