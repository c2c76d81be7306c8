"""Backends that a test may lose."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native import NativeBackend
from tests.backends.sandboxes import STRANGERS, wardens

UNENFORCED = () if os.geteuid() == 0 else ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids")


@pytest.fixture(autouse=True)
def strangers() -> Iterator[None]:
    """Before a test makes wardens of its own: know those that are there."""
    STRANGERS.update(wardens())
    yield
    STRANGERS.clear()


@pytest.fixture
async def backend(tmp_path: Path, anyio_backend: str) -> AsyncIterator[NativeBackend]:
    """A native backend with a warden of its own."""
    backend = NativeBackend(BackendOptions(data_dir=tmp_path, embedded=True, allow_unenforced=UNENFORCED))
    await backend.start()
    yield backend
    await backend.close()
