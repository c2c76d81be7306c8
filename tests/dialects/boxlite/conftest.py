"""A server with boxes, shared by the tests of a file."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.app.serving import Server
from tests.dialects.boxlite.platform import Client, client_of, platform


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with platform(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
async def real(server: Server, anyio_backend: str) -> AsyncIterator[Client]:
    """A client of the server with the operator's key."""
    async with client_of(server) as client:
        yield client
