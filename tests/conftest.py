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
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the last test no process, mount, control group or shared-memory file of ours is there."""
    before = leftovers.snapshot()
    yield
    if not hasattr(request.config, "workerinput"):  # else who works beside us is not done, and the controller looks
        left = _left_behind(before)
        assert not left, left


_BEFORE = pytest.StashKey[leftovers.Snapshot]()


def pytest_sessionstart(session: pytest.Session) -> None:
    is_controller = session.config.getoption("numprocesses", None) and not hasattr(session.config, "workerinput")
    if is_controller:  # of pytest-xdist
        session.config.stash[_BEFORE] = leftovers.snapshot()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """As `nothing_is_left_behind`, where several workers share the tests: they have all ended by now."""
    before = session.config.stash.get(_BEFORE, None)
    if before is not None and (left := _left_behind(before)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(left, red=True)


def _left_behind(before: leftovers.Snapshot) -> str:
    """What is still there after a while, in words; empty when there is nothing."""
    deadline = time.monotonic() + 30.0
    while (left := leftovers.since(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return "left behind by the tests:\n" + "\n".join(left) if left else ""


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
