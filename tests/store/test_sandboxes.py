"""Records of sandboxes, and quotas that hold however many ask at once."""

import asyncio
import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from stockade.errors import Conflict, Invalid
from stockade.model import (
    EndedBy,
    Network,
    NetworkMode,
    Outcome,
    Port,
    Protocol,
    Sandbox,
    SandboxState,
    Usage,
)
from stockade.store import Database, QuotaExceeded, SandboxTable
from stockade.store import sandboxes as sandboxes_module
from tests.store.databases import LIMITS, NOON, a_sandbox

pytestmark = pytest.mark.anyio
CREATING, RUNNING, STOPPING, ENDED = SandboxState


@pytest.fixture
def table(database: Database) -> SandboxTable:
    return SandboxTable(database=database, server_id="server-1")


FULL = a_sandbox(
    state=RUNNING,
    command=("sh", "-c", "exit 3"),
    env={"GREETING": "hallo ☃", "EMPTY": ""},
    limits=replace(LIMITS, wall_s=math.inf),
    network=Network(
        mode=NetworkMode.EXPOSED,
        ports=(Port(container=80, host=40123), Port(container=53, protocol=Protocol.UDP, host=40124)),
        allow_cidrs=("192.0.2.0/24",),
        allow_domains=(),
    ),
    secret_digest="ab" * 32,
    bound_port=65535,
    labels={"team": "a"},
    started_at=NOON + timedelta(microseconds=123_456),
    ended_at=NOON + timedelta(seconds=1),
    deadline_at=NOON + timedelta(days=1),
    ended_by=EndedBy.LIMIT,
    outcome=Outcome.MEMORY,
    exit_code=137,
    message="memory",
    is_deleted=True,
    usage=Usage(wall_s=1.5, cpu_user_s=0.25, cpu_system_s=0.125, memory_peak_bytes=1 << 33),
)


@pytest.mark.parametrize("sandbox", [a_sandbox(), FULL])
async def test_a_sandbox_is_read_as_it_was_written(table: SandboxTable, sandbox: Sandbox) -> None:
    await table.insert_within_quota(sandbox)
    assert await table.get(sandbox.id) == sandbox
    assert await table.get("sess_2") is None


async def test_text_that_a_database_cannot_hold_is_replaced(table: SandboxTable) -> None:
    await table.insert_within_quota(a_sandbox(message="a\0b\udcff"))
    found = await table.get("sess_1")
    assert found is not None
    assert found.message == "a\N{REPLACEMENT CHARACTER}b?"


async def test_an_id_is_used_once(table: SandboxTable) -> None:
    await table.insert_within_quota(a_sandbox())
    with pytest.raises(Conflict, match="sess_1"):
        await table.insert_within_quota(a_sandbox())


async def test_a_secret_opens_one_sandbox_at_a_time(table: SandboxTable) -> None:
    """The error says which of the two is taken, whatever the id is called, and does not repeat the digest."""
    digest = "5e" * 32
    name = "uq_sandboxes_secret_digest"
    await table.insert_within_quota(a_sandbox(name, secret_digest=digest))
    for number in range(3):  # none is no secret that two could have
        await table.insert_within_quota(a_sandbox(f"without_{number}"))
    with pytest.raises(Conflict, match="this secret is another sandbox's: choose another") as refusal:
        await table.insert_within_quota(a_sandbox("sess_2", secret_digest=digest))
    assert digest not in f"{refusal.value.__cause__}"
    with pytest.raises(Conflict, match=f"there is a sandbox {name} already"):
        await table.insert_within_quota(a_sandbox(name, secret_digest="00" * 32))
    await table.move(name, (CREATING,), state=ENDED, ended_at=NOON)
    await table.insert_within_quota(a_sandbox("sess_2", secret_digest=digest))


async def test_of_many_with_one_secret_one_is_made(table: SandboxTable) -> None:
    results = await asyncio.gather(
        *(table.insert_within_quota(a_sandbox(f"sess_{n}", secret_digest="5e" * 32), daily=50) for n in range(20)),
        return_exceptions=True,
    )
    refused = [one for one in results if one is not None]
    assert all(isinstance(one, Conflict) for one in refused), refused
    assert len(refused) == 19


