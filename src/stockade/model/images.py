"""Images that were brought here: what they are made of, and what they say of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

__all__ = ["ImageConfig", "ImageLayer", "ImageRecord", "ImageUser"]


@dataclass(frozen=True, kw_only=True)
class ImageUser:
    """A user of an image's own `/etc/passwd`."""

    uid: int
    gid: int
    home: str


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What an image says of itself: see `config` in the OCI image specification."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    user: str = "root"
    """As `ExecSpec.user`: resolved, where the image names one of its own users."""
    exposed_ports: tuple[str, ...] = ()
    """`80/tcp`, `53/udp`, …"""
    labels: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, ImageUser] = field(default_factory=dict)
    """By name."""


@dataclass(frozen=True, kw_only=True)
class ImageLayer:
    """A layer as it lies here; several images may stand on it."""

    diff_id: str
    """`sha256:` and 64 digits: of the unpacked archive."""
    disk: str
    """Its name, as the backend knows it."""
    size_bytes: int
    """Bytes of its files."""


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image: one row of the store."""

    digest: str
    """`sha256:` and 64 digits: of its manifest, or of its configuration where it came without one."""
    account_id: str
    """Whose it is; empty for everybody's."""
    reference: str
    """By which it was asked for, in full: `docker.io/library/alpine:3.20`."""
    config: ImageConfig
    layers: tuple[ImageLayer, ...]
    """The lowest first."""
    size_bytes: int
    """Of all layers."""
    source: str
    """For a human: `registry`, `layout`, `archive`, `debian`."""
    created_at: datetime
    used_at: datetime
    names: tuple[str, ...] = ()
    """Further references and aliases that lead to it."""
    brought_by: str = ""
    """The account (or, of who has none, the key) that it was brought here for; empty for the operator."""
