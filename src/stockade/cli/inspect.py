"""`stockade languages`, `stockade doctor`, `stockade version`: what there is and what it can do here."""

import asyncio
import contextlib
import json
import platform
import socket
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stockade import __version__
from stockade.cli.advice import advice, look_around
from stockade.cli.attack_options import AttackKey, AttackUrl, BackendName, Groups, Only, Ways, asked_for
from stockade.cli.options import AsJson, ConfigFile, DataDir
from stockade.errors import StockadeError

if TYPE_CHECKING:
    from rich.table import Table

    from stockade.backends.base import Backend, Feature, Report
    from stockade.backends.disks import DiskFacts, Disks
    from stockade.config import Config
    from stockade.engine import Languages

__all__ = ["doctor", "languages", "version"]

REPORT_S = 60.0
_UNSIZED = (
    "see docs/disks.md, or go without by STOCKADE_SANDBOX_ALLOW_UNENFORCED=disk_size; until then there are neither "
    "boxes nor images"
)


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    facts = {"stockade": __version__, "python": platform.python_version(), "kernel": platform.release()}
    print(json.dumps(facts) if as_json else f"stockade {__version__}")


def languages(
    versions: Annotated[
        bool, typer.Option("--versions", help="Ask every runtime for its version, each in a sandbox.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """List the languages, and what to install for those that are missing."""
    from stockade.app.engine import load_languages
    from stockade.config import load

    loaded = load(file=config, options={"data_dir": data_dir})
    if versions:
        found, known = asyncio.run(_versions(loaded))
    else:
        found, known = load_languages(loaded), {}
    rows = _language_rows(found, known, asked=versions)
    if as_json:
        print(json.dumps(rows))
        return
    _print_languages(rows)


async def _versions(config: "Config") -> "tuple[Languages, Mapping[str, str]]":
    from stockade.app.engine import build_engine, prepare_data_dir

    prepare_data_dir(config.data_dir)
    async with build_engine(config, embedded=True) as engine:
        # Each probe has its language's deadline.
        return engine.languages, await engine.languages.versions(engine.runs.backend.run, engine.limits)


def _language_rows(found: "Languages", versions: Mapping[str, str], *, asked: bool) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for one in found.all():
        row: dict[str, object] = {
            "name": one.name,
            "display_name": one.display_name,
            "aliases": list(one.aliases),
            "extensions": list(one.extensions),
            "compiled": one.compile is not None,
            "available": found.is_available(one.name),
            "packages": list(one.packages),
        }
        rows.append(row | ({"version": versions.get(one.name)} if asked else {}))
    return rows


def _print_languages(rows: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("Language", "Names", "Files", "Here"):
        table.add_column(title, overflow="fold")
    # Those that run here first.
    for row in sorted(rows, key=lambda row: not row["available"]):
        names = [row["name"], *_texts(row["aliases"])]
        here = f"yes  {row.get('version') or ''}".rstrip()
        if not row["available"]:
            packages = " ".join(_texts(row["packages"]))
            here = f"no   apt-get install {packages}" if packages else "no   not in Debian"
        table.add_row(str(row["display_name"]), ", ".join(map(str, names)), " ".join(_texts(row["extensions"])), here)
    Console().print(table)


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def doctor(
    attack: Annotated[
        bool,
        typer.Option("--attack", help="Try the corpus of hostile programs here, through every way in. Takes minutes."),
    ] = False,
    way: Ways = None,
    group: Groups = None,
    only: Only = None,
    backend_name: BackendName = None,
    url: AttackUrl = None,
    api_key: AttackKey = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Tell what this machine enforces, what it cannot, and how to mend it; of a running server, what is kept warm.

    The exit status is 1 when something is missing that the configuration does not allow to go without.

    With `--attack`: try to break out. A server of its own is started, on a loopback port and in a directory that is
    gone afterwards, whose sandboxes are made as the configuration says. The exit status is 1 unless everything was
    contained.
    """
    from stockade.app.engine import load_languages, make_backend, prepare_data_dir
    from stockade.config import load

    loaded = load(file=config, options={"data_dir": data_dir})
    asked = asked_for(
        way=way, group=group, only=only, backend=backend_name, url=url, api_key=api_key, as_json=as_json, attack=attack
    )
    if asked is not None:
        from stockade.cli.attack import attack as attack_now

        if asked.server is None:
            prepare_data_dir(loaded.data_dir)
        raise typer.Exit(attack_now(loaded, asked))
    prepare_data_dir(loaded.data_dir)
    running = _running_warden(loaded)
    backend = make_backend(loaded, load_languages(loaded), embedded=running is None, warden_socket=running)

    report = asyncio.run(_asked(backend))
    allowed = frozenset(loaded.sandbox.allow_unenforced)
    lacking = [name for name in report.missing if name not in allowed]
    # What another backend lacks says nothing about the native one.
    missing = report.missing if report.backend == "native" else ()
    name, why = advice(missing, look_around(loaded.docker.socket))
    if as_json:
        recommended = {"backend": name, "why": why}
        print(json.dumps({**_report_json(report, allowed, lacking), "recommended": recommended}))
    else:
        _print_report(report, allowed, lacking)
        _print_advice(name, why)
    raise typer.Exit(1 if lacking else 0)


def _print_advice(name: str, why: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    Console(highlight=False).print(f"Recommended backend: [bold]{name}[/]; {escape(why)}.")


async def _asked(backend: "Backend") -> "Report":
    """What it says of itself and, where it works at all, of its disks: to know those is to make a place for them."""
    try:
        async with asyncio.timeout(REPORT_S):
            works = True
            try:
                await backend.start()
            except StockadeError:  # the report says why
                works = False
            report = await backend.report()
            disks: Disks | None = getattr(backend, "disks", None)
            if disks is None or "sandboxes" in report.missing:
                return report
            try:
                feature = _of_disks(await disks.facts()) if works else _no_disks("no sandboxes are made here either")
            except StockadeError as error:
                feature = _no_disks(str(error))
            return replace(report, features=(*report.features, feature))
    finally:
        await backend.close()


def _of_disks(facts: "DiskFacts") -> "Feature":
    from stockade.backends.base import Feature
    from stockade.backends.disks import DISK_SIZE

    if facts.kind == "none":
        return _no_disks(facts.why)
    copies = "copies share blocks" if facts.shares_blocks else "copies copy"
    sizes = "a limit for each disk" if facts.enforces_size else "nothing limits disks"
    mechanism = f"{facts.kind}: {facts.place}; {sizes}; {copies}; {facts.free_bytes / 2**30:.1f} GiB free"
    return Feature(
        name=DISK_SIZE,
        enforced=facts.enforces_size,
        mechanism=f"{mechanism}. {facts.why}" if facts.why else mechanism,
        remedy="" if facts.enforces_size else _UNSIZED,
        required=False,
    )


def _no_disks(why: str) -> "Feature":
    from stockade.backends.base import Feature
    from stockade.backends.disks import DISK_SIZE

    remedy = "see docs/disks.md; there are neither boxes nor images until then"
    return Feature(name=DISK_SIZE, enforced=False, mechanism=f"no disks: {why}", remedy=remedy, required=False)


def _running_warden(config: "Config") -> Path | None:
    """Where the warden of the server on this data directory listens, if root has one running."""
    from stockade.app.warden import SOCKET

    path = config.data_dir / SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        return path
    return None


def _report_json(report: "Report", allowed: frozenset[str], lacking: list[str]) -> dict[str, object]:
    features = [
        {
            "name": one.name,
            "enforced": one.enforced,
            "required": one.required,
            "allowed_without": not one.enforced and one.name in allowed,
            "mechanism": one.mechanism,
            "remedy": one.remedy,
        }
        for one in report.features
    ]
    return {
        "backend": report.backend,
        "ok": not lacking,
        "details": dict(report.details),
        "features": features,
        "warm": [asdict(one) for one in report.warm],
    }


def _warm_table(report: "Report") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("Kept warm", overflow="fold")
    table.add_column("Kind")
    for title in ("Ready", "Being made", "Forks"):
        table.add_column(title, justify="right")
    for one in report.warm:
        if not (one.ready or one.under_way or one.forks or one.complaint):
            continue  # asked for too rarely to be kept
        what = escape(" ".join(one.command))
        if one.preload:
            what += f"\n[dim]with {escape(', '.join(one.preload))}[/]"
        if one.complaint:
            # Of a traceback the last line says what is wrong.
            what += f"\n[red]not to be had: {escape(one.complaint.splitlines()[-1])}[/]"
        table.add_row(what, one.kind, str(one.ready), str(one.under_way), str(one.forks))
    return table


def _print_report(report: "Report", allowed: frozenset[str], lacking: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, value in {"backend": report.backend, **report.details}.items():
        facts.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console.print(facts, "")
    table = Table(box=None, pad_edge=False)
    for title in ("Protection", "Enforced", "By"):
        table.add_column(title, overflow="fold")
    for one in report.features:
        if one.enforced:
            state = "[green]yes[/]"
        elif one.name in allowed:
            state = "[yellow]no (allowed)[/]"
        else:
            state = "[red]NO[/]" if one.required else "[yellow]no[/]"
        remedy = f"\n[bold]→ {escape(one.remedy)}[/]" if one.remedy and not one.enforced else ""
        table.add_row(escape(one.name), state, escape(one.mechanism) + remedy)
    console.print(table, "")
    if report.warm:
        console.print(_warm_table(report), "")
    if lacking:
        # Whoever has nothing to make sandboxes with cannot agree to go without them.
        mending = (
            "Mend it as told above."
            if "sandboxes" in lacking
            else "Mend it as told above, or go without by STOCKADE_SANDBOX_ALLOW_UNENFORCED=" + ",".join(lacking)
        )
        console.print(
            f"[red]Stockade refuses to run programs here:[/] this machine does not enforce {', '.join(lacking)}. "
            f"{mending}"
        )
    elif report.missing:
        console.print("Everything is enforced but what the configuration allows to go without.")
    elif all(one.enforced for one in report.features):
        console.print("[green]Everything is enforced.[/]")
    else:
        console.print("Everything is enforced that has to be.")
