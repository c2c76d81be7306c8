"""The database: made and changed once, durable, and its troubles in our words."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import upgrade
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from stockade.errors import Fault, Invalid, Unavailable
from stockade.model import SandboxState
from stockade.store import Database, SandboxTable, job_tables, schema, server_id, user_tables  # noqa: F401 (tables)
from stockade.store.rows import sandbox_to_row
from stockade.store.tables import metadata, sandboxes
from tests.postgres import Postgres
from tests.store.databases import a_sandbox

pytestmark = pytest.mark.anyio


async def test_migrations_make_the_very_tables_that_the_code_knows(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))

    assert await database.read(differences) == []


def test_the_newest_migration_is_the_one_that_the_code_expects() -> None:
    assert ScriptDirectory(str(Path(schema.__file__).parent / "migrations")).get_heads() == [schema.HEAD]


async def test_a_database_of_the_first_version_is_brought_up_to_date_with_all_that_is_in_it(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sandboxes of before have no secret, and no port of theirs is bound."""
    monkeypatch.setattr(schema, "HEAD", "0001")
    with monkeypatch.context() as patched:
        patched.setattr("alembic.command.upgrade", lambda config, _: upgrade(config, "0001"))
        await (await Database.open(where)).close()
    monkeypatch.undo()
    async with contextlib.AsyncExitStack() as stack:
        old = Database.at(where)
        stack.push_async_callback(old.close)
        kept = [a_sandbox("living", state=SandboxState.RUNNING), a_sandbox("over", state=SandboxState.ENDED)]

        def insert(connection: Connection) -> None:
            for sandbox in kept:
                row = sandbox_to_row(sandbox) | {"server_id": "s"}
                del row["secret_digest"], row["bound_port"], row["backend"]
                connection.execute(sandboxes.insert().values(row))

        await old.write(insert)
        opened = await asyncio.gather(*(Database.open(where) for _ in range(3)))
        for database in opened:
            stack.push_async_callback(database.close)
        table = SandboxTable(database=opened[0], server_id="s")
        assert [await table.get(one.id) for one in kept] == kept
        assert await table.list_unended() == (kept[0],)
        assert await table.bind("living", 8080) is not None
        await table.insert_within_quota(a_sandbox("new", secret_digest="5e" * 32))


async def test_many_servers_may_start_on_an_empty_database_at_once(where: str) -> None:
    opened = await asyncio.gather(*(Database.open(where) for _ in range(5)))
    for database in opened:
        await database.ping()
        await database.close()


