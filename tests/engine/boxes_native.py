"""Boxes with the real parts: native backend, disks, SQLite."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from stockade.app.sandboxes import running_sandboxes
from stockade.backends.native.backend import NativeBackend
from stockade.config_sandboxes import BuildsConfig, LiveConfig
from stockade.engine import LimitPolicy
from stockade.engine.box_needs import BoxOptions
from stockade.engine.box_records import BoxRecords
from stockade.engine.boxes import Boxes
from stockade.engine.images import Images
from stockade.engine.ports import Ports
from stockade.engine.processes import Processes
from stockade.engine.sandboxes import Sandboxes
from stockade.engine.volumes import Volumes
from stockade.model import Box, ExecSpec, Sandbox
from stockade.store.boxes import BoxTable
from stockade.store.builds import BuildTable
from stockade.store.database import Database
from stockade.store.sandboxes import SandboxTable
from stockade.store.seals import Seal
from stockade.store.snapshots import SnapshotTable
from stockade.store.volumes import VolumeTable
from tests.backends.sandboxes import MB, limits
from tests.engine.live_fakes import ONE

__all__ = ["NativeRunning", "native_boxes"]

ID = "00000000-0000-0000-0000-000000000001"


@dataclass(frozen=True, kw_only=True)
class NativeRunning:
    """A server."""

    boxes: Boxes
    volumes: Volumes
    sandboxes: Sandboxes

    async def run(self, box: Box, script: str, *, user: str | None = None) -> str:
        """What a shell in a box prints; it must end with 0."""
        row = await self.boxes.sandbox(ONE, box)
        spec = ExecSpec(argv=("/bin/sh", "-c", script), stdin=False, user=user or box.user)
        execution = await self.sandboxes.exec(self.boxes.acting(box), row.id, spec)
        stdout, stderr = bytearray(), bytearray()
        try:
            async with asyncio.timeout(60):
                while True:
                    output = await execution.streams.read(len(stdout), len(stderr))
                    stdout += output.stdout.data
                    stderr += output.stderr.data
                    if output.end is not None:
                        break
        finally:
            await execution.kill()
        assert output.end.exit_code == 0, (output.end, bytes(stdout), bytes(stderr))
        return stdout.decode()


@contextlib.asynccontextmanager
async def native_boxes(backend: NativeBackend, database: Database, directory: Path) -> AsyncIterator[NativeRunning]:
    """One server's life over a backend and a database that outlive it."""

    async def on_ended(sandbox: Sandbox) -> None:
        return None

    ports = Ports(backend.sandboxing)
    async with (
        ports.running(),
        running_sandboxes(
            backend=backend.sandboxing,
            table=SandboxTable(database=database, server_id=ID),
            build_table=BuildTable(database=database, server_id=ID),
            ports=ports,
            on_ended=on_ended,
            limits=LimitPolicy(defaults=limits(), maximum=limits(memory_bytes=1024 * MB)),
            live=LiveConfig(clean_up_s=0.5, most_lifetime_s=600.0),
            images=Images(),
            builds=BuildsConfig(network="none"),
            directory=directory / "images",
        ) as sandboxes,
    ):
        table = BoxTable(database=database, server_id=ID, seal=Seal("ab" * 32))
        records = BoxRecords(table)
        options = BoxOptions(sweep_s=3600.0, stop_grace_s=5.0)
        volumes = Volumes(
            table=VolumeTable(database=database, server_id=ID),
            boxes=table,
            records=records,
            disks=backend.disks,
            options=options,
        )
        boxes = Boxes(
            table=table,
            snapshots=SnapshotTable(database=database, server_id=ID),
            records=records,
            sandboxes=sandboxes,
            processes=Processes(sandboxes),
            disks=backend.disks,
            pausing=backend.sandboxing,
            volumes=volumes,
            options=options,
        )
        async with volumes.running(), boxes.running():
            yield NativeRunning(boxes=boxes, volumes=volumes, sandboxes=sandboxes)
