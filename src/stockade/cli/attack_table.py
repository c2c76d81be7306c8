"""Prints what came of attacks."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from stockade.attacks.trials import Finding, Trial
from stockade.cli.attack import Outcomes, verdict_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_json", "print_outcomes"]

_STYLES: Final = {
    Finding.ESCAPED: "[bold red]{}[/]",
    Finding.UNCLEAR: "[red]{}[/]",
    Finding.CONTAINED: "[green]{}[/]",
    Finding.NOT_TRIED: "[dim]{}[/]",
}
"""In the order in which they are shown: what is worst comes first."""
_LEGEND: Final = "[dim]{contained}: contained; –: not tried, see below.[/]"


def print_json(outcomes: Outcomes) -> None:
    """One object on standard output."""
    ways = list(dict.fromkeys(one.way for one in outcomes.trials))
    document = {
        "ok": outcomes.ok,
        "target": outcomes.target,
        "seconds": round(outcomes.seconds, 1),
        "ways": [{"name": way} | _counts(one for one in outcomes.trials if one.way == way) for way in ways],
        "trials": [_trial(one) for one in outcomes.trials],
        "honest": [_trial(one) for one in outcomes.honest],
        "visitors": list(outcomes.visitors),
        "left": outcomes.left,
    }
    print(json.dumps(document))


def _counts(trials: Iterable[Trial]) -> dict[str, int]:
    counts = Counter(one.finding for one in trials)
    return {one.value.replace(" ", "_"): counts[one] for one in Finding}


def _trial(one: Trial) -> dict[str, str]:
    return {
        "way": one.way,
        "group": one.attack.group,
        "attack": one.attack.name,
        "finding": one.finding.value,
        "evidence": one.evidence,
    }


def print_outcomes(outcomes: Outcomes, *, each: bool) -> None:
    """A table, and whatever somebody has to look at.

    Args:
        each: a row for each attack; else one for each group.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if outcomes.trials:
        console.print(_table(outcomes.trials, each=each), "")
        console.print(_LEGEND.format(contained="yes" if each else "a number alone"), "")
    _print_not_tried(console, outcomes.trials)
    _print_failed(console, outcomes)
    console.print(_summary(outcomes))


def _table(trials: Sequence[Trial], *, each: bool) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    ways = list(dict.fromkeys(one.way for one in trials))
    table.add_column("Attack" if each else "Attacks", overflow="fold")
    for way in ways:
        table.add_column(way.replace(" ", "\n"), overflow="fold", min_width=max(map(len, way.split())))
    rows: dict[str, dict[str, Counter[Finding]]] = {}
    for one in trials:
        row = rows.setdefault(one.attack.name if each else one.attack.group, {})
        row.setdefault(one.way, Counter())[one.finding] += 1
    for name, row in rows.items():
        table.add_row(name, *(_cell(row.get(way, Counter()), each=each) for way in ways))
    return table


def _cell(counts: Counter[Finding], *, each: bool) -> str:
    words = {
        Finding.ESCAPED: "ESCAPED" if each else f"{counts[Finding.ESCAPED]} ESCAPED",
        Finding.UNCLEAR: "unclear" if each else f"{counts[Finding.UNCLEAR]} unclear",
        Finding.CONTAINED: "yes" if each else str(counts[Finding.CONTAINED]),
        Finding.NOT_TRIED: "–" if each else f"{counts[Finding.NOT_TRIED]} –",
    }
    return "\n".join(style.format(words[finding]) for finding, style in _STYLES.items() if counts[finding])


def _print_not_tried(console: "Console", trials: Sequence[Trial]) -> None:
    """Why, with those ways that give the same reason together."""
    from rich.markup import escape

    reasons: dict[str, dict[str, int]] = {}
    for one in trials:
        if one.finding is Finding.NOT_TRIED:
            by_way = reasons.setdefault(one.evidence, {})
            by_way[one.way] = by_way.get(one.way, 0) + 1
    for reason, by_way in reasons.items():
        names = ", ".join(f"{number} by {way}" for way, number in by_way.items())
        console.print(f"[dim]not tried: {escape(names)}: {escape(reason)}[/]")


def _print_failed(console: "Console", outcomes: Outcomes) -> None:
    from rich.markup import escape

    for one in outcomes.failed:
        word = _STYLES[one.finding].format(verdict_of(one))
        console.print(f"{word} {escape(one.way)}: {one.attack.group}:{one.attack.name} ({escape(one.attack.threat)})")
        console.print(f"[red]        {escape(one.evidence)}[/]")
    for name in outcomes.visitors:
        console.print(f"[bold red]ESCAPED[/] somebody has connected to the bait on this host: {escape(name)}")
    for line in outcomes.left:
        console.print(f"[red]left on the host:[/] {escape(line)}")


def _summary(outcomes: Outcomes) -> str:
    from rich.markup import escape

    counts = Counter(one.finding for one in outcomes.trials)
    ways = len({one.way for one in outcomes.trials})
    programs = len({one.attack.name for one in outcomes.trials})
    scope = f"{programs} hostile programs, {ways} ways in, {escape(outcomes.target)}, {outcomes.seconds:.0f} s"
    figures = ", ".join(f"{counts[one]} {one.value}" for one in Finding)
    if outcomes.ok:
        return f"[green]Contained.[/] {scope}: {figures}. Nothing is left on the host."
    return f"[bold red]Not contained.[/] {scope}: {figures}."
