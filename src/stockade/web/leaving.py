"""What a user who goes leaves behind outside the database of accounts: sandboxes that live, and jobs."""

import asyncio
import contextlib
from dataclasses import dataclass

from stockade.engine import Engine
from stockade.engine.jobs import Jobs
from stockade.errors import Conflict, NotFound, Unavailable
from stockade.model import Actor, SandboxState
from stockade.model.jobs import JobFilter
from stockade.store import SandboxTable

__all__ = ["Leaving"]

PAGE = 200
ENDED_S = 30.0
"""Time that what runs may take to end."""
_LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """Ends and removes what an account has."""

    engine: Engine
    table: SandboxTable

    async def forget(self, account_id: str) -> None:
        """Kill the account's sandboxes; cancel its jobs and remove them.

        Raises:
            Unavailable: something does not end, or a database is away; it can be repeated.
        """
        await self._kill_sandboxes(account_id)
        if self.engine.jobs is not None:
            try:
                async with asyncio.timeout(ENDED_S):
                    await _remove_jobs(self.engine.jobs, account_id)
            except TimeoutError:
                raise Unavailable("some of your jobs have not ended yet; try again", retry_after_s=10) from None

    async def _kill_sandboxes(self, account_id: str) -> None:
        sandboxes = self.engine.sandboxes
        if sandboxes is None:
            return
        living = frozenset(SandboxState) - {SandboxState.ENDED}
        page = await self.table.list(account_id=account_id, states=living)
        for one in page.items:
            with contextlib.suppress(NotFound, Conflict):
                await sandboxes.kill(Actor(id=one.key_id, account_id=account_id), one.id)


async def _cancel(jobs: Jobs, actor: Actor, job_id: str) -> None:
    with contextlib.suppress(NotFound):
        await jobs.cancel(actor, job_id)


async def _remove_jobs(jobs: Jobs, account_id: str) -> None:
    actor = Actor(id=account_id, account_id=account_id)
    while True:
        page = await jobs.list(actor, JobFilter(account_id=account_id), limit=PAGE)
        if not page.jobs:
            return
        if ended := [job.id for job in page.jobs if job.has_ended]:
            await jobs.store.forget(ended)
        living = [job for job in page.jobs if not job.has_ended and not job.cancel_requested]
        # At once, for there may be a hundred thousand, and the store takes many together.
        for failed in await asyncio.gather(*(_cancel(jobs, actor, job.id) for job in living), return_exceptions=True):
            if failed is not None:
                raise failed
        if not ended and not living:
            await asyncio.sleep(_LOOK_S)
