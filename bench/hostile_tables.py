"""What was found, for people: on a terminal, or as the tables of docs/peers.md."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.hostile_verdicts import Kind, Tried, reason_of, reasons, settled
from stockade.attacks import Verdict

__all__ = ["markdown", "show"]

_CELLS: Final = {
    Verdict.CONTAINED.value: "held",
    Verdict.ESCAPED.value: "ESCAPED",
    Verdict.UNCLEAR.value: "unclear",
    "not tried": "–",
}
_KINDS: Final = {
    Kind.OPEN: "left open",
    Kind.CHOICE: "given on purpose",
    Kind.OURS: "asks for what only Stockade promises",
    Kind.MISREAD: "misread by the attack",
    Kind.UNEXPLAINED: "not looked at yet",
}
_MOST: Final = 110


def show(peers: Mapping[str, object], tried: Sequence[Tried], console: Console) -> None:
    """A row for each attack that did not hold everywhere, and the counts."""
    names = list(peers)
    tried = settled(tried, reasons())
    table = Table(title="attacks that did not hold everywhere", title_justify="left")
    for column in ("attack", *names):
        table.add_column(column)
    for attack, cells in _rows(tried).items():
        if any(cells[name].verdict != Verdict.CONTAINED.value for name in names if name in cells):
            table.add_row(attack, *(_cell(cells.get(name)) for name in names))
    console.print(table)
    counts = Table(title="escapes by group, of attacks tried", title_justify="left")
    for column in ("group", *names):
        counts.add_column(column)
    for row in _counts(names, tried):
        counts.add_row(*row)
    console.print(counts)
    for one in tried:
        if one.verdict != Verdict.CONTAINED.value:
            console.print(f"{one.peer}: {one.attack}: {one.verdict}: {one.evidence}", markup=False, highlight=False)


def markdown(peers: Mapping[str, Mapping[str, str]], tried: Sequence[Tried]) -> str:
    """Counts, the escapes of each peer with their reasons, and the whole table."""
    names = list(peers)
    raw, tried = tried, settled(tried, reasons())
    lines = ["## Who was tried, and how", ""]
    for name, facts in peers.items():
        lines += [f"**{name}**: {facts['version']}", "", "```", facts["flags"], "```", ""]
    lines += ["## Counts", "", "Escapes, of as many attacks as were tried.", ""]
    lines += _table(("", *names), _counts(names, tried))
    lines += ["", *_by_kind(names, tried)]
    for name in names:
        lines += _escapes(name, [one for one in raw if one.peer == name])
    lines += ["## Every attack", ""]
    rows = [(attack, *(_cell(cells.get(name)) for name in names)) for attack, cells in _rows(tried).items()]
    lines += _table(("attack", *names), rows)
    return "\n".join(lines).rstrip() + "\n"


def _rows(tried: Iterable[Tried]) -> dict[str, dict[str, Tried]]:
    found: dict[str, dict[str, Tried]] = {}
    for one in sorted(tried, key=lambda one: one.group):
        found.setdefault(f"{one.group}: {one.attack}", {})[one.peer] = one
    return found


def _cell(one: Tried | None) -> str:
    return "" if one is None else _CELLS[one.verdict]


def _counts(names: Sequence[str], tried: Sequence[Tried]) -> list[tuple[str, ...]]:
    groups = sorted({one.group for one in tried})
    rows = []
    for group in [*groups, "all"]:
        row = [group if group != "all" else "**all**"]
        for name in names:
            mine = [one for one in tried if one.peer == name and group in (one.group, "all")]
            count = Counter(one.verdict for one in mine)
            text = f"{count[Verdict.ESCAPED.value]} of {len(mine) - count['not tried']}"
            unclear = count[Verdict.UNCLEAR.value]
            row.append(f"{text}, {unclear} unclear" if unclear else text)
        rows.append(tuple(row))
    return rows


def _by_kind(names: Sequence[str], tried: Sequence[Tried]) -> list[str]:
    known = reasons()
    counts = Counter((one.peer, reason_of(one, known).kind) for one in _escaped(tried))
    rows = [
        (_KINDS[kind], *(str(counts[name, kind]) for name in names))
        for kind in Kind
        if any(counts[name, kind] for name in names)
    ]
    return [*_table(("escapes that were", *names), rows), ""]


def _escapes(name: str, tried: Sequence[Tried]) -> list[str]:
    known = reasons()
    escaped = _escaped(tried)
    if not escaped:
        return []
    lines = [f"## What escapes from {name}", ""]
    for kind in Kind:
        told: dict[str, list[str]] = {}
        for one in escaped:
            reason = reason_of(one, known)
            if reason.kind is kind:
                told.setdefault(reason.why, []).append(one.attack)
        if told:
            lines += [f"{_KINDS[kind].capitalize()}:", ""]
            lines += [f"- {', '.join(f'`{attack}`' for attack in found)}: {_line(why)}" for why, found in told.items()]
            lines.append("")
    return lines


def _escaped(tried: Iterable[Tried]) -> list[Tried]:
    return [one for one in tried if one.verdict == Verdict.ESCAPED.value]


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 3 * _MOST else f"{text[: 3 * _MOST]} …"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(row)} |" for row in rows)]
