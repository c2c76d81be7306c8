"""Writes the reference pages from the code: `python -m stockade.cli.reference DIRECTORY`.

A test compares what is written with what is in `docs/`, so neither a setting nor an option goes undocumented.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from stockade.config import Setting, describe

__all__ = ["commands_page", "configuration_page", "pages"]

CONFIGURATION = """\
# Configuration

<!-- Written by `make docs` from src/stockade/config.py and the dialects' settings. -->

Nothing needs to be configured. What is set comes from four places; each wins over the ones before it:

1. the defaults below,
2. a file: the one that `--config` or `STOCKADE_CONFIG` names, else the first that exists of `stockade.toml` in the data
   directory and `/etc/stockade/stockade.toml`,
3. environment variables: `STOCKADE_<SECTION>_<NAME>`, and the further names below. An empty variable counts as not set,
4. options of the command.

A setting that does not exist is refused, so that a misspelt limit does not go unnoticed. Sizes may be written like
`"128MiB"` (KiB, MiB, … count by 1024, KB, MB, … by 1000), durations like `"10s"`, `"500ms"`, `"2m"`. In the
environment a list is `one,two` and a table is `name=text,name=text`.

```toml
[server]
port = 8000

[sandbox.defaults]
memory_bytes = "256MiB"
wall_s = "5s"

[queue]
places = 4
```
"""

COMMANDS = """\
# Commands

<!-- Written by `make docs` from src/stockade/cli. -->

`stockade --help` and `stockade COMMAND --help` print the same.
"""


def configuration_page(dialects: Mapping[str, type | None]) -> str:
    """The page of all settings, in Markdown."""
    sections: dict[str, list[Setting]] = {}
    for one in describe(dialects):
        sections.setdefault(one.key.rpartition(".")[0], []).append(one)
    parts = [CONFIGURATION]
    for section, settings in sections.items():
        parts.append(f"## [{section}]\n" if section else "## At the top of the file\n")
        parts.append("| Setting | Takes | Default | |\n|---|---|---|---|")
        for one in settings:
            name = one.key.rpartition(".")[2]
            variables = ", ".join(f"`{variable}`" for variable in one.env)
            text = f"{one.help}<br>{variables}"
            parts.append(f"| `{name}` | {_cell(one.kind)} | {_cell(one.default)} | {_cell(text)} |")
        parts.append("")
    return "\n".join(parts)


def commands_page() -> str:
    """The page of all commands, in Markdown."""
    from stockade.cli import app

    group: Any = typer.main.get_command(app)
    parts = [COMMANDS]
    for name, command in _commands(group):
        parts.append(f"## stockade {name}\n")
        parts.append(f"{_unwrap(command.help or '')}\n")
        parts.append("| | |\n|---|---|")
        for parameter in command.params:
            parts.append(f"| `{_spelling(parameter)}` | {_cell(getattr(parameter, 'help', None) or '')} |")
        parts.append("")
    return "\n".join(parts)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The commands of *group* by what one types; in place of a group its own commands."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def pages() -> dict[str, str]:
    """Every page that is written from the code, by file name."""
    from stockade.app.http import dialect_settings

    return {"configuration.md": configuration_page(dialect_settings()), "commands.md": commands_page()}


def _spelling(parameter: Any) -> str:
    value = str(parameter.metavar or parameter.name.upper())
    if not hasattr(parameter, "is_flag"):  # an argument
        return value
    names = ", ".join((*parameter.opts, *parameter.secondary_opts))
    return names if parameter.is_flag else f"{names} {value}"


def _unwrap(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: Iterable[str]) -> None:
    """Write every page into the directory that is named."""
    (directory,) = arguments
    for name, text in pages().items():
        Path(directory, name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
