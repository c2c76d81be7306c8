"""Ways in: how a tenant's program comes to be run."""

from typing import Protocol

from stockade.attacks.corpus import Attack
from stockade.attacks.verdicts import Ending

__all__ = ["Way"]


class Way(Protocol):
    """One way in, on one backend: a run, a run from a template, a process of a sandbox that lives, a job, …"""

    @property
    def name(self) -> str:
        """Stable and short, as the tables show it: `run`, `template`, `exec`, `exec root`, `job`, …"""
        ...

    @property
    def gives(self) -> frozenset[str]:
        """What is given to programs that come this way, and would be an escape on others: `root`, `terminal`, …"""
        ...

    def refuses(self, attack: Attack) -> str:
        """Why *attack* cannot be tried this way (no such language here, …); empty when it can."""
        ...

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        """Run the steps of *attack* one after the other, each in a sandbox of its own and under the corpus's `LIMITS`.

        Args:
            stdin: what each step reads.

        Returns how the last one ended.

        Raises:
            StockadeError, OSError: it could not be tried: that says nothing about containment.
        """
        ...