async def test_a_secret_finds_what_has_not_ended_else_what_ended_last(table: SandboxTable) -> None:
    digest = "5e" * 32
    assert await table.find_by_secret(digest) is None
    for number in (2, 3, 1):
        name = f"sess_{number}"
        await table.insert_within_quota(a_sandbox(name, secret_digest=digest))
        found = await table.find_by_secret(digest)
        assert found is not None
        assert (found.id, found.state) == (name, CREATING)
        await table.move(name, (CREATING,), state=ENDED, ended_at=NOON + timedelta(minutes=number))
    found = await table.find_by_secret(digest)
    assert found is not None
    assert found.id == "sess_3"
    assert await table.find_by_secret("5f" * 32) is None


async def test_secrets_are_looked_up_in_indexes(database: Database, table: SandboxTable) -> None:
    """However many have ended: anybody may present a secret that is none."""

    def plans(connection: Connection) -> list[str]:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET enable_seqscan = off")  # a small table is read whole
        explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
        texts = []
        for query in (sandboxes_module._OPENED, sandboxes_module._OPENED_LAST):
            told = connection.execute(text(explain + str(query)), {"digest": "5e" * 32, "param_1": 1})
            texts.append("\n".join(str(row) for row in told))
        return texts

    opened, opened_last = await database.read(plans)
    assert "uq_sandboxes_secret_digest" in opened
    assert "ix_sandboxes_secret_digest_ended_at" in opened_last


async def test_one_of_many_binds_a_port_of_a_sandbox_that_runs(table: SandboxTable) -> None:
    await table.insert_within_quota(a_sandbox())
    assert await table.bind("sess_1", 80) is None
    await table.move("sess_1", (CREATING,), state=RUNNING)
    bound = [one for one in await asyncio.gather(*(table.bind("sess_1", 8000 + n) for n in range(20))) if one]
    assert bound == [await table.get("sess_1")]
    assert await table.bind("sess_1", 80) is None
    unbound = await table.move("sess_1", (RUNNING,), bound_port=None)
    assert unbound == replace(bound[0], bound_port=None)
    assert await table.bind("sess_1", 80) == replace(bound[0], bound_port=80)
    await table.move("sess_1", (RUNNING,), bound_port=None)
    await table.move("sess_1", (RUNNING,), state=STOPPING)
    assert await table.bind("sess_1", 80) is None


async def test_only_one_of_many_moves_a_sandbox(table: SandboxTable) -> None:
    await table.insert_within_quota(a_sandbox(state=RUNNING))
    moved = await asyncio.gather(
        *(table.move("sess_1", (RUNNING, STOPPING), state=ENDED, ended_by=EndedBy.KILL, exit_code=n) for n in range(20))
    )
    (winner,) = [one for one in moved if one is not None]
    assert (winner.state, winner.ended_by) == (ENDED, EndedBy.KILL)
    assert await table.get("sess_1") == winner


async def test_a_move_changes_what_it_names_and_nothing_else(table: SandboxTable) -> None:
    await table.insert_within_quota(a_sandbox())
    assert await table.move("sess_1", (RUNNING,), state=ENDED) is None
    changes: dict[str, Any] = {
        "state": RUNNING,
        "started_at": NOON,
        "usage": Usage(wall_s=1, cpu_user_s=1, cpu_system_s=1, memory_peak_bytes=1),
        "network": Network(mode=NetworkMode.OUTGOING),
    }
    assert await table.move("sess_1", (CREATING,), **changes) == replace(a_sandbox(), **changes)
    with pytest.raises(TypeError, match="colour"):
        await table.move("sess_1", (RUNNING,), colour="red")


async def test_only_what_has_ended_is_marked_deleted(table: SandboxTable) -> None:
    await table.insert_within_quota(a_sandbox())
    assert await table.mark_deleted("sess_1") is None
    await table.move("sess_1", (CREATING,), state=ENDED, exit_code=3)
    for _ in range(2):
        deleted = await table.mark_deleted("sess_1")
        assert deleted is not None
        assert (deleted.is_deleted, deleted.exit_code) == (True, 3)


