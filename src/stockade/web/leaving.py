"""What a user who is locked, or goes, has outside the database of accounts: sandboxes that live, boxes, and jobs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from stockade.engine import Engine
from stockade.engine.jobs import Jobs
from stockade.errors import Unavailable
from stockade.model import Actor
from stockade.model.jobs import JobFilter

__all__ = ["Leaving"]

PAGE = 200
ENDED_S = 30.0
"""Time that what runs may take to end."""
_LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """Ends and removes what an account has."""

    engine: Engine

    async def stop(self, account_id: str) -> None:
        """Kill the account's sandboxes; cancel its jobs: those that run end within a heartbeat of their worker.

        What runs on another server of the database is killed by that one, which looks for locked accounts itself.

        Raises:
            Unavailable: there are too many jobs to do it in time, or their store is away; it can be repeated.
        """
        both = self._kill_here(account_id), self._cancel_jobs(account_id)
        for failure in await asyncio.gather(*both, return_exceptions=True):  # neither is left out for the other's
            if failure is not None:
                raise failure

    async def forget(self, account_id: str) -> None:
        """As `stop`, and remove boxes, volumes, images and, once they have ended, jobs.

        Raises:
            Unavailable: something does not end, or a database is away; it can be repeated.
        """
        await self.stop(account_id)
        if self.engine.sandboxes is not None:
            await self.engine.sandboxes.kill_of_account(account_id)  # what could not be killed is told now
        if self.engine.boxes is not None:
            await self.engine.boxes.remove_of_account(account_id)
        if self.engine.images is not None:
            await self.engine.images.remove_of_account(account_id)
        if self.engine.jobs is not None:
            async with _in_time():
                await _remove_jobs(self.engine.jobs, account_id)

    async def _kill_here(self, account_id: str) -> None:
        if self.engine.sandboxes is not None:
            with contextlib.suppress(Unavailable):  # whoever has it tries again until it is gone
                await self.engine.sandboxes.kill_of_account(account_id)

    async def _cancel_jobs(self, account_id: str) -> None:
        if self.engine.jobs is not None:
            async with _in_time():
                await self.engine.jobs.cancel_all(account_id)


@contextlib.asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ENDED_S):
            yield
    except TimeoutError:
        raise Unavailable("some jobs have not ended yet; try again", retry_after_s=10) from None


async def _remove_jobs(jobs: Jobs, account_id: str) -> None:
    actor = Actor(id=account_id, account_id=account_id)
    while True:
        page = await jobs.list(actor, JobFilter(account_id=account_id), limit=PAGE)
        if not page.jobs:
            return
        if ended := [job.id for job in page.jobs if job.has_ended]:
            await jobs.store.forget(ended)
        else:
            await asyncio.sleep(_LOOK_S)
            await jobs.cancel_all(account_id)  # one may have been submitted meanwhile
