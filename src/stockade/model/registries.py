"""What accounts log in to registries of images with."""

from dataclasses import dataclass, field
from datetime import datetime

__all__ = ["Login", "RegistryCredential", "SealedCredential"]


@dataclass(frozen=True, kw_only=True)
class Login:
    """Who we are for a registry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class RegistryCredential:
    """What may be told of a credential: all but its password."""

    id: str
    """A UUID."""
    account_id: str
    registry_host: str
    """As in references in full: `docker.io`, `registry.example.org:5000`."""
    repository_prefix: str
    """First components of the repositories that it is for: `team` for `team/app`; empty for all."""
    username: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class SealedCredential(RegistryCredential):
    """As it is stored: one row."""

    secret: bytes = field(repr=False)
    """The password, encrypted."""
