"""The rows of what accounts log in to registries with."""

from dataclasses import replace
from datetime import timedelta

import pytest

from stockade.errors import Conflict
from stockade.model.registries import SealedCredential
from stockade.store import Database
from stockade.store.accounts import list_notes
from stockade.store.registry_credentials import RegistryCredentialTable
from tests.store.databases import NOON

pytestmark = pytest.mark.anyio
ROW = SealedCredential(
    id="1",
    account_id="alice",
    registry_host="ghcr.io",
    repository_prefix="team",
    username="robot",
    secret=bytes(range(256)),
    created_at=NOON,
)


@pytest.fixture
def table(database: Database) -> RegistryCredentialTable:
    return RegistryCredentialTable(database=database)


async def test_they_are_read_as_they_were_written_by_account(table: RegistryCredentialTable) -> None:
    later = replace(ROW, id="0", repository_prefix="", created_at=NOON + timedelta(seconds=1))
    await table.insert(later, by="key-1")
    await table.insert(ROW, by="key-1")
    await table.insert(replace(ROW, id="3", account_id="bob"), by="key-2")
    assert await table.of_account("alice") == [ROW, later]
    assert await table.of_account("nobody") == []


async def test_there_is_one_for_each_place(table: RegistryCredentialTable) -> None:
    await table.insert(ROW, by="key-1")
    with pytest.raises(Conflict, match=r"ghcr\.io/team already"):
        await table.insert(replace(ROW, id="2"), by="key-1")
    assert await table.of_account("alice") == [ROW]


async def test_its_account_alone_removes_one_and_both_are_noted(
    table: RegistryCredentialTable, database: Database
) -> None:
    await table.insert(ROW, by="key-1")
    assert not await table.delete("bob", "1", by="key-2")
    assert await table.delete("alice", "1", by="key-1")
    assert not await table.delete("alice", "1", by="key-1")
    notes = await database.read(lambda connection: list_notes(connection, "alice"))
    assert [one["action"] for one in notes] == ["registry_created", "registry_removed"]
    assert all("robot" not in str(one) for one in notes)
