"""What the life of a sandbox needs of others. `stockade.store` and `engine.ports` have it; tests have their own."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stockade.model import EndedBy, Network, Sandbox, SandboxState
from stockade.model.accounts import ImageBuild
from stockade.store.sandboxes import Page

__all__ = ["Barred", "BuildTable", "OnEnded", "Ports", "SandboxOptions", "SandboxTable"]


class SandboxTable(Protocol):
    """The records of all sandboxes, in a database. Every method raises Unavailable while that is away."""

    async def insert_within_quota(
        self,
        sandbox: Sandbox,
        *,
        daily: int | None,
        concurrent: int | None,
        monthly_cost_cents: int | None,
        is_quota_free: bool,
    ) -> None:
        """Commit a new record, unless its key has used up a quota (`None`: there is none).

        Raises:
            LimitExceeded: it has.
            Conflict: there is a record of this id, or of an un-ended one with this secret.
        """
        ...

    async def get(self, sandbox_id: str, /) -> Sandbox | None: ...

    async def find_by_secret(self, digest: str, /) -> Sandbox | None:
        """The one with this `secret_digest` that has not ended; else the one that ended last."""
        ...

    async def list(
        self,
        key_id: str | None = None,
        *,
        account_id: str | None = None,
        states: Collection[SandboxState] | None = None,
        ended_by: Collection[EndedBy] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """Those of a key, or of all keys of an account, the newest first."""
        ...

    async def list_unended(self) -> Sequence[Sandbox]:
        """Those of this server that have not ended."""
        ...

    async def list_unrecorded(self) -> Sequence[Sandbox]:
        """Those of this server that have ended, and whose usage is in no sum yet."""
        ...

    async def move(self, sandbox_id: str, from_states: Collection[SandboxState], /, **changes: Any) -> Sandbox | None:
        """Change the record if it is in one of *from_states*; `None` when it is not, or there is none."""
        ...

    async def bind(self, sandbox_id: str, port: int, /) -> Sandbox | None:
        """Set `bound_port` of one that is RUNNING and has none; `None` when it is not, or has."""
        ...

    async def mark_deleted(self, sandbox_id: str, /) -> Sandbox | None:
        """Set `is_deleted` of one that has ended; `None` when it has not, or there is none."""
        ...


class Ports(Protocol):
    """The host's ports that lead into sandboxes."""

    async def assign(self, sandbox_id: str, network: Network) -> Network:
        """Open a host port for each port of *network*, the one that it names or any; all or none."""
        ...

    def open(self, sandbox_id: str, network: Network) -> None:
        """Open the host ports that *network* names, after a restart. Idempotent."""
        ...

    def close(self, sandbox_id: str) -> None:
        """Close all of a sandbox's. Idempotent."""
        ...


OnEnded = Callable[[Sandbox], Awaitable[None]]
"""Told of every sandbox that has ended, at least once; counts it once."""
Barred = Callable[[Collection[str]], Awaitable[Collection[str]]]
"""Those of some accounts for which nobody may act any more. Raises Unavailable while that cannot be known."""


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """How long what is kept, and for what the engine waits how long."""

    retention_s: float = 600.0
    """Seconds for which the output of an ended sandbox can be read."""
    most_kept: int = 1000
    """Ended sandboxes whose output is kept at most; the oldest go first."""
    log_bytes: int = 1 << 20
    """Bytes kept of each output stream of each process."""
    kept_bytes: int = 64 << 20
    """Bytes that the output of all processes of a sandbox that run may take; and as much of those that have ended."""
    grace_s: float = 10.0
    """Seconds between SIGTERM and SIGKILL where a stop request names none."""
    sweep_s: float = 30.0
    """Seconds between two clean-ups."""
    lost_after_s: float = 15.0
    """Seconds without the backend after which its sandboxes are given up."""
    make_s: float = 60.0
    """Seconds that making a sandbox, and starting its main process, may take."""
    answer_s: float = 10.0
    """Seconds within which the backend has to answer anything else."""

    @property
    def facts_s(self) -> float:
        """Seconds for which the backend keeps what it knows of an ended sandbox: long enough for a database that is
        away, or a server that is down, to come back. What has been recorded is removed after `retention_s`.
        """
        return self.retention_s + 3600.0


class BuildTable(Protocol):
    """The records of image builds, for people: what counts is what lies in the directory."""

    async def record(self, build: ImageBuild) -> None:
        """Note a build, in place of an earlier one of its digest."""
        ...

    async def touch(self, digest: str) -> bool:
        """Note that a build has been used now; False when it is not recorded."""
        ...

    async def forget(self, digest: str) -> bool:
        """Delete the record; False when there is none."""
        ...
