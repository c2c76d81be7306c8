"""What users have left who were removed, and that it goes."""

import asyncio
from datetime import UTC, datetime

import pytest

from stockade.accounts import Departed
from stockade.app.departed import clearing_up
from stockade.model import Volume
from stockade.store import Database
from stockade.store.volumes import VolumeTable
from tests.accounts.people import both, people, register

pytestmark = pytest.mark.anyio


class Keeper:
    def __init__(self) -> None:
        self.removed: asyncio.Queue[str] = asyncio.Queue()

    async def remove_of_account(self, account_id: str) -> None:
        self.removed.put_nowait(account_id)


@both
async def test_what_removed_users_have_left_on_a_server_is_cleared_up_by_it(database: Database) -> None:
    volumes, now = VolumeTable(database=database, server_id="here"), datetime.now(UTC)
    async with people(database) as accounts:
        stays, goes = await register(accounts.users), await register(accounts.users, "eve@example.com")
        for number, account_id in enumerate((stays.account_id, goes.account_id, "", "of keys alone")):
            made = Volume(
                id=f"vol_{number}", account_id=account_id, name=None, disk=f"v{number}", size_bytes=1,
                created_at=now, updated_at=now,
            )  # fmt: skip
            await volumes.insert(made, owner=account_id, most=10)
        departed = Departed(database=database, server_id="here")
        assert await departed.accounts() == frozenset()
        await accounts.users.remove(goes.id, by="operator")
        assert await departed.accounts() == {goes.account_id}
        assert await Departed(database=database, server_id="there").accounts() == frozenset()
        first, second = Keeper(), Keeper()
        async with asyncio.timeout(60), clearing_up(departed, first, second):
            assert await first.removed.get() == await second.removed.get() == goes.account_id
