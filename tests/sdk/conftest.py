"""A server of the protocol for every test, and clients of it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stockade.sdk import AsyncClient, Client
from tests.sdk.stub import KEY, Stub, serving


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    root = tmp_path / "inside"
    root.mkdir()
    with serving(root) as stub:
        yield stub


@pytest.fixture
def client(stub: Stub) -> Iterator[Client]:
    with Client(stub.url, KEY, timeout_s=10) as client:
        yield client


@pytest.fixture
async def async_client(stub: Stub) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stub.url, KEY, timeout_s=10) as client:
        yield client
