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
    templates: bool = True
    """Whether its runs may begin from templates, whose forks share address-space layout and hash seed."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A program in some language, to be compiled where needed and run once."""

    language: str
    """Name or alias, as in `stockade languages`."""
    code: str
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    template: str | None = None
    """Name of the template to begin from; `None` for the language's default, "none" to start from nothing."""
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
    compilation_cached: bool = False
    """Nothing was compiled for this run: `compilation` is that of an equal program before."""

    @property
    def last(self) -> ProcessResult:
        """The program's result, or the compiler's when it never came to run."""
        result = self.process or self.compilation
        assert result is not None
        return result
