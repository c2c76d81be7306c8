"""One-shot runs: a fresh sandbox, one program, gone."""

from dataclasses import dataclass, field

from stockade.model.limits import LimitOverrides
from stockade.model.processes import OnOutputLimit, ProcessResult

__all__ = ["Actor", "RunResult", "RunSpec", "owner_of"]


@dataclass(frozen=True, kw_only=True)
class Actor:
    """On whose behalf something happens, and how much of it there may be: the smallest of what tier, account and key
    allow; `None` where none of them sets a limit.
    """

    id: str
    """Id of the key, or `anonymous:<address>` where no key is needed. The fairness of the queue goes by it."""
    templates: bool = True
    """Whether its runs may begin from templates, whose forks share address-space layout and hash seed."""
    account_id: str = ""
    """Empty for who has no account here: anonymous, or known by a token or a key of a dialect's own."""
    tier: str = ""
    is_admin: bool = False
    """Its account is the operator's."""
    backend: str = ""
    """Name of the one backend that its sandboxes may come from; empty where a request may choose."""
    rate_limit_rps: int | None = None
    """Requests per second, and as many at once."""
    daily_limit: int | None = None
    """Sandboxes made in a UTC day."""
    concurrent_limit: int | None = None
    """Sandboxes that have not ended, at a time."""
    max_duration_s: float | None = None
    """Life of one sandbox."""
    max_memory_bytes: int | None = None
    """Memory of one sandbox."""
    monthly_cost_limit_cents: int | None = None
    """Of its account, for all keys together, in a UTC month."""

    @property
    def owner(self) -> str:
        """Whose its boxes, volumes and images are, and whose names they have."""
        return owner_of(self.account_id, self.id)


def owner_of(account_id: str, key_id: str) -> str:
    """Whose something is: the account's, or the key's own where there is none."""
    return account_id or key_id


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
    backend: str = ""
    """Name of the backend that its sandboxes shall come from; empty for the usual one."""
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
