"""Sizes of disks, where nothing enforces them."""

from dataclasses import replace
from pathlib import Path

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.disks import DISK_SIZE
from stockade.backends.native.backend import NativeBackend
from stockade.errors import CannotEnforce
from tests.backends.conftest import UNENFORCED
from tests.backends.sandboxes import MB

pytestmark = pytest.mark.anyio


async def test_disks_that_nothing_limits_are_for_who_has_agreed_to_that(tmp_path: Path) -> None:
    unenforced = tuple(one for one in UNENFORCED if one != DISK_SIZE)
    options = BackendOptions(data_dir=tmp_path, allow_unenforced=unenforced, embedded=True, disks="directory")
    for allowed in (False, True):
        backend = NativeBackend(replace(options, allow_unenforced=UNENFORCED) if allowed else options)
        try:
            if allowed:
                await backend.disks.make("first", size_bytes=MB)
                assert (await backend.disks.info("first")).size_bytes == 0
            else:
                for refused in (
                    backend.disks.make("first", size_bytes=MB),
                    backend.disks.copy("first", "second"),
                ):
                    with pytest.raises(CannotEnforce):
                        await refused
        finally:
            await backend.close()
