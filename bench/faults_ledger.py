"""What clients were told during a rehearsal, and whatever must not have been."""

import time
from collections import Counter
from dataclasses import dataclass, field

__all__ = ["PATIENCE_S", "Ledger"]

PATIENCE_S = 45.0
"""An answer that takes longer counts as none at all."""


@dataclass(kw_only=True)
class Ledger:
    """Facts by kind; and violations in words, which name what was expected and what was seen."""

    did: Counter[str] = field(default_factory=Counter)
    """What was done and answered well."""
    refused: Counter[str] = field(default_factory=Counter)
    """What was answered honestly, and not well: by what was asked and how."""
    violations: list[str] = field(default_factory=list)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the end of a fault to when everything worked, by kind of fault."""
    injected: Counter[str] = field(default_factory=Counter)
    now: str = ""
    """The fault that is under way; empty while all is quiet."""
    quiet_since: float | None = None

    def violated(self, what: str) -> None:
        """Note that a promise was broken."""
        self.violations.append(f"{f'during {self.now}: ' if self.now else ''}{what}")

    def begin(self, *faults: str) -> None:
        """These are done now."""
        self.now, self.quiet_since = ", with ".join(faults), None
        self.injected.update(faults)

    def calm(self) -> None:
        """All works again: from now on everything must be answered well."""
        self.now, self.quiet_since = "", time.monotonic()

    def failed(self, what: str, why: str, began: float) -> None:
        """Note an honest failure; in quiet times there must be none."""
        self.refused[f"{what}: {why}"] += 1
        if self.quiet_since is not None and began > self.quiet_since:
            self.violated(f"{what} failed though nothing was wrong: {why}")

    def took(self, what: str, began: float) -> None:
        """Note how long an answer took."""
        if (seconds := time.monotonic() - began) > PATIENCE_S:
            self.violated(f"{what} was answered after {seconds:.0f} s")
