"""Whenever a server is killed: what it acknowledged is there, and nothing else is left on the disks."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.model import BoxState
from stockade.store.database import Database
from tests.engine.boxes_native import native_boxes
from tests.engine.live_fakes import ONE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="disks that hold what they may need root"),
]

ROOT = Path(__file__).parents[2]
KILLS = 12 if os.environ.get("STOCKADE_LONG_TESTS") else 2


async def killed_after(directory: Path, lines: int, seed: int) -> list[list[str]]:
    """Run the server until it has said so much, kill it, and return that."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.engine.boxes_killed", str(directory), str(seed),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    said: list[list[str]] = []
    try:
        async with asyncio.timeout(120):
            while len(said) < lines:
                line = (await process.stdout.readline()).decode()
                assert line, "the server ended by itself"
                said += _told(line)
        process.kill()
        said += _told((await process.stdout.read()).decode())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    return said


def _told(text: str) -> list[list[str]]:
    """What was acknowledged, without what was logged."""
    words = [line.split() for line in text.splitlines() if line.strip()]
    return [one for one in words if one[0] in ("made", "snapshot", "removing", "removed")]


async def test_what_was_acknowledged_is_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    made: set[str] = set()
    gone: set[str] = set()
    doubtful: set[str] = set()
    snapshots: set[tuple[str, str]] = set()
    for number in range(KILLS):
        for word, *rest in await killed_after(tmp_path, 25 + 7 * number, seed=10 * number):
            if word == "made":
                made.add(rest[0])
            elif word == "snapshot":
                snapshots.add((rest[0], rest[1]))
            elif word == "removing":
                doubtful.add(rest[0])
            elif word == "removed":
                gone.add(rest[0])
        backend = NativeBackend(BackendOptions(data_dir=tmp_path / "data", embedded=True))
        await backend.start()
        try:
            if (await backend.disks.facts()).kind == "none":
                pytest.skip("no disks on this host")
            async with (
                await Database.open(tmp_path / "state" / "boxes.db") as database,
                native_boxes(backend, database, tmp_path) as server,
            ):
                boxes = {box.id: box for box in (await server.boxes.list(ONE)).items}
                assert made - gone - doubtful <= boxes.keys()
                assert not gone & boxes.keys()
                assert {box.state for box in boxes.values()} <= {BoxState.CONFIGURED, BoxState.STOPPED}
                disks = {box.disk for box in boxes.values()}
                for box in boxes.values():
                    kept = await server.boxes.snapshots(ONE, box)
                    assert {name for id, name in snapshots if id == box.id} <= {one.name for one in kept}
                    disks |= {one.disk for one in kept}
                disks |= {one.disk for one in await server.volumes.list(ONE)}
                assert {one.name for one in await backend.disks.list()} == disks
                for box in list(boxes.values())[:3]:
                    assert await server.run(box, "echo alive") == "alive\n"
                    await server.boxes.stop(ONE, box, grace_s=0)
        finally:
            await backend.close()
