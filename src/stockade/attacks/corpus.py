"""Reads the corpus."""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

from stockade.model import LimitOverrides, Outcome

__all__ = ["LIMITS", "Attack", "attacks"]

LIMITS: Final = LimitOverrides(
    wall_s=4.0,
    cpu_s=3.0,
    cpus=1.0,
    memory_bytes=128 << 20,
    processes=32,
    disk_bytes=24 << 20,
    disk_inodes=2000,
    open_files=128,
    output_bytes=64 << 10,
)
"""What the programs are meant to be run under. They call it an escape when they get many times as much."""

_KEYS: Final = frozenset(
    {"name", "threat", "language", "code", "then", "accept", "exit_code", "stdin_bytes", "control"}
)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One hostile program. Its last line says `CONTAINED` or `ESCAPED`, and the evidence."""

    name: str
    group: str
    """The file that it is from: `floods`, `kernel`, …"""
    threat: str
    """What would be bad, in a line."""
    language: str
    steps: tuple[str, ...]
    """Programs to run in order, each in a sandbox of its own; the last one judges."""
    accept: frozenset[Outcome]
    """Outcomes that contain it as well, whatever it said or could not say."""
    exit_code: int | None
    """The status that the run must report; `None` when any will do."""
    stdin_bytes: int
    """Bytes of input that it is given, whether it reads them or not; zero for the facts about the bait."""
    control: bool
    """Whether it can be its own control experiment: on a bare host it harms nothing and says ESCAPED."""


def _attack(group: str, prelude: str, entry: Mapping[str, Any]) -> Attack:
    unknown = set(entry) - _KEYS
    if unknown:
        raise ValueError(f"attack {entry.get('name')!r} in {group}.toml: unknown keys {', '.join(sorted(unknown))}")
    language = entry.get("language", "python")
    steps = [entry["code"]] + ([entry["then"]] if "then" in entry else [])
    if language == "python":
        steps = [f"{prelude}{step.lstrip()}" for step in steps]
    return Attack(
        name=entry["name"],
        group=group,
        threat=entry["threat"],
        language=language,
        steps=tuple(step.lstrip() for step in steps),
        accept=frozenset(Outcome(name) for name in entry.get("accept", ())),
        exit_code=entry.get("exit_code"),
        stdin_bytes=entry.get("stdin_bytes", 0),
        control=entry.get("control", False),
    )


@functools.cache
def _by_name() -> Mapping[str, Attack]:
    folder = resources.files("stockade.attacks") / "corpus"
    prelude = (folder / "prelude.py.txt").read_text("utf-8")
    found: dict[str, Attack] = {}
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name):
        group = file.name.removesuffix(".toml")
        for entry in tomllib.loads(file.read_text("utf-8"))["attack"]:
            attack = _attack(group, prelude, entry)
            if attack.name in found:
                raise ValueError(f"attack {attack.name!r} is in {found[attack.name].group}.toml and in {group}.toml")
            found[attack.name] = attack
    return MappingProxyType(found)


def attacks() -> tuple[Attack, ...]:
    """The whole corpus, in the order of its files.

    Raises:
        ValueError: a file of the corpus says something wrong; the message says where.
    """
    return tuple(_by_name().values())
