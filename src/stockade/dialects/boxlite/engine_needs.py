"""What the dialect needs of the engine, as protocols: its routes are tested without one."""

from collections.abc import AsyncIterable, AsyncIterator, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from stockade.engine.box_needs import BoxOptions
from stockade.engine.image_sources import ImageProgress, ImageSource
from stockade.model import Actor, Box, BoxRequest, BoxState, Network, Sandbox, Snapshot, Volume
from stockade.model.images import ImageRecord
from stockade.model.registries import RegistryCredential

__all__ = [
    "Archives",
    "BoxPage",
    "BoxTiming",
    "Boxes",
    "Counts",
    "ImageUsage",
    "Images",
    "Pruned",
    "Registries",
    "Volumes",
]


class BoxPage(Protocol):
    @property
    def items(self) -> Sequence[Box]: ...

    @property
    def cursor(self) -> str | None: ...


class BoxTiming(Protocol):
    """How long the steps of a start took."""

    @property
    def total_s(self) -> float: ...

    @property
    def image_s(self) -> float: ...

    @property
    def disk_s(self) -> float: ...

    @property
    def sandbox_s(self) -> float: ...

    @property
    def main_s(self) -> float: ...


class Counts(Protocol):
    """Of the boxes of an account, since the server was started."""

    @property
    def started(self) -> int: ...

    @property
    def failed(self) -> int: ...

    @property
    def stopped(self) -> int: ...

    @property
    def running(self) -> int: ...


class Boxes(Protocol):
    @property
    def options(self) -> BoxOptions: ...

    def counts(self, actor: Actor) -> Counts: ...

    def acting(self, box: Box) -> Actor: ...

    async def create(self, actor: Actor, request: BoxRequest) -> Box: ...

    async def get(self, actor: Actor, id_or_name: str) -> Box: ...

    async def list(
        self,
        actor: Actor,
        *,
        states: Collection[BoxState] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> BoxPage: ...

    async def start(self, actor: Actor, box: Box) -> Box: ...

    async def stop(self, actor: Actor, box: Box, *, grace_s: float | None = None) -> Box: ...

    async def remove(self, actor: Actor, box: Box, *, force: bool = False) -> None: ...

    async def pause(self, actor: Actor, box: Box) -> Box: ...

    async def resume(self, actor: Actor, box: Box) -> Box: ...

    async def sandbox(self, actor: Actor, box: Box, *, start: bool = True) -> Sandbox: ...

    def using(self, box_id: str) -> AbstractContextManager[None]: ...

    async def update_network(self, actor: Actor, box: Box, network: Network) -> Box: ...

    async def snapshot(self, actor: Actor, box: Box, name: str) -> Snapshot: ...

    async def snapshots(self, actor: Actor, box: Box) -> Sequence[Snapshot]: ...

    async def get_snapshot(self, actor: Actor, box: Box, name: str) -> Snapshot: ...

    async def remove_snapshot(self, actor: Actor, box: Box, name: str) -> None: ...

    async def restore(self, actor: Actor, box: Box, name: str) -> Box: ...

    async def clone(self, actor: Actor, box: Box, *, name: str | None = None, snapshot: str | None = None) -> Box: ...

    async def fork(
        self, actor: Actor, box: Box, count: int, *, snapshot: str | None = None, start: bool = True
    ) -> tuple[Box, ...]: ...

    def timing(self, box_id: str) -> BoxTiming | None: ...


class Volumes(Protocol):
    async def create(self, actor: Actor, *, name: str | None = None, size_bytes: int | None = None) -> Volume: ...

    async def list(self, actor: Actor) -> Sequence[Volume]: ...

    async def get(self, actor: Actor, id_or_name: str) -> Volume: ...

    async def remove(self, actor: Actor, id_or_name: str, *, force: bool = False) -> None: ...


class Archives(Protocol):
    def export(self, actor: Actor, box: Box) -> AsyncIterator[bytes]: ...

    async def import_(self, actor: Actor, content: AsyncIterable[bytes], *, name: str | None = None) -> Box: ...


class ImageUsage(Protocol):
    """What an account has brought here."""

    @property
    def count(self) -> int: ...

    @property
    def limit(self) -> int | None: ...

    @property
    def known_bytes(self) -> int: ...


class Pruned(Protocol):
    """What went."""

    @property
    def images(self) -> Sequence[ImageRecord]: ...

    @property
    def freed_bytes(self) -> int: ...


class Images(Protocol):
    """See `engine.image_store`."""

    def list(self, actor: Actor) -> Sequence[ImageRecord]: ...

    def get(self, actor: Actor, name: str) -> ImageRecord: ...

    async def ensure(self, actor: Actor, reference: str, *, progress: ImageProgress | None = None) -> ImageRecord: ...

    async def pull(self, actor: Actor, reference: str, *, progress: ImageProgress | None = None) -> ImageRecord: ...

    async def add(
        self, source: ImageSource, *, reference: str, account_id: str, progress: ImageProgress | None = None
    ) -> ImageRecord: ...

    async def alias(self, actor: Actor, name: str, alias: str) -> ImageRecord: ...

    async def unalias(self, actor: Actor, alias: str) -> None: ...

    async def remove(self, actor: Actor, name: str) -> ImageRecord: ...

    def usage(self, actor: Actor) -> ImageUsage: ...

    async def prune(self, unused_s: float | None = None) -> Pruned: ...


class Registries(Protocol):
    """See `engine.registry_credentials`."""

    async def create(
        self, actor: Actor, *, host: str, username: str, password: str, prefix: str = ""
    ) -> RegistryCredential: ...

    async def list(self, actor: Actor) -> Sequence[RegistryCredential]: ...

    async def remove(self, actor: Actor, id: str) -> None: ...