async def test_lists_are_newest_first_in_pages_and_leave_nothing_out(table: SandboxTable) -> None:
    for number in range(7):  # pairs made at the same moment
        await table.insert_within_quota(a_sandbox(f"sess_{number}", minutes=number // 2))
    await table.insert_within_quota(a_sandbox("other", key_id="bob"))
    everything = [f"sess_{number}" for number in reversed(range(7))]
    assert [one.id for one in (await table.list("ann")).items] == everything
    seen: list[str] = []
    cursor = None
    while True:
        page = await table.list("ann", limit=2, cursor=cursor)
        seen += [one.id for one in page.items]
        if (cursor := page.cursor) is None:
            break
        assert len(page.items) == 2
    assert seen == everything
    assert (await table.list("nobody")).items == []


@pytest.mark.parametrize("cursor", ["", "x", "!", "W10", "WyIxIiwgMV0", "é"])
async def test_a_cursor_of_somebody_else_s_is_refused(table: SandboxTable, cursor: str) -> None:
    with pytest.raises(Invalid, match="cursor"):
        await table.list("ann", cursor=cursor)


async def test_lists_can_be_narrowed(table: SandboxTable) -> None:
    await table.insert_within_quota(a_sandbox("one", state=RUNNING))
    await table.insert_within_quota(a_sandbox("two", state=ENDED, ended_by=EndedBy.ITSELF))
    await table.insert_within_quota(a_sandbox("three", state=ENDED, ended_by=EndedBy.KILL, is_deleted=True))
    assert [one.id for one in (await table.list("ann", states=(RUNNING, CREATING))).items] == ["one"]
    assert [one.id for one in (await table.list("ann", ended_by=(EndedBy.ITSELF,))).items] == ["two"]
    assert [one.id for one in (await table.list("ann", is_deleted=True)).items] == ["three"]
    assert len((await table.list(account_id="ann")).items) == 3


async def test_each_server_looks_after_its_own(database: Database, table: SandboxTable) -> None:
    other = SandboxTable(database=database, server_id="server-2")
    await table.insert_within_quota(a_sandbox("one"))
    await other.insert_within_quota(a_sandbox("two"))
    await table.insert_within_quota(a_sandbox("three", state=ENDED))
    assert [one.id for one in await table.list_unended()] == ["one"]
    assert [one.id for one in await table.list_unended("server-2")] == ["two"]
    assert [one.id for one in await table.list_unrecorded()] == ["three"]


@pytest.mark.parametrize("limits", [{"concurrent": 5}, {"daily": 5}, {"daily": 5, "concurrent": 7}])
async def test_fifty_creates_at_once_never_exceed_a_limit(table: SandboxTable, limits: dict[str, int]) -> None:
    results = await asyncio.gather(
        *(table.insert_within_quota(a_sandbox(f"sess_{n}"), **limits) for n in range(50)), return_exceptions=True
    )
    refused = [one for one in results if one is not None]
    assert all(isinstance(one, QuotaExceeded) for one in refused), refused
    assert len(refused) == 45
    assert len((await table.list("ann")).items) == 5


async def test_a_place_is_free_again_after_an_end_but_the_day_s_count_stays(table: SandboxTable) -> None:
    for number in range(2):
        await table.insert_within_quota(a_sandbox(f"sess_{number}"), daily=3, concurrent=2)
    with pytest.raises(QuotaExceeded, match=r"concurrent session limit reached \(2/2\)"):
        await table.insert_within_quota(a_sandbox("sess_2"), daily=3, concurrent=2)
    await table.move("sess_0", (CREATING,), state=ENDED)
    await table.insert_within_quota(a_sandbox("sess_2"), daily=3, concurrent=2)
    await table.move("sess_1", (CREATING,), state=ENDED)
    with pytest.raises(QuotaExceeded, match=r"daily session limit reached \(3/3\)") as refusal:
        await table.insert_within_quota(a_sandbox("sess_3"), daily=3, concurrent=2)
    assert refusal.value.retry_after_s == 12 * 3600
    assert refusal.value.code == "quota.exceeded"


async def test_keys_have_counts_of_their_own_and_days_begin_at_midnight_utc(table: SandboxTable) -> None:
    await table.insert_within_quota(a_sandbox("yesterday", minutes=-12 * 60 - 0.001), daily=1)
    await table.insert_within_quota(a_sandbox("midnight", minutes=-12 * 60), daily=1)
    await table.insert_within_quota(a_sandbox("bob", key_id="bob"), daily=1)
    with pytest.raises(QuotaExceeded):
        await table.insert_within_quota(a_sandbox("noon"), daily=1)


async def test_what_is_quota_free_is_neither_refused_nor_counted(table: SandboxTable) -> None:
    await table.insert_within_quota(a_sandbox("build"), concurrent=1, is_quota_free=True)
    await table.insert_within_quota(a_sandbox("one"), concurrent=1)
    await table.insert_within_quota(a_sandbox("build2"), concurrent=1, is_quota_free=True)
    with pytest.raises(QuotaExceeded):
        await table.insert_within_quota(a_sandbox("two"), concurrent=1)
