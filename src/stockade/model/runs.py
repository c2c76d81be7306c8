"""One-shot runs: a fresh sandbox, one program, gone."""

from dataclasses import dataclass, field

from stockade.model.limits import LimitOverrides
from stockade.model.processes import OnOutputLimit, ProcessResult

__all__ = ["Actor", "RunResult", "RunSpec"]


@dataclass(frozen=True, kw_only=True)
class Actor:
    """On whose behalf something happens."""

    id: str
    """Id of the key, or `anonymous:<address>` where no key is needed. The fairness of the queue goes by it."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A program in some language, to be compiled where needed and run once."""

    language: str
    """Name or alias, as in `stockade languages`."""
    code: str
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    limits: LimitOverrides = field(default_factory=LimitOverrides)
    on_output_limit: OnOutputLimit = OnOutputLimit.KILL


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What came of a run. With a failed compilation there is no `process`."""

    language: str
    compilation: ProcessResult | None
    """Result of the compile step; `None` where the language has none."""
    process: ProcessResult | None
    """Result of the program; `None` when the compilation failed."""
    queued_s: float
    """Seconds spent waiting for a place."""

    @property
    def last(self) -> ProcessResult:
        """The program's result, or the compiler's when it never came to run."""
        result = self.process or self.compilation
        assert result is not None
        return result
