"""Find backends and dialects by name.

Ours live in `stockade.backends.<name>` and `stockade.dialects.<name>` (with `_` for `-`); a stranger's come through the
entry points `stockade.backends` and `stockade.dialects`. Both go through the same door: a module that holds
one record named `backend` or `dialect`.
"""

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from stockade.errors import Invalid

__all__ = ["find", "names"]


_INTERFACES = ("base", "choice", "disks", "sandboxing")
"""Modules of `backends` that are none: what backends satisfy, and what chooses among them."""


def names(kind: str) -> tuple[str, ...]:
    """All names of *kind* (`backends` or `dialects`) that can be found here."""
    package = importlib.import_module(f"stockade.{kind}")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    own = {name.replace("_", "-") for name in modules if not name.startswith("_") and name not in _INTERFACES}
    foreign = {e.name for e in entry_points(group=f"stockade.{kind}")}
    return tuple(sorted(own | foreign))


def find(kind: str, name: str) -> Any:
    """The record of the backend or dialect *name*; its module is imported only now.

    Raises:
        Invalid: nothing has that name.
    """
    singular = kind.removesuffix("s")
    if name not in names(kind):
        raise Invalid(f"unknown {singular} {name!r}; known: {', '.join(names(kind))}")
    for entry in entry_points(group=f"stockade.{kind}"):
        if entry.name == name:
            return entry.load()
    return getattr(importlib.import_module(f"stockade.{kind}.{name.replace('-', '_')}"), singular)
