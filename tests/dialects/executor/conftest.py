"""The two kinds of server that the whole contract is held against, each started once for all tests of this folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dialects.executor.serving import Executor, IdleConnection, drop_in, own_address, platform, platform_sandbox

FOLDER = Path(__file__).parent


class Shared:
    """Servers that were needed, kept for the next test."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.executors: dict[str, Executor] = {}
        self.idle: dict[str, IdleConnection] = {}

    def get(self, kind: str, factory: pytest.TempPathFactory) -> Executor:
        if kind not in self.executors:
            folder = factory.mktemp(kind) / "data"
            if kind == "drop-in":
                executor = self.stack.enter_context(drop_in(folder))
            else:
                executor = platform_sandbox(self.stack.enter_context(platform(folder)))
            self.executors[kind] = executor
            self.idle[kind] = self.stack.enter_context(contextlib.closing(IdleConnection(executor)))
        executor = self.executors[kind]
        assert executor.server.process.poll() is None, "the server has ended:\n" + "".join(executor.server.log[-20:])
        return executor

    def close(self) -> None:
        self.executors.clear()
        self.idle.clear()
        self.stack.close()


SHARED = Shared()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """The servers end with the last test of this folder, not with that of the session."""
    if nextitem is None or FOLDER not in nextitem.path.parents:
        SHARED.close()


@pytest.fixture(params=["drop-in", "platform"])
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Executor:
    """A sandbox behind the protocol; the same one for all tests."""
    return SHARED.get(request.param, tmp_path_factory)


@pytest.fixture(params=["drop-in", "platform"])
def idle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> IdleConnection:
    """A connection that has been idle since the server was started."""
    SHARED.get(request.param, tmp_path_factory)
    return SHARED.idle[request.param]


@pytest.fixture(params=["drop-in", "own address"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """A sandbox by an address that speaks nothing else."""
    if request.param == "drop-in":
        yield SHARED.get("drop-in", tmp_path_factory)
        return
    executor = own_address(SHARED.get("platform", tmp_path_factory))
    with executor.http:
        yield executor


@pytest.fixture
def platform_executor(tmp_path_factory: pytest.TempPathFactory) -> Executor:
    """A sandbox of the platform, which speaks other protocols, too."""
    return SHARED.get("platform", tmp_path_factory)


@pytest.fixture
def folder(executor: Executor) -> str:
    """An empty folder in the sandbox."""
    return executor.stdout("mktemp -d").strip()
