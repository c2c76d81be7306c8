"""Records of builds."""

from dataclasses import replace
from datetime import timedelta

import pytest

from stockade.model.accounts import ImageBuild
from stockade.store import BuildTable, Database
from tests.store.databases import NOON

pytestmark = pytest.mark.anyio
BUILD = ImageBuild(
    digest="a" * 64, base_image="host", size_bytes=1 << 40, duration_s=1.25, created_at=NOON, last_used_at=NOON
)


@pytest.fixture
def table(database: Database) -> BuildTable:
    return BuildTable(database=database, server_id="server-1")


async def test_a_build_is_read_as_it_was_written_and_replaced_by_a_newer_one(table: BuildTable) -> None:
    assert await table.get(BUILD.digest) is None
    await table.record(BUILD)
    assert await table.get(BUILD.digest) == BUILD
    newer = replace(BUILD, size_bytes=1, duration_s=0.5, created_at=NOON + timedelta(hours=1))
    await table.record(newer)
    assert await table.all() == [newer]


async def test_a_build_that_was_used_is_not_collected(table: BuildTable) -> None:
    other = replace(BUILD, digest="b" * 64)
    await table.record(BUILD)
    await table.record(other)
    later = NOON + timedelta(days=1)
    assert await table.touch(BUILD.digest, at=later)
    assert not await table.touch("c" * 64)
    assert await table.unused_since(later) == [other]
    assert not await table.forget(BUILD.digest, unused_since=later)
    assert await table.forget(other.digest, unused_since=later)
    assert not await table.forget(other.digest)
    assert [one.digest for one in await table.all()] == [BUILD.digest]


async def test_each_server_has_builds_of_its_own(database: Database, table: BuildTable) -> None:
    other = BuildTable(database=database, server_id="server-2")
    await table.record(BUILD)
    assert await other.get(BUILD.digest) is None
    await other.record(replace(BUILD, size_bytes=2))
    assert not await other.forget("c" * 64)
    assert await table.get(BUILD.digest) == BUILD
