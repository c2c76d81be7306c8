"""Fixtures of the security suite."""

from collections.abc import Iterator

import pytest

from stockade.attacks import Bait


@pytest.fixture(scope="session")
def bait() -> Iterator[Bait]:
    """Set out before the warden starts, so that whatever leaks from the host would have it."""
    with Bait() as bait:
        yield bait
