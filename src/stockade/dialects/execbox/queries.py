"""What the query of a request says, as what it stands for: pure functions, as in `translate`."""

import posixpath
import re
from collections.abc import Sequence

from stockade.errors import Invalid
from stockade.model import ExecSpec, TerminalSize

__all__ = ["Query", "to_exec", "to_path"]


class Query:
    """The parameters of a request's query, read as what they stand for. Those that nobody asks for are ignored."""

    def __init__(self, items: Sequence[tuple[str, str]]) -> None:
        self._items = items

    def all(self, name: str) -> tuple[str, ...]:
        return tuple(value for key, value in self._items if key == name)

    def text(self, name: str) -> str | None:
        """The first value; `None` where there is none, or an empty one."""
        return next(iter(self.all(name)), None) or None

    def flag(self, name: str) -> bool:
        return self.text(name) in ("true", "1")

    def number(self, name: str, *, least: int, most: int, default: int | None = None) -> int | None:
        """A whole number.

        Raises:
            Invalid: it is none, or out of bounds.
        """
        text = self.text(name)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise Invalid(f"{name}: must be a whole number from {least} to {most}")
        return int(text)

    def choice(self, name: str, *choices: str) -> str:
        """One of *choices*, the first of which is the default.

        Raises:
            Invalid: it is another.
        """
        text = self.text(name) or choices[0]
        if text not in choices:
            raise Invalid(f"{name}: must be {' or '.join(choices)}")
        return text


def to_exec(query: Query) -> ExecSpec:
    """The process that an exec's query asks for; `cwd` may still be relative.

    Raises:
        Invalid: `cmd` is missing, or a parameter is wrong.
    """
    query.choice("protocol", "binary")
    commands = query.all("cmd")
    if not commands or not commands[0]:
        raise Invalid("cmd is required")
    if len(commands) == 1 and re.search(r"\s", commands[0]):
        commands = ("/bin/sh", "-c", commands[0])
    env = {}
    for pair in query.all("env"):
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise Invalid("env: must be NAME=VALUE")
        env[name] = value
    if any("\x00" in text for text in (*commands, *env, *env.values())):
        raise Invalid("cmd, env: no text of a process holds a NUL character")
    workdir = query.text("workdir")
    return ExecSpec(
        argv=commands,
        env=env,
        cwd=None if workdir is None else to_path(workdir, ""),
        user=query.choice("user", "user", "root"),
        terminal=_terminal(query),
    )


def _terminal(query: Query) -> TerminalSize | None:
    if not query.flag("tty"):
        return None
    rows = query.number("rows", least=1, most=0xFFFF, default=24)
    columns = query.number("cols", least=1, most=0xFFFF, default=80)
    return TerminalSize(rows=rows or 24, columns=columns or 80)


def to_path(path: str | None, cwd: str = "/") -> str:
    """An absolute path inside.

    Raises:
        Invalid: there is none, or it is no path.
    """
    if not path:
        raise Invalid("path is required")
    if "\x00" in path or len(path.encode(errors="replace")) > 4095:
        raise Invalid("path: is no path of a file")
    return posixpath.join(cwd, path)
