"""Fixtures that every suite shares: a started engine on the native backend, and a check that nothing is left behind."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stockade.app.engine import build_engine
from stockade.config import Config
from stockade.engine import Engine
from tests import leftovers


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The server runs on asyncio; one loop for the session, so that session fixtures can be asynchronous."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """After the last test no process, mount, control group or shared-memory file of ours is there."""
    before = leftovers.snapshot()
    yield
    deadline = time.monotonic() + 10.0
    while (left := leftovers.since(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "left behind by the tests:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The defaults, with a data directory of the session's own."""
    allow = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids") if os.geteuid() else ()
    base = Config()
    sandbox = base.sandbox.__class__(allow_unenforced=allow)
    return Config(data_dir=Path(tmp_path_factory.mktemp("data")), sandbox=sandbox)


@pytest.fixture(scope="session")
async def engine(config: Config, anyio_backend: str) -> AsyncIterator[Engine]:
    """An engine on a started native backend, the real one."""
    async with build_engine(config, embedded=True) as engine:
        yield engine
