"""`stockade usage`: what sandboxes used and cost, from the database of a data directory, or of DATABASE_URL."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stockade.cli.keys import with_accounts
from stockade.cli.options import AsJson, ConfigFile, DataDir

if TYPE_CHECKING:
    from stockade.accounts import Accounts
    from stockade.model.accounts import UsageRecord

__all__ = ["usage"]

COLUMNS = ("executions", "errors", "duration_ms", "cpu_ms", "memory_mb_seconds", "bytes_in", "bytes_out", "cost_usd")


def usage(
    days: Annotated[int, typer.Option("--days", metavar="N", min=1, max=3650, help="Today and the days before.")] = 7,
    by: Annotated[Literal["day", "key"], typer.Option("--by", help="What to sum up by.")] = "day",
    requests: Annotated[bool, typer.Option("--requests", help="List instead who has asked for more.")] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Show what sandboxes that have ended used, and what that would cost at the configured prices."""

    async def ask(accounts: "Accounts") -> list[dict[str, Any]]:
        if requests:
            return [asdict(one) for one in await accounts.sign_up.quota_requests()]
        if by == "day":
            found = await accounts.usage.everybody(days=days)
            return [{"date": one.date.isoformat(), **_figures(one)} for one in found]
        names = {key.id: key.name for key, _ in await accounts.operation.list_keys()}
        sums = await accounts.usage.by_key(days=days)
        return [{"key": id, "name": names.get(id, ""), **_figures(one)} for id, one in sums]

    rows = with_accounts(data_dir, config, ask)
    if as_json:
        print(json.dumps(rows, default=str))
    elif as_csv:
        _print_csv(rows)
    else:
        _print_table(rows)


def _figures(used: "UsageRecord") -> dict[str, Any]:
    return {name: getattr(used, name) for name in COLUMNS[:-1]} | {"cost_usd": used.cost_microcents / 100_000_000}


def _print_csv(rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        print("nothing yet")
        return
    table = Table(box=None, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(f"{one:.5f}" if isinstance(one, float) else str(one)) for one in row.values()))
    Console().print(table)
