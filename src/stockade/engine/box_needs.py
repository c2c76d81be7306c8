"""What the life of a box needs of others, and what it is told to be like."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from stockade.backends.sandboxing import FileAccess
from stockade.model import Actor, Box, BoxState, Diversion, SecretRule, Snapshot, Volume
from stockade.model.images import ImageRecord
from stockade.store.boxes import BoxPage

__all__ = [
    "Admission",
    "BoxOptions",
    "BoxTable",
    "BoxTiming",
    "Diversions",
    "ImageStore",
    "SnapshotTable",
    "VolumeTable",
]

_MIB = 1 << 20
_GIB = 1 << 30


class BoxTable(Protocol):
    """The records of all boxes, in a database: see `store.boxes`. Every method raises Unavailable while it is away."""

    async def insert(self, new: Sequence[Box], *, most: int, is_hidden: bool = False) -> None: ...

    async def reveal(self, ids: Collection[str]) -> None: ...

    async def find(self, owner: str, id_or_name: str, /) -> Box | None: ...

    async def get(self, id: str, /) -> tuple[Box, bool] | None: ...

    async def list(
        self,
        owner: str | None = None,
        *,
        states: Collection[BoxState] | None = None,
        is_here: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BoxPage: ...

    async def list_timed(self) -> Sequence[Box]: ...

    async def list_hidden(self) -> Sequence[tuple[str, str]]: ...

    async def move(self, id: str, from_states: Collection[BoxState], /, **changes: Any) -> Box | None: ...

    async def touch(self, used: Mapping[str, datetime], /) -> None: ...

    async def hide(self, id: str, /) -> bool: ...

    async def delete(self, ids: Collection[str], /) -> None: ...

    async def uses_image(self, digest: str, /) -> bool: ...


class SnapshotTable(Protocol):
    """The records of all snapshots: see `store.snapshots`."""

    async def insert(self, snapshot: Snapshot, *, most: int) -> None: ...

    async def reveal(self, id: str, *, size_bytes: int) -> None: ...

    async def get(self, box_id: str, name: str, /) -> Snapshot | None: ...

    async def list(self, box_id: str, /) -> Sequence[Snapshot]: ...

    async def list_hidden(self, box_id: str | None = None, /) -> Sequence[tuple[str, str]]: ...

    async def hide(self, box_id: str, id: str | None = None, /) -> None: ...

    async def delete(self, ids: Collection[str], /) -> None: ...


class VolumeTable(Protocol):
    """The records of all volumes: see `store.volumes`."""

    async def insert(self, volume: Volume, *, owner: str, most: int) -> None: ...

    async def reveal(self, id: str, /) -> None: ...

    async def find(self, owner: str, id_or_name: str, /) -> Volume | None: ...

    async def list(self, owner: str, /) -> Sequence[Volume]: ...

    async def list_hidden(self) -> Sequence[tuple[str, str]]: ...

    async def hide(self, id: str, /) -> bool: ...

    async def delete(self, ids: Collection[str], /) -> None: ...


class ImageStore(Protocol):
    """Images that were brought here: see `engine.image_store`."""

    async def ensure(self, actor: Actor, reference: str) -> ImageRecord:
        """The image of that name; it is brought here where that is allowed. Raises UnknownImage, ImageUnavailable."""
        ...

    def using(self, digest: str) -> AbstractContextManager[None]:
        """Keep an image during the block: until what stands on it is on record."""
        ...


class Admission(Protocol):
    """What a sandbox is given so that its secrets are put in for it: see `engine.diversions`."""

    @property
    def diversion(self) -> Diversion: ...

    @property
    def certificate(self) -> str: ...

    @property
    def env(self) -> Mapping[str, str]: ...


class Diversions(Protocol):
    """Puts secrets into what sandboxes send: see `engine.diversions`."""

    def admit(self, sandbox_id: str, rules: tuple[SecretRule, ...]) -> Admission: ...

    def forget(self, sandbox_id: str) -> None: ...

    async def install(self, files: FileAccess, admission: Admission) -> None:
        """Let the programs of a sandbox trust the certificate; *files* are root's."""
        ...


@dataclass(frozen=True, kw_only=True)
class BoxTiming:
    """How long the last start of a box took, and, of its first one, what was done when it was made."""

    total_s: float
    image_s: float
    """Until its image was there."""
    disk_s: float
    """Until its disk was made."""
    sandbox_s: float
    """Until the sandbox ran."""
    main_s: float
    """Until the main process had been started; 0 where there is none."""


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """How much there may be, and what is waited for how long: `config_boxes.BoxesConfig`."""

    default_disk_bytes: int = 2 * _GIB
    most_disk_bytes: int = 64 * _GIB
    most_of_account: int = 1000
    most_volumes: int = 100
    most_snapshots: int = 100
    volume_bytes: int = 2 * _GIB
    sweep_s: float = 2.0
    stop_grace_s: float = 5.0
    disk_s: float = 900.0
    """Seconds that a copy of a disk may take."""
    at_once: int = 8
    """Boxes of a fork that are copied, or started, at the same time."""
