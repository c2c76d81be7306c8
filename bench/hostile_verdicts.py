"""What to make of an attempt on others: what the program said, what was seen from outside, and why it is so."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Self

from stockade.attacks import Attack, Ending, Verdict, judge

__all__ = ["Kind", "Reason", "Tried", "reason_of", "reasons", "settled", "untried", "weigh"]

_FILE: Final = Path(__file__).with_name("hostile_reasons.toml")


class Kind(StrEnum):
    """What an escape says about the one whom it escaped from."""

    OPEN = "open"
    """It leaves that open."""
    CHOICE = "choice"
    """It gives that on purpose, and whoever uses it may say otherwise by a flag of its own."""
    OURS = "ours"
    """The attack asks for something that only Stockade promises: a difference, hardly a fault."""
    MISREAD = "misread"
    """The attack took for an escape what is none there: it counts as held."""
    UNEXPLAINED = "unexplained"
    """Nobody has looked at it yet."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why attacks come out of a peer as they do."""

    peer: str
    """A pattern as of file names; `*` for all."""
    attacks: tuple[str, ...]
    """Patterns, too."""
    kind: Kind
    why: str

    def covers(self, peer: str, attack: str) -> bool:
        return fnmatchcase(peer, self.peer) and any(fnmatchcase(attack, pattern) for pattern in self.attacks)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One attack on one peer."""

    peer: str
    group: str
    attack: str
    verdict: str
    """A `Verdict`, or `not tried`."""
    evidence: str

    def facts(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """From what `facts` told."""
        return cls(**{name: str(facts[name]) for name in ("peer", "group", "attack", "verdict", "evidence")})


def weigh(peer: str, attack: Attack, ending: Ending, seen: Iterable[str]) -> Tried:
    """As `judge`, but what was *seen* from outside counts as an escape, whatever the program said."""
    judgement = judge(attack, ending)
    verdict, evidence = judgement.verdict, judgement.evidence
    if sightings := "; ".join(seen):
        verdict, evidence = Verdict.ESCAPED, sightings if verdict is not Verdict.ESCAPED else f"{evidence}; {sightings}"
    return Tried(peer=peer, group=attack.group, attack=attack.name, verdict=verdict.value, evidence=evidence)


def untried(peer: str, attack: Attack, why: str) -> Tried:
    """For what cannot be tried there."""
    return Tried(peer=peer, group=attack.group, attack=attack.name, verdict="not tried", evidence=why)


def reasons() -> tuple[Reason, ...]:
    """Why the escapes that are known are escapes; the first that covers one is the one that counts.

    Raises:
        ValueError: the file says something wrong.
    """
    return tuple(
        Reason(peer=entry["peer"], attacks=tuple(entry["attacks"]), kind=Kind(entry["kind"]), why=entry["why"])
        for entry in tomllib.loads(_FILE.read_text("utf-8"))["reason"]
    )


def settled(tried: Iterable[Tried], known: Iterable[Reason]) -> list[Tried]:
    """As they count: what an attack has misread is no escape."""
    known = tuple(known)
    return [
        replace(one, verdict=Verdict.CONTAINED.value)
        if one.verdict == Verdict.ESCAPED.value and reason_of(one, known).kind is Kind.MISREAD
        else one
        for one in tried
    ]


def reason_of(tried: Tried, known: Iterable[Reason]) -> Reason:
    """Why it is so."""
    for reason in known:
        if reason.covers(tried.peer, tried.attack):
            return reason
    return Reason(peer=tried.peer, attacks=(tried.attack,), kind=Kind.UNEXPLAINED, why=tried.evidence)
