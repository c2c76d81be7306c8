"""Wardens of the tests' own."""

from collections.abc import Iterator

import pytest

from tests.warden.raw import Client, Warden


@pytest.fixture(scope="module")
def warden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warden]:
    """One for the module: what any test does to it the next one sees."""
    warden = Warden(tmp_path_factory.mktemp("warden"))
    assert warden.word == {"ok": True}
    yield warden
    warden.close()


@pytest.fixture
def client(warden: Warden) -> Iterator[Client]:
    with warden.client() as client:
        yield client
