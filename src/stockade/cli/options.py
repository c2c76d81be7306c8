"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "ConfigFile", "DataDir"]

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file (TOML).", show_default=False),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where everything lasting is kept.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
