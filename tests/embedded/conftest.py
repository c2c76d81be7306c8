"""Sandboxes of this process and of a server: what is said of the ones must be true of the others."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from stockade.embedded.background import background
from tests.app.serving import ALLOW_AS_USER
from tests.dialects.boxlite.platform import KEY, platform

Where = dict[str, Any]
"""Arguments that say where a sandbox is."""

freezes = pytest.mark.skipif(
    os.geteuid() != 0,
    reason="an ordinary user without delegated control groups cannot pause a sandbox, nor copy its disk while it runs",
)


@pytest.fixture(scope="session")
def local(nothing_is_left_behind: None) -> Iterator[Where]:
    """An engine of this process, which ends before it is looked for what is left."""
    if os.geteuid():
        os.environ["STOCKADE_SANDBOX_ALLOW_UNENFORCED"] = f"{ALLOW_AS_USER},disk_size"
    yield {}
    background().close()


@pytest.fixture(scope="session")
def remote(local: Where, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Where]:
    """A server."""
    with platform(tmp_path_factory.mktemp("library")) as server:
        yield {"url": server.url, "api_key": KEY}
        background().close()  # it removes what is there, as long as there is a server


@pytest.fixture(params=["local", "remote"])
def where(request: pytest.FixtureRequest) -> Where:
    found: Where = request.getfixturevalue(request.param)
    return found
