"""The results, for people (a table on the terminal, or Markdown for docs/performance.md) and for programs (JSON)."""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import Figure, Timing

__all__ = ["Results", "Sheet"]

_VERDICTS = {True: "met", False: "MISSED", None: ""}


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table of its own: what is neither a timing nor a figure."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Results:
    """Everything that one run of the benchmark has found."""

    timings: dict[str, Timing] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What was not measured, and why."""
    details: dict[str, object] = field(default_factory=dict)
    took_s: float = 0.0

    def add(self, timings: dict[str, Timing], prefix: str = "") -> None:
        self.timings |= {f"{prefix}{name}": timing for name, timing in timings.items()}

    def to_json(self) -> str:
        return json.dumps(
            {
                "machine": _machine(),
                "took_s": round(self.took_s, 1),
                "timings": {name: timing.facts() for name, timing in self.timings.items()},
                "figures": [figure.facts() for figure in self.figures],
                "sheets": [asdict(sheet) for sheet in self.sheets],
                "skipped": self.skipped,
                "details": self.details,
            },
            indent=2,
        )

    def to_markdown(self) -> str:
        lines = [_machine_line(), ""]
        for sheet in self._all_sheets():
            lines += [f"**{sheet.title}**", ""] if sheet.title else []
            lines += [f"| {' | '.join(sheet.columns)} |", f"|{'---|' * len(sheet.columns)}"]
            lines += [f"| {' | '.join(row)} |" for row in sheet.rows]
            lines += ["", *(f"{note}  " for note in sheet.notes), *([""] if sheet.notes else [])]
        lines += [f"Not measured: {reason}." for reason in self.skipped]
        return "\n".join(lines).rstrip() + "\n"

    def show(self, console: Console) -> None:
        console.print(_machine_line(), style="dim", highlight=False)
        for sheet in self._all_sheets():
            table = Table(title=sheet.title, title_justify="left")
            for column in sheet.columns:
                words = column in ("", "Note", "Bar")
                table.add_column(column, justify="left" if words else "right", overflow="fold")
            for row in sheet.rows:
                table.add_row(*row, style="red" if "MISSED" in row else None)
            console.print(table)
            for note in sheet.notes:
                console.print(f"  {note}", style="dim", highlight=False, markup=False)
        for reason in self.skipped:
            console.print(f"Not measured: {reason}.", highlight=False, markup=False)
        console.print(f"Took {self.took_s:.0f} s.", style="dim", highlight=False)

    def _all_sheets(self) -> Iterator[Sheet]:
        """Those that there is something to say in."""
        if self.timings:
            title = "How long one takes, in milliseconds"
            yield Sheet(title=title, columns=_TIMING_COLUMNS, rows=tuple(self._timing_rows()))
        if self.figures:
            yield Sheet(title="Figures", columns=_FIGURE_COLUMNS, rows=tuple(self._figure_rows()))
        yield from self.sheets

    def _timing_rows(self) -> Iterator[tuple[str, ...]]:
        for name, timing in self.timings.items():
            values = (
                min(timing.seconds), timing.median, timing.quantile(0.95), timing.quantile(0.99), max(timing.seconds),
            )  # fmt: skip
            yield (name, *(f"{value * 1e3:.2f}" for value in values), str(len(timing.seconds)))

    def _figure_rows(self) -> Iterator[tuple[str, ...]]:
        for figure in self.figures:
            digits = 0 if figure.value == int(figure.value) and not figure.unit else 2
            value = f"{figure.value:.{digits}f} {figure.unit}".strip()
            yield figure.name, value, figure.bar, _VERDICTS[figure.met], figure.note


_TIMING_COLUMNS = ("", "min", "p50", "p95", "p99", "max", "samples")
_FIGURE_COLUMNS = ("", "Value", "Bar", "", "Note")


def _machine() -> dict[str, object]:
    model = "unknown processor"
    processors = 0
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        processors += name.strip() == "processor"
    load = Path("/proc/loadavg").read_text().split()[0]
    return {
        "processor": model,
        "processors": processors,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min_after": float(load),
    }


def _machine_line() -> str:
    facts = _machine()
    return (
        f"{facts['processors']} × {facts['processor']}, Linux {facts['kernel']}, Python {facts['python']}, "
        f"load average at the end {facts['load_1min_after']}"
    )
