"""Settings of boxes, of the disks they stand on, and of images from elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stockade.settings import setting

__all__ = ["BoxesConfig", "DisksConfig", "RegistriesConfig"]

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DisksConfig:
    """Disks that outlive sandboxes: of boxes, volumes, and layers of images."""

    kind: Literal["auto", "btrfs", "directory", "none"] = setting(
        "auto",
        help="`btrfs`: a file system of their own, in a file of the data directory where that is not btrfs itself: a "
        "copy takes a moment, and sizes are enforced. `directory`: plain directories: a copy copies, and nothing "
        "enforces sizes, so `disk_size` must be in sandbox.allow_unenforced. `auto`: the best that this host can do.",
    )
    size_bytes: int | None = setting(
        None,
        at_least=256 * _MIB,
        shown="half of what is free",
        help="Most that all of them together may take. The file grows as it is needed; a larger value makes room at "
        "the next start, a smaller one does nothing.",
    )


@dataclass(frozen=True, kw_only=True)
class BoxesConfig:
    """Sandboxes that can be stopped and started again."""

    default_disk_bytes: int = setting(2 * _GIB, at_least=_MIB, help="Disk of a box that asks for none.")
    most_disk_bytes: int = setting(64 * _GIB, at_least=_MIB, help="The largest disk of a box or volume.")
    most_of_account: int = setting(1000, at_least=1, help="Boxes of one account, stopped ones included.")
    most_bytes_of_account: int | None = setting(
        None,
        at_least=_MIB,
        shown="any number",
        help="Bytes that the disks of one account may come to: the sizes of its boxes and volumes, and what its "
        "snapshots hold. Set it where accounts do not trust each other with the room that there is.",
    )
    most_volumes: int = setting(100, at_least=0, help="Volumes of one account.")
    most_snapshots: int = setting(100, at_least=0, help="Snapshots of one box.")
    volume_bytes: int = setting(2 * _GIB, at_least=_MIB, help="Size of a volume that asks for none.")
    sweep_s: float = setting(
        2.0, at_least=0.1, help="Time between two looks for boxes that are to be stopped or removed."
    )
    secrets_ca: Path | None = setting(
        None,
        help="File of certificates (PEM) that hosts may have, beside the system's, to whom secrets are sent.",
    )
    stop_grace_s: float = setting(
        5.0, at_least=0, at_most=300, help="Time that a box's processes have to end when it is stopped."
    )


@dataclass(frozen=True, kw_only=True)
class RegistriesConfig:
    """Where images come from."""

    default: str = setting("docker.io", help="Registry of references that name none.")
    pull: Literal["missing", "never"] = setting(
        "missing", help="Whether a request may bring an image here that is not here yet; `stockade image` always may."
    )
    allowed: tuple[str, ...] = setting(
        (), help='Registries that requests may name: `["docker.io", "ghcr.io"]`; none named: all that are public.'
    )
    permit_private: tuple[str, ...] = setting(
        (), help='Networks in which registries may lie although they are not public: `["10.1.0.0/16"]`.'
    )
    insecure: tuple[str, ...] = setting((), help="Registries (`host:port`) that are spoken to without TLS.")
    most_image_bytes: int = setting(16 * _GIB, at_least=_MIB, help="Largest image, unpacked.")
    most_layers: int = setting(127, at_least=1, at_most=127, help="Layers of one image.")
    most_images: int = setting(100, at_least=1, help="Images that one account may bring here.")
    at_once: int = setting(3, at_least=1, at_most=16, help="Layers of an image that are fetched at once.")
    pull_time_s: float = setting(600.0, at_least=1, help="Time that bringing an image here may take.")
    unused_s: float = setting(
        30 * 86400.0,
        at_least=60,
        help="An image that was pulled and that nobody has used for so long is removed; `30d` is a month.",
    )