async def test_a_database_of_a_newer_version_is_left_alone(database: Database, where: str) -> None:
    await database.write(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(Fault, match=r"'9999'.*newer"):
        await Database.open(where)


async def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    def fail(connection: Connection) -> None:
        connection.execute(text("DELETE FROM alembic_version"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.write(fail)
    query = text("SELECT version_num FROM alembic_version")
    assert await database.read(lambda connection: connection.execute(query).scalar()) == schema.HEAD


async def test_callers_that_are_cancelled_hold_nothing_up(database: Database) -> None:
    table = SandboxTable(database=database, server_id="s")
    for _ in range(5):
        tasks = [asyncio.create_task(table.insert_within_quota(a_sandbox(f"{n}"), daily=1)) for n in range(10)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in results), results
    async with asyncio.timeout(30):
        await table.insert_within_quota(a_sandbox(key_id="bob"))


async def test_a_wrong_statement_is_a_fault_of_ours(database: Database) -> None:
    with pytest.raises(Fault):
        await database.read(lambda connection: connection.execute(text("SELECT nothing FROM nowhere")))


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite://", "sqlite:///:memory:", "postgres://host:port/name"])
async def test_a_wrong_url_is_named_by_its_variable(url: str) -> None:
    with pytest.raises(Invalid, match="DATABASE_URL"):
        await Database.open(url)


async def test_a_database_that_cannot_be_reached_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        await Database.open(f"postgres://me:secret@/name?host={tmp_path}", wait_s=0.5)


async def test_a_wrong_database_name_is_invalid(postgres_url: str) -> None:
    with pytest.raises(Invalid, match="DATABASE_URL"):
        await Database.open(postgres_url.replace("/test", "/no"))


async def test_only_their_owner_can_read_the_files(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "state" / "stockade.db"):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_a_locked_file_is_unavailable_until_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "stockade.db"
    async with await Database.open(path, timeout_s=0.5) as database:
        table = SandboxTable(database=database, server_id="s")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable):
                await table.insert_within_quota(a_sandbox())
            assert await table.get("sess_1") is None  # reading goes on
            other.execute("ROLLBACK")
        await table.insert_within_quota(a_sandbox())


FULL_DISK = """
import asyncio, os, subprocess, sys
from stockade.errors import Unavailable
from stockade.store import Database, SandboxTable
from tests.store.databases import a_sandbox
small = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=True)

def fill():
    with open(small + "/filler", "ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass

async def fails(work):
    try:
        await work
    except Unavailable as error:
        print("unavailable:", error)
    else:
        raise AssertionError("there was room")

async def main():
    path = small + "/stockade.db"
    async with await Database.open(path) as database:
        await SandboxTable(database=database, server_id="s").insert_within_quota(a_sandbox("first"))
        fill()
        table = SandboxTable(database=database, server_id="s")
        for number in range(100):  # what the log has room for already
            try:
                await table.insert_within_quota(a_sandbox(str(number), message="x" * 4000))
            except Unavailable:
                break
        await fails(table.insert_within_quota(a_sandbox("one", message="x" * 4000)))
        assert await table.get("first") is not None
    fill()
    async with await Database.open(path) as database:
        table = SandboxTable(database=database, server_id="s")
        assert await table.get("first") is not None
        await fails(table.insert_within_quota(a_sandbox("two")))
        os.unlink(small + "/filler")
        await table.insert_within_quota(a_sandbox("two"))
        assert await table.get("two") is not None

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
async def test_on_a_full_disk_reading_goes_on_and_writing_once_there_is_room(tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        ["unshare", "--mount", sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unavailable: ") == 2


async def test_a_damaged_file_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "stockade.db"
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 100)
    with pytest.raises(Fault, match="damaged"):
        await Database.open(path)


async def test_a_database_that_was_away_is_used_again_by_itself(postgres: Postgres, postgres_url: str) -> None:
    async with await Database.open(postgres_url, timeout_s=5, connections=4) as database:
        table = SandboxTable(database=database, server_id="s")
        await asyncio.gather(*(table.insert_within_quota(a_sandbox(f"sess_{n}")) for n in range(8)))
        await asyncio.to_thread(postgres.stop)
        try:
            for attempt in (table.get("sess_1"), table.insert_within_quota(a_sandbox("lost")), database.ping()):
                with pytest.raises(Unavailable):
                    await attempt
        finally:
            await asyncio.to_thread(postgres.start)
        for number in range(8):
            assert await table.get(f"sess_{number}") is not None
        await table.insert_within_quota(a_sandbox("after"))


async def test_a_database_that_hangs_is_unavailable_and_used_again(postgres: Postgres, postgres_url: str) -> None:
    async with await Database.open(postgres_url, timeout_s=0.5, connections=2) as database:
        table = SandboxTable(database=database, server_id="s")
        await table.insert_within_quota(a_sandbox())
        postgres.freeze()
        try:
            async with asyncio.timeout(30):
                results = await asyncio.gather(
                    *(table.get("sess_1") for _ in range(3)),
                    *(table.insert_within_quota(a_sandbox(f"lost_{n}")) for n in range(3)),
                    return_exceptions=True,
                )
        finally:
            postgres.thaw()
        assert all(isinstance(one, Unavailable) for one in results), results
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(Unavailable):
                    assert await table.get("sess_1") is not None
                    break


async def test_a_server_keeps_its_id(tmp_path: Path) -> None:
    first = server_id(tmp_path / "state")
    assert server_id(tmp_path / "state") == first
    assert server_id(tmp_path / "other") != first
    (tmp_path / "state" / "server-id").write_text("")
    with pytest.raises(Fault, match="server-id"):
        server_id(tmp_path / "state")
