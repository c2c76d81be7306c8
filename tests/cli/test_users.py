"""`stockade users`: people who log in, on the command line."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stockade.accounts import Accounts, UsedUp, WrongCredentials
from stockade.cli.users import users
from stockade.config_accounts import AccountsConfig
from stockade.errors import StockadeError
from stockade.model.jobs import Job, JobState
from stockade.model.users import User
from stockade.store import Database, SandboxTable
from tests.store.databases import a_sandbox
from tests.worker.processes import open_queue
from tests.worker.working import a_job

ADA = "ada@example.com"
LONG = "correct horse battery"

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on a data directory of its own; what it printed."""
    monkeypatch.setenv("STOCKADE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("STOCKADE_USERS_PUBLIC_URL", "https://code.example")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    runner = CliRunner()

    def run(*arguments: str, input: str = "") -> str:
        found = runner.invoke(users, list(arguments), input=input)
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        assert found.exit_code == 0, found.output
        return found.stdout

    return run


def log_in(data_dir: Path, password: str, *, email: str = ADA, reset: str = "") -> User:
    """Who logs in with that password; with the token *reset*, it is chosen before."""

    async def work() -> User:
        async with await Database.open(data_dir / "state" / "stockade.db") as database:
            accounts = Accounts.on(database, AccountsConfig())
            try:
                if reset:
                    await accounts.users.finish_reset(reset, password)
                return await accounts.users.log_in(email, password, address="")
            finally:
                await accounts.close()

    return asyncio.run(work())


def test_the_operator_makes_users_and_hands_passwords_out(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    password = run("create", ADA, "--name", "Ada", "--role", "admin").strip()
    assert len(password) >= 20
    assert log_in(data, password).is_admin
    run("create", "bob@example.com", "--password-stdin", "--tier", "pro", input=f"{LONG}\n")
    assert log_in(data, LONG, email="bob@example.com").name == "bob@example.com"
    link = run("reset", "ADA@example.com").strip()
    begin, _, token = link.partition("#token=")
    assert begin == "https://code.example/reset"
    log_in(data, "another long password", reset=token)
    with pytest.raises(UsedUp):
        log_in(data, "another long password", reset=token)
    run("password", ADA, input=f"{LONG}\n")
    log_in(data, LONG)


def test_users_are_listed_with_role_tier_and_state_and_no_hash(run: Run) -> None:
    run("create", ADA, "--role", "admin")
    made = json.loads(run("create", "bob@example.com", "--organization", "[bold]Acme", "--json"))
    run("tier", "bob@example.com", "starter")
    run("lock", made["id"])
    bob, ada = json.loads(run("list", "--json"))
    assert (bob["id"], bob["tier"], bob["role"], bob["locked"]) == (made["id"], "starter", "user", True)
    assert (ada["email"], ada["tier"], ada["role"], ada["last_login"]) == (ADA, "enterprise", "admin", None)
    assert "argon2" not in str(bob)
    shown = run("list")
    assert bob["id"] in shown
    assert "locked" in shown
    assert [one["email"] for one in json.loads(run("list", "ACME", "--json"))] == ["bob@example.com"]


def test_a_role_is_given_and_taken_but_somebody_stays_admin(run: Run) -> None:
    run("create", ADA)
    run("role", ADA, "admin")
    with pytest.raises(StockadeError, match="last admin"):
        run("role", ADA, "user")
    run("create", "bob@example.com", "--role", "admin")
    run("role", ADA, "user")


def test_who_is_locked_can_be_let_in_again_and_who_is_removed_cannot(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    run("create", ADA, "--password-stdin", input=f"{LONG}\n")
    run("lock", ADA)
    with pytest.raises(StockadeError, match="locked"):
        log_in(data, LONG)
    run("unlock", ADA)
    log_in(data, LONG)
    run("delete", ADA, "--yes")
    with pytest.raises(WrongCredentials):
        log_in(data, LONG)


@pytest.mark.parametrize("command", [["lock"], ["delete", "--yes"]])
def test_who_is_locked_or_removed_has_no_jobs_any_more(run: Run, tmp_path: Path, command: list[str]) -> None:
    run("create", ADA)
    run("create", "bob@example.com")
    bob, ada = [one["account"] for one in json.loads(run("list", "--json"))]
    running, waiting, other = a_job(key_id=ada), a_job(key_id=ada), a_job(key_id=bob)

    async def fill() -> None:
        async with open_queue(tmp_path / "data") as store:
            await store.add([running])
            assert await store.claim("w", most=1, lease_s=60)
            await store.add([waiting, other])
        async with await Database.open(tmp_path / "data" / "state" / "stockade.db") as database:
            table = SandboxTable(database=database, server_id="s")
            await table.insert_within_quota(a_sandbox("box", key_id=ada))

    async def look() -> list[Job | None]:
        async with open_queue(tmp_path / "data") as store:
            return [await store.get(job.id) for job in (running, waiting, other)]

    asyncio.run(fill())
    found = CliRunner().invoke(users, [*command, ADA], catch_exceptions=False)
    assert found.exit_code == 0
    assert found.stdout == ""
    assert "cancelled jobs: 2;" in found.stderr
    assert "sandboxes that live: 1;" in found.stderr
    ends, cancelled, untouched = asyncio.run(look())
    assert ends is not None
    assert (ends.state, ends.cancel_requested) == (JobState.RUNNING, True)
    assert cancelled is not None
    assert cancelled.state is JobState.CANCELLED
    assert untouched is not None
    assert (untouched.state, untouched.cancel_requested) == (JobState.QUEUED, False)


@pytest.mark.parametrize(
    ("arguments", "input", "message"),
    [
        (["create", "nonsense"], "", "invalid email format"),
        (["create", ADA, "--password-stdin"], "short\n", "at least 12"),
        (["create", ADA, "--tier", "royal"], "", "tier"),
        (["lock", "nobody@example.com"], "", "there is no user"),
    ],
)
def test_what_is_wrong_is_said(run: Run, arguments: list[str], input: str, message: str) -> None:
    with pytest.raises(StockadeError, match=message):
        run(*arguments, input=input)


def test_nobody_is_removed_by_mistake(run: Run, tmp_path: Path) -> None:
    run("create", ADA, "--password-stdin", input=f"{LONG}\n")
    runner: Any = CliRunner()
    assert runner.invoke(users, ["delete", ADA], input="n\n").exit_code == 1
    log_in(tmp_path / "data", LONG)
