"""A server that makes, starts, copies and removes boxes until it is killed, and says what it has acknowledged."""

import asyncio
import contextlib
import random
import sys
from pathlib import Path

from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.errors import Conflict, NotFound
from stockade.model import Box, BoxRequest
from stockade.store.database import Database
from tests.backends.sandboxes import MB, limits
from tests.engine.boxes_native import NativeRunning, native_boxes
from tests.engine.live_fakes import ONE


def say(*words: str) -> None:
    print(*words, flush=True)


async def churn(server: NativeRunning, choice: random.Random) -> None:
    """One box's life, told step by step."""
    request = BoxRequest(image="host", limits=limits(wall_s=300.0, memory_bytes=64 * MB))
    made: list[Box] = []
    while True:
        step = choice.choice(("create", "start", "snapshot", "clone", "stop", "restore", "remove", "volume"))
        with contextlib.suppress(Conflict, NotFound):
            if step == "create" or not made:
                made.append(await server.boxes.create(ONE, request))
                say("made", made[-1].id)
                continue
            box = choice.choice(made)
            if step == "start":
                await server.boxes.start(ONE, box)
            elif step == "snapshot":
                name = f"s{choice.randrange(1000)}"
                await server.boxes.snapshot(ONE, box, name)
                say("snapshot", box.id, name)
            elif step == "clone":
                made.append(await server.boxes.clone(ONE, box))
                say("made", made[-1].id)
            elif step == "stop":
                await server.boxes.stop(ONE, box, grace_s=0)
            elif step == "restore":
                for snapshot in (await server.boxes.snapshots(ONE, box))[:1]:
                    await server.boxes.restore(ONE, box, snapshot.name)
            elif step == "remove" and len(made) > 2:
                made.remove(box)
                say("removing", box.id)
                await server.boxes.remove(ONE, box, force=True)
                say("removed", box.id)
            elif step == "volume":
                volume = await server.volumes.create(ONE)
                if choice.random() < 0.8:
                    await server.volumes.remove(ONE, volume.id)


async def main(directory: Path, seed: int) -> None:
    backend = NativeBackend(BackendOptions(data_dir=directory / "data", embedded=True))
    await backend.start()
    async with (
        await Database.open(directory / "state" / "boxes.db") as database,
        native_boxes(backend, database, directory) as server,
    ):
        await asyncio.gather(*(churn(server, random.Random(seed + number)) for number in range(3)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
