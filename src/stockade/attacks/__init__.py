"""Hostile programs that judge themselves: what a sandbox must withstand, one threat each.

The programs are data (`corpus/*.toml`); anything that can run a program and hand back its output can be tried with
them: a backend, a server, another sandbox.
"""

from stockade.attacks.bait import Bait
from stockade.attacks.corpus import LIMITS, Attack, attacks
from stockade.attacks.verdicts import Ending, Judgement, Verdict, judge
from stockade.attacks.ways import Way

__all__ = ["LIMITS", "Attack", "Bait", "Ending", "Judgement", "Verdict", "Way", "attacks", "judge"]
