"""A server without privileges that was taken over: what it leaves in the directory of its state for root to open."""

import os
import pwd
from pathlib import Path

import pytest

from stockade.app.records import STATE, prepare_records
from stockade.config import Config
from stockade.errors import Fault

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="only root hands a directory over")]
OWNER = pwd.getpwnam("nobody")


@pytest.mark.parametrize("name", ["stockade.db-wal", "stockade.db-journal", "stockade.db", "other"])
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo"])
async def test_root_opens_nothing_but_plain_files(tmp_path: Path, name: str, kind: str) -> None:
    config = Config(data_dir=tmp_path / "data")
    assert await prepare_records(config, owner=OWNER)
    state, victim = config.data_dir / STATE, tmp_path / "victim"
    assert {path.stat().st_uid for path in (state, *state.iterdir())} == {OWNER.pw_uid}
    victim.write_bytes(b"root's")
    (state / name).unlink(missing_ok=True)
    if kind == "link":
        (state / name).symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, state / name)
    else:
        os.mkfifo(state / name)
    with pytest.raises(Fault, match=name):
        await prepare_records(config, owner=OWNER)
    assert (victim.read_bytes(), victim.stat().st_uid) == (b"root's", 0)
    (state / name).unlink()
    await prepare_records(config, owner=OWNER)
    assert state.stat().st_uid == OWNER.pw_uid
