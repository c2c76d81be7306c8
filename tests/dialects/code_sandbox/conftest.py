"""The server that most of the contract is held against, started once for all tests of this folder."""

import contextlib
from pathlib import Path

import pytest

from tests.dialects.code_sandbox.serving import CodeSandbox, code_sandbox

FOLDER = Path(__file__).parent
SETTINGS = {"STOCKADE_JOBS_MOST_OF_BATCH": "20", "STOCKADE_SANDBOX_DEFAULTS_CPU_S": "1"}


class Shared:
    """The server, once it was needed, kept for the next test."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.sandbox: CodeSandbox | None = None

    def get(self, factory: pytest.TempPathFactory) -> CodeSandbox:
        if self.sandbox is None:
            folder = factory.mktemp("code-sandbox") / "data"
            self.sandbox = self.stack.enter_context(code_sandbox(folder, **SETTINGS))
        server = self.sandbox.server
        assert server.process.poll() is None, "the server has ended:\n" + "".join(server.log[-20:])
        return self.sandbox

    def close(self) -> None:
        self.sandbox = None
        self.stack.close()


SHARED = Shared()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """The server ends with the last test of this folder, not with that of the session."""
    if nextitem is None or FOLDER not in nextitem.path.parents:
        SHARED.close()


@pytest.fixture
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> CodeSandbox:
    """The dialect alone on its address; the same one for all tests."""
    return SHARED.get(tmp_path_factory)


@pytest.fixture(params=["alone", "merged"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CodeSandbox:
    """The dialect alone on its address, and beside all others."""
    sandbox = SHARED.get(tmp_path_factory)
    return sandbox if request.param == "alone" else sandbox.merged()
