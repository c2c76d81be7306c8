"""`stockade keys`: the API keys of a data directory.

A running server has read them when it started; what is changed here counts from its next start.
"""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from stockade.cli.options import AsJson, ConfigFile, DataDir

if TYPE_CHECKING:
    from stockade.accounts.keys import Key, Keys

__all__ = ["keys"]

keys = typer.Typer(help="API keys: list them, make one, change one.", no_args_is_help=True)

Templates = Annotated[
    bool,
    typer.Option(
        "--templates/--no-templates",
        help="Whether its runs may begin from templates, whose forks share hash seed and address-space layout.",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")]


@keys.command("list")
def list_keys(as_json: AsJson = False, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """List the keys. None of them can be shown again: only hashes are kept."""
    found = _load(data_dir, config).all()
    if as_json:
        print(json.dumps([_shown(one) for one in found]))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("Name", "Id", "Key", "Made", "Templates"):
        table.add_column(title, overflow="fold")
    for one in found:
        table.add_row(escape(one.name), one.id, escape(one.preview), one.created, "yes" if one.templates else "no")
    Console().print(table)


@keys.command("add")
def add_key(name: Name, templates: Templates = True, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Make a key and print it, once. The server takes it from its next start on."""
    print(_load(data_dir, config).add(name, templates=templates))


@keys.command("set")
def set_key(name: Name, templates: Templates, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Change a key, by its name or id. The server takes note of it at its next start."""
    _load(data_dir, config).set(name, templates=templates)


def _load(data_dir: DataDir, config: ConfigFile) -> "Keys":
    from stockade.accounts.keys import Keys
    from stockade.app.engine import prepare_data_dir
    from stockade.config import load

    loaded = load(file=config, options={"data_dir": data_dir})
    prepare_data_dir(loaded.data_dir)
    return Keys.load(loaded.data_dir)


def _shown(one: "Key") -> dict[str, object]:
    """What may be told of a key: all but its hash."""
    return {
        "id": one.id,
        "name": one.name,
        "preview": one.preview,
        "created": one.created,
        "templates": one.templates,
    }
