"""Fixtures: databases that are empty but for our tables."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stockade.model import Limits, Network, Sandbox, SandboxState
from stockade.store import Database
from tests.postgres import Postgres

NOON = datetime(2026, 2, 3, 12, 0, 0, tzinfo=UTC)
LIMITS = Limits(
    wall_s=60.0,
    cpu_s=60.0,
    cpus=1.0,
    memory_bytes=1 << 29,
    processes=50,
    disk_bytes=1 << 26,
    disk_inodes=1000,
    open_files=100,
    stack_bytes=1 << 20,
    output_bytes=1 << 20,
)


def a_sandbox(id: str = "sess_1", *, key_id: str = "ann", minutes: float = 0, **changes: Any) -> Sandbox:
    """A sandbox that was asked for some minutes after noon."""
    members: dict[str, Any] = {
        "id": id,
        "account_id": key_id,
        "key_id": key_id,
        "dialect": "execbox",
        "state": SandboxState.CREATING,
        "image": "host",
        "command": ("sh", "-c", "true"),
        "env": {"A": "1"},
        "cwd": "/home/user",
        "user": "user",
        "limits": LIMITS,
        "network": Network(),
        "labels": {},
        "created_at": NOON + timedelta(minutes=minutes),
    }
    return Sandbox(**(members | changes))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    binaries = Postgres.find()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    server = Postgres(binaries)
    try:
        server.make()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database is: a path, or a URL."""
    if request.param == "sqlite":
        return str(tmp_path / "state" / "stockade.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def database(where: str, anyio_backend: str) -> AsyncIterator[Database]:
    async with await Database.open(where) as opened:
        yield opened
