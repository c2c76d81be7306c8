"""Says whether an attack was contained, from what it printed and how it ended."""

import re
from dataclasses import dataclass
from enum import StrEnum

from stockade.attacks.corpus import Attack
from stockade.model import Outcome

__all__ = ["Ending", "Judgement", "Verdict", "judge"]

_WORD = re.compile(rb"^(CONTAINED|ESCAPED)\b[ \t]*([^\n]*)", re.MULTILINE)


class Verdict(StrEnum):
    """What came of an attack."""

    CONTAINED = "contained"
    ESCAPED = "escaped"
    UNCLEAR = "unclear"
    """It neither judged itself nor ended in a way that contains it: look at it, do not count it as contained."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the last step of an attack ended."""

    outcome: Outcome
    exit_code: int | None
    stdout: bytes
    stderr: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict and why."""

    attack: Attack
    verdict: Verdict
    evidence: str


def judge(attack: Attack, ending: Ending) -> Judgement:
    """Weigh what *attack* printed against how it ended.

    ESCAPED anywhere in the output counts, and so does a status that the program did not end with. CONTAINED counts
    only when the program came to its own end with the status that was asked for: a program that says so and then
    lives on until a limit ends it has found something.
    """
    said = _WORD.findall(ending.stdout)
    escapes = [evidence for word, evidence in said if word == b"ESCAPED"]
    if escapes:
        return _judgement(attack, Verdict.ESCAPED, escapes[-1].decode(errors="replace"))
    if (
        attack.exit_code not in (None, ending.exit_code)
        and ending.exit_code is not None
        and not _is_accepted(attack, ending)
    ):
        return _judgement(
            attack,
            Verdict.ESCAPED,
            f"the run reports {_ended(ending)}, the program exited with status {attack.exit_code}",
        )
    if said and ending.outcome is Outcome.EXITED:
        return _judgement(attack, Verdict.CONTAINED, said[-1][1].decode(errors="replace"))
    if ending.outcome in attack.accept:
        return _judgement(attack, Verdict.CONTAINED, f"ended: {_ended(ending)}")
    complaint = ending.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return _judgement(attack, Verdict.UNCLEAR, f"{_ended(ending)}; {complaint}".rstrip("; "))


def _is_accepted(attack: Attack, ending: Ending) -> bool:
    """Whether something else than the program's own exit ended it, as it may: the status is then another's word."""
    return ending.outcome in attack.accept and ending.outcome is not Outcome.EXITED


def _judgement(attack: Attack, verdict: Verdict, evidence: str) -> Judgement:
    return Judgement(attack=attack, verdict=verdict, evidence=evidence)


def _ended(ending: Ending) -> str:
    return ending.outcome.value if ending.exit_code is None else f"{ending.outcome.value} {ending.exit_code}"
