"""Boxes, and what they stand on: disks, images from elsewhere, volumes, secrets."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from stockade import __version__
from stockade.app.sandboxes import build_limits
from stockade.backends.base import Backend
from stockade.backends.disks import Disks, Pausing
from stockade.backends.sandboxing import Sandboxing
from stockade.config import Config
from stockade.engine import Engine, LimitPolicy
from stockade.engine.box_archives import BoxArchives
from stockade.engine.box_needs import BoxOptions
from stockade.engine.box_records import BoxRecords
from stockade.engine.boxes import Boxes
from stockade.engine.diversions import Diversions
from stockade.engine.image_store import ImageStore
from stockade.engine.images import HOST_IMAGE
from stockade.engine.registry_credentials import RegistryCredentials
from stockade.engine.sandboxes import Sandboxes
from stockade.engine.tasks import Tasks
from stockade.engine.volumes import Volumes
from stockade.engine.workshops import Workshops
from stockade.errors import UnknownImage
from stockade.model import SandboxState, owner_of
from stockade.store import Database
from stockade.store.boxes import BoxTable
from stockade.store.images import ImageTable
from stockade.store.registry_credentials import RegistryCredentialTable
from stockade.store.seals import Seal
from stockade.store.secret_file import kept_secret
from stockade.store.snapshots import SnapshotTable
from stockade.store.volumes import VolumeTable
from stockade.wire.registries import Registries

__all__ = ["Ground", "running_ground", "stands_on", "with_boxes"]

_BOX_SECRET, _REGISTRY_SECRET, _DIVERSION_SECRET = "box-secret", "registry-secret", "diversion-secret"
_DIVERSION_PORT = "diversion-port"


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What boxes, and sandboxes of images from elsewhere, stand on."""

    disks: Disks
    workshops: Workshops
    images: ImageStore
    registries: RegistryCredentials
    tasks: Tasks
    boxes: BoxTable


@contextlib.asynccontextmanager
async def running_ground(
    config: Config,
    backend: Backend,
    *,
    database: Database,
    server_id: str,
    state: Path,
    limits: LimitPolicy,
    is_own: Callable[[str], bool],
    stands_on: Callable[[str], bool] = lambda _: False,
) -> AsyncIterator[Ground | None]:
    """Disks and images during the block; `None` where the backend has none.

    Args:
        state: directory of what the server itself writes.
        limits: of runs.
        is_own: whether a name is one of the server's own images.
        stands_on: whether a sandbox that lives is of the image of that digest.

    Raises:
        Unavailable, Fault: the database does not answer, or a secret cannot be kept.
        ConfigError: a setting of registries cannot be meant.
    """
    disks: Disks | None = getattr(backend, "disks", None)
    sandboxing: Sandboxing | None = getattr(backend, "sandboxing", None)
    if disks is None or sandboxing is None:
        yield None
        return
    tasks = Tasks()
    table = BoxTable(
        database=database,
        server_id=server_id,
        seal=Seal(kept_secret(state, _BOX_SECRET)),
        most_bytes=config.boxes.most_bytes_of_account,
    )
    credentials = RegistryCredentials(
        RegistryCredentialTable(database=database), seal=Seal(kept_secret(state, _REGISTRY_SECRET))
    )

    async def in_use(digest: str) -> bool:
        return stands_on(digest) or await table.uses_image(digest)

    async with tasks.running(), Registries(config.registries, credentials) as registries:
        workshops = Workshops(backend=sandboxing, limits=build_limits(config.builds, limits.maximum), tasks=tasks)
        images = ImageStore(
            table=ImageTable(database=database, server_id=server_id),
            disks=disks,
            workshops=workshops,
            tasks=tasks,
            registries=registries,
            options=config.registries,
            in_use=in_use,
            is_own=is_own,
        )
        async with images.running():
            yield Ground(
                disks=disks, workshops=workshops, images=images, registries=credentials, tasks=tasks, boxes=table
            )


@contextlib.asynccontextmanager
async def with_boxes(
    config: Config, engine: Engine, ground: Ground, *, database: Database, server_id: str, state: Path, spool: Path
) -> AsyncIterator[Engine]:
    """*engine* with boxes, those of the server before included.

    Args:
        spool: a directory for large files without names.

    Raises:
        Unavailable: the database or the backend does not answer.
    """
    pausing: Pausing | None = getattr(engine.backend, "sandboxing", None)
    if engine.sandboxes is None or engine.processes is None or pausing is None:
        yield engine
        return
    options = BoxOptions(
        default_disk_bytes=config.boxes.default_disk_bytes,
        most_disk_bytes=config.boxes.most_disk_bytes,
        most_of_account=config.boxes.most_of_account,
        most_volumes=config.boxes.most_volumes,
        most_snapshots=config.boxes.most_snapshots,
        volume_bytes=config.boxes.volume_bytes,
        sweep_s=config.boxes.sweep_s,
        stop_grace_s=config.boxes.stop_grace_s,
    )
    records = BoxRecords(ground.boxes)
    volumes = Volumes(
        table=VolumeTable(database=database, server_id=server_id, most_bytes=config.boxes.most_bytes_of_account),
        boxes=ground.boxes,
        records=records,
        disks=ground.disks,
        options=options,
    )
    diversions = Diversions(
        key=kept_secret(state, _DIVERSION_SECRET),
        port_file=state / _DIVERSION_PORT,
        trusted=config.boxes.secrets_ca,
    )
    boxes = Boxes(
        table=ground.boxes,
        snapshots=SnapshotTable(database=database, server_id=server_id, most_bytes=config.boxes.most_bytes_of_account),
        records=records,
        sandboxes=engine.sandboxes,
        processes=engine.processes,
        disks=ground.disks,
        pausing=pausing,
        volumes=volumes,
        images=ground.images,
        diversions=diversions,
        options=options,
        backends=engine.runs.backends,
    )
    archives = BoxArchives(
        boxes=boxes,
        disks=ground.disks,
        images=ground.images,
        workshops=ground.workshops,
        tasks=ground.tasks,
        spool=spool,
        version=__version__,
        own_images=frozenset({HOST_IMAGE.name}),
        most_image_bytes=config.registries.most_image_bytes,
    )
    async with diversions.running(), volumes.running(), boxes.running():
        yield replace(
            engine,
            boxes=boxes,
            volumes=volumes,
            images=ground.images,
            registries=ground.registries,
            archives=archives,
        )


def stands_on(sandboxes: Sandboxes, digest: str) -> bool:
    """Whether a sandbox that lives here is of the image of that digest."""
    for sandbox_id in sandboxes.lives.ids:
        row = sandboxes.lives.find(sandbox_id)
        if row is not None and row.state is not SandboxState.ENDED:
            with contextlib.suppress(UnknownImage):
                if sandboxes.images.find(row.image, owner_of(row.account_id, row.key_id)).digest == digest:
                    return True
    return False
