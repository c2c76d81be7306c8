"""What a backend may do beside `backends.sandboxing`: disks that outlive sandboxes, and pauses.

A disk is a file system tree of limited size that a sandbox writes to: its changes over the image, a volume, or a layer
of an image before it is sealed. Nobody outside a sandbox ever reads or writes what is in it. Owners in it are those
that a sandbox sees (0 to 65535), whichever ids a sandbox has outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["DISK_SIZE", "DiskFacts", "DiskInfo", "Disks", "Pausing"]

DISK_SIZE = "disk_size"
"""What `sandbox.allow_unenforced` calls the sizes of disks."""


@dataclass(frozen=True, kw_only=True)
class DiskInfo:
    name: str
    size_bytes: int
    """The most that it may hold; 0 where that is not limited."""
    used_bytes: int
    """What it holds, shared blocks included, as far as the file system counts."""
    is_layer: bool = False


@dataclass(frozen=True, kw_only=True)
class DiskFacts:
    """What disks are on this host."""

    kind: str
    """`btrfs`, `directory`, or `none`."""
    shares_blocks: bool
    """A copy takes no time and no room until something in it is changed."""
    enforces_size: bool
    free_bytes: int
    place: str
    """For a human: where they lie."""
    why: str = ""
    """For a human: why it is not better; empty where it is as good as can be."""


class Disks(Protocol):
    """Names are `[a-z0-9]`, at most 40, chosen by the caller and never used again.

    All methods raise Unsupported where this host has no disks (why is in the message), BackendLost, and Unavailable
    where there is no room.
    """

    async def facts(self) -> DiskFacts: ...

    async def make(self, name: str, *, size_bytes: int) -> None:
        """Make an empty disk. It is durable when this returns, as everything below.

        Raises:
            Conflict: it is there.
            CannotEnforce: nothing limits disks here, and the operator has not agreed to that; so does `copy`.
        """
        ...

    async def copy(self, of: str, name: str, *, size_bytes: int | None = None, sandbox: str | None = None) -> DiskInfo:
        """Make a disk that holds what *of* holds now, all as of one moment.

        Args:
            size_bytes: the most that the new one may hold; `None` for as much as the old one.
            sandbox: the sandbox that writes to *of* now, if one does: it stands still meanwhile.

        Raises:
            NotFound: there is no disk *of*.
            Conflict: there is one called *name*; or some other sandbox writes to *of*.
        """
        ...

    async def replace(self, name: str, by: str) -> None:
        """Have *name* hold what *by* holds, all or nothing; *by* stays as it is. Raises NotFound; Conflict: in use."""
        ...

    async def seal(self, name: str) -> DiskInfo:
        """Turn a disk into a layer: nothing changes it any more, and any number of sandboxes can stand on it.

        Raises:
            NotFound: there is no such disk.
            Conflict: a sandbox writes to it.
        """
        ...

    async def resize(self, name: str, *, size_bytes: int) -> None:
        """Set the most that it may hold. Raises NotFound."""
        ...

    async def delete(self, name: str) -> None:
        """Delete a disk or layer. Idempotent. Raises Conflict: a sandbox uses it."""
        ...

    async def info(self, name: str) -> DiskInfo:
        """Raises NotFound."""
        ...

    async def list(self) -> Sequence[DiskInfo]:
        """All disks and layers."""
        ...


class Pausing(Protocol):
    """Sandboxes that can stand still."""

    async def pause(self, name: str) -> None:
        """Let no process of a sandbox get any processor time; its deadline stands still, too. Idempotent.

        Kill and stop do work on one that is paused; files, execs and the like wait until it goes on.

        Raises:
            NotFound, Conflict: there is no such sandbox, or it has ended.
            Unsupported: this host cannot.
        """
        ...

    async def resume(self, name: str) -> None:
        """Let it go on. Idempotent. Raises NotFound, Conflict."""
        ...
