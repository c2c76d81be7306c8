"""Slow imports: numpy and pandas from a template that has them loaded, beside a bare interpreter that loads them."""

from pathlib import Path

from bench.context import Bench, ratio
from bench.measure import BenchError, Figure, interleaved
from bench.programs import PYTHON, spawn
from bench.server import asking, program, serving

__all__ = ["slow_imports"]

ROUNDS = 15
TEMPLATE = "science"
CONFIG = f'[templates.{TEMPLATE}]\nlanguage = "python"\npreload = ["numpy", "pandas"]\n'
"""How a template is configured, and (below) how a request names one: known in this module only."""
CODE = "import sys; warm = 'pandas' in sys.modules; import numpy, pandas; print(f'loaded before: {warm}')"
BARE, STOCKADE = "bare python3 -c, numpy and pandas", "Stockade over HTTP, numpy and pandas"


def slow_imports(bench: Bench) -> None:
    """On a server of its own: the one that the others measure is configured as everybody's."""
    results = bench.results
    directory = bench.directory / "science"
    directory.mkdir()
    try:
        spawn([PYTHON, "-c", "import numpy, pandas"], b"")
    except BenchError:
        results.skipped.append("numpy and pandas: not installed (Debian packages python3-numpy, python3-pandas)")
        return
    try:
        _measure(bench, directory)
    except BenchError as error:
        results.skipped.append(f"numpy and pandas from a template: {' '.join(str(error).split())}")


def _measure(bench: Bench, directory: Path) -> None:
    results = bench.results
    body = program("python", CODE, template=TEMPLATE)
    with serving(directory, config=CONFIG) as server:
        contestants = {
            BARE: lambda: spawn([PYTHON, "-c", CODE], b"loaded before: False\n"),
            STOCKADE: asking(server, body, b"loaded before: True"),
        }
        asking(server, body, b"loaded before: ")()  # may be too early for the template to be ready
        results.add(interleaved(contestants, rounds=ROUNDS))
    times = results.timings
    results.figures.append(
        Figure(
            name="import numpy, pandas ÷ bare",
            value=ratio(times, STOCKADE, BARE),
            most=0.05,
            note=f"{times[STOCKADE].median * 1e3:.1f} ms ÷ {times[BARE].median * 1e3:.0f} ms; the program says "
            "that it found pandas loaded",
        )
    )
