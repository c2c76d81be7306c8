"""What users have left on this server who were removed: by `stockade users`, or by another server of the database."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import structlog

from stockade.accounts import Departed
from stockade.engine.tasks import Tasks
from stockade.errors import StockadeError

__all__ = ["clearing_up"]

log = structlog.get_logger()

LOOK_S = 60.0
"""Between two looks. The first one is at the start."""


class Keeper(Protocol):
    """Who keeps things of accounts."""

    async def remove_of_account(self, account_id: str) -> None:
        """Remove all of an account's. Raises Unavailable: it can be repeated."""
        ...


@contextlib.asynccontextmanager
async def clearing_up(departed: Departed, *keepers: Keeper) -> AsyncIterator[None]:
    """Have *keepers*, one after the other, remove what departed users have left, during the block."""
    tasks = Tasks()
    async with tasks.running():
        tasks.background(_clear_up(departed, keepers), name="clear up after departed users")
        yield


async def _clear_up(departed: Departed, keepers: tuple[Keeper, ...]) -> None:
    while True:
        try:
            for account_id in await departed.accounts():
                for keeper in keepers:
                    await keeper.remove_of_account(account_id)
                log.info("account.cleared_up", account_id=account_id)
        except (StockadeError, TimeoutError) as error:
            log.warning("account.not_cleared_up", reason=str(error) or repr(error))
        await asyncio.sleep(LOOK_S)
