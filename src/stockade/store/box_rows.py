"""From records of boxes, snapshots and volumes to rows and back; lists of them, page by page."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import exc

from stockade.model import Box, BoxState, Mount, SecretRule, Snapshot, Volume
from stockade.store.rows import limits_from_row, limits_to_row, network_from_row, network_to_row, plain
from stockade.store.seals import Seal

__all__ = [
    "BOX_COLUMNS",
    "SNAPSHOT_COLUMNS",
    "VOLUME_COLUMNS",
    "box_from_row",
    "box_to_row",
    "is_about",
    "snapshot_from_row",
    "volume_from_row",
]

BOX_COLUMNS = tuple(one.name for one in fields(Box))
SNAPSHOT_COLUMNS = tuple(one.name for one in fields(Snapshot))
VOLUME_COLUMNS = tuple(one.name for one in fields(Volume))


def box_to_row(given: Box | Mapping[str, Any], *, box_id: str, seal: Seal) -> dict[str, Any]:
    """The columns of a box, or of some of its members by name.

    Raises:
        TypeError: a box has no such member.
    """
    if isinstance(given, Box):
        given = {name: getattr(given, name) for name in BOX_COLUMNS}
    elif unknown := given.keys() - set(BOX_COLUMNS):
        raise TypeError(f"a box has no {', '.join(sorted(unknown))}")
    row = {name: _TO.get(name, plain)(value) for name, value in given.items()}
    if "secrets" in row:
        rules = [asdict(one) for one in row["secrets"]]
        row["secrets"] = seal.close(json.dumps(rules).encode(), about=f"box {box_id}") if rules else None
    return row


def box_from_row(row: Any, seal: Seal) -> Box:
    """The box of a row that has the columns `BOX_COLUMNS`. Raises Fault where its secrets cannot be read."""
    members: dict[str, Any] = {}
    for name in BOX_COLUMNS:
        value = getattr(row, name)
        members[name] = _FROM[name](value) if name in _FROM else value
    members["secrets"] = () if row.secrets is None else _secrets(seal.open(row.secrets, about=f"box {row.id}"))
    return Box(**members)


def snapshot_from_row(row: Any) -> Snapshot:
    return Snapshot(**{name: getattr(row, name) for name in SNAPSHOT_COLUMNS})


def volume_from_row(row: Any) -> Volume:
    return Volume(**{name: getattr(row, name) for name in VOLUME_COLUMNS})


def is_about(error: exc.IntegrityError, *, index: str, column: str) -> bool:
    """Whether a row was refused because of a unique *index*, whose last column is *column* (`table.name`)."""
    name = getattr(getattr(error.orig, "__cause__", None), "constraint_name", None)  # asyncpg says which index
    return bool(name == index) if name is not None else column in str(error.orig)  # SQLite says which columns


def _secrets(text: bytes) -> tuple[SecretRule, ...]:
    return tuple(SecretRule(**{**one, "hosts": tuple(one["hosts"])}) for one in json.loads(text))


_TO: Mapping[str, Callable[[Any], Any]] = {
    "entrypoint": list,
    "command": list,
    "env": dict,
    "labels": dict,
    "drop_capabilities": list,
    "secrets": tuple,
    "limits": limits_to_row,
    "network": network_to_row,
    "mounts": lambda value: [asdict(one) for one in value],
}
_FROM: Mapping[str, Callable[[Any], Any]] = {
    "state": BoxState,
    "entrypoint": tuple,
    "command": tuple,
    "drop_capabilities": tuple,
    "limits": limits_from_row,
    "network": network_from_row,
    "mounts": lambda value: tuple(Mount(**one) for one in value),
}
