"""From records to rows and back."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from enum import StrEnum
from typing import Any

from stockade.model import EndedBy, Limits, Network, NetworkMode, Outcome, Port, Protocol, Sandbox, SandboxState, Usage

__all__ = [
    "SANDBOX_COLUMNS",
    "limits_from_row",
    "limits_to_row",
    "network_from_row",
    "network_to_row",
    "plain",
    "sandbox_from_row",
    "sandbox_to_row",
]

SANDBOX_COLUMNS = tuple(one.name for one in fields(Sandbox))


def sandbox_to_row(given: Sandbox | Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a sandbox, or of some of its members by name.

    Raises:
        TypeError: a sandbox has no such member.
    """
    if isinstance(given, Sandbox):
        given = {name: getattr(given, name) for name in SANDBOX_COLUMNS}
    elif unknown := given.keys() - set(SANDBOX_COLUMNS):
        raise TypeError(f"a sandbox has no {', '.join(sorted(unknown))}")
    return {name: _TO.get(name, plain)(value) for name, value in given.items()}


def sandbox_from_row(row: Any) -> Sandbox:
    """The sandbox of a row that has the columns `SANDBOX_COLUMNS`."""
    members: dict[str, Any] = {}
    for name in SANDBOX_COLUMNS:
        value = getattr(row, name)
        members[name] = _FROM[name](value) if name in _FROM and value is not None else value
    return Sandbox(**members)


def plain(value: Any) -> Any:
    """A value as a column that is no JSON has it."""
    if isinstance(value, StrEnum):
        return value.value
    return _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    """*value* without what PostgreSQL's text cannot hold. A tenant's words come here in messages."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def limits_to_row(limits: Limits) -> dict[str, Any]:
    """JSON knows no infinity: `null` stands for it."""
    return {name: None if value == math.inf else value for name, value in vars(limits).items()}


def limits_from_row(values: Mapping[str, Any]) -> Limits:
    known: dict[str, Any] = {name: math.inf if value is None else value for name, value in values.items()}
    return Limits(**known)


def network_to_row(network: Network) -> dict[str, Any]:
    """As `asdict` has it, which copies all there is, a word at a time."""
    return {**vars(network), "ports": [vars(port) for port in network.ports]}


def network_from_row(values: Mapping[str, Any]) -> Network:
    def names(key: str) -> tuple[str, ...] | None:
        return None if values[key] is None else tuple(values[key])

    return Network(
        mode=NetworkMode(values["mode"]),
        ports=tuple(
            Port(container=one["container"], protocol=Protocol(one["protocol"]), host=one["host"])
            for one in values["ports"]
        ),
        allow_cidrs=names("allow_cidrs"),
        allow_domains=names("allow_domains"),
    )


def _record(value: Usage | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


_TO: Mapping[str, Callable[[Any], Any]] = {
    "command": list,
    "env": dict,
    "labels": dict,
    "limits": limits_to_row,
    "network": network_to_row,
    "usage": _record,
}
_FROM: Mapping[str, Callable[[Any], Any]] = {
    "state": SandboxState,
    "command": tuple,
    "limits": limits_from_row,
    "network": network_from_row,
    "ended_by": EndedBy,
    "outcome": Outcome,
    "usage": lambda value: Usage(**value),
}
