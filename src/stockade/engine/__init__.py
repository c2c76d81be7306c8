"""Use cases, a noun a file. `Engine` is a frozen record of small services; it has no methods."""

from dataclasses import dataclass

from stockade.engine.languages import Language, Languages
from stockade.engine.limits import LimitPolicy
from stockade.engine.queue import Queue
from stockade.engine.runs import Runs

__all__ = ["Engine", "Language", "Languages", "LimitPolicy", "Queue", "Runs"]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """All that a dialect can ask for."""

    languages: Languages
    runs: Runs
    queue: Queue
    limits: LimitPolicy
