"""Lists of names in a policy."""

import re
from collections.abc import Iterable

__all__ = ["MOST_ENTRIES", "Names", "names_of", "texts_of"]

MOST_ENTRIES = 256
"""Entries of each list."""
_MOST_LENGTH = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


class Names:
    """Names, in lower case and without the last dot; `*.` before one stands for all below it."""

    def __init__(self, entries: Iterable[str]) -> None:
        entries = tuple(entries)
        self._exact = frozenset(one for one in entries if not one.startswith("*."))
        self._above = frozenset(one[2:] for one in entries if one.startswith("*."))

    def __contains__(self, name: str) -> bool:
        if name in self._exact:
            return True
        while "." in name:
            name = name.partition(".")[2]
            if name in self._above:
                return True
        return False


def names_of(member: str, values: object) -> tuple[str, ...]:
    """The names that the list *values* holds, in lower case and without the last dot.

    Raises:
        ValueError: one is no name, nor `*.` and a name.
    """
    return tuple(_name(member, text) for text in texts_of(member, values))


def _name(member: str, text: str) -> str:
    name = text.lower().removesuffix(".")
    labels = name.removeprefix("*.").split(".")
    if len(name) > _MOST_LENGTH or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{member}: {text!r} is no domain name; write example.org, or *.example.org for all below it")
    return name


def texts_of(name: str, values: object) -> list[str]:
    """The list *values*, called *name* in what is raised. Raises ValueError: it is none, or too long."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name}: must be a list of strings")
    if len(values) > MOST_ENTRIES:
        raise ValueError(f"{name}: {len(values)} entries; at most {MOST_ENTRIES} are possible")
    return list(values)
